import { each } from "../../../devices/webgpu/each.js";
import { elementStride } from "../../../devices/webgpu/legal-tiles.js";
import { OCTET } from "./features.js";

/*
 * Features of degrees 3 and 4: an octet of x times a prefix of degree − 1 elements. Which elements a prefix has is data, and
 * a row in registers cannot be indexed by data, so a workgroup keeps its tokens' rows in its memory as single halves.
 * Lanes of a subgroup have a token each and the same prefix: rows are an odd number of words long, so they read from 32 banks.
 */

/** Rows of `tokens` tokens. Needs X_OCTETS and DEGREE. */
export const higherFeatures = (tokens: string, octets: number) => `
const ELEMENT_STRIDE = ${elementStride(octets)};
var<workgroup> elements: array<f16, ${tokens} * ELEMENT_STRIDE>;
fn keep_elements(token: u32, octet: u32, vector: vec4u) {
  let at = token * ELEMENT_STRIDE + ${OCTET}u * octet;
  ${each(4, (k) => `let pair_${k} = bitcast<vec2<f16>>(vector.${"xyzw"[k]}); elements[at + ${2 * k}u] = pair_${k}.x; elements[at + ${2 * k + 1}u] = pair_${k}.y;`)}
}
// The prefix of a word of octets, times what comes first: products of small elements alone would leave f16.
fn prefix(token: u32, word: u32, weight: f16) -> f16 {
  let at = token * ELEMENT_STRIDE;
  var product = weight * elements[at + (word & 255u)];
  for (var m = 1u; m + 1u < DEGREE; m++) { product *= elements[at + ((word >> (8u * m)) & 255u)]; }
  return product;
}
`;

/** Rows that come into registers while those before are in use, as tileAhead's do, and into `elements` then. */
export function elementsAhead(
  { lines, octets, lanes }: { lines: number; octets: number; lanes: number },
  source: (n: string) => string,
) {
  const size = lines * octets;
  const count = Math.ceil(size / lanes);
  const n = (k: number) => `(lane + ${k * lanes}u)`;
  const within = (k: number, text: string) => ((k + 1) * lanes <= size ? text : `if (${n(k)} < ${size}u) { ${text} }`);
  return {
    declare: each(count, (k) => `var elements_next_${k} = vec4u(0);`),
    fetch: each(count, (k) => within(k, `elements_next_${k} = ${source(n(k))};`)),
    keep: each(count, (k) =>
      within(k, `keep_elements(${n(k)} / ${octets}u, ${n(k)} % ${octets}u, elements_next_${k});`),
    ),
  };
}

/** The words of a group's eight octets in registers, word_0 … word_7 with `suffix`; octets are bound as vectors. */
export const groupWords = (group: string, suffix = "") => `
let words_low${suffix} = load4_octets(2u * (${group}));
let words_high${suffix} = load4_octets(2u * (${group}) + 1u);
${each(8, (k) => `let word_${k}${suffix} = words_${k < 4 ? "low" : "high"}${suffix}.${"xyzw"[k % 4]};`)}`;

/** Eight octets of features to phi[at] …; all of a group's share `octet` of x. */
export const makeHigher = (token: string, octet: string, weight: string, at: string, suffix = "") =>
  each(8, (k) => `phi[${at} + ${k}u] = times(${octet}, prefix(${token}, word_${k}${suffix}, ${weight}));`);
