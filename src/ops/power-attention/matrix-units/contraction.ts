import { keptForGradient } from "../../../devices/webgpu/legal-tiles.js";
import { higherFeatures } from "./higher-features.js";
import { ELEMENT } from "./text.js";

/** Another block of x: the gradient of the one before goes to memory. */
const nextBlock = (word: string) => `if (${word} >> 24u != block) {
      flush(lane, block, low, high);
      low = vec4f(0);
      high = vec4f(0);
      block = ${word} >> 24u;
      let eight = load4_x(row * X_OCTETS + block);
      x_low = vec4f(pair_of(eight.x), pair_of(eight.y));
      x_high = vec4f(pair_of(eight.z), pair_of(eight.w));
    }`;

/**
 * The gradient of a token's x from those of its features, an octet at a time, which is x[8j …] times a prefix: the elements
 * 8j … get the octet's gradients, a and b, times the prefix, and each factor of the prefix the rest of it times
 * (a, b)·x[8j …]. The prefix's first index rises fastest: in a run of octets with the others alike, those get what the run
 * gathered, once. Text for a lane that has a token to itself: `octet` for each, `group` before eight of them.
 */
export function contraction(degree: number, octets: number) {
  if (degree === 1) {
    return { functions: "", begin: "", group: "", octet: `${nextBlock("word")}\nlow += a; high += b;`, end: "" };
  }
  const kept = keptForGradient(octets);
  const element = (i: string) => (kept > 0 ? `f32(elements[x0 + (${i})])` : `f32(element(row, ${i}))`);
  const b = "(run & 255u)";
  const c = "((run >> 8u) & 255u)";
  const cubic = degree === 3;
  const endRun = `if (run != 0xffffffffu) {
        ${cubic ? `dx[to + ${b}] += gathered;` : `dx[to + ${b}] += x_c * gathered; dx[to + ${c}] += x_b * gathered;`}
      }`;
  const keep = `for (var n = lane; n < TOKENS * X_OCTETS; n += TOKENS) {
    let source = row0 + min(first + n / X_OCTETS, CHUNK_ROWS - 1u);
    keep_elements(n / X_OCTETS, n % X_OCTETS, load4_x(source * X_OCTETS + n % X_OCTETS));
  }
  let x0 = lane * ELEMENT_STRIDE;`;
  return {
    functions: kept > 0 ? higherFeatures("TOKENS", kept, degree) : ELEMENT,
    begin: `${kept > 0 ? keep : ""}
  let to = lane * DX_STRIDE;
  var run = 0xffffffffu;
  var x_b = 0.0;
  var x_c = 1.0;
  var gathered = 0.0;`,
    // A group's octets are of one block; those that fill it up have gradients of 0.
    group: nextBlock("word_0"),
    octet: `if (word >> 8u != run) {
        ${endRun}
        gathered = 0.0;
        run = word >> 8u;
        x_b = ${element(b)};
        ${cubic ? "" : `x_c = ${element(c)};`}
      }
      let tail = x_b * x_c;
      let rest = dot(a, x_low) + dot(b, x_high);
      let x_a = ${element("word & 255u")};
      dx[to + (word & 255u)] += rest * tail;
      gathered += rest * x_a;
      low += (x_a * tail) * a;
      high += (x_a * tail) * b;`,
    end: endRun,
  };
}
