import { type Device, getDevice } from "../../src/index.js";

/** What decides the numbers, from the command line. */
export interface Sizes {
  /** Updates of each run; experiments have a default of their own. */
  steps?: number;
  seeds: number;
}

/** Where a job runs. */
export interface Place {
  /** Prepared text, for experiments on text. */
  data: string;
  /** A folder of the job's own, kept when it is stopped. */
  folder: string;
  device: "auto" | "wasm" | "webgpu";
  /** CPU threads; 0: as many as the library takes. */
  threads: number;
  progress(line: string): void;
}

/** One run of an experiment: it can go on beside others, in a process of its own. */
export interface Job<V = unknown> {
  /** Says everything that decides the value: a job with the same name is not done twice. */
  name: string;
  settings: Record<string, string | number | boolean>;
  /** It measures time: nothing else may run. */
  alone?: boolean;
  run(place: Place): Promise<{ value: V; device: string }>;
}

/** What is kept of a job. */
export interface JobRecord<V = unknown> {
  name: string;
  settings: Job["settings"];
  value: V;
  device: string;
  machine: string;
  node: string;
  commit: string;
  date: string;
  seconds: number;
}

/** A claim and the numbers for it; rows are strings and numbers in the order of columns. */
export interface Findings {
  title: string;
  columns: string[];
  rows: (string | number)[][];
  /** Lines to plot, by name. */
  series: Record<string, [number, number][]>;
  axes: { x: string; y: string; logX?: boolean; logY?: boolean };
  /** What the numbers say, in sentences made from them. */
  seen: string[];
}

export interface Experiment<V = unknown> {
  name: string;
  question: string;
  jobs(sizes: Sizes): Job<V>[];
  /** From as many of the jobs as are done, at least one. */
  findings(records: readonly JobRecord<V>[]): Findings;
}

/** The device of a place, made for it where it has a number of threads of its own. */
export function deviceAt({ device, threads }: Pick<Place, "device" | "threads">): Promise<Device> {
  return getDevice(device === "auto" ? undefined : device, threads > 0 ? { threads } : undefined);
}

/** A cell of a table; a dash for what is not known. */
export function shown(value: string | number): string {
  if (typeof value === "string") return value;
  if (Number.isNaN(value)) return "–";
  return Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(3);
}

export const slug = (name: string) => name.replace(/[^a-z0-9]+/gi, "-").toLowerCase();

export const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;

/** Standard deviation of a sample, n − 1 below; NaN for a single value. */
export function deviation(values: readonly number[]): number {
  if (values.length < 2) return Number.NaN;
  const center = mean(values);
  return Math.sqrt(values.reduce((sum, x) => sum + (x - center) ** 2, 0) / (values.length - 1));
}

/** The mean of lines over the same x, point by point. */
export function meanLine(lines: readonly (readonly [number, number][])[]): [number, number][] {
  return lines[0].map(([x], k) => [x, mean(lines.map((line) => line[k][1]))]);
}

/** Records by a setting, in the order of `keys`; keys without a record are left out. */
export function groups<V, K extends string | number>(
  records: readonly JobRecord<V>[],
  setting: string,
  keys: readonly K[],
): [K, JobRecord<V>[]][] {
  return keys
    .map((key) => [key, records.filter(({ settings }) => settings[setting] === key)] as [K, JobRecord<V>[]])
    .filter(([, list]) => list.length > 0);
}
