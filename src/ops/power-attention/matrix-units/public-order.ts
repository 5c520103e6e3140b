import { webgpuDevice } from "../../../devices/webgpu/device.js";
import { each } from "../../../devices/webgpu/each.js";
import { fromValues, type Tensor } from "../../../tensor/tensor.js";
import type { FeatureOrder } from "./features.js";

/** [features, 2] i32: place in the sorted order or −1, and the bits of the multiplicity. */
export function orderTable(like: Tensor, order: FeatureOrder): Tensor {
  const { features, table } = order;
  return webgpuDevice(like).constant(`feature order ${table.headDim} ${table.degree} ${features}`, () => {
    const words = new Int32Array(2 * features);
    const weights = new Float32Array(words.buffer);
    for (let f = 0; f < features; f++) {
      words[2 * f] = order.sorted[f];
      weights[2 * f + 1] = order.weights[f];
    }
    return fromValues(like.device, words, [features, 2], "i32");
  });
}

/*
 * States as users know them, s rows of P.valueDim and beside each row one of z, have the root of the multiplicity in each
 * feature. Here they come as an octet of columns, of which SUM_AT holds z, bare of multiplicities.
 */

/** `load_public(row, octet, multiplicity)` of bindings s and z. Needs SUM_AT and P.valueDim. */
export const loadPublic = (s: string, z: string) => `
struct Octet { low: vec4f, high: vec4f }
fn load_public(row: u32, octet: u32, multiplicity: f32) -> Octet {
  let root = inverseSqrt(multiplicity);
  var value = Octet(vec4f(0), vec4f(0));
  if (octet == SUM_AT) { value.low.x = load_${z}(row) * root; }
  ${each(
    4,
    (j) => `let column_${j} = 8u * octet + ${j}u;
  if (column_${j} < P.valueDim) { value.low[${j}] = load_${s}(row * P.valueDim + column_${j}) * root; }
  if (column_${j} + 4u < P.valueDim) { value.high[${j}] = load_${s}(row * P.valueDim + column_${j} + 4u) * root; }`,
  )}
  return value;
}
`;

/** `store_public(row, octet, multiplicity, low, high)` to bindings s and z. Needs SUM_AT and P.valueDim. */
export const storePublic = (s: string, z: string) => `
fn store_public(row: u32, octet: u32, multiplicity: f32, low: vec4f, high: vec4f) {
  let root = sqrt(multiplicity);
  if (octet == SUM_AT) { store_${z}(row, root * low.x); }
  ${each(
    4,
    (j) => `let column_${j} = 8u * octet + ${j}u;
  if (column_${j} < P.valueDim) { store_${s}(row * P.valueDim + column_${j}, root * low[${j}]); }
  if (column_${j} + 4u < P.valueDim) { store_${s}(row * P.valueDim + column_${j} + 4u, root * high[${j}]); }`,
  )}
}
`;
