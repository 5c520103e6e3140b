import { deviation, type Experiment, groups, mean, meanLine } from "./experiment.js";
import { KINDS, type Kind, SHORT, type TextRun, textRun } from "./text-runs.js";

const NAMES = Object.keys(KINDS) as Kind[];

export const attentionKinds: Experiment<TextRun> = {
  name: "attention-kinds",
  question: "Does power attention learn as well as softmax? Same model, data, seeds and tokens.",
  jobs({ steps, seeds }) {
    return Array.from({ length: seeds }, (_, k) => k + 1).flatMap((seed) =>
      NAMES.map((kind) => textRun({ kind, contextLength: SHORT, seed, steps })),
    );
  },
  findings(records) {
    const kinds = groups(records, "kind", NAMES);
    const losses = new Map(kinds.map(([kind, runs]) => [kind, runs.map(({ value }) => value.loss)]));
    const most = Math.max(...[...losses.values()].map((list) => list.length));
    const seeds = Array.from({ length: most }, (_, k) => k);
    const softmax = losses.get("softmax");
    const seen = [...losses].flatMap(([kind, list]) => {
      if (!softmax || kind === "softmax") return [];
      const gap = mean(list) - mean(softmax);
      const spread = Math.max(deviation(list), deviation(softmax));
      const seeds = Number.isNaN(spread) ? "one seed" : `deviation between seeds at most ${spread.toFixed(3)}`;
      return `${kind}: ${Math.abs(gap).toFixed(3)} nats ${gap < 0 ? "below" : "above"} softmax (${seeds}).`;
    });
    return {
      title: "Held-out loss by kind of attention",
      columns: ["attention", "mean", "deviation", ...seeds.map((k) => `seed ${k + 1}`)],
      rows: [...losses].map(([kind, list]) => [kind, mean(list), deviation(list), ...seeds.map((k) => list[k] ?? "")]),
      series: Object.fromEntries(kinds.map(([kind, runs]) => [kind, meanLine(runs.map(({ value }) => value.curve))])),
      axes: { x: "tokens", y: "held-out loss (nats per token)" },
      seen,
    };
  },
};
