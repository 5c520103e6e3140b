import { mkdirSync } from "node:fs";
import { dirname } from "node:path";
import { writeFileWhole } from "../data/whole-file.js";
import type { WebGpuDevice } from "../devices/webgpu/device.js";
import type { TunedTiles } from "../devices/webgpu/legal-tiles.js";
import { loadTiles, readTileFile, type TileFile } from "../devices/webgpu/tile-file.js";
import { type TunedKernel, tunedTiles } from "./tune.js";

/** What is usable of a file: one that is not is what tuning again replaces. */
function usable<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

/** Writes what was found on a device to a file. Tiles of other kernels and other adapters stay as they are there. */
export function saveTiles(path: string, device: WebGpuDevice, found: readonly TunedKernel[]): void {
  const { adapter, matrixUnits, gpu } = device;
  const before: TileFile | undefined = usable(() => readTileFile(path));
  const kept: TunedTiles = { ...usable(() => loadTiles(path, adapter, matrixUnits!, gpu.limits)) };
  for (const { kernel } of found) delete kept[kernel];
  const adapters = { ...before?.adapters, [adapter]: { ...kept, ...tunedTiles(found) } };
  mkdirSync(dirname(path), { recursive: true });
  writeFileWhole(path, `${JSON.stringify({ version: 1, adapters } satisfies TileFile, undefined, 2)}\n`);
}
