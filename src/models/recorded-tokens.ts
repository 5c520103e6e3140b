import { WebGpuDevice } from "../devices/webgpu/device.js";
import { Recording } from "../devices/webgpu/recording.js";
import type { RotaryEmbedding } from "../nn/index.js";
import { PowerState, repeatedStep } from "../state.js";
import { isRecording } from "../tensor/tape.js";
import type { Tensor } from "../tensor/tensor.js";
import type { GPTCache } from "./gpt.js";

interface Recorded {
  states: readonly PowerState[];
  folded: boolean;
  /** Undefined where something else than dispatches was done. */
  recording: Recording | undefined;
  /** How often in a row that was so. */
  failures: number;
}

/** The first token also writes the tables that kernels read; what goes on doing more is left alone. */
const MOST_FAILURES = 3;

/**
 * What a model does for one token more is the same each time where the caches are power attention's: the state has its size, and
 * the tail's length is one number. On a GPU it is recorded with the first such token, and run again for those that follow.
 */
export class RecordedTokens {
  readonly #made = new WeakMap<GPTCache, Recorded>();

  /** The result of `run` for ids [B, 1], or undefined where it can't be recorded and nothing was done. */
  next(
    ids: Tensor,
    caches: GPTCache,
    rotary: RotaryEmbedding | undefined,
    run: (ids: Tensor) => Tensor,
  ): Tensor | undefined {
    const { device } = ids;
    // In check mode every operation looks at its results.
    if (!(device instanceof WebGpuDevice) || device.check || isRecording()) return undefined;
    if (ids.shape[1] !== 1 || !ids.isContiguous) return undefined;
    const states = caches.filter((cache) => cache instanceof PowerState);
    const { tail, folded, makeRoom, advance, companions } = repeatedStep;
    const [first] = states;
    if (states.length < caches.length || !first || first.foldLength < 2) return undefined;
    if (!states.every((state) => tail(state) === tail(first) && state.foldLength === first.foldLength))
      return undefined;

    let made = this.#made.get(caches);
    if (made && made.failures === MOST_FAILURES) return undefined;
    for (const state of states) makeRoom(state);
    const position = first.tokens;
    const inputs = rotary ? [ids, rotary.angles(position, 1).both] : [ids];
    const same = made?.folded === folded(first) && made.states.every((state, n) => state === states[n]);
    if (made?.recording && same && made.recording.takes(inputs)) {
      const output = made.recording.again(inputs, { tail: tail(first) });
      for (const state of states) advance(state);
      return output;
    }
    if (made?.recording) {
      companions(made.states[0]).delete(made.recording);
      made.recording.dispose();
    }
    const { output, recording } = Recording.of(inputs, (ids, angles) =>
      rotary ? rotary.using(angles, position, () => run(ids)) : run(ids),
    );
    if (recording) companions(first).add(recording);
    made = { states, folded: folded(first), recording, failures: recording ? 0 : (made?.failures ?? 0) + 1 };
    this.#made.set(caches, made);
    return output;
  }
}
