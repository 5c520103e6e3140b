import type { Device } from "../devices/device.js";
import { WebGpuDevice } from "../devices/webgpu/device.js";
import { TILED_KERNELS, type Tile, type TunedTiles, tileProblem } from "../devices/webgpu/legal-tiles.js";
import { matricesOf } from "../devices/webgpu/matrix-text.js";
import { Scope } from "../tensor/scope.js";
import type { Tensor } from "../tensor/tensor.js";
import { type TiledKernel, typicalProblems } from "./problems.js";

export interface TuneOptions {
  /** Only tiles next to the table's. Default false: on from the best of them, until none is better. */
  quick?: boolean;
  /** Which kernels, by the names that tiles have ("matmul", "read", "readWide" for heads above 64, …). Default: all. */
  kernels?: readonly string[];
  /** Gets a line for people now and then. */
  onProgress?: (line: string) => void;
}

/** What was found for a kernel; times are GPU milliseconds of its dispatches in one run of a typical problem. */
export interface TunedKernel {
  kernel: string;
  table: { tile: Tile; ms: number };
  /** The table's own where no other is 2 % faster. */
  best: { tile: Tile; ms: number };
}

/** A tile takes the table's place where its time is at most this share of the table's. */
const WORTHWHILE = 0.98;
/** Clocks of a GPU that waits are low. */
const WARM_MS = 250;
const RUNS = 5;
const ROUNDS = 6;
/** ‖difference‖ / ‖result‖ of sums in another order, rounded to halves. */
const TOLERANCE = 4e-3;

const show = (tile: Tile) => Object.entries(tile).flat().join(" ");

const median = (values: number[]) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

/** Tiles with up to `most` numbers halved or doubled. */
function neighbours(tile: Tile, most: number): Tile[] {
  let all = [{ tile, changes: 0 }];
  for (const [name, value] of Object.entries(tile)) {
    const changed = all
      .filter(({ changes }) => changes < most)
      .flatMap(({ tile, changes }) =>
        [value / 2, value * 2].map((to) => ({ tile: { ...tile, [name]: to }, changes: changes + 1 })),
      );
    all = [...all, ...changed];
  }
  return all.slice(1).map(({ tile }) => tile);
}

/** ‖found − wanted‖ / ‖wanted‖ of the tensor where that is largest, computed on the device; NaN where one is. */
async function difference(found: Tensor[], wanted: Tensor[]): Promise<number> {
  const sums = wanted.flatMap((x, k) => {
    const truth = x.to("f32");
    const off = found[k].to("f32").sub(truth);
    return [off.mul(off).sum(), truth.mul(truth).sum()];
  });
  const numbers = await Promise.all(sums.map(async (sum) => (await sum.data())[0]));
  return Math.max(...wanted.map((_, k) => (numbers[2 * k] === 0 ? 0 : Math.sqrt(numbers[2 * k] / numbers[2 * k + 1]))));
}

/** Gradients outlive the scope that they were made in. */
function disposeAll(tensors: Tensor[]): void {
  for (const tensor of tensors) tensor.dispose();
}

/** A kernel in a problem that runs it. */
class Trial {
  constructor(
    private readonly device: WebGpuDevice,
    private readonly kernel: TiledKernel,
    private readonly run: () => Tensor[],
  ) {}

  /** Results with the tile in use; the caller disposes them. */
  reference(): Tensor[] {
    using _ = new Scope();
    return this.run().map((tensor) => tensor.keep());
  }

  async differs(tile: Tile, reference: Tensor[]): Promise<number> {
    using _ = new Scope();
    this.device.tuned[this.kernel.name] = tile;
    const found = this.run();
    try {
      return await difference(found, reference);
    } finally {
      disposeAll(found);
    }
  }

  #once(): void {
    using _ = new Scope();
    disposeAll(this.run());
  }

  /** Milliseconds of the kernel in one run, the median of some, on a warm GPU. */
  async time(tile: Tile): Promise<number> {
    const { device, kernel } = this;
    device.tuned[kernel.name] = tile;
    const start = performance.now();
    while (performance.now() - start < WARM_MS) {
      this.#once();
      await device.sync();
    }
    const times: number[] = [];
    for (let k = 0; k < RUNS; k++) {
      const { kernels } = await device.profile(() => this.#once());
      const own = kernels.filter(({ name }) => kernel.dispatches.test(name));
      if (own.length === 0) throw new Error(`tune: no dispatch of ${kernel.name} was seen in what should run it`);
      times.push(own.reduce((sum, { ms }) => sum + ms, 0));
    }
    return median(times);
  }
}

/**
 * Searches for faster tile shapes of the kernels on matrix units: from the table's on, numbers halved and doubled. A tile
 * whose results are not the table's (relative norm above 4e-3) is dropped. Tiles that the device had are set aside first,
 * and those that were found are in use on it afterwards; `saveTiles` keeps them for devices to come. Takes minutes,
 * with `quick` less.
 *
 * @param device made with `getDevice("webgpu", …)`
 * @throws Error where the device has no matrix units or no timestamp queries; RangeError for a kernel without tiles
 */
export async function tune(device: Device, options: TuneOptions = {}): Promise<TunedKernel[]> {
  const { quick = false, kernels = TILED_KERNELS, onProgress = () => {} } = options;
  if (!(device instanceof WebGpuDevice) || !device.matrixUnits || !device.gpu.features.has("timestamp-query")) {
    throw new Error(
      `tune: only a webgpu device with matrix units and timestamp queries has tiles to choose, got ${device.description}; ` +
        "everything works here as it is",
    );
  }
  const unknown = kernels.find((kernel) => !TILED_KERNELS.includes(kernel));
  if (unknown !== undefined) {
    throw new RangeError(`tune: kernels must be among ${TILED_KERNELS.join(", ")}, got ${unknown}`);
  }
  for (const name of Object.keys(device.tuned)) delete device.tuned[name];
  const found: TunedKernel[] = [];
  for (const problem of typicalProblems(device)) {
    const wanted = problem.kernels.filter(
      ({ name }) => kernels.includes(name) && !found.some(({ kernel }) => kernel === name),
    );
    if (wanted.length === 0) continue;
    onProgress(`${problem.words}:`);
    const { run, dispose } = problem.prepare();
    try {
      for (const kernel of wanted) {
        found.push(await search(device, kernel, run, quick, onProgress));
        delete device.tuned[kernel.name];
      }
    } finally {
      dispose();
    }
  }
  Object.assign(device.tuned, tunedTiles(found));
  return found;
}

/** Tiles to keep: those that are not the table's. */
export function tunedTiles(found: readonly TunedKernel[]): TunedTiles {
  return Object.fromEntries(
    found.filter(({ table, best }) => best !== table).map(({ kernel, best }) => [kernel, best.tile]),
  );
}

async function search(
  device: WebGpuDevice,
  kernel: TiledKernel,
  run: () => Tensor[],
  quick: boolean,
  onProgress: (line: string) => void,
): Promise<TunedKernel> {
  const { name, start, sizes } = kernel;
  const units = matricesOf(device.matrixUnits!);
  const trial = new Trial(device, kernel, run);
  const table = { tile: start, ms: await trial.time(start) }; // in use from here on
  onProgress(`  ${name}: ${table.ms.toFixed(3)} ms, ${show(start)} (the table's)`);

  const reference = trial.reference();
  const attempt = async (tile: Tile): Promise<number | undefined> => {
    try {
      const off = await trial.differs(tile, reference);
      if (!(off <= TOLERANCE)) throw new Error(`its results differ by ${off}`);
      const ms = await trial.time(tile);
      onProgress(`  ${name}: ${ms.toFixed(3)} ms, ${show(tile)}`);
      return ms;
    } catch (error) {
      if (device.lost !== undefined) throw error;
      await device.sync().catch(() => {}); // errors that follow from the first
      onProgress(`  ${name}: dropped ${show(tile)}: ${error instanceof Error ? error.message.split("\n")[0] : error}`);
      return undefined;
    }
  };

  let best = table;
  const seen = new Set([show(start)]);
  for (let round = 0; round < (quick ? 1 : ROUNDS); round++) {
    const from = best;
    for (const tile of neighbours(from.tile, quick ? 1 : 2)) {
      if (seen.has(show(tile)) || tileProblem(name, tile, units, device.gpu.limits, sizes)) continue;
      seen.add(show(tile));
      const ms = await attempt(tile);
      if (ms !== undefined && ms < best.ms) best = { tile, ms };
    }
    if (best === from) break;
  }
  disposeAll(reference);
  if (best === table) return { kernel: name, table, best };
  // The fastest of many is partly the luckiest: both once more, by turns.
  const [before, after]: number[][] = [[], []];
  for (let k = 0; k < 3; k++) {
    before.push(await trial.time(start));
    after.push(await trial.time(best.tile));
  }
  table.ms = median(before);
  best.ms = median(after);
  return { kernel: name, table, best: best.ms <= WORTHWHILE * table.ms ? best : table };
}
