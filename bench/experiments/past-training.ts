import type { Experiment } from "./experiment.js";
import { KINDS, slug } from "./kinds.js";
import { lossByPosition } from "./positions.js";
import { trained } from "./runs.js";

const LENGTH = 256;

export const pastTraining: Experiment = {
  name: "past-training",
  question: "Does a model trained at one length go on past it? Held-out loss to four times the training length.",
  async run(options) {
    const { steps = 1000 } = options;
    const rows: (string | number)[][] = [];
    const series: Record<string, [number, number][]> = {};
    for (const kind of ["power p=2, gated", "power p=2, ungated"]) {
      for (const positions of ["rotary", "none"]) {
        const config = { ...KINDS[kind], positions, steps, contextLength: LENGTH, evalEvery: 0 };
        const { folder } = await trained(options, `${slug(kind)}-${positions}-past`, config);
        const name = `${kind}, positions ${positions}`;
        series[name] = await lossByPosition(options, folder, 4 * LENGTH, 64);
        const at = (position: number) => series[name].find(([to]) => to === position)![1];
        rows.push([name, at(LENGTH), at(2 * LENGTH), at(4 * LENGTH)]);
      }
    }
    return {
      title: `Held-out loss past the training length of ${LENGTH}`,
      columns: ["model", "128–255", "256–511", "512–1,023"],
      ...{ rows, series, axes: { x: "position", y: "held-out loss (nats per token)", logX: true } },
      notes: { steps, tokensPerStep: 8 * LENGTH },
    };
  },
};
