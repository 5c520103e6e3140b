import type { GPT } from "../models/gpt.js";
import { f32Bytes, f32Values, readSafetensors, type SafeTensor, writeSafetensors } from "../safetensors.js";
import { PowerState } from "../state.js";
import type { Session } from "./generate.js";

const FORMAT = "power-attention session";

/** The model's configuration as one line: a session only fits the model it was made with. */
const fingerprint = (model: GPT) => JSON.stringify(model.config);

/**
 * What a model has read as the bytes of a safetensors file: each layer's state and the next token's logits.
 * @throws Error for softmax attention, which has no state of a constant size
 */
export async function sessionToBytes(model: GPT, session: Session): Promise<Uint8Array> {
  const tensors: Record<string, SafeTensor> = {
    logits: { dtype: "F32", shape: [session.logits.length], data: f32Bytes(session.logits) },
  };
  for (const [n, cache] of session.caches.entries()) {
    if (!(cache instanceof PowerState)) {
      throw new Error('saveSession: only models with attention "power" have a state to save, got "softmax"');
    }
    const data = await cache.toSafetensorsAsync();
    tensors[`layers.${n}`] = { dtype: "U8", shape: [data.length], data };
  }
  return writeSafetensors({ tensors, metadata: { format: FORMAT, version: "1", model: fingerprint(model) } });
}

/** @throws Error where the bytes are damaged or of another model; `path` names the file in errors */
export function sessionFromBytes(bytes: Uint8Array, model: GPT, path = "the session"): Session {
  let file: ReturnType<typeof readSafetensors>;
  try {
    file = readSafetensors(bytes);
  } catch (error) {
    throw new Error(`loadSession: cannot read ${path} (${error instanceof Error ? error.message : error})`);
  }
  const { tensors, metadata } = file;
  if (metadata.format !== FORMAT || metadata.version !== "1") {
    throw new Error(`loadSession: ${path} must be a ${FORMAT} of version 1; save one with generate --save-state`);
  }
  if (metadata.model !== fingerprint(model)) {
    throw new Error(`loadSession: ${path} was made with another model; read the prompt again with this one`);
  }
  const { device } = model.options;
  const caches = model.blocks.map((_, n) => {
    const layer = tensors[`layers.${n}`];
    if (!layer) throw new Error(`loadSession: ${path} lacks layer ${n}; save it again`);
    return PowerState.fromSafetensors(layer.data, { device });
  });
  return { caches, logits: f32Values(tensors.logits) };
}

/** Writes a session to a file. Node only. */
export async function saveSession(path: string, model: GPT, session: Session): Promise<void> {
  const { writeFileWhole } = await import("../data/whole-file.js");
  writeFileWhole(path, await sessionToBytes(model, session));
}

/** Reads a session from a file. Node only. */
export async function loadSession(path: string, model: GPT): Promise<Session> {
  const { readFileSync } = await import("node:fs");
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    throw new Error(`loadSession: cannot read ${path} (${error instanceof Error ? error.message : error})`);
  }
  return sessionFromBytes(bytes, model, path);
}
