import type { Tensor } from "../../tensor/tensor.js";
import { webgpuDevice } from "./device.js";
import type { Binding, KernelSource } from "./kernel.js";
import { startsWide, WIDE } from "./wide.js";

/** Axes of extent 1 dropped, and neighbours joined where every tensor walks over them in one stride. */
export function collapse(shape: readonly number[], strides: readonly (readonly number[])[]) {
  const extents: number[] = [];
  const steps: number[][] = strides.map(() => []);
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] === 1) continue;
    const last = extents.length - 1;
    const joins = last >= 0 && strides.every((s, k) => s[axis] === extents[last] * steps[k][last]);
    if (joins) extents[last] *= shape[axis];
    else {
      extents.push(shape[axis]);
      for (const [k, s] of strides.entries()) steps[k].push(s[axis]);
    }
  }
  return { extents: extents.reverse(), steps: steps.map((s) => s.reverse()) };
}

/** `place_x(i)`: where the i-th element in row-major order of the shape is, for each tensor; and its parameters. */
export function places(shape: readonly number[], tensors: Record<string, { strides: readonly number[] }>) {
  const names = Object.keys(tensors);
  const { extents, steps } = collapse(
    shape,
    names.map((name) => tensors[name].strides),
  );
  const parameters: Record<string, number> = {};
  const fields: Record<string, "u32"> = {};
  const field = (name: string, value: number) => {
    parameters[name] = value;
    fields[name] = "u32";
    return `P.${name}`;
  };
  const counts = extents.map((extent, axis) => field(`n${axis}`, extent));
  const functions = names.map((name, k) => {
    if (extents.length === 0) return `fn place_${name}(i: u32) -> u32 { return 0u; }`;
    if (extents.length === 1 && steps[k][0] === 1) return `fn place_${name}(i: u32) -> u32 { return i; }`;
    const terms = extents.map((_, axis) => {
      const step = field(`${name}${axis}`, steps[k][axis]);
      return axis === 0
        ? `at += rest * ${step};`
        : `at += (rest % ${counts[axis]}) * ${step}; rest /= ${counts[axis]};`;
    });
    return `fn place_${name}(i: u32) -> u32 { var rest = i; var at = 0u; ${terms.reverse().join(" ")} return at; }`;
  });
  // What the text depends on besides the names: the rank, and which tensors are walked in order.
  const layout = `${extents.length}${names.map((_, k) => (extents.length === 1 && steps[k][0] === 1 ? "c" : "s")).join("")}`;
  return { text: functions.join("\n"), parameters, fields, layout, extents, steps };
}

type Given = Record<string, { tensor: Tensor; strides: readonly number[] }>;

/**
 * The same as `map` below, eight neighbours to an invocation: where every tensor is walked along the innermost axis, in
 * vectors of 16 bytes, or is a single value. Returns false where it is not so.
 */
function mapWide(name: string, out: Tensor, inputs: Given, apply: string, numbers: Record<string, number>): boolean {
  const { text, parameters, fields, layout, extents, steps } = places(out.shape, { ...inputs, out });
  const last = extents.length - 1;
  const tensors = [...Object.values(inputs).map(({ tensor }) => tensor), out];
  const single = steps.map((own) => own.every((step) => step === 0));
  const fits = tensors.every(
    (x, k) =>
      x.dtype !== "i32" &&
      ((single[k] && x !== out) ||
        (startsWide(x) && steps[k].every((step, axis) => (axis === last ? step === 1 : step % WIDE === 0)))),
  );
  if (last < 0 || extents[last] % WIDE !== 0 || !fits) return false;
  const names = Object.keys(inputs);
  const binding = (x: Tensor, wide: boolean): Binding => ({ dtype: x.dtype, access: "read", wide });
  const source: KernelSource = {
    name: `${name}:wide:${layout}:${single.map(Number).join("")}`,
    constants: {},
    tensors: {
      ...Object.fromEntries(names.map((input, k) => [input, binding(inputs[input].tensor, !single[k])])),
      out: { dtype: out.dtype, access: "write", wide: true },
    },
    parameters: {
      count: "u32",
      ...fields,
      ...Object.fromEntries(Object.keys(numbers).map((n) => [n, "f32"] as const)),
    },
    body: () => `${text}
${names.map((input) => `var<private> ${input}_values: array<f32, 8>;\nfn ${input}_of(i: u32) -> f32 { return ${input}_values[i]; }`).join("\n")}
${apply}
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = 8u * (id.x + id.y * groups.x * 256u);
  if (i >= P.count) { return; }
${names
  .map((input, k) =>
    single[k]
      ? `{ let x = load_${input}(0u); ${input}_values = array(x, x, x, x, x, x, x, x); }`
      : `{ let x = load8_${input}(place_${input}(i)); ${input}_values = array(x.a.x, x.a.y, x.a.z, x.a.w, x.b.x, x.b.y, x.b.z, x.b.w); }`,
  )
  .join("\n")}
  store8_out(place_out(i), vec4f(apply(0u), apply(1u), apply(2u), apply(3u)), vec4f(apply(4u), apply(5u), apply(6u), apply(7u)));
}`,
  };
  const device = webgpuDevice(out);
  device.dispatch(source, {
    tensors: { ...Object.fromEntries(Object.entries(inputs).map(([k, { tensor }]) => [k, tensor])), out },
    parameters: { count: out.size, ...parameters, ...numbers },
    workgroups: device.spread(Math.ceil(out.size / (WIDE * 256))),
  });
  return true;
}

/**
 * Writes every element of `out` (any strides): `apply(i)`, given as WGSL, is the value of the i-th element in row-major
 * order, made from `x_of(i)` for each input `x`, whose strides belong to out's shape (0 where it is stretched).
 * @param byIndex apply uses i for more than `x_of(i)`
 */
export function map(
  name: string,
  out: Tensor,
  inputs: Given,
  apply: string,
  numbers: Record<string, number> = {},
  { byIndex = false }: { byIndex?: boolean } = {},
): void {
  if (out.size === 0) return;
  if (!byIndex && mapWide(name, out, inputs, apply, numbers)) return;
  const device = webgpuDevice(out);
  const { text, parameters, fields, layout, extents, steps } = places(out.shape, { ...inputs, out });
  const outSteps = steps[steps.length - 1];
  const last = extents.length - 1;
  const pairs =
    last >= 0 &&
    extents[last] % 2 === 0 &&
    outSteps[last] === 1 &&
    out.offset % 2 === 0 &&
    outSteps.every((step, axis) => axis === last || step % 2 === 0);
  const tensors: Record<string, Binding> = {};
  for (const [input, { tensor }] of Object.entries(inputs)) tensors[input] = { dtype: tensor.dtype, access: "read" };
  tensors.out = { dtype: out.dtype, access: "write" };
  const values = Object.keys(inputs).map((input) => {
    const type = inputs[input].tensor.dtype === "i32" ? "i32" : "f32";
    return `fn ${input}_of(i: u32) -> ${type} { return load_${input}(place_${input}(i)); }`;
  });
  const source: KernelSource = {
    name: `${name}:${layout}`,
    constants: { PAIRS: pairs },
    tensors,
    parameters: {
      count: "u32",
      ...fields,
      ...Object.fromEntries(Object.keys(numbers).map((n) => [n, "f32"] as const)),
    },
    body: () => `${text}
${values.join("\n")}
${apply}
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let i = 2u * (id.x + id.y * groups.x * 256u);
  if (i >= P.count) { return; }
  if (PAIRS) { store2_out(place_out(i), apply(i), apply(i + 1u)); return; }
  store_out(place_out(i), apply(i));
  if (i + 1u < P.count) { store_out(place_out(i + 1u), apply(i + 1u)); }
}`,
  };
  device.dispatch(source, {
    tensors: { ...Object.fromEntries(Object.entries(inputs).map(([k, { tensor }]) => [k, tensor])), out },
    parameters: { count: out.size, ...parameters, ...numbers },
    workgroups: device.spread(Math.ceil(out.size / 512)),
  });
}

/** Strides with which a tensor is read as if it had been broadcast to `shape`. */
export function broadcastStrides(x: Tensor, shape: readonly number[]): number[] {
  const lead = shape.length - x.shape.length;
  return shape.map((n, axis) => {
    const own = axis - lead;
    return own < 0 || (x.shape[own] === 1 && n !== 1) ? 0 : x.strides[own];
  });
}
