import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { map } from "../../devices/webgpu/map.js";
import { rowsAreWide } from "../../devices/webgpu/wide.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { type EmbeddingBackward, type EmbeddingForward, noRow } from "./contract.js";

/** Reading the ids back would stall every call: out of check mode an id that is no row gives NaN. */
const LOOK_UP = `
fn apply(i: u32) -> f32 {
  let width = u32(P.width);
  let id = load_ids(i / width);
  if (id < 0 || id >= i32(P.rows)) { return bitcast<f32>(0x7fc00000u + (i & 1u)); }
  return load_weight(u32(id) * width + i % width);
}`;

const LOOK_UP_EIGHT = `
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = 8u * (id.x + id.y * groups.x * 256u);
  if (i >= P.count) { return; }
  let row = load_ids(i / P.width);
  if (row < 0 || row >= i32(P.rows)) {
    let nan = vec4f(bitcast<f32>(0x7fc00000u + (id.x & 1u)));
    store8_out(i, nan, nan);
    return;
  }
  let x = load8_weight(u32(row) * P.width + i % P.width);
  store8_out(i, x.a, x.b);
}`;

export const embeddingForward: EmbeddingForward = (weight, ids, dtype) => {
  const [rows, width] = weight.shape;
  const device = webgpuDevice(weight);
  const isNoRow = "value < 0 || value >= limit";
  device.refuseWhere(ids, isNoRow, rows, (at, id) => noRow(id, at, rows));
  const out = empty([...ids.shape, width], device, dtype);
  if (out.size > 0 && rowsAreWide(width, weight)) {
    const source: KernelSource = {
      name: "embedding-eight",
      constants: {},
      tensors: {
        weight: { dtype: weight.dtype, access: "read", wide: true },
        ids: { dtype: "i32", access: "read" },
        out: { dtype, access: "write", wide: true },
      },
      parameters: { count: "u32", rows: "u32", width: "u32" },
      body: () => LOOK_UP_EIGHT,
    };
    device.dispatch(source, {
      tensors: { weight, ids, out },
      parameters: { count: out.size, rows, width },
      workgroups: device.spread(Math.ceil(out.size / 2048)),
    });
    return out;
  }
  // Both are read by index, whatever strides say.
  const at = (tensor: Tensor) => ({ tensor, strides: out.strides });
  map("embedding", out, { weight: at(weight), ids: at(ids) }, LOOK_UP, { rows, width }, { byIndex: true });
  return out;
};

/** first[id]: the first place where the id stands. */
const FIRST: KernelSource = {
  name: "embedding-first",
  constants: {},
  tensors: { ids: { dtype: "i32", access: "read" }, first: { dtype: "i32", access: "write", atomic: true } },
  parameters: { count: "u32", rows: "u32" },
  body: () => `
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let k = id.x + id.y * groups.x * 256u;
  if (k >= P.count) { return; }
  let row = load_ids(k);
  // Zeros stand for "nowhere": the largest count − k is the first place.
  if (row >= 0 && row < i32(P.rows)) { max_first(u32(row), i32(P.count - k)); }
}`,
};

/**
 * A workgroup for each place: where an id stands for the first time, it adds up the gradients of all places with that id,
 * in their order. Rows of ids that stand nowhere are zeros already.
 */
const sumKernel = (from: Tensor, to: Tensor): KernelSource => ({
  name: "embedding-backward",
  constants: {},
  tensors: {
    ids: { dtype: "i32", access: "read" },
    first: { dtype: "i32", access: "read" },
    dOutput: { dtype: from.dtype, access: "read" },
    dWeight: { dtype: to.dtype, access: "write" },
  },
  parameters: { rows: "u32", width: "u32", count: "u32" },
  body: () => `
// 256 places at a time, a bit for each that has the id.
var<workgroup> found: array<atomic<u32>, 8>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let place = id.x + id.y * groups.x;
  if (place >= P.count) { return; }
  let row = load_ids(place);
  if (row < 0 || row >= i32(P.rows)) { return; }
  if (load_first(u32(row)) != i32(P.count - place)) { return; }
  // Four columns for each lane at a time: a row of 1024 in one look at the ids.
  for (var column0 = 0u; column0 < P.width; column0 += 1024u) {
    var sums = vec4f(0);
    for (var base = place; base < P.count; base += 256u) {
      if (lane < 8u) { atomicStore(&found[lane], 0u); }
      workgroupBarrier();
      if (base + lane < P.count) {
        if (load_ids(base + lane) == row) { atomicOr(&found[lane / 32u], 1u << (lane % 32u)); }
      }
      workgroupBarrier();
      for (var word = 0u; word < 8u; word++) {
        var bits = atomicLoad(&found[word]);
        while (bits != 0u) {
          let k = base + 32u * word + firstTrailingBit(bits);
          bits &= bits - 1u;
          let at = k * P.width + column0 + lane;
          for (var j = 0u; j < 4u; j++) {
            if (column0 + lane + 256u * j < P.width) { sums[j] += load_dOutput(at + 256u * j); }
          }
        }
      }
      workgroupBarrier();
    }
    for (var j = 0u; j < 4u; j++) {
      let column = column0 + lane + 256u * j;
      if (column < P.width) { store_dWeight(u32(row) * P.width + column, sums[j]); }
    }
  }
}`,
});

export const embeddingBackward: EmbeddingBackward = (weight, ids, dOutput, dtype) => {
  const [rows, width] = weight.shape;
  const device = webgpuDevice(weight);
  const dWeight = empty(weight.shape, device, dtype);
  if (dWeight.size === 0) return dWeight;
  const first = empty([rows], device, "i32");
  for (const zeros of [dWeight, first]) device.clear(zeros);
  const count = ids.size;
  device.dispatch(FIRST, {
    tensors: { ids, first },
    parameters: { count, rows },
    workgroups: device.spread(Math.ceil(count / 256)),
  });
  device.dispatch(sumKernel(dOutput, dWeight), {
    tensors: { ids, first, dOutput, dWeight },
    parameters: { rows, width, count },
    workgroups: device.spread(count),
  });
  first.dispose();
  return dWeight;
};
