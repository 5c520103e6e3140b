import { webgpuDevice } from "../../devices/webgpu/device.js";
import type { KernelSource } from "../../devices/webgpu/kernel.js";
import { places } from "../../devices/webgpu/map.js";
import type { DType } from "../../tensor/dtype.js";
import { sizeOf } from "../../tensor/shape.js";
import { empty, type Tensor } from "../../tensor/tensor.js";

/** Elements that one invocation adds up at least, before they are split over workgroups and added in a second pass. */
const SERIAL = 32;
/** Workgroups that keep a GPU busy. */
const ENOUGH = 1024;
/** Invocations that share an output whose terms lie across: with fewer terms each has its own. */
const SLICES = 8;

/** `largest` is the maximum of magnitudes. */
type Kind = "sum" | "max" | "largest";

interface Job {
  kind: Kind;
  x: Tensor;
  /** Axes of x that stay and axes that go. */
  kept: number[];
  gone: number[];
  /** Parts that the reduced elements are split into; out is [parts, kept …]. */
  parts: number;
  factor: number;
  out: Tensor;
}

/**
 * Rows: the lanes of a workgroup share one output. Columns: neighbours read neighbours, and `slices` of lanes share the
 * terms of their outputs.
 */
function sharing(x: Tensor, kept: readonly number[], gone: readonly number[]): { rows: boolean; slices: number } {
  const rows = kept.length === 0 || (gone.length > 0 && x.strides[gone[gone.length - 1]] === 1);
  const terms = sizeOf(gone.map((axis) => x.shape[axis]));
  return { rows, slices: !rows && terms >= 8 * SLICES ? SLICES : 1 };
}

function dispatch({ kind, x, kept, gone, parts, factor, out }: Job): void {
  const device = webgpuDevice(x);
  const pick = (axes: number[]) => ({ shape: axes.map((a) => x.shape[a]), strides: axes.map((a) => x.strides[a]) });
  const [outer, inner] = [pick(kept), pick(gone)];
  const outputs = places(outer.shape, { kept: outer });
  const terms = places(inner.shape, { gone: inner });
  const { rows, slices } = sharing(x, kept, gone);
  // Both list their extents as n0, n1, …
  const rename = (text: string) => text.replace(/P\.n(\d)/g, "P.m$1");
  const renamed = <V>(record: Record<string, V>) =>
    Object.fromEntries(Object.entries(record).map(([name, v]) => [name.replace(/^n(\d)/, "m$1"), v]));
  const source: KernelSource = {
    name: `reduce-${outputs.layout}-${terms.layout}`,
    constants: {
      MAX: kind === "max" || kind === "largest",
      MAGNITUDES: kind === "largest",
      ROWS: rows,
      SLICES: slices,
    },
    tensors: { x: { dtype: x.dtype, access: "read" }, out: { dtype: out.dtype, access: "write" } },
    parameters: {
      count: "u32",
      terms: "u32",
      parts: "u32",
      factor: "f32",
      ...outputs.fields,
      ...renamed(terms.fields),
    },
    body: () => `${outputs.text}
${rename(terms.text)}
var<workgroup> partial: array<f32, 256>;

fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }
fn value_at(i: u32) -> f32 {
  let value = load_x(i);
  return select(value, abs(value), MAGNITUDES);
}
fn join(a: f32, b: f32) -> f32 {
  if (!MAX) { return a + b; }
  if (is_nan(a) || is_nan(b)) { return select(b, a, is_nan(a)); }
  return max(a, b);
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let group = id.x + id.y * groups.x;
  let part = id.z;
  let share = (P.terms + P.parts - 1u) / P.parts;
  let first = part * share;
  let end = min(first + share, P.terms);
  let across = 256u / SLICES;
  let item = select(group * across + lane % across, group, ROWS);
  var total = 0.0;
  if (item < P.count) {
    let origin = place_kept(item);
    let begin = select(first + lane / across, first + lane, ROWS);
    let stride = select(SLICES, 256u, ROWS);
    if (MAX) { total = value_at(origin + place_gone(select(begin, first, begin >= end))); }
    for (var i = begin; i < end; i += stride) { total = join(total, value_at(origin + place_gone(i))); }
  }
  if (ROWS) {
    partial[lane] = total;
    for (var reach = 128u; reach > 0u; reach /= 2u) {
      workgroupBarrier();
      if (lane < reach) { partial[lane] = join(partial[lane], partial[lane + reach]); }
    }
    if (lane > 0u) { return; }
    total = partial[0];
  } else if (SLICES > 1u) {
    partial[lane] = total;
    workgroupBarrier();
    if (lane >= across) { return; }
    for (var n = 1u; n < SLICES; n++) { total = join(total, partial[lane + n * across]); }
  }
  if (item < P.count) { store_out(part * P.count + item, P.factor * total); }
}`,
  };
  const count = sizeOf(outer.shape);
  const [across, rest = 1] = device.spread(rows ? count : Math.ceil((count * slices) / 256));
  device.dispatch(source, {
    tensors: { x, out },
    parameters: {
      count,
      terms: sizeOf(inner.shape),
      parts,
      factor,
      ...outputs.parameters,
      ...renamed(terms.parameters),
    },
    workgroups: [across, rest, parts],
  });
}

/** Sum (times `factor`) or maximum over `axes`, which keep extent 1. */
export function reduce(
  kind: "sum" | "max",
  x: Tensor,
  axes: readonly number[],
  factor = 1,
  dtype: DType = x.dtype,
): Tensor {
  return reduceInto(kind, x, axes, factor, dtype);
}

/** The largest magnitude over `axes` (default all), which keep extent 1; f32. */
export function largest(x: Tensor, axes: readonly number[] = [...x.shape.keys()]): Tensor {
  return reduceInto("largest", x, axes, 1, "f32");
}

function reduceInto(kind: Kind, x: Tensor, axes: readonly number[], factor: number, dtype: DType): Tensor {
  const shape = x.shape.map((n, k) => (axes.includes(k) ? 1 : n));
  const out = empty(shape, x.device, dtype);
  const kept = shape.map((_, k) => k).filter((k) => !axes.includes(k));
  const gone = [...axes].sort((a, b) => a - b);
  const terms = sizeOf(gone.map((k) => x.shape[k]));
  const { rows, slices } = sharing(x, kept, gone);
  const outputs = sizeOf(kept.map((k) => x.shape[k]));
  const workgroups = rows ? outputs : Math.ceil((outputs * slices) / 256);
  const most = Math.ceil(terms / (SERIAL * (rows ? 256 : slices)));
  let parts = Math.max(1, Math.min(most, Math.ceil(ENOUGH / Math.max(1, workgroups))));
  // Every part has something: a maximum of nothing is no number.
  parts = Math.max(1, Math.ceil(terms / Math.max(1, Math.ceil(terms / parts))));
  if (parts === 1) {
    dispatch({ kind, x, kept, gone, parts, factor, out });
    return out;
  }
  const partial = empty([parts, ...kept.map((k) => x.shape[k])], x.device, "f32");
  dispatch({ kind, x, kept, gone, parts, factor: 1, out: partial });
  const rest = kept.map((_, k) => k + 1);
  dispatch({ kind, x: partial, kept: rest, gone: [0], parts: 1, factor, out });
  partial.dispose();
  return out;
}
