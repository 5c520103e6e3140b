import type { TrainConfig } from "../../src/train/index.js";

/** The attentions that experiments compare, at the same width: what differs from the default model. */
export const KINDS: Record<string, Partial<TrainConfig>> = {
  softmax: { attention: "softmax" },
  "power p=2, gated": { degree: 2 },
  "power p=2, ungated": { degree: 2, disableGating: true },
  // Heads of 16: the state of p=4 has 3,876 rows a head then, and 52,360 with heads of 32.
  "power p=4, gated, small heads": { degree: 4, headSize: 16 },
  "power p=1, gated": { degree: 1 },
};

export const slug = (name: string) => name.replace(/[^a-z0-9]+/gi, "-").toLowerCase();
