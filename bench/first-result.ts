import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { Question } from "./context.js";
import { timing } from "./measure.js";

export const firstResult: Question = {
  name: "first-result",
  question: "How soon after import is the first result there, in a fresh process? (T=1,024, 8 heads, d=64, wasm)",
  target: "under 300 ms",
  async run(context) {
    const child = fileURLToPath(new URL("./first-result-child.js", import.meta.url));
    const runs = Array.from({ length: context.quick ? 2 : 7 }, () => {
      const { stdout, stderr, status } = spawnSync(process.execPath, [child], { encoding: "utf8" });
      if (status !== 0) throw new Error(`first-result: the child process failed: ${stderr}`);
      return JSON.parse(stdout) as { imported: number; first: number; second: number };
    });
    const first = timing(runs.map((run) => run.first));
    return {
      figures: [
        { name: "first result after import", value: first.median, unit: "ms", atMost: 300, spread: first.spread },
        { name: "import", value: timing(runs.map((run) => run.imported)).median, unit: "ms" },
        { name: "second result", value: timing(runs.map((run) => run.second)).median, unit: "ms" },
      ],
    };
  },
};
