import type { TrainState } from "./checkpoint.js";

/** A loss that is not a number, or far above its running mean: training stopped. Its update is in no checkpoint. */
export class DivergedError extends Error {
  override name = "DivergedError";
}

/** Scaled f16 gradients may overflow once in a while, and such an update is left out; so many in a row are no accident. */
const OVERFLOWS = 10;

/**
 * Throws where an update's loss says that the run is lost.
 * @param mayOverflow gradients were in f16
 */
export function checkProgress(
  state: TrainState,
  loss: number,
  norm: number,
  learningRate: number,
  checkpoint: string,
  mayOverflow: boolean,
): void {
  const place = checkpoint === "" ? "no checkpoint was saved before it" : `the last good checkpoint is ${checkpoint}`;
  const step = state.step + 1;
  const leftOut = mayOverflow && Number.isFinite(loss) && !Number.isFinite(norm) && state.overflows < OVERFLOWS;
  if (leftOut) return;
  if (!Number.isFinite(loss) || !Number.isFinite(norm)) {
    const what = Number.isFinite(loss) ? `the gradients' norm is ${norm}` : `the loss is ${loss}`;
    const cause =
      state.meanLoss !== null && state.step > 0
        ? `the learning rate (${learningRate}) is most likely too high`
        : "the first step failed, so the data or initial weights are at fault, not the learning rate";
    throw new DivergedError(`train: at step ${step} ${what}; ${cause}; ${place}`);
  }
  if (state.meanLoss !== null && state.step > 20 && loss > 2 * state.meanLoss + 2) {
    throw new DivergedError(
      `train: at step ${step} the loss is ${loss.toFixed(3)}, its mean was ${state.meanLoss.toFixed(3)}: it diverges; the learning rate (${learningRate}) is most likely too high; ${place}`,
    );
  }
}
