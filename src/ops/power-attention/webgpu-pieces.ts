import { webgpuDevice } from "../../devices/webgpu/device.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { concat } from "../copy/index.js";
import type { PowerBackward, PowerForward, PowerPlan, State } from "./contract.js";
import { chunkStateBytes, tilesFor } from "./matrix-units/index.js";

/** A share of a call that needs nothing of the others: some key heads of a sequence, with their query heads. */
interface Piece {
  batch: [number, number];
  heads: [number, number];
  queryHeads: [number, number];
  plan: PowerPlan;
}

/**
 * The pieces that a call is taken in where its state alone, without chunks, is more than a kernel sees of a buffer:
 * sequence by sequence, and as many heads at a time as fit. In order of batch, then heads. Undefined where it fits.
 * @throws RangeError where the state of a single head does not fit
 */
function piecesOf(plan: PowerPlan, like: Tensor): Piece[] | undefined {
  const { batch, heads, queryHeads, expandedDim, valueDim } = plan;
  const limit = webgpuDevice(like).gpu.limits.maxStorageBufferBindingSize;
  // On matrix units states are padded.
  const tiles = tilesFor(plan, like);
  const bytes = tiles ? chunkStateBytes({ ...plan, heads: 1 }, tiles) : 4 * expandedDim * valueDim;
  if (!plan.usesState || batch * heads * bytes <= limit) return undefined;
  const most = Math.floor(limit / bytes);
  if (most === 0) {
    const mib = (n: number) => `${(n / 2 ** 20).toFixed(1)} MiB`;
    throw new RangeError(
      `powerFull: a head's state must fit the ${mib(limit)} that a kernel sees of a buffer on this device, got ${mib(bytes)} ` +
        `(expandedDim ${expandedDim} × valueDim ${valueDim}, for degree ${plan.degree}, headDim ${plan.headDim}); ` +
        "use a lower degree, a smaller head dim, or without states chunkSize: null",
    );
  }
  const group = queryHeads / heads;
  const pieces: Piece[] = [];
  for (let b = 0; b < batch; b++) {
    for (let head = 0; head < heads; head += most) {
      const end = Math.min(head + most, heads);
      const own = { ...plan, batch: 1, heads: end - head, queryHeads: (end - head) * group };
      pieces.push({ batch: [b, b + 1], heads: [head, end], queryHeads: [head * group, end * group], plan: own });
    }
  }
  return pieces;
}

/** A piece's share of a tensor [B, T, heads, …]. */
function take<X extends Tensor | undefined>(x: X, { batch }: Piece, heads: [number, number]): X {
  return x?.slice(0, ...batch).slice(2, ...heads) as X;
}

/** A piece's share of a state's part [B, H, …], which is contiguous as it lies. */
function takeState<X extends Tensor | undefined>(x: X, { batch, heads }: Piece): X {
  return x?.slice(0, ...batch).slice(1, ...heads) as X;
}

/** Pieces' tensors [1, T, heads, …] as one [B, T, all heads, …]. */
function join(list: Tensor[], batch: number): Tensor {
  const each = list.length / batch;
  const rows = Array.from({ length: batch }, (_, b) => concat(list.slice(b * each, (b + 1) * each), 2));
  return concat(rows, 0);
}

/** Pieces' states as one. Copied by buffers: no kernel could see the whole. */
function joinStates(list: State[], pieces: Piece[], { batch, heads, expandedDim, valueDim }: PowerPlan): State {
  const { device } = list[0].s;
  const all = {
    s: empty([batch, heads, expandedDim, valueDim], device, "f32"),
    z: empty([batch, heads, expandedDim], device, "f32"),
  };
  for (const [n, piece] of pieces.entries()) {
    for (const part of ["s", "z"] as const) webgpuDevice(all.s).copy(list[n][part], takeState(all[part], piece));
  }
  return all;
}

export function forwardInPieces(forward: PowerForward): PowerForward {
  return (plan, inputs) => {
    const pieces = piecesOf(plan, inputs.q);
    if (!pieces) return forward(plan, inputs);
    const results = pieces.map((piece) =>
      forward(piece.plan, {
        q: take(inputs.q, piece, piece.queryHeads),
        k: take(inputs.k, piece, piece.heads),
        v: take(inputs.v, piece, piece.heads),
        logG: take(inputs.logG, piece, piece.heads)?.contiguous(),
        initialState: inputs.initialState && {
          s: takeState(inputs.initialState.s, piece),
          z: takeState(inputs.initialState.z, piece),
        },
      }),
    );
    const all = (of: (result: (typeof results)[0]) => Tensor) => join(results.map(of), plan.batch);
    return {
      output: all(({ output }) => output),
      finalState: plan.returnFinalState
        ? joinStates(
            results.map(({ finalState }) => finalState!),
            pieces,
            plan,
          )
        : undefined,
      // Per-query sums and outputs; what else a piece kept is made again.
      saved: results[0].saved.slice(0, 2).map((_, k) => all(({ saved }) => saved[k])),
    };
  };
}

export function backwardInPieces(backward: PowerBackward): PowerBackward {
  return (plan, inputs, output, saved, upstream) => {
    const pieces = piecesOf(plan, inputs.q);
    if (!pieces) return backward(plan, inputs, output, saved, upstream);
    const { initialState } = inputs;
    const results = pieces.map((piece) => {
      const rows = (x: Tensor) => take(x, piece, piece.queryHeads).contiguous();
      const { s, z } = upstream.finalState ?? {};
      return backward(
        piece.plan,
        {
          q: take(inputs.q, piece, piece.queryHeads),
          k: take(inputs.k, piece, piece.heads),
          v: take(inputs.v, piece, piece.heads),
          logG: take(inputs.logG, piece, piece.heads)?.contiguous(),
          initialState: initialState && { s: takeState(initialState.s, piece), z: takeState(initialState.z, piece) },
        },
        rows(output),
        saved.map(rows),
        {
          output: upstream.output && rows(upstream.output),
          finalState: { s: takeState(s, piece), z: takeState(z, piece) },
        },
      );
    });
    const all = (of: (result: (typeof results)[0]) => Tensor) => join(results.map(of), plan.batch);
    return {
      q: all(({ q }) => q),
      k: all(({ k }) => k),
      v: all(({ v }) => v),
      logG: inputs.logG && all(({ logG }) => logG!),
      initialState:
        initialState &&
        joinStates(
          results.map((result) => result.initialState!),
          pieces,
          plan,
        ),
    };
  };
}
