/**
 * The vocabulary of tiled kernels: a workgroup of 256 invocations multiplies a tile of 64 rows by a tile of 64 columns,
 * 16 steps of the inner axis at a time. Both tiles are 16 × 64 values, one vec4 for each invocation to fill:
 *     left[slot(step, g)]   rows 4g … 4g + 3 at that step       right[slot(step, g)]   columns 4g … 4g + 3
 * Invocation (r, c) keeps rows 4r … and columns 4c …: acc[j] holds its four rows of column 4c + j.
 * 8 KiB of workgroup memory in all. Where there are two tiles of rows, they share what is read of the columns: the second one begins at
 * left[256], and is multiplied by \`multiply_both\`; 12 KiB in all. Slots are permuted so that neither filling nor reading meets bank conflicts.
 * Whole vectors are written: WGSL lets a write of one component touch the others.
 * A trap: accumulators declared inside a loop are given their zeros explicitly, because a driver (Mesa 26.1) was seen to
 * carry the last turn's values over.
 */
export const tilesOfRows = (rowTiles: 1 | 2) => `
const TILE = 64u;
const STEP = 16u;
var<workgroup> left: array<vec4f, ${256 * rowTiles}>;
var<workgroup> right: array<vec4f, 256>;

fn slot(step: u32, group: u32) -> u32 { return step * 16u + (group ^ step); }

fn multiply(acc: ptr<function, array<vec4f, 4>>, r: u32, c: u32) {
  for (var step = 0u; step < STEP; step++) {
    let a = left[slot(step, r)];
    let b = right[slot(step, c)];
    (*acc)[0] += a * b.x;
    (*acc)[1] += a * b.y;
    (*acc)[2] += a * b.z;
    (*acc)[3] += a * b.w;
  }
}
${
  rowTiles === 1
    ? ""
    : `
fn multiply_both(first: ptr<function, array<vec4f, 4>>, second: ptr<function, array<vec4f, 4>>, r: u32, c: u32) {
  for (var step = 0u; step < STEP; step++) {
    let a = left[slot(step, r)];
    let more = left[256u + slot(step, r)];
    let b = right[slot(step, c)];
    (*first)[0] += a * b.x;
    (*first)[1] += a * b.y;
    (*first)[2] += a * b.z;
    (*first)[3] += a * b.w;
    (*second)[0] += more * b.x;
    (*second)[1] += more * b.y;
    (*second)[2] += more * b.z;
    (*second)[3] += more * b.w;
  }
}
`
}
fn product(a: vec4f, b: f32) -> vec4f { return select(a * b, vec4f(0), a == vec4f(0)); }

// The same where a 0 on the left stands for a pair that does not exist: not even a NaN comes from it.
fn multiply_existing(acc: ptr<function, array<vec4f, 4>>, r: u32, c: u32) {
  for (var step = 0u; step < STEP; step++) {
    let a = left[slot(step, r)];
    let b = right[slot(step, c)];
    (*acc)[0] += product(a, b.x);
    (*acc)[1] += product(a, b.y);
    (*acc)[2] += product(a, b.z);
    (*acc)[3] += product(a, b.w);
  }
}

// The sum over the workgroup's 16 lanes with the same \`group\`, given to all of them.
fn sum_lanes(value: vec4f, lane: u32, group: u32) -> vec4f {
  workgroupBarrier();
  left[slot(lane, group)] = value;
  workgroupBarrier();
  var total = vec4f(0);
  for (var k = 0u; k < 16u; k++) { total += left[slot(k, group)]; }
  workgroupBarrier();
  return total;
}

fn max_lanes(value: vec4f, lane: u32, group: u32) -> vec4f {
  workgroupBarrier();
  left[slot(lane, group)] = value;
  workgroupBarrier();
  var most = left[slot(0u, group)];
  for (var k = 1u; k < 16u; k++) { most = max(most, left[slot(k, group)]); }
  workgroupBarrier();
  return most;
}
`;

export const TILES = tilesOfRows(1);

/** Of kernels with so many tiles of rows: adds their products to `sums_0` and, where there are two, `sums_1`, of rows c and columns r. */
export const multiplyTiles = (rowTiles: 1 | 2, sums: string) =>
  rowTiles === 1 ? `multiply(&${sums}_0, c, r);` : `multiply_both(&${sums}_0, &${sums}_1, c, r);`;

/** Bytes of workgroup memory that TILES takes. */
export const TILES_BYTES = 8192;

/**
 * Products of gates: sums G of log gates come as pairs (whole, rest) with G = whole + rest and rest in [0, 1), so that a
 * difference of two large sums keeps its digits. A gate of −∞ counts as −128, whose exp is 0 in f32.
 */
export const GATES = `
fn gate_sum_at(i: u32) -> vec2f { return vec2f(load_gates(2u * i), load_gates(2u * i + 1u)); }
fn decay(later: vec2f, earlier: vec2f) -> f32 {
  return exp(min((later.x - earlier.x) + (later.y - earlier.y), 0.0));
}
`;
