import { nodeModule } from "../node.js";
import { type TileLimits, type TunedTiles, tileProblem } from "./legal-tiles.js";
import { matricesOf } from "./matrix-text.js";
import type { MatrixUnits } from "./matrix-units.js";

/** What the tune command writes: tiles by adapter and kernel. */
export interface TileFile {
  version: 1;
  adapters: Record<string, TunedTiles>;
}

/** An adapter and its driver, as far as WebGPU tells. */
export function adapterKey(info: GPUAdapterInfo | undefined): string {
  const { vendor, architecture, device, description, driver } = (info ?? {}) as Partial<GPUAdapterInfo> & {
    driver?: string;
  };
  return [vendor, architecture, device, description, driver].filter(Boolean).join(" / ") || "unnamed adapter";
}

/**
 * Where tiles are kept: the environment variable POWER_ATTENTION_TILES, else power-attention/tiles.json in
 * XDG_CACHE_HOME or ~/.cache. Undefined outside of Node, and where that variable is empty.
 */
export function tileFilePath(): string | undefined {
  const os = nodeModule("node:os");
  if (!os) return undefined;
  const { POWER_ATTENTION_TILES: named, XDG_CACHE_HOME: cache } = process.env;
  if (named !== undefined) return named || undefined;
  return `${cache || `${os.homedir()}/.cache`}/power-attention/tiles.json`;
}

/** The file's contents, checked but for the tiles themselves; undefined where there is no file. */
export function readTileFile(path: string): TileFile | undefined {
  const fs = nodeModule("node:fs");
  if (!fs?.existsSync(path)) return undefined;
  let file: unknown;
  try {
    file = JSON.parse(fs.readFileSync(path, "utf8"));
  } catch (error) {
    throw unusable(path, `a file of tiles must be JSON, got ${error instanceof Error ? error.message : error}`);
  }
  const { version, adapters } = (file ?? {}) as Partial<TileFile>;
  const isRecord = (x: unknown) => x !== null && typeof x === "object" && !Array.isArray(x);
  if (version !== 1) throw unusable(path, `a file of tiles must have version 1, got ${JSON.stringify(version)}`);
  if (!isRecord(adapters) || !Object.values(adapters!).every(isRecord)) {
    throw unusable(path, "a file of tiles must hold tiles by adapter and kernel, got something else");
  }
  return file as TileFile;
}

const unusable = (path: string, problem: string) =>
  new Error(`getDevice: ${path}: ${problem}; delete the file, run power-attention tune again, or pass tiles: false`);

/**
 * The tiles that a file has for an adapter; none where the file or the adapter's part is missing.
 * @throws Error where the file is no file of tiles, or one of the adapter's tiles is illegal on it
 */
export function loadTiles(path: string, adapter: string, units: MatrixUnits, limits: TileLimits): TunedTiles {
  const adapters = readTileFile(path)?.adapters ?? {};
  const tiles = Object.hasOwn(adapters, adapter) ? adapters[adapter] : {};
  for (const [kernel, tile] of Object.entries(tiles)) {
    const problem = tileProblem(kernel, tile, matricesOf(units), limits);
    if (problem) throw unusable(path, `${kernel}: ${problem}`);
  }
  return tiles;
}

/** The tiles of a device: of the file that `tiles` names, which must exist, or for a device of our own of the usual one. */
export function tilesOf(
  tiles: false | string | undefined,
  own: boolean,
  adapter: string,
  units: MatrixUnits,
  limits: TileLimits,
): TunedTiles {
  if (tiles === false) return {};
  if (tiles === undefined) {
    const path = own ? tileFilePath() : undefined;
    return path === undefined ? {} : loadTiles(path, adapter, units, limits);
  }
  if (!nodeModule("node:fs")?.existsSync(tiles)) {
    throw new Error(
      `getDevice: tiles must name a file that exists, in Node, got ${JSON.stringify(tiles)}; ` +
        `power-attention tune --out FILE writes one`,
    );
  }
  return loadTiles(tiles, adapter, units, limits);
}
