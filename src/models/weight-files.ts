import { readFileSync } from "node:fs";
import { writeFileWhole } from "../data/whole-file.js";
import type { Tensor } from "../tensor/tensor.js";
import { fillTensors, tensorsToSafetensors } from "./weights.js";

export async function saveTensors(path: string, tensors: ReadonlyMap<string, Tensor>): Promise<void> {
  writeFileWhole(path, await tensorsToSafetensors(tensors));
}

/**
 * Fills tensors from a safetensors file, written in place.
 * @throws Error, before anything is written, where the file is missing or damaged, or names and shapes are others
 */
export function loadTensors(path: string, tensors: ReadonlyMap<string, Tensor>): void {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    throw new Error(`loadWeights: cannot read ${path} (${error instanceof Error ? error.message : error})`);
  }
  fillTensors(bytes, path, tensors);
}
