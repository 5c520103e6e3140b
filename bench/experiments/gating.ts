import type { Experiment } from "./experiment.js";
import { KINDS, slug } from "./kinds.js";
import { lossByPosition } from "./positions.js";
import { trained } from "./runs.js";

const CONTEXTS = [256, 512, 1024, 2048];

export const gating: Experiment = {
  name: "gating",
  question: "Does gating matter, and does the gap grow with the context? Held-out loss by position.",
  async run(options) {
    const { steps = 600 } = options;
    const rows: (string | number)[][] = [];
    const series: Record<string, [number, number][]> = {};
    for (const contextLength of CONTEXTS) {
      const losses: number[] = [];
      for (const kind of ["power p=2, gated", "power p=2, ungated"]) {
        // The same tokens at every length.
        const config = { ...KINDS[kind], steps, contextLength, batchSize: 2048 / contextLength, evalEvery: 0 };
        const { folder } = await trained(options, `${slug(kind)}-context-${contextLength}`, config);
        const spans = await lossByPosition(options, folder, contextLength, 65536 / contextLength);
        series[`${kind}, context ${contextLength}`] = spans;
        losses.push(spans[spans.length - 1][1]);
      }
      rows.push([contextLength, ...losses, losses[1] - losses[0]]);
    }
    return {
      title: "Held-out loss in the second half of the context, gated and not",
      columns: ["context", "gated", "ungated", "gap"],
      ...{ rows, series, axes: { x: "position", y: "held-out loss (nats per token)", logX: true } },
      notes: { steps, tokensPerStep: 2048 },
    };
  },
};
