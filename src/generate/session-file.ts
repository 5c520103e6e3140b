import { readFileSync } from "node:fs";
import { writeFileWhole } from "../data/whole-file.js";
import type { GPT } from "../models/gpt.js";
import { f32Bytes, f32Values, readSafetensors, type SafeTensor, writeSafetensors } from "../safetensors.js";
import { PowerState } from "../state.js";
import type { Session } from "./generate.js";

const FORMAT = "power-attention session";

/** The model's configuration as one line: a session only fits the model it was made with. */
const fingerprint = (model: GPT) => JSON.stringify(model.config);

/**
 * Saves what a model has read: each layer's state and the next token's logits.
 * @throws Error for softmax attention, which has no state of a constant size
 */
export async function saveSession(path: string, model: GPT, session: Session): Promise<void> {
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
  writeFileWhole(
    path,
    writeSafetensors({ tensors, metadata: { format: FORMAT, version: "1", model: fingerprint(model) } }),
  );
}

/** @throws Error where the file is missing, damaged, or of another model */
export function loadSession(path: string, model: GPT): Session {
  let file: ReturnType<typeof readSafetensors>;
  try {
    file = readSafetensors(readFileSync(path));
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
