import { Command, Option } from "commander";
import { defaultDevice, getDevice } from "../devices/get-device.js";
import type { WebGpuDevice } from "../devices/webgpu/device.js";
import { tileFilePath } from "../devices/webgpu/tile-file.js";
import { TRAIN_OPTIONS } from "../train/config.js";
import { saveTiles, tune, tunedTiles } from "../tune/index.js";

export function tuneCommand(): Command {
  return new Command("tune")
    .description("Search for the GPU's fastest tile shapes and keep them for later runs; takes minutes.")
    .addOption(new Option("--device <kind>", "which device").choices(TRAIN_OPTIONS.device.choices).default("webgpu"))
    .option("--quick", "only shapes next to those in use")
    .option("--kernels <names>", "which kernels, separated by commas (default: all)", (names) => names.split(","))
    .option("--out <file>", `where to write (default: ${tileFilePath() ?? "needed here"})`)
    .action(async ({ device: kind, quick, kernels, out = tileFilePath() }) => {
      if (out === undefined) throw new Error("tune: --out must name a file where POWER_ATTENTION_TILES is empty");
      const known = kind === "auto" ? (await defaultDevice()).kind : kind;
      const device = await getDevice(known, known === "webgpu" ? { tiles: false } : {});
      console.error(device.description);
      const found = await tune(device, { quick, kernels, onProgress: (line) => console.error(line) });
      const tiles = tunedTiles(found);
      for (const { kernel, table, best } of found) {
        const gain = `${table.ms.toFixed(3)} → ${best.ms.toFixed(3)} ms, ${JSON.stringify(best.tile)}`;
        console.log(`${kernel}: ${kernel in tiles ? gain : "the shape in use is best"}`);
      }
      saveTiles(out, device as WebGpuDevice, found);
      console.log(`written to ${out}`);
      device.dispose();
    });
}
