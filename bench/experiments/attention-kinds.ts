import { deviation, type Experiment, mean } from "./experiment.js";
import { KINDS, slug } from "./kinds.js";
import { trained } from "./runs.js";

export const attentionKinds: Experiment = {
  name: "attention-kinds",
  question: "Does power attention learn as well as softmax? Same model, data, seeds and tokens.",
  async run(options) {
    const { steps = 1000, seeds } = options;
    const rows: (string | number)[][] = [];
    const series: Record<string, [number, number][]> = {};
    for (const [kind, config] of Object.entries(KINDS)) {
      const last: number[] = [];
      const curves: [number, number][][] = [];
      for (let seed = 1; seed <= seeds; seed++) {
        const settings = { ...config, steps, seed, contextLength: 256, batchSize: 8, evalEvery: Math.ceil(steps / 10) };
        const { metrics } = await trained(options, `${slug(kind)}-${seed}`, settings);
        const evals = metrics.filter((m) => m.kind === "eval");
        last.push(evals[evals.length - 1].loss);
        curves.push(evals.map((m) => [m.tokens, m.loss]));
      }
      rows.push([kind, mean(last), deviation(last), ...last]);
      series[kind] = curves[0].map(([x], k) => [x, mean(curves.map((curve) => curve[k][1]))]);
    }
    return {
      title: "Held-out loss by kind of attention",
      columns: ["attention", "mean", "deviation", ...Array.from({ length: seeds }, (_, k) => `seed ${k + 1}`)],
      ...{ rows, series, axes: { x: "tokens", y: "held-out loss (nats per token)" } },
      notes: { steps, seeds, contextLength: 256, tokensPerStep: 2048 },
    };
  },
};
