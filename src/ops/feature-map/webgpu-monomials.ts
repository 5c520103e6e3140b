import { webgpuDevice } from "../../devices/webgpu/device.js";
import { monomials } from "../../feature-map.js";
import { fromValues, type Tensor } from "../../tensor/tensor.js";

/**
 * The table that kernels read φ from, [D, 2] i32: the indices of a monomial, one byte each (head dims reach 256, degrees
 * 4), and the bits of the square root of its multiplicity.
 */
export function monomialTable(like: Tensor, headDim: number, degree: number): Tensor {
  return webgpuDevice(like).constant(`monomials ${headDim} ${degree}`, () => {
    const { length, indices, multiplicities } = monomials(headDim, degree);
    const words = new Int32Array(2 * length);
    const roots = new Float32Array(words.buffer);
    for (let f = 0; f < length; f++) {
      for (let m = 0; m < degree; m++) words[2 * f] |= indices[f * degree + m] << (8 * m);
      roots[2 * f + 1] = Math.sqrt(multiplicities[f]);
    }
    return fromValues(like.device, words, [length, 2], "i32");
  });
}

/** Reads the table: needs a parameter `features` and a tensor binding `monomials`. */
export const MONOMIALS = `
struct Monomial { indices: u32, root: f32 }

// Past the last feature the root is 0, and so is all that is made from it.
fn monomial(feature: u32) -> Monomial {
  if (feature >= P.features) { return Monomial(0u, 0.0); }
  return Monomial(bitcast<u32>(load_monomials(2u * feature)), bitcast<f32>(load_monomials(2u * feature + 1u)));
}
fn factor(m: Monomial, k: u32) -> u32 { return (m.indices >> (8u * k)) & 255u; }
`;
