import { deviation, type Experiment, groups, mean, meanLine, shown } from "./experiment.js";
import { type Kind, type TextRun, textRun } from "./text-runs.js";

const CONTEXTS = [256, 512, 1024, 2048];
const GATED: Kind = "power p=2, gated";
const UNGATED: Kind = "power p=2, ungated";

/** Loss in the second half of the context. */
const late = ({ spans }: TextRun) => spans[spans.length - 1][1];

export const gating: Experiment<TextRun> = {
  name: "gating",
  question: "Does gating matter, and does the gap grow with the context? Held-out loss by position.",
  jobs({ steps, seeds }) {
    // The same tokens at every length.
    return Array.from({ length: seeds }, (_, k) => k + 1).flatMap((seed) =>
      CONTEXTS.flatMap((contextLength) =>
        [GATED, UNGATED].map((kind) => textRun({ kind, contextLength, seed, steps })),
      ),
    );
  },
  findings(records) {
    const rows: (string | number)[][] = [];
    const series: Record<string, [number, number][]> = {};
    const gaps: { context: number; gap: number }[] = [];
    for (const [context, runs] of groups(records, "contextLength", CONTEXTS)) {
      const kinds = groups(runs, "kind", [GATED, UNGATED]);
      for (const [kind, list] of kinds) {
        series[`${kind.slice("power p=2, ".length)}, context ${context}`] = meanLine(
          list.map(({ value }) => value.spans),
        );
      }
      if (kinds.length < 2) continue;
      const [gated, ungated] = kinds.map(([, list]) => list.map(({ value }) => late(value)));
      const gap = mean(ungated) - mean(gated);
      gaps.push({ context, gap });
      rows.push([context, mean(gated), deviation(gated), mean(ungated), deviation(ungated), gap]);
    }
    const seen = gaps.map(
      ({ context, gap }) =>
        `In the second half of a context of ${shown(context)}, gated is ${Math.abs(gap).toFixed(3)} nats ` +
        `${gap >= 0 ? "below" : "above"} ungated.`,
    );
    if (gaps.length > 1) {
      const grows = gaps.every(({ gap }, k) => k === 0 || gap > gaps[k - 1].gap);
      seen.push(grows ? "The gap grows with each doubling." : "The gap does not grow with each doubling.");
    }
    return {
      title: "Held-out loss by position, gated and not",
      columns: ["context", "gated", "deviation", "ungated", "deviation", "gap"],
      ...{ rows, series, axes: { x: "position", y: "held-out loss (nats per token)", logX: true }, seen },
    };
  },
};
