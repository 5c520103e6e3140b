import { READ_OCTETS } from "../../../devices/webgpu/legal-tiles.js";
import { type Monomials, monomials } from "../../../feature-map.js";

/** Elements of one 16-byte load of halves. */
export const OCTET = 8;
/** Features that one invocation makes of one token at a time: eight octets. */
export const GROUP = 64;

/**
 * φ in the order in which matrix units like it. At degree 2 see `squareGroups`; else octets of eight neighbouring elements x[8j … 8j+7], each times a prefix of
 * degree − 1 factors whose indices are sorted and end no later than the octet does. Octets come j first, so that many
 * in a row share their elements. Some features then exist in several orders or beyond the head's end: one of each is
 * the feature, with all its multiplicity, and the others weigh 0.
 */
export interface FeatureOrder {
  /** Features in this order: a multiple of 64 · `groupsPerTile`, at degree 2 of 32. */
  readonly features: number;
  /** A word for each octet, and 0 up to `groupsPerTile` whole groups: j in the last byte, the prefix's indices in the bytes before. */
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

/**
 * Degree 2 takes each product of two elements once, by blocks of 8: groups of 64 from two blocks that differ, low before high,
 * octet l of x[low][l] times all of high; then of two neighbours, 2m and 2m + 1, the triangles of products within either,
 * octet r of x[2m][r] x[2m][k] for k up to r and of x[2m + 1][r] x[2m + 1][k] beyond (a last block without a neighbour has
 * itself for one); and at the ends, since a square has but one diagonal, octets of squares of the elements of blocks 1, 3, ….
 */
export interface SquareGroups {
  blocks: number;
  /** Groups of two blocks, that of low and high at high (high − 1) / 2 + low; of triangles; and octets of squares. */
  pairs: number;
  triangles: number;
  ends: number;
}

/** What a group's word tells, in its second byte, beside the blocks. */
export const SQUARE_KINDS = { pair: 0, triangles: 1, ends: 2 } as const;

export function squareGroups(headDim: number): SquareGroups {
  const blocks = Math.ceil(headDim / OCTET);
  return {
    blocks,
    pairs: (blocks * (blocks - 1)) / 2,
    triangles: Math.ceil(blocks / 2),
    ends: Math.floor(blocks / 2),
  };
}

/** The elements of each feature, sorted, or undefined where it repeats another; and the words of octets. */
function enumerateSquares(headDim: number): { elements: (number[] | undefined)[]; words: number[] } {
  const { blocks, triangles, ends } = squareGroups(headDim);
  const elements: (number[] | undefined)[] = [];
  const words: number[] = [];
  const eight = [0, 1, 2, 3, 4, 5, 6, 7];
  const octet = (kind: number, low: number, high: number, of: (k: number) => number[] | undefined) => {
    words.push((OCTET * low) | (kind << 16) | (high << 24));
    for (const k of eight) elements.push(of(k));
  };
  const within = (block: number, r: number, k: number) => [
    OCTET * block + Math.min(r, k),
    OCTET * block + Math.max(r, k),
  ];
  for (let high = 0; high < blocks; high++) {
    for (let low = 0; low < high; low++) {
      for (const l of eight) octet(SQUARE_KINDS.pair, low, high, (k) => [OCTET * low + l, OCTET * high + k]);
    }
  }
  for (let m = 0; m < triangles; m++) {
    const low = 2 * m;
    const high = Math.min(low + 1, blocks - 1);
    const beyond = (r: number, k: number) => (high > low ? within(high, r, k) : undefined);
    for (const r of eight) {
      octet(SQUARE_KINDS.triangles, low, high, (k) => (k <= r ? within(low, r, k) : beyond(r, k)));
    }
  }
  for (let m = 0; m < ends; m++) {
    const block = 2 * m + 1;
    octet(SQUARE_KINDS.ends, block, block, (k) => [OCTET * block + k, OCTET * block + k]);
  }
  return { elements, words };
}

/** The same at the other degrees. */
function enumerateOctets(headDim: number, degree: number): { elements: (number[] | undefined)[]; words: number[] } {
  const blocks = Math.ceil(headDim / OCTET);
  const elements: (number[] | undefined)[] = [];
  const words: number[] = [];
  const known = prefixes(degree - 1, headDim);
  for (let j = 0; j < blocks; j++) {
    for (const prefix of known) {
      if (prefix.length > 0 && prefix[prefix.length - 1] >= OCTET * (j + 1)) break;
      words.push(prefix.reduce((word, index, k) => word | (index << (8 * k)), j << 24));
      for (let k = 0; k < OCTET; k++) elements.push([...prefix, OCTET * j + k]);
    }
    // Octets of a group share the elements that come last.
    while (degree > 1 && words.length % (GROUP / OCTET) > 0) words.push(0);
    elements.length = OCTET * words.length;
  }
  return { elements, words };
}

function enumerate(headDim: number, degree: number, groupsPerTile: number): FeatureOrder {
  const table = monomials(headDim, degree);
  const { elements, words } = degree === 2 ? enumerateSquares(headDim) : enumerateOctets(headDim, degree);
  const multiple = degree === 2 ? OCTET * READ_OCTETS : GROUP * groupsPerTile;
  const features = Math.ceil((OCTET * words.length) / multiple) * multiple;
  const ofTile = (GROUP / OCTET) * groupsPerTile;
  const octets = new Int32Array(Math.ceil(words.length / ofTile) * ofTile);
  octets.set(words);

  const rank = new Map<string, number>();
  for (let m = 0; m < table.length; m++) {
    rank.set(table.indices.subarray(m * degree, (m + 1) * degree).join(), m);
  }
  const sorted = new Int32Array(features).fill(-1);
  const weights = new Float32Array(features);
  const places = new Int32Array(table.length);
  for (let f = 0; f < features; f++) {
    const m = rank.get(elements[f]?.join() ?? "");
    if (m === undefined) continue;
    sorted[f] = m;
    weights[f] = table.multiplicities[m];
    places[m] = f;
  }
  return { features, octets, sorted, weights, places, table };
}
