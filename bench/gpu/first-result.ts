import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { attempt, type Figure, type Question } from "../context.js";
import { timing } from "../measure.js";
import { unlessQuick } from "./power.js";

type Steps = "node" | "imported" | "device" | "inputs" | "first" | "second";

const LABELS: Record<Steps, string> = {
  node: "Node's own start",
  imported: "import",
  device: "adapter and device",
  inputs: "making and uploading inputs",
  first: "first call to its result",
  second: "second call",
};

/** No shader from an earlier process: an empty home and caches, and the drivers' own caches off. */
function freshProcess(child: string, args: readonly string[]): Record<Steps, number> {
  const home = mkdtempSync(join(tmpdir(), "first-result-"));
  try {
    const { stdout, stderr, status, signal } = spawnSync(process.execPath, [child, ...args], {
      encoding: "utf8",
      env: {
        ...process.env,
        HOME: home,
        XDG_CACHE_HOME: home,
        __GL_SHADER_DISK_CACHE: "0",
        __GL_SHADER_DISK_CACHE_PATH: home,
        CUDA_CACHE_DISABLE: "1",
        MESA_SHADER_CACHE_DISABLE: "true",
      },
    });
    if (status !== 0)
      throw new Error(`the child process ended with ${status ?? signal}: ${stderr.trim().slice(-2000)}`);
    return JSON.parse(stdout);
  } finally {
    rmSync(home, { recursive: true, force: true });
  }
}

export const gpuFirstResult: Question = {
  name: "gpu-first-result",
  question:
    "How soon is the first result there in a fresh process, no shader cached? (T=65,536, 8 heads, d=64, p=2, bf16)",
  target: "3 s without making the inputs, aim 1 s",
  on: ["webgpu"],
  async run(context) {
    const { quick } = context;
    const child = fileURLToPath(new URL("./first-result-child.js", import.meta.url));
    const failures: string[] = [];
    const figures: Figure[] = [];
    const rows: (number | string)[][] = [];
    const chunk = context.chunkSize ?? (quick ? 64 : "");
    for (const what of ["forward", "forward-backward"]) {
      context.progress(`  ${what}`);
      await attempt(failures, what, async () => {
        const args = [
          quick ? "256" : "65536",
          quick ? "2" : "8",
          what,
          String(chunk),
          context.boundsChecks === false ? "unchecked" : "",
        ];
        const runs = Array.from({ length: quick ? 1 : 5 }, () => freshProcess(child, args));
        const total = timing(runs.map(({ node, imported, device, first }) => node + imported + device + first));
        const target = what === "forward" ? unlessQuick(context, { atMost: 3000, aim: 1000 }) : {};
        figures.push({ name: what, value: total.median, unit: "ms", spread: total.spread, ...target });
        for (const [step, label] of Object.entries(LABELS)) {
          rows.push([what, label, timing(runs.map((run) => run[step as Steps])).median]);
        }
      });
    }
    return { figures, table: { columns: ["what", "step", "ms"], rows }, failures };
  },
};
