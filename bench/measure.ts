/** Milliseconds of repeated runs of one thing. */
export interface Timing {
  median: number;
  mean: number;
  fastest: number;
  /** (third quartile − first quartile) / median: how far runs differ. */
  spread: number;
  runs: number;
}

export function quantile(sorted: readonly number[], at: number): number {
  const position = at * (sorted.length - 1);
  const low = Math.floor(position);
  const high = Math.ceil(position);
  return sorted[low] + (position - low) * (sorted[high] - sorted[low]);
}

export function timing(milliseconds: readonly number[]): Timing {
  const sorted = [...milliseconds].sort((a, b) => a - b);
  const median = quantile(sorted, 0.5);
  const spread = (quantile(sorted, 0.75) - quantile(sorted, 0.25)) / median;
  const mean = sorted.reduce((a, b) => a + b, 0) / sorted.length;
  return { median, mean, fastest: sorted[0], spread, runs: sorted.length };
}

/** Something to time: a call that returns when its work is done, or the milliseconds it measured itself. */
export type Task = () => undefined | number | Promise<undefined | number>;

export interface Rounds {
  /** Untimed calls of each task first; engines tier code up only after it ran. Default 2. */
  warmUp?: number;
  /** Timed calls of each task. Default 7. */
  rounds?: number;
}

/** Times several tasks in turn, round by round, so that a change of the machine's pace meets all of them alike. */
export async function interleave<K extends string>(
  tasks: Record<K, Task>,
  { warmUp = 2, rounds = 7 }: Rounds = {},
): Promise<Record<K, Timing>> {
  const names = Object.keys(tasks) as K[];
  const times = new Map<K, number[]>(names.map((name) => [name, []]));
  for (let round = -warmUp; round < rounds; round++) {
    for (const name of names) {
      const start = performance.now();
      const own = await tasks[name]();
      const elapsed = own ?? performance.now() - start;
      if (round >= 0) times.get(name)!.push(elapsed);
    }
  }
  return Object.fromEntries(names.map((name) => [name, timing(times.get(name)!)])) as Record<K, Timing>;
}
