import type { Generator } from "../tensor/random.js";

export interface SampleOptions {
  /** Divides the logits: 0 takes the likeliest token, 1 samples as the model says. */
  temperature: number;
  /** Only the likeliest k tokens; 0: all. */
  topK: number;
  /** Only the likeliest tokens that together have this probability; 1: all. */
  topP: number;
  /** Divides the logits of tokens seen before (multiplies negative ones); 1: none. Keskar et al. 2019. */
  repetitionPenalty: number;
}

export const SAMPLE_DEFAULTS: SampleOptions = { temperature: 0.8, topK: 0, topP: 0.95, repetitionPenalty: 1 };

/** @throws RangeError naming the option that is out of range */
export function checkSampleOptions({ temperature, topK, topP, repetitionPenalty }: SampleOptions): void {
  if (!(temperature >= 0)) throw new RangeError(`generate: temperature must be 0 or more, got ${temperature}`);
  if (!Number.isInteger(topK) || topK < 0) {
    throw new RangeError(`generate: topK must be an integer of 0 (all) or more, got ${topK}`);
  }
  if (!(topP > 0 && topP <= 1)) throw new RangeError(`generate: topP must be above 0 and at most 1, got ${topP}`);
  if (!(repetitionPenalty > 0)) {
    throw new RangeError(`generate: repetitionPenalty must be above 0, got ${repetitionPenalty}`);
  }
}

/** Draws a token from logits; `seen` are the ids that the repetition penalty is for. */
export function sampleToken(
  logits: ArrayLike<number>,
  options: SampleOptions,
  seen: ReadonlySet<number>,
  generator: Generator,
): number {
  const { temperature, topK, topP, repetitionPenalty } = options;
  const scores = new Float64Array(logits); // `from` would iterate: 50,000 logits take a millisecond
  if (repetitionPenalty !== 1) {
    for (const id of seen)
      scores[id] = scores[id] > 0 ? scores[id] / repetitionPenalty : scores[id] * repetitionPenalty;
  }
  let best = 0;
  for (let id = 1; id < scores.length; id++) if (scores[id] > scores[best] || Number.isNaN(scores[best])) best = id;
  if (!Number.isFinite(scores[best])) {
    throw new RangeError(
      `generate: logits must be numbers, the largest is ${scores[best]}; the model's weights are damaged`,
    );
  }
  if (temperature === 0) return best;
  const top = scores[best];
  for (let id = 0; id < scores.length; id++) {
    const below = (scores[id] - top) / temperature;
    scores[id] = below > NEGLIGIBLE ? Math.exp(below) : 0;
  }
  const ids = candidates(scores, topK, topP);
  const sum = ids.reduce((total, id) => total + scores[id], 0);
  let left = generator.uniform() * sum;
  for (const id of ids) {
    left -= scores[id];
    if (left < 0) return id;
  }
  return ids[ids.length - 1]; // rounding ate the rest
}

/** Of exponents: a whole vocabulary of such tokens is lost in the rounding of the likeliest one's weight. */
const NEGLIGIBLE = -50;

/** The ids to draw from. Where few of many are wanted, only about as many are sorted: those above a falling bar. */
function candidates(weights: Float64Array, topK: number, topP: number): number[] {
  const above = (bar: number) => {
    const ids: number[] = [];
    for (let id = 0; id < weights.length; id++) if (weights[id] > bar) ids.push(id);
    return ids;
  };
  if (topK === 0 && topP === 1) return above(0);
  const sumOf = (ids: readonly number[]) => ids.reduce((total, id) => total + weights[id], 0);
  let total = 0;
  if (topK === 0) for (let id = 0; id < weights.length; id++) total += weights[id];
  const enough = (ids: readonly number[]) => (topK > 0 ? ids.length >= topK : sumOf(ids) >= topP * total);
  let bar = 1 / 16; // the likeliest weighs 1
  let ids = above(bar);
  while (bar > 0 && !enough(ids)) {
    bar = bar > 1e-30 ? bar / 64 : 0;
    ids = above(bar);
  }
  ids.sort((a, b) => weights[b] - weights[a] || a - b);
  if (topK > 0) ids = ids.slice(0, topK);
  const wanted = topP * (topK > 0 ? sumOf(ids) : total);
  let reached = 0;
  let kept = 0;
  while (kept < ids.length && reached < wanted) reached += weights[ids[kept++]];
  return ids.slice(0, kept);
}
