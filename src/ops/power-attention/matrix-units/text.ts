/** Two halves of a word and eight of a vector. Needs f16. */
export const HALVES = `
fn halves(word: u32) -> vec2<f16> { return bitcast<vec2<f16>>(word); }
fn two_halves(a: f32, b: f32) -> u32 { return bitcast<u32>(vec2<f16>(f16(a), f16(b))); }
fn times(vector: vec4u, factor: f16) -> vec4u {
  return vec4u(
    bitcast<u32>(halves(vector.x) * factor), bitcast<u32>(halves(vector.y) * factor),
    bitcast<u32>(halves(vector.z) * factor), bitcast<u32>(halves(vector.w) * factor));
}
`;

/** An element of a packed row of x. Needs HALVES, a binding x (f16, vectors) and X_OCTETS. */
export const ELEMENT = `
fn element(row: u32, i: u32) -> f16 {
  let pair = halves(load4_x(row * X_OCTETS + i / 8u)[(i / 2u) & 3u]);
  return select(pair.x, pair.y, (i & 1u) == 1u);
}
`;

/** The power of two that values are divided by as they are packed: it brings a largest magnitude into [½, 1). */
export const EXPONENTS = `
fn exponent_of(magnitude: f32) -> i32 {
  let bits = bitcast<u32>(magnitude) & 0x7fffffffu;
  if (bits == 0u) { return 0; }
  return clamp(i32(bits >> 23u), 1, 253) - 126;
}
fn power_of(magnitude: f32) -> f32 { return bitcast<f32>(u32(exponent_of(magnitude) + 127) << 23u); }
// The exponent of a power of two.
fn log_of(power: f32) -> f32 { return f32(exponent_of(power) - 1); }
`;

/** What main begins with in kernels whose workgroups take rows of a chunk with its state: the chunk's line, and that of its state. */
export const LINE_AND_STATE = `let line = id.y + id.z * groups.y; // counts b, head, chunk
  if (line >= P.lines) { return; }
  let chunk = line % P.chunks;
  if (chunk < P.firstChunk || chunk >= P.endChunk) { return; }
  let state = (line / P.chunks / P.members) * P.chunks + chunk;`;

/** What that needs, and where the state's features end. */
export const LINE_PARAMETERS = {
  lines: "u32",
  chunks: "u32",
  members: "u32",
  features: "u32",
  firstChunk: "u32",
  endChunk: "u32",
} as const;

/** `seen(place)`: how many of an octet's keys a row sees, by the row's place among them: beyond 2^31 where it is before them. */
export const SEEN = `
fn seen(place: u32) -> u32 { return select(0u, min(place + 1u, 8u), place < 0x80000000u); }
`;

/**
 * `put_x(to, left, a, b)`: an octet of a row of binding x from place `to` on, of which `left` values are within the row. Rows of a
 * `wide` binding are whole octets; where rows have `even` lengths neighbours are stored together.
 */
export const putOctet = (name: string, wide: boolean, even: boolean) => {
  const values = ["a.x", "a.y", "a.z", "a.w", "b.x", "b.y", "b.z", "b.w"];
  const stores = even
    ? [0, 2, 4, 6].map((k) => `if (${k}u < left) { store2_${name}(to + ${k}u, ${values[k]}, ${values[k + 1]}); }`)
    : values.map((value, k) => `if (${k}u < left) { store_${name}(to + ${k}u, ${value}); }`);
  return `
fn put_${name}(to: u32, left: u32, a: vec4f, b: vec4f) {
  ${wide ? `store8_${name}(to, a, b);` : stores.join("\n  ")}
}
`;
};
