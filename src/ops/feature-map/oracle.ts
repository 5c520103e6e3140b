import { fromOracleValues, valuesOf } from "../../devices/oracle.js";
import { type Monomials, monomials } from "../../feature-map.js";
import type { FeatureMapBackward, FeatureMapForward } from "./contract.js";

/** phi = φ(x[at …]). */
export function expand(table: Monomials, x: Float64Array, at: number, phi: Float64Array): void {
  const { degree, indices, multiplicities } = table;
  for (let m = 0; m < table.length; m++) {
    let product = Math.sqrt(multiplicities[m]);
    for (let r = 0; r < degree; r++) product *= x[at + indices[m * degree + r]];
    phi[m] = product;
  }
}

/** dX[at …] += (∂φ/∂x)ᵀ dPhi: by the product rule, each factor is left out once. */
export function expandGradient(
  table: Monomials,
  x: Float64Array,
  at: number,
  dPhi: Float64Array,
  dX: Float64Array,
): void {
  const { degree, indices, multiplicities } = table;
  for (let m = 0; m < table.length; m++) {
    for (let left = 0; left < degree; left++) {
      let product = dPhi[m] * Math.sqrt(multiplicities[m]);
      for (let r = 0; r < degree; r++) if (r !== left) product *= x[at + indices[m * degree + r]];
      dX[at + indices[m * degree + left]] += product;
    }
  }
}

export const featureMapOracle: FeatureMapForward = (plan, x) => {
  const { rows, headDim, degree, expandedDim } = plan;
  const table = monomials(headDim, degree);
  const values = valuesOf(x);
  const out = new Float64Array(rows * expandedDim);
  for (let row = 0; row < rows; row++) {
    expand(table, values, row * headDim, out.subarray(row * expandedDim, (row + 1) * expandedDim));
  }
  return fromOracleValues({ device: x.device, dtype: "f32" }, [rows, expandedDim], out);
};

export const featureMapOracleBackward: FeatureMapBackward = (plan, x, upstream) => {
  const { rows, headDim, degree, expandedDim } = plan;
  const table = monomials(headDim, degree);
  const values = valuesOf(x);
  const dOut = valuesOf(upstream);
  const dX = new Float64Array(rows * headDim);
  for (let row = 0; row < rows; row++) {
    expandGradient(table, values, row * headDim, dOut.subarray(row * expandedDim, (row + 1) * expandedDim), dX);
  }
  return fromOracleValues(x, [rows, headDim], dX);
};
