import { chooseChunkSize, type DType } from "../../src/index.js";
import { backwardOperations, forwardOperations, powerBytes, quadraticOperations, type Shape } from "../arithmetic.js";
import { type Context, type Figure, powerTask, type Result } from "../context.js";
import { describeGpu } from "../machine.js";
import { fastInputs } from "./inputs.js";
import { type GpuTiming, measureGpu } from "./measure.js";
import { floorOf, ratesOf } from "./rates.js";

export type GpuShape = Omit<Shape, "chunkSize">;

/** The problem that most rows are about: 65,536 tokens in all, 8 heads of 64, degree 2; at toy sizes, all of it small. */
export function gpuShape({ quick }: Context, tokens: number, rest: Partial<GpuShape> = {}): GpuShape {
  const shape = { queryHeads: 8, heads: 8, headDim: 64, valueDim: 64, degree: 2, ...rest };
  if (!quick) return { batch: 65536 / tokens, tokens, ...shape };
  const { queryHeads, heads, headDim, valueDim, degree } = shape;
  const small = {
    queryHeads: queryHeads / 4,
    heads: Math.ceil(heads / 4),
    headDim: headDim / 4,
    valueDim: valueDim / 4,
  };
  return { batch: 65536 / tokens, tokens: tokens / 256, ...small, degree };
}

export interface PowerCase {
  name: string;
  shape: GpuShape;
  backward: boolean;
  /** Default: the command line's, else the library's choice. */
  chunkSize?: number;
  /** Without matrix units. Default false. */
  portable?: boolean;
  /** Of inputs and outputs. Default "bf16". */
  dtype?: DType;
}

export interface PowerTime {
  name: string;
  timing: GpuTiming;
  /** GPU time where there are timestamps, else wall time: milliseconds. */
  ms: number;
  operations: number;
  bytes: number;
  floor: number | undefined;
  /** TFLOP/s by the arithmetic that the form needs. */
  rate: number;
  chunkSize: number | null;
}

export function operationsOf(shape: GpuShape, chunkSize: number | null, backward: boolean): number {
  if (chunkSize === null) return quadraticOperations(shape, backward);
  const chunked = { ...shape, chunkSize };
  return forwardOperations(chunked) + (backward ? backwardOperations(chunked) : 0);
}

/** powerFull of one shape, gated, with gradients of all four inputs where backward, beside what it can't fall below. */
export async function timePower(context: Context, asked: PowerCase): Promise<PowerTime> {
  const { name, shape, backward, portable = false, dtype = "bf16" } = asked;
  context.progress(`  ${name}`);
  const device = await context.gpu({ portable });
  const forced = asked.chunkSize ?? context.chunkSize ?? (context.quick ? 64 : undefined);
  const chunkSize = forced ?? chooseChunkSize({ ...shape, time: shape.tokens }, device); // to count by
  const inputs = fastInputs(device, shape, { dtype, requiresGrad: backward });
  try {
    const timing = await measureGpu(device, powerTask(inputs, { degree: shape.degree, chunkSize: forced }, backward), {
      rounds: context.quick ? 3 : 20,
    });
    const operations = operationsOf(shape, chunkSize, backward);
    const bytes = powerBytes({ ...shape, chunkSize }, dtype === "f32" ? 4 : 2, backward);
    const floor = floorOf({ operations, bytes }, ratesOf(describeGpu(device)), portable ? "vector" : "matrix");
    const ms = (timing.gpu ?? timing.wall).median;
    context.progress(`    ${ms.toFixed(2)} ms, wall ${timing.wall.median.toFixed(2)} ms`);
    return { name, timing, ms, operations, bytes, floor, rate: operations / ms / 1e9, chunkSize };
  } finally {
    inputs.dispose();
  }
}

/** The figures of one timing: the target is for GPU time, or for wall time where there is no other. */
export function timeFigures(
  { name, timing, floor }: Pick<PowerTime, "name" | "timing" | "floor">,
  target: Pick<Figure, "atMost" | "aim"> = {},
): Figure[] {
  const figure = (clock: "gpu" | "wall", extra: Partial<Figure>): Figure[] => {
    const time = timing[clock];
    if (!time) return [];
    const label = `${name}, ${clock === "gpu" ? "GPU" : "wall"} time`;
    return [{ name: label, value: time.median, unit: "ms", spread: time.spread, ...extra }];
  };
  const first = timing.gpu ? "gpu" : "wall";
  return [...figure(first, { ...target, floor }), ...(first === "gpu" ? figure("wall", {}) : [])];
}

const COLUMNS = [
  "what",
  "chunk",
  "GPU ms",
  "in kernels",
  "wall ms",
  "runs",
  "TFLOP",
  "GB",
  "TFLOP/s",
  "floor, ms",
  "of the floor, %",
];

export function powerTable(times: readonly PowerTime[]): Pick<Result, "table" | "profiles"> {
  const rows = times.map(({ name, chunkSize, timing, ms, operations, bytes, rate, floor }) => [
    name,
    chunkSize === null ? "quadratic" : String(chunkSize),
    timing.gpu?.median ?? "",
    timing.busy ?? "",
    timing.wall.median,
    String(timing.wall.runs),
    operations / 1e12,
    bytes / 1e9,
    rate,
    floor ?? "",
    floor === undefined ? "" : (100 * floor) / ms,
  ]);
  const profiles = times.map(({ name, timing }) => ({ name, kernels: timing.kernels }));
  return { table: { columns: COLUMNS, rows }, profiles: profiles.filter(({ kernels }) => kernels.length > 0) };
}

/** Targets are for the full sizes. */
export function unlessQuick<T extends object>({ quick }: Context, target: T): T | Record<string, never> {
  return quick ? {} : target;
}

export const withCommas = (count: number) => count.toLocaleString("en");
