import { f32Bytes, f32Values, readSafetensors, type SafeTensor, writeSafetensors } from "../safetensors.js";
import { fromBF16Bits, fromF16Bits } from "../tensor/dtype.js";
import { sameShape } from "../tensor/shape.js";
import type { Tensor } from "../tensor/tensor.js";

/** Tensors as the bytes of a safetensors file, in f32. */
export async function tensorsToSafetensors(
  tensors: ReadonlyMap<string, Tensor>,
  metadata: Record<string, string> = {},
): Promise<Uint8Array> {
  const entries: Record<string, SafeTensor> = {};
  for (const [name, tensor] of tensors) {
    entries[name] = { dtype: "F32", shape: tensor.shape, data: f32Bytes(await tensor.data()) };
  }
  return writeSafetensors({ tensors: entries, metadata });
}

/** The values of a stored tensor of any float format, or undefined for other formats. */
function valuesOf(stored: SafeTensor): Float32Array | undefined {
  const { dtype, data } = stored;
  if (dtype === "F32") return f32Values(stored);
  if (dtype !== "F16" && dtype !== "BF16") return undefined;
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const convert = dtype === "F16" ? fromF16Bits : fromBF16Bits;
  return Float32Array.from({ length: data.byteLength / 2 }, (_, k) => convert(view.getUint16(2 * k, true)));
}

/**
 * Fills tensors from the bytes of a safetensors file, written in place.
 * @param path names the file in errors
 * @throws Error, before anything is written, where the bytes are damaged, or names and shapes are others
 */
export function fillTensors(bytes: Uint8Array, path: string, tensors: ReadonlyMap<string, Tensor>): void {
  let stored: Record<string, SafeTensor>;
  try {
    stored = readSafetensors(bytes).tensors;
  } catch (error) {
    throw new Error(`loadWeights: cannot read ${path} (${error instanceof Error ? error.message : error})`);
  }
  const list = (names: string[]) => names.slice(0, 3).join(", ") + (names.length > 3 ? ", …" : "") || "none";
  const missing = [...tensors.keys()].filter((name) => !(name in stored));
  const surplus = Object.keys(stored).filter((name) => !tensors.has(name));
  if (missing.length > 0 || surplus.length > 0) {
    throw new Error(
      `loadWeights: ${path} does not fit its config.json: missing ${list(missing)}; not in the model ${list(surplus)}; restore the config.json that was saved with it`,
    );
  }
  const values = new Map<string, Float32Array>();
  for (const [name, tensor] of tensors) {
    const { shape, dtype } = stored[name];
    if (!sameShape(shape, tensor.shape)) {
      throw new Error(
        `loadWeights: ${name} in ${path} must have shape [${tensor.shape.join(", ")}], got [${shape.join(", ")}]; its config.json is of another model`,
      );
    }
    const read = valuesOf(stored[name]);
    if (!read) throw new Error(`loadWeights: ${name} in ${path} must be F32, F16 or BF16, got ${dtype}`);
    values.set(name, read);
  }
  for (const [name, tensor] of tensors) tensor.device.write(tensor.storage, values.get(name)!);
}
