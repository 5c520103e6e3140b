import { each } from "../../../devices/webgpu/each.js";
import { elementStride } from "../../../devices/webgpu/legal-tiles.js";
import { turnsOf } from "../../../devices/webgpu/matrix-text.js";
import { OCTET } from "./features.js";
import { HALVES } from "./text.js";

/*
 * Features of degrees 3 and 4: an octet of x times a prefix of degree − 1 elements. Which elements a prefix has is data, and
 * a row in registers cannot be indexed by data, so a workgroup keeps its tokens' rows in its memory as single halves.
 * Lanes of a subgroup have a token each and the same prefix: rows are an odd number of words long, so they read from 32 banks.
 */

/** Rows of `tokens` tokens, of x's octets. */
export const higherFeatures = (tokens: string, octets: number, degree: number) => `
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
  ${each(degree - 2, (m) => `product *= elements[at + ((word >> ${8 * m + 8}u) & 255u)];`)}
  return product;
}
`;

/** Rows that come into registers while those before are in use, as tileAhead's do, and into `elements` then. */
function elementsAhead(
  { lines, octets, lanes }: { lines: number; octets: number; lanes: number },
  source: (n: string) => string,
) {
  const { count, at: n, within } = turnsOf(lines * octets, lanes);
  return {
    declare: each(count, (k) => `var elements_next_${k} = vec4u(0);`),
    fetch: each(count, (k) => within(k, `elements_next_${k} = ${source(n(k))};`)),
    keep: each(count, (k) =>
      within(k, `keep_elements((${n(k)}) / ${octets}u, (${n(k)}) % ${octets}u, elements_next_${k});`),
    ),
  };
}

/** The words of a group's eight octets in registers, word_0 … word_7 with `suffix`; octets are bound as vectors. */
export const groupWords = (group: string, suffix = "") => `
let words_low${suffix} = load4_octets(2u * (${group}));
let words_high${suffix} = load4_octets(2u * (${group}) + 1u);
${each(8, (k) => `let word_${k}${suffix} = words_${k < 4 ? "low" : "high"}${suffix}.${"xyzw"[k % 4]};`)}`;

/** Octets of features to phi[at] …, of the words word_0 … with `suffix`; all of a group's share `octet` of x. */
const makeHigher = (token: string, octet: string, weight: string, at: string, suffix = "", count = 8) =>
  each(count, (k) => `phi[${at} + ${k}u] = times(${octet}, prefix(${token}, word_${k}${suffix}, ${weight}));`);

/**
 * What accumulate makes features with: rows of x come ahead too, and into workgroup memory while features of those before
 * are multiplied. `size`: tokens times groups of a step. A lane keeps to the groups that it begins with.
 */
export function accumulateHigher(degree: number, octets: number, size: number, steps: number, lanes: number) {
  if (degree < 3) return undefined;
  const rows = elementsAhead({ lines: steps, octets, lanes }, (n) => `load4_x((row0 + base) * X_OCTETS + ${n})`);
  const { count: turns, at, within } = turnsOf(size, lanes);
  const token = (k: number) => `((${at(k)}) % STEPS)`;
  const group = (k: number) => `min((${at(k)}) / STEPS, GROUPS - 1)`;
  return {
    functions: `${HALVES}${higherFeatures("STEPS", octets, degree)}`,
    declare: `${rows.declare}
  ${each(
    turns,
    (k) => `${groupWords(`min(id.x * GROUPS + ${group(k)}, P.features / 64u - 1u)`, `_${k}`)}
  var octet_${k} = vec4u(0); var weight_${k} = 0.0;`,
  )}`,
    fetch: `${rows.fetch}
    ${each(
      turns,
      (k) => `{ let row = row0 + base + ${token(k)};
      octet_${k} = load4_x(row * X_OCTETS + (word_0_${k} >> 24u));
      weight_${k} = load_tokens(4u * row + 3u); }`,
    )}`,
    keep: rows.keep,
    make: each(turns, (k) =>
      within(
        k,
        `{ let at = ${token(k)} * PHI_STRIDE + 8u * ((${at(k)}) / STEPS);
      let weight = f16(exp2(FEATURE_EXPONENT) * weight_${k});
      ${makeHigher(token(k), `octet_${k}`, "weight", "at", `_${k}`)} }`,
      ),
    ),
  };
}

/**
 * What read makes features with: a workgroup keeps its tokens' rows in its memory all along, a lane in registers the octet that
 * many groups share. Half a group at a time, to phi[phiAt_k] … for the lane's k-th token.
 */
export function readHigher(degree: number, octets: number, tokens: number, lanes: number, atOnce: 4) {
  if (degree < 3) return undefined;
  const { count: turns, at, within } = turnsOf(tokens, lanes);
  const n = (k: number) => `(${at(k)})`;
  const row = (token: string) => `(row0 + min(token0 + ${token}, CHUNK_ROWS - 1u))`;
  return {
    functions: `${HALVES}${higherFeatures("TOKENS", octets, degree)}`,
    begin: `for (var n = lane; n < TOKENS * X_OCTETS; n += LANES) {
    keep_elements(n / X_OCTETS, n % X_OCTETS, load4_x(${row("n / X_OCTETS")} * X_OCTETS + n % X_OCTETS));
  }
  var block = 0xffffffffu;
  ${each(turns, (k) => `var octet_${k} = vec4u(0);`)}`,
    fetch: "",
    make: (half: number) => `let words = load4_octets(2u * group + ${half}u);
    ${each(atOnce, (k) => `let word_${k} = words.${"xyzw"[k]};`)}
    if (word_0 >> 24u != block) {
      block = word_0 >> 24u;
      ${each(turns, (k) => `octet_${k} = load4_x(${row(n(k))} * X_OCTETS + block);`)}
    }
    ${each(turns, (k) =>
      within(k, makeHigher(n(k), `octet_${k}`, "f16(exp2(FEATURE_EXPONENT))", `phiAt_${k}`, "", atOnce)),
    )}`,
  };
}
