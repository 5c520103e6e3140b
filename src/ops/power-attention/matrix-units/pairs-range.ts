import { each } from "../../../devices/webgpu/each.js";
import { type Column, zeroSums } from "../../../devices/webgpu/matrix-text.js";
import type { PowerTiles } from "./tiles.js";

/*
 * Rows whose weights f16 would lose. A weight is counted relative to the strongest key there is, which a query may be at
 * right angles to: what is left, well defined once it is divided by its sum, may then be far below f16. Such rows are told by
 * their sums, which are almost never small otherwise. A workgroup that has one looks at its tiles again for how far each
 * row's largest weight falls short, and a third time with all of a row's weights lifted by that power of two.
 */

/**
 * Sums below this may have lost digits: of n weights each is off by up to 2^-25, their sum by some √n · 2^-27, which is 1e-3 of this
 * for 2^16 of them. (At p = 4 a higher one, 2^-8, had most workgroups look three times.)
 */
const LEAST = 2 ** -11;

/** How far a row is lifted at most, so that powers of two stay within f32: beyond it bf16 would lose it too. */
const MOST_LIFT = 112;

/** A gap that no weight leaves. */
const NEVER = 1e30;

const MEASURE = 1;

/** Of a kernel that calls `looks` with these lifts. Needs ROWS. */
export const declareLifts = (lifts: readonly string[]) => `
${lifts.map((name) => `var<workgroup> ${name}: array<atomic<u32>, ROWS>; // bits of f32: the row's lift, or while it is measured its gap`).join("\n")}
var<workgroup> faint: atomic<u32>;
var<workgroup> again: u32;
// How far |x|^degree is below 1, in powers of two.
fn fall(x: f32, degree: u32) -> f32 {
  if (degree == 0u) { return 0.0; }
  return select(-f32(degree) * log2(abs(x)), ${NEVER.toExponential()}, x == 0.0);
}
`;

const liftOf = (name: string, row: string) => `bitcast<f32>(atomicLoad(&${name}[${row}]))`;

/** Before a walk: \`variable\` is a row's lift in it. */
export const letLift = (variable: string, name: string) =>
  `var ${variable} = 0.0;
    if (look == 2u) { ${variable} = ${liftOf(name, "row")}; }`;

/** Where lifts are measured: notes how far eight values fall short; `gap(k)` is how far the k-th does where `counts(k)`. */
export const measure = (name: string, counts: (k: number) => string, gap: (k: number) => string) => `{
  var gap = ${NEVER.toExponential()};
  ${each(8, (k) => `if (${counts(k)}) { gap = min(gap, ${gap(k)}); }`)}
  atomicMin(&${name}[row], bitcast<u32>(max(gap, 0.0)));
}`;

/**
 * Instead of making weights, in a look that measures: then those of the tile before are summed, and nothing is stored. A
 * branch around the sums would be one in every look.
 */
export const whileMeasuring = (text: string) => `if (look == ${MEASURE}u) { ${text} continue; }`;

export interface Result {
  /** Of its sums, name_i_j. */
  name: string;
  columns: Column[];
  lifts: string;
  /** Stores them. */
  store: string;
  binding: string;
  /** Elements of a row. */
  width: string;
  /** A tile in rows of SCORE_STRIDE times four f32 that is free when all is summed. */
  scrap: string;
  /** The column whose size tells: the sum of weights; without one, the largest of the first matrix. */
  sumColumn?: number;
}

/**
 * `walk` sums `results` over all tiles, up to three times. `counts`: whether a row, `inChunk`, is one whose sums are ever
 * read and not all 0. Rows of the workgroup begin at row0 + first.
 */
export const looks = (walk: string, results: Result[], own: number, tiles: PowerTiles, counts: string) => `
  for (var n = lane; n < ROWS; n += LANES) { ${results.map(({ lifts }) => `atomicStore(&${lifts}[n], 0u);`).join(" ")} }
  for (var look = 0u; look < 3u; look++) {
    ${results.map(({ name, columns }) => zeroSums(own, columns, name)).join("\n")}
    ${walk}
    if (look == 0u) {
      workgroupBarrier();
      ${results.map((result) => digest(result, own, tiles)).join("\n")}
      workgroupBarrier();
      for (var n = lane; n < ROWS; n += LANES) {
        let inChunk = first + n;
        if (inChunk < CHUNK_ROWS && (${counts})) {
          ${results.map((result) => `{ ${size(result)} if (size < ${LEAST}) { atomicStore(&faint, 1u); } }`).join("\n")}
        }
        ${results.map(({ lifts }) => `atomicStore(&${lifts}[n], bitcast<u32>(f32(${NEVER.toExponential()})));`).join(" ")}
      }
    } else if (look == ${MEASURE}u) {
      workgroupBarrier();
      for (var n = lane; n < ROWS; n += LANES) {
        ${results
          .map(
            ({ lifts }) => `{
          let gap = ${liftOf(lifts, "n")};
          let lift = select(min(floor(gap), ${MOST_LIFT}.0), 0.0, gap > 1e6);
          atomicStore(&${lifts}[n], bitcast<u32>(lift));
          if (lift > 0.0) { atomicStore(&faint, 1u); }
        }`,
          )
          .join("\n")}
      }
    }
    if (look != ${MEASURE}u) { ${results.map(({ store }) => store).join("\n")} }
    if (look == 2u) { break; }
    workgroupBarrier();
    if (lane == 0u) { again = atomicExchange(&faint, 0u); }
    if (workgroupUniformLoad(&again) == 0u) { return; }
  }
  // The same lanes' rows, lifted: back to where they belong.
  storageBarrier();
  ${results
    .map(
      ({ binding, width, lifts }) => `for (var n = lane; n < ROWS * ${width}; n += LANES) {
    let inChunk = first + n / ${width};
    if (inChunk < CHUNK_ROWS) {
      let at = (row0 + inChunk) * ${width} + n % ${width};
      store_${binding}(at, load_${binding}(at) * exp2(-${liftOf(lifts, `n / ${width}`)}));
    }
  }`,
    )
    .join("\n")}`;

/** The matrix whose columns tell. */
const telling = ({ columns, sumColumn = 0 }: Result) => columns.findLastIndex(({ octet }) => 8 * octet <= sumColumn);

const digest = (result: Result, own: number, { M }: PowerTiles) =>
  each(
    own,
    (i) =>
      `subgroupMatrixStore<row_major>(&${result.scrap}, (ownRow + ${i * M}u) * SCORE_STRIDE, ${result.name}_${i}_${telling(result)}, SCORE_STRIDE);`,
  );

function size(result: Result): string {
  const { columns, scrap, sumColumn } = result;
  const { octet, width } = columns[telling(result)];
  if (sumColumn !== undefined) {
    const at = sumColumn - 8 * octet;
    return `let size = abs(bitcast<f32>(${scrap}[n * SCORE_STRIDE + ${at >> 2}u].${"xyzw"[at % 4]}));`;
  }
  return `var most = vec4f(0);
      for (var c = 0u; c < ${width / 4}u; c++) { most = max(most, abs(bitcast<vec4f>(${scrap}[n * SCORE_STRIDE + c]))); }
      let size = max(max(most.x, most.y), max(most.z, most.w));`;
}
