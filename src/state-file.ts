import { expandedDim } from "./feature-map.js";
import {
  f32Bytes,
  f32Values,
  readSafetensors,
  type SafeFile,
  type SafeTensor,
  writeSafetensors,
} from "./safetensors.js";
import { type Shape, sameShape } from "./tensor/shape.js";

/** What a state's shapes follow from. */
export interface StateDims {
  readonly batch: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  readonly degree: number;
  readonly foldLength: number;
}

const FORMAT = "power-attention state";
const VERSION = "1";
const DIMS = ["batch", "kvHeads", "headDim", "valueDim", "degree", "foldLength"] as const;

export interface StateFile {
  dims: StateDims;
  tokens: number;
  /** Tokens in the tail. */
  tail: number;
  s?: Float32Array;
  z?: Float32Array;
  k: Float32Array;
  v: Float32Array;
  logG: Float32Array;
}

/** s [B, H, D, e] and z [B, H, D] where there is a state; k, v and logG [B, tail, H, …]; the rest as metadata. */
export function encodeState(
  dims: StateDims,
  tokens: number,
  parts: Record<string, { shape: Shape; values: ArrayLike<number> }>,
): Uint8Array {
  const tensors = Object.fromEntries(
    Object.entries(parts).map(([name, { shape, values }]): [string, SafeTensor] => [
      name,
      { dtype: "F32", shape, data: f32Bytes(values) },
    ]),
  );
  const numbers = Object.fromEntries(DIMS.map((name) => [name, String(dims[name])]));
  return writeSafetensors({
    tensors,
    metadata: { format: FORMAT, version: VERSION, ...numbers, tokens: String(tokens) },
  });
}

function fail(rule: string, wayOut = "save the state again with toSafetensors()"): never {
  throw new RangeError(`PowerState.fromSafetensors: ${rule}; ${wayOut}`);
}

function count(metadata: Record<string, string>, name: string): number {
  const text = metadata[name];
  if (text === undefined || !/^\d{1,15}$/.test(text)) fail(`${name} must be a number, got ${JSON.stringify(text)}`);
  return Number(text);
}

/** Reads a state's file. `check` throws where the dimensions are impossible; it runs before any value is read. */
export function decodeState(bytes: Uint8Array, check: (dims: StateDims) => void): StateFile {
  const { tensors, metadata }: SafeFile = readSafetensors(bytes);
  if (metadata.format !== FORMAT) {
    fail(
      `the file must be a ${FORMAT}, got format ${JSON.stringify(metadata.format)}`,
      "load a file of toSafetensors()",
    );
  }
  if (metadata.version !== VERSION) {
    fail(
      `the file must have version ${VERSION}, got ${JSON.stringify(metadata.version)}`,
      "use the version of the library that wrote it",
    );
  }
  const dims = Object.fromEntries(DIMS.map((name) => [name, count(metadata, name)])) as unknown as StateDims;
  check(dims);
  const { batch, kvHeads, headDim, valueDim, foldLength } = dims;
  const tokens = count(metadata, "tokens");
  const folded = "s" in tensors || "z" in tensors;
  const tail = tensors.k?.shape[1] ?? 0;
  const D = expandedDim(headDim, dims.degree);
  const shapes: Record<string, Shape> = {
    ...(folded ? { s: [batch, kvHeads, D, valueDim], z: [batch, kvHeads, D] } : {}),
    k: [batch, tail, kvHeads, headDim],
    v: [batch, tail, kvHeads, valueDim],
    logG: [batch, tail, kvHeads],
  };
  for (const [name, shape] of Object.entries(shapes)) {
    const tensor = tensors[name];
    if (!tensor) fail(`${name} must be in the file, got only ${Object.keys(tensors).join(", ") || "nothing"}`);
    if (tensor.dtype !== "F32") fail(`${name} must have dtype F32, got ${tensor.dtype}`);
    if (!sameShape(tensor.shape, shape)) {
      fail(`${name} must have shape [${shape.join(", ")}], got [${tensor.shape.join(", ")}]`);
    }
  }
  const extra = Object.keys(tensors).find((name) => !(name in shapes));
  if (extra) fail(`tensors must be ${Object.keys(shapes).join(", ")}, got also ${extra}`);
  if (tail > foldLength) fail(`the tail must have at most foldLength ${foldLength} tokens, got ${tail}`);
  if (folded ? tokens < tail : tokens !== tail) {
    fail(`tokens must agree with the tail of ${tail}${folded ? " and the state" : ""}, got ${tokens}`);
  }
  const values = (name: string) => f32Values(tensors[name]);
  const state = folded ? { s: values("s"), z: values("z") } : {};
  return { dims, tokens, tail, ...state, k: values("k"), v: values("v"), logG: values("logG") };
}
