import { type Experiment, groups, type JobRecord, meanLine, shown } from "./experiment.js";
import { type Kind, PAST, SHORT, type TextRun, textRun } from "./text-runs.js";

const POSITIONS = ["rotary", "none"] as const;
const POWER: Kind[] = ["power p=2, gated", "power p=2, ungated"];

export const pastTraining: Experiment<TextRun> = {
  name: "past-training",
  question: "Does a model trained at one length go on past it? Held-out loss to four times the training length.",
  jobs({ steps, seeds }) {
    const run = (kind: Kind, positions: "rotary" | "none", seed: number) =>
      textRun({ kind, positions, contextLength: SHORT, seed, steps });
    return Array.from({ length: seeds }, (_, k) => k + 1).flatMap((seed) => [
      ...POSITIONS.flatMap((positions) => POWER.map((kind) => run(kind, positions, seed))),
      run("softmax", "rotary", seed),
    ]);
  },
  findings(records) {
    const lines: [string, [number, number][]][] = groups(records, "kind", [...POWER, "softmax"]).flatMap(
      ([kind, runs]) =>
        groups(runs, "positions", POSITIONS).map(([positions, list]): [string, [number, number][]] => [
          `${kind}, ${positions === "none" ? "no positions" : positions}`,
          meanLine(list.map(({ value }: JobRecord<TextRun>) => value.past!)),
        ]),
    );
    const at = (line: [number, number][], position: number) => line.find(([to]) => to === position)![1];
    const ends = [SHORT, 2 * SHORT, PAST * SHORT];
    return {
      title: `Held-out loss past the training length of ${SHORT}`,
      columns: ["model", ...ends.map((end) => `${end / 2}–${shown(end - 1)}`)],
      rows: lines.map(([name, line]) => [name, ...ends.map((end) => at(line, end))]),
      series: Object.fromEntries(lines),
      axes: { x: "position", y: "held-out loss (nats per token)", logX: true },
      seen: lines.map(([name, line]) => {
        const change = at(line, PAST * SHORT) - at(line, SHORT);
        const how = change <= 0 ? "lower" : "higher";
        return `${name}: in the last half of ${PAST} times the length the loss is ${Math.abs(change).toFixed(3)} ${how} than in the last half of the training length.`;
      }),
    };
  },
};
