/**
 * φ_p(x): the monomials of degree p of x, one for each sorted multi-index i₁ ≤ … ≤ i_p in lexicographic order, times
 * √(p! / ∏ multiplicities!), so that φ_p(a)·φ_p(b) = (a·b)^p exactly (the multinomial theorem). This file is the table
 * that kernels read; the differentiable operation on tensors is ops/feature-map.
 */
export interface Monomials {
  readonly headDim: number;
  readonly degree: number;
  /** D, the number of monomials. */
  readonly length: number;
  /** [D, degree], row-major: the sorted indices of each monomial. */
  readonly indices: Int32Array;
  /** [D]: p! / ∏ multiplicities!, the number of orders of a monomial's factors. φ carries its square root. */
  readonly multiplicities: Float64Array;
}

/** Degrees whose expanded features serve as a state; higher ones exist in the quadratic form only. */
export const MAX_STATE_DEGREE = 4;

const tables = new Map<string, Monomials>();

/**
 * D, the length of φ_degree of a vector of `headDim` elements: C(headDim + degree − 1, degree).
 * @throws RangeError where an argument is not a positive integer, or D is beyond 2^53
 */
export function expandedDim(headDim: number, degree: number): number {
  for (const [name, value] of Object.entries({ headDim, degree })) {
    if (!Number.isInteger(value) || value < 1) {
      throw new RangeError(`expandedDim: ${name} must be a positive integer, got ${value}; pass 1 or more`);
    }
  }
  let n = 1;
  for (let k = 1; k <= degree; k++) {
    n = Math.round((n * (headDim - 1 + k)) / k);
    if (n > Number.MAX_SAFE_INTEGER / (headDim + degree)) {
      throw new RangeError(
        `expandedDim: head dim ${headDim} at degree ${degree} has more monomials than a number can count; lower either`,
      );
    }
  }
  return n;
}

/** The table of φ_degree for vectors of `headDim` elements, made once. */
export function monomials(headDim: number, degree: number): Monomials {
  const key = `${headDim},${degree}`;
  let table = tables.get(key);
  if (!table) {
    table = enumerate(headDim, degree);
    tables.set(key, table);
  }
  return table;
}

function enumerate(headDim: number, degree: number): Monomials {
  const length = expandedDim(headDim, degree);
  const indices = new Int32Array(length * degree);
  const multiplicities = new Float64Array(length);
  const current = new Int32Array(degree);
  for (let m = 0; m < length; m++) {
    indices.set(current, m * degree);
    multiplicities[m] = orders(current);
    // The next sorted index: raise the last position that can be raised, and start the rest from there.
    let at = degree - 1;
    while (at >= 0 && current[at] === headDim - 1) at--;
    if (at >= 0) current.fill(current[at] + 1, at);
  }
  return { headDim, degree, length, indices, multiplicities };
}

/** p! / ∏ multiplicities! of a sorted index, as a product of binomials so that no factorial overflows. */
function orders(sorted: Int32Array): number {
  let n = 1;
  let run = 0;
  for (let k = 0; k < sorted.length; k++) {
    run = k > 0 && sorted[k] === sorted[k - 1] ? run + 1 : 1;
    n = (n * (k + 1)) / run;
  }
  return n;
}
