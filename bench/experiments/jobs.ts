import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { availableParallelism, cpus } from "node:os";
import { join } from "node:path";
import { writeFileWhole } from "../../src/data/index.js";
import type { Job, JobRecord, Place } from "./experiment.js";

/** One of the processes that work side by side. */
export interface Slot {
  device: Place["device"];
  threads: number;
}

const KINDS = ["auto", "wasm", "webgpu"] as const;

/**
 * Slots from `--jobs`: a number of processes on `device`, or kinds with a number each, as wasm=12,webgpu=4.
 * @throws RangeError where it is neither
 */
export function slotsOf(jobs: string, device: string, threads: number): Slot[] {
  const parts = /^\d+$/.test(jobs) ? [`${device}=${jobs}`] : jobs.split(",");
  const slots = parts.flatMap((part) => {
    const [kind, count] = part.split("=");
    const known = KINDS.find((name) => name === kind);
    if (!known || !/^[1-9]\d*$/.test(count)) {
      throw new RangeError(
        `experiment: --jobs must be a number, or kinds with numbers such as wasm=12,webgpu=4, got ${jobs} for ${device}`,
      );
    }
    return Array.from({ length: Number(count) }, (): Slot => ({ device: known, threads }));
  });
  // Side by side each has a core of its own.
  return slots.length === 1 || threads > 0 ? slots : slots.map((slot) => ({ ...slot, threads: 1 }));
}

const recordPath = (out: string, name: string) => join(out, "jobs", `${name}.json`);

export function readRecord(out: string, name: string): JobRecord | undefined {
  const path = recordPath(out, name);
  return existsSync(path) ? JSON.parse(readFileSync(path, "utf8")) : undefined;
}

/** Runs a job here and keeps its record. */
export async function runJob(job: Job, out: string, commit: string, place: Omit<Place, "folder" | "progress">) {
  const start = performance.now();
  const folder = join(out, "runs", job.name);
  mkdirSync(folder, { recursive: true });
  const progress = (line: string) => process.stderr.write(`${job.name}: ${line}\n`);
  const { value, device } = await job.run({ ...place, folder, progress });
  const record: JobRecord = {
    ...{ name: job.name, settings: job.settings, value, device },
    machine: `${cpus()[0]?.model.trim() || "unknown CPU"} × ${availableParallelism()}`,
    ...{ node: process.versions.node, commit, date: new Date().toISOString() },
    seconds: Math.round((performance.now() - start) / 100) / 10,
  };
  mkdirSync(join(out, "jobs"), { recursive: true });
  writeFileWhole(recordPath(out, job.name), `${JSON.stringify(record)}\n`);
}

export interface Running {
  slots: readonly Slot[];
  /** Of jobs that run alone. */
  alone: Slot;
  out: string;
  /** Arguments that make the child know the same jobs. */
  args: readonly string[];
  /** Called after each job, also for those done before. */
  onDone(record: JobRecord): void;
}

/** Runs jobs in processes of their own, as many as there are slots; those done before are kept. Returns what failed. */
export async function runJobs(jobs: readonly Job[], { slots, alone, out, args, onDone }: Running): Promise<string[]> {
  const failed: string[] = [];
  const children = new Set<ChildProcess>();
  const stop = () => {
    for (const child of children) child.kill();
    process.exit(1);
  };
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, stop);
  const say = (line: string) => process.stderr.write(`[${jobs.length - left} of ${jobs.length}] ${line}\n`);
  let left = jobs.length;
  const waiting: Job[] = [];
  for (const job of jobs) {
    const record = readRecord(out, job.name);
    if (!record) waiting.push(job);
    else {
      left--;
      say(`${job.name}: done before, on ${record.device}`);
      onDone(record);
    }
  }
  const work = async (queue: Job[], { device, threads }: Slot) => {
    for (let job = queue.shift(); job; job = queue.shift()) {
      const child = fork(process.argv[1], [
        ...args,
        "--job",
        job.name,
        "--device",
        device,
        "--threads",
        String(threads),
      ]);
      children.add(child);
      const [code] = await once(child, "exit");
      children.delete(child);
      left--;
      const record = readRecord(out, job.name);
      if (record) {
        say(`${job.name}: ${record.seconds.toFixed(0)} s on ${record.device}`);
        onDone(record);
      } else {
        say(`${job.name}: failed (${code}) on ${device}`);
        failed.push(job.name);
      }
    }
  };
  const together = waiting.filter((job) => !job.alone);
  await Promise.all(slots.map((slot) => work(together, slot)));
  await work(
    waiting.filter((job) => job.alone),
    alone,
  );
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.removeListener(signal, stop);
  return failed;
}
