import { join } from "node:path";
import { TokenFile } from "../../src/data/index.js";
import { evaluate } from "../../src/eval/index.js";
import { getDevice } from "../../src/index.js";
import { loadGPT } from "../../src/models/index.js";
import { findCheckpoint } from "../../src/train/index.js";
import type { ExperimentOptions } from "./experiment.js";

/** Mean held-out loss of spans of positions, each a power of two long: [last position of the span, loss]. */
export async function lossByPosition(
  { data, threads }: ExperimentOptions,
  folder: string,
  contextLength: number,
  windows: number,
): Promise<[number, number][]> {
  const device = await getDevice("wasm", threads > 0 ? { threads } : undefined);
  const { model } = await loadGPT(findCheckpoint(folder), { device });
  using file = TokenFile.open(join(data, "val.bin"));
  const { byPosition } = await evaluate(model, file, { contextLength, batchSize: 1, batches: windows });
  model.dispose();
  if (threads > 0) device.dispose();
  const spans: [number, number][] = [];
  for (let from = 0; from < contextLength; ) {
    const to = Math.min(contextLength, Math.max(16, 2 * from));
    const part = byPosition.subarray(from, to);
    spans.push([to, part.reduce((a, b) => a + b, 0) / part.length]);
    from = to;
  }
  return spans;
}
