import { Arguments } from "../../../devices/wasm/kernel.js";
import { Layout } from "../../../devices/wasm/layout.js";
import { GROUP, LINE } from "../../../devices/wasm/tiles.js";
import { BLOCK_ROW } from "./intra.js";
import type { Parts } from "./parts.js";
import { type ChunkBuffers, type ChunkSizes, chunkBuffers, SEQUENCE_FIELDS } from "./sequence.js";

/** Groups of queries, and of keys, whose weights are in memory at once: 64 × 64. */
export const BLOCK = 4;

interface BackwardBuffers extends ChunkBuffers {
  /** dŜ and dẑ, in the state's working form. */
  ds: number;
  dz: number;
  /** dq of each chunk, transposed, from the first pass. */
  dqT: number;
  qFactors: number;
  qPanels: number;
  kPanels: number;
  vT: number;
  /** v times toEnd. */
  vDecayed: number;
  dyT: number;
  dyPanels: number;
  dSum: number;
  outRows: number;
  stateRows: number;
  dkT: number;
  dk: number;
  dv: number;
  dq: number;
  scores: number;
  dWeights: number;
  /** Terms of the gates' gradient, a number a token: see `writeGateGradient`. */
  qInter: number;
  qTotal: number;
  kInter: number;
  kTotal: number;
}

export function backwardBuffers(
  dim: Parts["dim"],
  sizes: ChunkSizes & { chunks: number; states: boolean },
): { buffers: BackwardBuffers; bytes: number } {
  const layout = new Layout();
  const shared = chunkBuffers(dim, sizes, layout);
  const tokens = sizes.groups * GROUP;
  const queries = sizes.group * tokens;
  const chunkDq = queries * 4 * dim.d;
  const features = Math.ceil(sizes.features / GROUP) * GROUP;
  const buffers = {
    ...shared,
    // One array for each group of queries of a block.
    decay: layout.take(BLOCK * 4 * tokens),
    diagonal: layout.take(BLOCK * GROUP * LINE),
    mask: layout.take(BLOCK * GROUP * LINE),
    ds: layout.take(features * 4 * dim.e),
    dz: layout.take(features * 16),
    dqT: layout.take(sizes.states ? sizes.chunks * chunkDq : chunkDq),
    qFactors: layout.take(4 * queries),
    qPanels: layout.take(chunkDq),
    kPanels: layout.take(tokens * 4 * dim.d),
    vT: layout.take(tokens * 4 * dim.e),
    vDecayed: layout.take(tokens * 4 * dim.e),
    dyT: layout.take(queries * 4 * dim.e),
    dyPanels: layout.take(queries * 4 * dim.e),
    dSum: layout.take(4 * queries),
    outRows: layout.take(GROUP * 4 * dim.e),
    stateRows: layout.take(dim.block * 4 * dim.e),
    dkT: layout.take(tokens * 4 * dim.d),
    dk: layout.take(tokens * 4 * dim.d),
    dv: layout.take(tokens * 4 * dim.e),
    dq: layout.take(chunkDq),
    scores: layout.take(BLOCK * GROUP * BLOCK_ROW),
    dWeights: layout.take(BLOCK * GROUP * BLOCK_ROW),
    qInter: layout.take(sizes.states ? sizes.chunks * 4 * tokens : 4 * tokens),
    qTotal: layout.take(4 * tokens),
    kInter: layout.take(4 * tokens),
    kTotal: layout.take(4 * tokens),
  };
  return { buffers, bytes: layout.bytes };
}

export type BackwardBuffer = keyof BackwardBuffers;

const BUFFER_NAMES = Object.keys(
  backwardBuffers({ d: 8, e: 8, block: 16 } as Parts["dim"], {
    groups: 1,
    group: 1,
    features: 1,
    chunks: 1,
    states: false,
  }).buffers,
);

export const BACKWARD_ARGUMENTS = new Arguments({
  ...SEQUENCE_FIELDS,
  out: "i32",
  dOut: "i32",
  /** [B, T, Hq]: what the forward left of each row; or the upstream gradient of bare sums. */
  rowIn: "i32",
  dSumIn: "i32",
  s0: "i32",
  z0: "i32",
  /** Upstream gradients of the states that the forward wrote. */
  dsN: "i32",
  dzN: "i32",
  dqOut: "i32",
  dkOut: "i32",
  dvOut: "i32",
  dLogG: "i32",
  /** Gradients of the states that the forward read. */
  ds0: "i32",
  dz0: "i32",
  reads: "i32",
  writes: "i32",
  ...(Object.fromEntries(BUFFER_NAMES.map((name) => [name, "i32"])) as Record<BackwardBuffer, "i32">),
});
