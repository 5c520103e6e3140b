import { webgpuDevice } from "../../devices/webgpu/device.js";
import { each } from "../../devices/webgpu/each.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { GATES } from "../../devices/webgpu/tiles.js";
import { empty, scope, type Tensor } from "../../tensor/tensor.js";
import type { ChunkStates } from "../chunk-state/contract.js";
import type { State } from "../power-attention/contract.js";
import { absent, gateGradient, gateSums } from "../power-attention/webgpu-gates.js";
import type { ScanPlan, StateScanBackward, StateScanForward } from "./contract.js";

const PARAMETERS = { lines: "u32", width: "u32", heads: "u32", chunks: "u32", time: "u32", chunkSize: "u32" } as const;

const CHUNK_DECAY = `
fn chunk_decay(b: u32, chunk: u32, head: u32) -> f32 {
  if (!GATED) { return 1.0; }
  let end = min((chunk + 1u) * P.chunkSize, P.time);
  return decay(gate_sum_at((b * P.heads + head) * P.time + end - 1u), vec2f(0));
}
`;

/** Chunks whose states an invocation reads together. */
const AT_ONCE = 8;

/** In place: each state is replaced by what entered its chunk, or going back by what arrived from the chunks after it. */
const scanKernel = (constants: { GATED: boolean; REVERSE: boolean; HAS_FIRST: boolean }): KernelSource => ({
  name: "state-scan",
  constants,
  tensors: {
    states: { dtype: "f32", access: "write" },
    gates: { dtype: "f32", access: "read" },
    first: { dtype: "f32", access: "read" },
    last: { dtype: "f32", access: "write" },
  },
  parameters: PARAMETERS,
  body: () => `${GATES}${CHUNK_DECAY}
fn chunk_at(n: u32) -> u32 { return select(n, P.chunks - 1u - n, REVERSE); }
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let line = id.y + id.z * groups.y; // counts b, head
  if (id.x >= P.width || line >= P.lines) { return; }
  let b = line / P.heads;
  let head = line % P.heads;
  var carry = 0.0;
  if (HAS_FIRST) { carry = load_first(line * P.width + id.x); }
  for (var n = 0u; n < P.chunks; n += ${AT_ONCE}u) {
    // All are asked for before the first is written: a driver would wait for each, as it might be the one before.
    ${each(
      AT_ONCE,
      (k) => `let chunk_${k} = chunk_at(min(n + ${k}u, P.chunks - 1u));
    let at_${k} = ((b * P.chunks + chunk_${k}) * P.heads + head) * P.width + id.x;
    let here_${k} = load_states(at_${k});`,
    )}
    ${each(
      AT_ONCE,
      (k) => `if (n + ${k}u < P.chunks) {
      store_states(at_${k}, carry);
      carry = chunk_decay(b, chunk_${k}, head) * carry + here_${k};
    }`,
    )}
  }
  store_last(line * P.width + id.x, carry);
}`,
});

type ScanDimensions = Omit<ScanPlan, "hasInitialState">;

/**
 * Carries states over chunks, forwards or backwards, in place. `first` [B, H, …] enters (default 0), `last` leaves.
 */
export function scanInPlace(
  plan: ScanDimensions,
  direction: "forward" | "reverse",
  states: ChunkStates,
  gates: Tensor,
  first: Partial<State>,
): State {
  const { batch, heads, chunks, time, chunkSize, expandedDim, valueDim, gated } = plan;
  const device = webgpuDevice(states.s);
  const last = {
    s: empty([batch, heads, expandedDim, valueDim], device, "f32"),
    z: empty([batch, heads, expandedDim], device, "f32"),
  };
  for (const part of ["s", "z"] as const) {
    const width = expandedDim * (part === "s" ? valueDim : 1);
    const lines = batch * heads;
    const kernel = scanKernel({
      GATED: gated,
      REVERSE: direction === "reverse",
      HAS_FIRST: first[part] !== undefined,
    });
    device.dispatch(kernel, {
      tensors: { states: states[part], gates, first: first[part] ?? absent(states.s), last: last[part] },
      parameters: { lines, width, heads, chunks, time, chunkSize },
      workgroups: [Math.ceil(width / 256), ...device.spread(lines)],
    });
  }
  return last;
}

const innerKernel = (constants: { GATED: boolean; ACCUMULATE: boolean }): KernelSource => ({
  name: "state-inner-product",
  constants,
  tensors: {
    x: { dtype: "f32", access: "read" },
    y: { dtype: "f32", access: "read" },
    gates: { dtype: "f32", access: "read" },
    product: { dtype: "f32", access: "write" },
  },
  parameters: PARAMETERS,
  body: () => `${GATES}${CHUNK_DECAY}
var<workgroup> sums: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let line = id.x + id.y * groups.x; // counts b, chunk, head
  if (line >= P.lines) { return; }
  var sum = 0.0;
  for (var i = lane; i < P.width; i += 256u) { sum += load_x(line * P.width + i) * load_y(line * P.width + i); }
  sums[lane] = sum;
  for (var reach = 128u; reach > 0u; reach /= 2u) {
    workgroupBarrier();
    if (lane < reach) { sums[lane] += sums[lane + reach]; }
  }
  if (lane > 0u) { return; }
  let head = line % P.heads;
  let chunk = (line / P.heads) % P.chunks;
  let value = chunk_decay(line / (P.heads * P.chunks), chunk, head) * sums[0];
  if (ACCUMULATE) { store_product(line, load_product(line) + value); }
  else { store_product(line, value); }
}`,
});

/** [B, N, H] f32: x·y over each state, s and z together, times exp(G_end) of its chunk where gates are given. */
export function stateInnerProducts(
  plan: ScanDimensions,
  x: Partial<State>,
  y: Partial<State>,
  gates: Tensor,
  gated: boolean,
): Tensor {
  const { batch, heads, chunks, time, chunkSize, expandedDim, valueDim } = plan;
  const device = webgpuDevice(gates);
  const product = empty([batch, chunks, heads], device, "f32");
  let accumulate = false;
  for (const part of ["s", "z"] as const) {
    if (!x[part] || !y[part]) continue;
    const lines = batch * chunks * heads;
    device.dispatch(innerKernel({ GATED: gated, ACCUMULATE: accumulate }), {
      tensors: { x: x[part], y: y[part], gates, product },
      parameters: {
        lines,
        width: expandedDim * (part === "s" ? valueDim : 1),
        heads,
        chunks,
        time,
        chunkSize,
      },
      workgroups: device.spread(lines),
    });
    accumulate = true;
  }
  if (!accumulate) device.clear(product);
  return product;
}

/** A contiguous copy to work on in place, or zeros. */
export function copyOrZeros(x: Tensor | undefined, shape: readonly number[], like: Tensor): Tensor {
  const device = webgpuDevice(like);
  const out = empty(shape, device, "f32");
  if (x) device.copy(x, out);
  else device.clear(out);
  return out;
}

function shapes({ batch, chunks, heads, expandedDim, valueDim }: ScanDimensions) {
  return { s: [batch, chunks, heads, expandedDim, valueDim], z: [batch, chunks, heads, expandedDim] };
}

export const stateScanWebGpu: StateScanForward = (plan, { states, logG, initialState }) =>
  scope(() => {
    const shape = shapes(plan);
    const entering = { s: copyOrZeros(states.s, shape.s, states.s), z: copyOrZeros(states.z, shape.z, states.s) };
    const gates = gateSums(plan, logG, states.s);
    const finalState = scanInPlace(plan, "forward", entering, gates, initialState ?? {});
    return { entering, finalState };
  });

export const stateScanBackwardWebGpu: StateScanBackward = (plan, { logG, entering }, upstream) =>
  scope(() => {
    const shape = shapes(plan);
    const like = entering.s;
    const states = {
      s: copyOrZeros(upstream.entering.s, shape.s, like),
      z: copyOrZeros(upstream.entering.z, shape.z, like),
    };
    const gates = gateSums(plan, logG, like);
    const initialState = scanInPlace(plan, "reverse", states, gates, upstream.finalState);
    return {
      states,
      initialState: plan.hasInitialState ? initialState : undefined,
      logG:
        logG &&
        gateGradient({ ...plan, queryHeads: plan.heads }, like, {
          perChunk: stateInnerProducts(plan, states, entering, gates, true),
        }),
    };
  });
