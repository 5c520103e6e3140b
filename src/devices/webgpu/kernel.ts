import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import { EIGHT, wideAccessors } from "./wide.js";

export type Access = "read" | "write";

/** A storage binding of a kernel: how WGSL declares it and what its accessors do. */
export interface Binding {
  dtype: DType;
  access: Access;
  /** Seen sixteen bytes at a time: `load4_x(n)` and `store4_x(n, vec4u)`, counted in such vectors, instead of elements. */
  vectors?: boolean;
  /** Eight neighbouring values at a time, as f32, see wide.ts: then these are the only accessors. */
  wide?: boolean;
  /** Of i32 that is written: the only accessor is then `max_x(i, value)`, which keeps the larger of both. */
  atomic?: boolean;
}

/**
 * A kernel as text. In the shader:
 * - each constant is a `const`, each parameter a field of the uniform `P`;
 * - each tensor `x` has `load_x(i) -> f32` (i32 for i32), counted in elements from the tensor's first one, and, where
 *   it is written, `store_x(i, value)` and `store2_x(i, a, b)`: two neighbours at once, `i` even. Half formats are
 *   packed two to a word: a `store_x` of one costs two atomics, `store2_x` a plain store.
 */
export interface KernelSource {
  name: string;
  constants: Record<string, number | boolean>;
  tensors: Record<string, Binding>;
  parameters: Record<string, "u32" | "i32" | "f32">;
  /** Its text, made where a pipeline is: dispatches that find theirs ask for none. */
  body: () => string;
}

const keys = new WeakMap<KernelSource, string>();

/** The pipeline's name in the cache: everything that its text depends on. */
export function kernelKey(source: KernelSource): string {
  return keys.get(source) ?? keyOf(source);
}

function keyOf({ name, constants, tensors }: KernelSource): string {
  const types = Object.entries(tensors).map(
    ([tensor, { dtype, access, vectors, wide, atomic }]) =>
      `${tensor}:${dtype}:${access}${vectors ? ":vectors" : ""}${wide ? ":8" : ""}${atomic ? ":atomic" : ""}`,
  );
  return `${name}|${Object.values(constants).join()}|${types.join()}`;
}

const kept = new Map<string, KernelSource>();

/** What `make` gives, made once for a key: for kernels that are dispatched hundreds of times in a millisecond or two. */
export function keptSource(key: string, make: () => KernelSource): KernelSource {
  const known = kept.get(key);
  if (known) return known;
  const made = make();
  const body = made.body();
  made.body = () => body; // what it was made of need not be kept with it
  keys.set(made, keyOf(made));
  kept.set(key, made);
  return made;
}

/** A uniform field of each tensor: where its first element is in what is bound. */
export function originField(tensor: string): string {
  return `${tensor}_at`;
}

function number(value: number | boolean): string {
  if (typeof value === "boolean" || Number.isInteger(value)) return String(value);
  return value.toPrecision(9).includes("e") ? value.toExponential(9) : value.toPrecision(10);
}

const HALF_BITS: Record<"f16" | "bf16", string> = {
  bf16: `
fn bits_bf16(value: f32) -> u32 {
  let bits = bitcast<u32>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) { return (bits >> 16u) | 0x40u; }
  return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}
fn value_bf16(word: u32, odd: u32) -> f32 {
  return bitcast<f32>(select(word << 16u, word & 0xffff0000u, odd == 1u));
}`,
  // By integers: pack2x16float may round either way, and what it does above 65504 is up to the driver.
  f16: `
fn bits_f16(value: f32) -> u32 {
  let bits = bitcast<u32>(value);
  let sign = (bits >> 16u) & 0x8000u;
  let magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) { return sign | 0x7e00u; }
  if (magnitude >= 0x477ff000u) { return sign | 0x7c00u; }
  if (magnitude < 0x33000000u) { return sign; }
  if (magnitude < 0x38800000u) {
    let shift = 126u - (magnitude >> 23u);
    let fraction = (magnitude & 0x7fffffu) | 0x800000u;
    let kept = fraction >> shift;
    let rest = fraction & ((1u << shift) - 1u);
    let half = 1u << (shift - 1u);
    return sign | (kept + select(0u, 1u, rest > half || (rest == half && (kept & 1u) == 1u)));
  }
  return sign | ((magnitude + 0xfffu + ((magnitude >> 13u) & 1u) - 0x38000000u) >> 13u);
}
fn value_f16(word: u32, odd: u32) -> f32 {
  return select(unpack2x16float(word).x, unpack2x16float(word).y, odd == 1u);
}`,
};

/** The same in one instruction, where the device has f16: it rounds to nearest and overflows to infinity. */
const NATIVE_F16 = `
fn bits_f16(value: f32) -> u32 { return bitcast<u32>(vec2<f16>(f16(value), f16())); }
fn value_f16(word: u32, odd: u32) -> f32 {
  let pair = vec2f(bitcast<vec2<f16>>(word));
  return select(pair.x, pair.y, odd == 1u);
}`;

function accessors(name: string, { dtype, access, vectors, wide, atomic }: Binding, binding: number): string {
  const variable = (type: string) =>
    `@group(0) @binding(${binding}) var<storage, ${access === "read" ? "read" : "read_write"}> ${name}: array<${type}>;`;
  const at = `P.${originField(name)} + i`;
  if (vectors) {
    const place = `P.${originField(name)} / ${16 / DTYPE_BYTES[dtype]}u + n`;
    return `
${variable("vec4u")}
fn load4_${name}(n: u32) -> vec4u { return ${name}[${place}]; }${
      access === "read" ? "" : `\nfn store4_${name}(n: u32, value: vec4u) { ${name}[${place}] = value; }`
    }`;
  }
  if (wide) return wideAccessors(name, dtype, variable, `P.${originField(name)}`, access === "write");
  if (atomic) {
    return `
${variable("atomic<i32>")}
fn max_${name}(i: u32, value: i32) { atomicMax(&${name}[${at}], value); }`;
  }
  if (dtype === "f32" || dtype === "i32") {
    return `
${variable(dtype)}
fn load_${name}(i: u32) -> ${dtype} { return ${name}[${at}]; }${
      access === "read"
        ? ""
        : `
fn store_${name}(i: u32, value: ${dtype}) { ${name}[${at}] = value; }
fn store2_${name}(i: u32, a: ${dtype}, b: ${dtype}) { ${name}[${at}] = a; ${name}[${at} + 1u] = b; }`
    }`;
  }
  if (access === "read") {
    return `
${variable("u32")}
fn load_${name}(i: u32) -> f32 { let at = ${at}; return value_${dtype}(${name}[at >> 1u], at & 1u); }`;
  }
  return `
${variable("atomic<u32>")}
fn load_${name}(i: u32) -> f32 { let at = ${at}; return value_${dtype}(atomicLoad(&${name}[at >> 1u]), at & 1u); }
fn store_${name}(i: u32, value: f32) {
  let at = ${at};
  let shift = (at & 1u) * 16u;
  atomicAnd(&${name}[at >> 1u], ~(0xffffu << shift));
  atomicOr(&${name}[at >> 1u], bits_${dtype}(value) << shift);
}
fn store2_${name}(i: u32, a: f32, b: f32) {
  atomicStore(&${name}[(${at}) >> 1u], bits_${dtype}(a) | (bits_${dtype}(b) << 16u));
}`;
}

/** The kernel's whole WGSL. `native`: the device has f16. */
export function shaderOf(source: KernelSource, native = false): string {
  const { constants, tensors, parameters } = source;
  const body = source.body();
  const given = /^(\s*(enable|diagnostic|requires)[^\n]*;\s*\n)*/.exec(body)![0];
  const withF16 = native && Object.values(tensors).some(({ dtype }) => dtype === "f16");
  const directives = withF16 && !/enable f16/.test(given) ? `enable f16;\n${given.trim()}` : given;
  const halves = new Set(Object.values(tensors).map(({ dtype }) => dtype));
  const fields = [
    ...Object.entries(parameters).map(([name, type]) => `  ${name}: ${type},`),
    ...Object.keys(tensors).map((name) => `  ${originField(name)}: u32,`),
  ];
  return [
    directives.trim(),
    ...Object.entries(constants).map(([name, value]) => `const ${name} = ${number(value)};`),
    "struct Parameters {",
    ...fields,
    "}",
    "@group(1) @binding(0) var<uniform> P: Parameters;",
    ...(Object.values(tensors).some(({ wide }) => wide) ? [EIGHT] : []),
    ...(halves.has("f16") ? [native ? NATIVE_F16 : HALF_BITS.f16] : []),
    ...(halves.has("bf16") ? [HALF_BITS.bf16] : []),
    ...Object.entries(tensors).map(([name, binding], k) => accessors(name, binding, k)),
    body.slice(given.length),
  ].join("\n");
}

/** Source lines around each message, numbered, the message below its line. */
export function explainCompilation(
  kernel: string,
  code: string,
  messages: readonly { type: string; lineNum: number; linePos: number; message: string }[],
): string {
  const lines = code.split("\n");
  const errors = messages.filter((message) => message.type === "error");
  const parts = errors.slice(0, 3).map(({ lineNum, linePos, message }) => {
    const first = Math.max(1, lineNum - 3);
    const shown = lines.slice(first - 1, lineNum + 2).flatMap((line, k) => {
      const numbered = `${String(first + k).padStart(5)} | ${line}`;
      return first + k === lineNum ? [numbered, `${" ".repeat(7 + Math.max(linePos, 1))}^ ${message}`] : [numbered];
    });
    return shown.join("\n");
  });
  return `webgpu: the shader of ${kernel} does not compile\n${parts.join("\n  …\n")}`;
}
