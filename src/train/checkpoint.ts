import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { TokenizerSpec } from "../data/tokenizer.js";
import { writeFileWhole } from "../data/whole-file.js";
import type { GPT } from "../models/gpt.js";
import { saveGPT } from "../models/gpt-files.js";
import { loadTensors, saveTensors } from "../models/weight-files.js";
import type { AdamW } from "../nn/adamw.js";

/** state.json of a checkpoint: all that a run needs to go on as if it had not stopped, beside the tensors. */
export interface TrainState {
  version: 1;
  /** Updates done. */
  step: number;
  /** Windows of the training text taken so far. */
  position: number;
  /** The state of the generator that samples are drawn with. */
  random: number[];
  /** Running mean of the loss, which tells a run that diverges. */
  meanLoss: number | null;
  bestLoss: number | null;
  /** Updates in a row that were left out because gradients in f16 overflowed. */
  overflows: number;
}

interface Index {
  /** Folder names. */
  last: string;
  best: string | null;
}

/**
 * The checkpoints of a run: a folder for each kept one, and index.json that says which is the last and which had the
 * lowest held-out loss. A checkpoint is written under a temporary name and renamed when it is whole, and only then the
 * index names it and older ones go: whenever the process dies, the index names whole checkpoints.
 */
export class Checkpoints {
  readonly #folder: string;

  constructor(run: string) {
    this.#folder = join(run, "checkpoints");
    mkdirSync(this.#folder, { recursive: true });
    for (const name of readdirSync(this.#folder)) {
      if (name.startsWith("writing-")) rmSync(join(this.#folder, name), { recursive: true });
    }
  }

  /** Saves all; with `best` the index calls it the best so far. */
  async save(
    model: GPT,
    tokenizer: TokenizerSpec,
    optimizer: AdamW,
    state: TrainState,
    best: boolean,
  ): Promise<string> {
    const name = `step-${String(state.step).padStart(8, "0")}`;
    const path = join(this.#folder, name);
    const index = readIndex(this.#folder);
    if (!(index?.last === name && existsSync(path))) {
      const temporary = join(this.#folder, `writing-${name}`);
      try {
        rmSync(temporary, { recursive: true, force: true });
        mkdirSync(temporary);
        await saveGPT(temporary, model, tokenizer);
        await saveTensors(join(temporary, "optimizer.safetensors"), optimizer.tensors());
        writeFileWhole(join(temporary, "state.json"), `${JSON.stringify(state)}\n`);
        rmSync(path, { recursive: true, force: true }); // left by a run that went another way from an older checkpoint
        renameSync(temporary, path);
      } catch (error) {
        rmSync(temporary, { recursive: true, force: true });
        throw error;
      }
    }
    const next: Index = { last: name, best: best ? name : (index?.best ?? null) };
    writeFileWhole(join(this.#folder, "index.json"), `${JSON.stringify(next)}\n`);
    for (const old of readdirSync(this.#folder)) {
      if (old.startsWith("step-") && old !== next.last && old !== next.best) {
        rmSync(join(this.#folder, old), { recursive: true });
      }
    }
    return path;
  }

  /** Forgets the checkpoints of an earlier run. */
  clear(): void {
    for (const name of readdirSync(this.#folder)) {
      if (name === "index.json" || name.startsWith("step-")) rmSync(join(this.#folder, name), { recursive: true });
    }
  }
}

function readIndex(folder: string): Index | undefined {
  try {
    return JSON.parse(readFileSync(join(folder, "index.json"), "utf8"));
  } catch {
    return undefined;
  }
}

/**
 * The folder with config.json and model.safetensors that `path` stands for: itself, or a run's last or best checkpoint.
 * @throws Error where there is none
 */
export function findCheckpoint(path: string, which: "last" | "best" = "last"): string {
  if (!existsSync(path)) throw new Error(`findCheckpoint: no folder ${path}; give a run folder or a checkpoint`);
  if (existsSync(join(path, "model.safetensors"))) return path;
  const folder = join(path, "checkpoints");
  const index = readIndex(folder);
  const name = which === "best" ? (index?.best ?? index?.last) : index?.last;
  if (!name)
    throw new Error(`findCheckpoint: ${path} has no checkpoint yet; train longer, or give a checkpoint's folder`);
  return join(folder, name);
}

export function hasCheckpoint(run: string): boolean {
  return readIndex(join(run, "checkpoints")) !== undefined;
}

/**
 * Reads a checkpoint's optimizer and state; the model is read by `loadGPT` or `loadTensors`.
 * @throws Error where a file is missing or damaged
 */
export function loadTraining(folder: string, optimizer: AdamW): TrainState {
  const path = join(folder, "state.json");
  let state: TrainState;
  try {
    state = JSON.parse(readFileSync(path, "utf8"));
    state.overflows ??= 0;
  } catch (error) {
    throw new Error(`train: cannot read ${path} (${error instanceof Error ? error.message : error})`);
  }
  const whole = [state.step, state.position].every((n) => Number.isInteger(n) && n >= 0);
  if (state.version !== 1 || !whole || !Array.isArray(state.random)) {
    throw new Error(`train: ${path} is not the state of a run of this version; resume from another checkpoint`);
  }
  loadTensors(join(folder, "optimizer.safetensors"), optimizer.tensors());
  optimizer.resume(state.step);
  return state;
}
