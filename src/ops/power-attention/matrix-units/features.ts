import { type Monomials, monomials } from "../../../feature-map.js";

/** Elements of one 16-byte load of halves. */
export const OCTET = 8;
/** Features that one invocation makes of one token at a time: eight octets. */
export const GROUP = 64;

/**
 * φ in the order in which matrix units like it: octets of eight neighbouring elements x[8j … 8j+7], each times a prefix of
 * degree − 1 factors whose indices are sorted and end no later than the octet does. Octets come j first, so that many
 * in a row share their elements. Some features then exist in several orders or beyond the head's end: one of each is
 * the feature, with all its multiplicity, and the others weigh 0.
 */
export interface FeatureOrder {
  /** Features in this order, a multiple of 64 · `groupsPerTile`. */
  readonly features: number;
  /** A word for each octet: j in the last byte, the prefix's indices in the bytes before. */
  readonly octets: Int32Array;
  /** The feature's place in the sorted order, or −1 for one that weighs nothing. */
  readonly sorted: Int32Array;
  /** Multiplicity of each feature: p! / ∏ multiplicities!, or 0. */
  readonly weights: Float32Array;
  /** The place here of each feature of the sorted order. */
  readonly places: Int32Array;
  readonly table: Monomials;
}

const orders = new Map<string, FeatureOrder>();

export function featureOrder(headDim: number, degree: number, groupsPerTile: number): FeatureOrder {
  const key = [headDim, degree, groupsPerTile].join();
  let order = orders.get(key);
  if (!order) {
    order = enumerate(headDim, degree, groupsPerTile);
    orders.set(key, order);
  }
  return order;
}

/** Sorted prefixes of `length` indices below `end`, the last index rising slowest. */
function prefixes(length: number, end: number): number[][] {
  if (length === 0) return [[]];
  const all: number[][] = [];
  for (let last = 0; last < end; last++) {
    for (const rest of prefixes(length - 1, last + 1)) all.push([...rest, last]);
  }
  return all;
}

function enumerate(headDim: number, degree: number, groupsPerTile: number): FeatureOrder {
  const table = monomials(headDim, degree);
  const blocks = Math.ceil(headDim / OCTET);
  const words: number[] = [];
  const prefixOf: (number[] | undefined)[] = [];
  const pad = (multiple: number) => {
    while (words.length % multiple > 0) {
      words.push(0);
      prefixOf.push(undefined);
    }
  };
  // Degree 2 makes eight octets of two loads: its prefixes are all elements of a block, those beyond the end too.
  const known = prefixes(degree - 1, degree === 2 ? blocks * OCTET : headDim);
  for (let j = 0; j < blocks; j++) {
    for (const prefix of known) {
      if (prefix.length > 0 && prefix[prefix.length - 1] >= OCTET * (j + 1)) break;
      words.push(prefix.reduce((word, index, k) => word | (index << (8 * k)), j << 24));
      prefixOf.push(prefix);
    }
    if (degree > 1) pad(GROUP / OCTET);
  }
  pad((GROUP / OCTET) * groupsPerTile);

  const rank = new Map<string, number>();
  for (let m = 0; m < table.length; m++) {
    rank.set(table.indices.subarray(m * degree, (m + 1) * degree).join(), m);
  }
  const features = words.length * OCTET;
  const sorted = new Int32Array(features).fill(-1);
  const weights = new Float32Array(features);
  const places = new Int32Array(table.length);
  for (let f = 0; f < features; f++) {
    const prefix = prefixOf[Math.floor(f / OCTET)];
    const index = OCTET * (words[Math.floor(f / OCTET)] >>> 24) + (f % OCTET);
    const m = prefix && rank.get([...prefix, index].join());
    if (m === undefined) continue;
    sorted[f] = m;
    weights[f] = table.multiplicities[m];
    places[m] = f;
  }
  return { features, octets: Int32Array.from(words), sorted, weights, places, table };
}
