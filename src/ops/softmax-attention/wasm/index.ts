import { addressOf, wasmDevice } from "../../../devices/wasm/device.js";
import { GROUP } from "../../../devices/wasm/tiles.js";
import { DTYPE_BYTES } from "../../../tensor/dtype.js";
import { isRecording } from "../../../tensor/tape.js";
import { empty, type Tensor } from "../../../tensor/tensor.js";
import type { SoftmaxBackward, SoftmaxForward, SoftmaxInputs, SoftmaxPlan } from "../contract.js";
import { BACKWARD_ARGUMENTS, backwardBuffers, ROW_GROUPS, rowBuffers, writeBackward } from "./backward.js";
import { type Dimensions, dimensionsOf } from "./dimensions.js";
import { FORWARD_ARGUMENTS, forwardBuffers, QUERY_BLOCK, writeForward } from "./forward.js";

/** Items of work that the backward wants at least: heads are cut into segments of keys where there are fewer. */
const BACKWARD_ITEMS = 8;

const keyOf = ({ headDim, valueDim, dtype }: Dimensions) => `softmax-attention d=${headDim} e=${valueDim} ${dtype}`;

function sequenceArguments(plan: SoftmaxPlan, { q, k, v }: SoftmaxInputs) {
  const stride = (tensor: Tensor, axis: number) => tensor.strides[axis] * DTYPE_BYTES[tensor.dtype];
  const { time, queryHeads, heads } = plan;
  return {
    q: addressOf(q),
    k: addressOf(k),
    v: addressOf(v),
    qBatch: stride(q, 0),
    qTime: stride(q, 1),
    qHead: stride(q, 2),
    kBatch: stride(k, 0),
    kTime: stride(k, 1),
    kHead: stride(k, 2),
    vBatch: stride(v, 0),
    vTime: stride(v, 1),
    vHead: stride(v, 2),
    time,
    groups: Math.ceil(time / GROUP),
    queryHeads,
    heads,
    group: queryHeads / heads,
    sign: Math.sign(plan.scale),
    unit: (Math.abs(plan.scale) || 1) * Math.LOG2E,
  };
}

function wantsGradient({ q, k, v }: SoftmaxInputs): boolean {
  return isRecording() && [q, k, v].some((x) => x.requiresGrad);
}

export const softmaxWasm: SoftmaxForward = (plan, inputs) => {
  const { batch, time, queryHeads, headDim, valueDim } = plan;
  const device = wasmDevice(inputs.q);
  const dim = dimensionsOf(headDim, valueDim, inputs.q.dtype);
  const output = empty([batch, time, queryHeads, valueDim], device, dim.dtype);
  const shared = sequenceArguments(plan, inputs);
  const saved = empty([batch, queryHeads, shared.groups, 2, GROUP], device, "f32");
  // The gradient wants the output that was not rounded.
  const exact = dim.dtype !== "f32" && wantsGradient(inputs) ? empty(output.shape, device, "f32") : undefined;
  const blocks = Math.ceil(time / QUERY_BLOCK);
  device.run(
    device.module(`${keyOf(dim)} forward`, (m) => void writeForward(m, dim)),
    "forward",
    FORWARD_ARGUMENTS,
    { ...shared, blocks, out: addressOf(output), exact: exact ? addressOf(exact) : 0, saved: addressOf(saved) },
    batch * queryHeads * blocks,
    forwardBuffers(dim).bytes,
  );
  return { output, saved: exact ? [saved, exact] : [saved] };
};

export const softmaxWasmBackward: SoftmaxBackward = (plan, inputs, output, [saved, exact = output], upstream) => {
  const { batch, time, queryHeads, heads, headDim, valueDim } = plan;
  const { q, k, v } = inputs;
  const device = wasmDevice(q);
  const dim = dimensionsOf(headDim, valueDim, q.dtype);
  const gradients = {
    q: empty(q.shape, device, dim.dtype),
    k: empty(k.shape, device, dim.dtype),
    v: empty(v.shape, device, dim.dtype),
  };
  if (batch * time === 0) return gradients;
  const shared = sequenceArguments(plan, inputs);
  const { groups } = shared;
  const rowItems = Math.ceil(groups / ROW_GROUPS);
  const { bytes, keyGroups } = backwardBuffers(dim);
  const keyBlocks = Math.ceil(groups / keyGroups);
  // A number of segments that depends on shapes alone: results must not depend on the number of threads.
  const segments = Math.min(keyBlocks, Math.ceil(BACKWARD_ITEMS / (batch * heads)));
  const means = empty([batch, queryHeads, groups, GROUP], device, "f32");
  const partial = empty([segments, batch, queryHeads, groups * GROUP, dim.d], device, "f32");
  const module = device.module(`${keyOf(dim)} backward`, (m) => writeBackward(m, dim));
  const more = {
    ...shared,
    segments,
    out: addressOf(exact),
    dOut: addressOf(upstream),
    saved: addressOf(saved),
    means: addressOf(means),
    partial: addressOf(partial),
    dq: addressOf(gradients.q),
    dk: addressOf(gradients.k),
    dv: addressOf(gradients.v),
    rowItems,
    scale: plan.scale,
  };
  const rows = batch * queryHeads * rowItems;
  const scratch = rowBuffers(dim).bytes;
  device.run(module, "means", BACKWARD_ARGUMENTS, more, rows, scratch);
  device.run(module, "backward", BACKWARD_ARGUMENTS, more, batch * heads * segments, bytes);
  device.run(module, "query-gradient", BACKWARD_ARGUMENTS, more, rows, scratch);
  partial.dispose();
  means.dispose();
  return gradients;
};
