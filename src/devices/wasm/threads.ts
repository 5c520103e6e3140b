import { nodeModule } from "../node.js";
import { CONTROL, WORKER_SOURCE } from "./worker-source.js";

interface Thread {
  end(): void;
}

/** Starts a worker thread from the source text, in Node or in a page, and waits until it is ready. */
async function startThread(memory: WebAssembly.Memory): Promise<Thread> {
  const node = nodeModule("node:worker_threads");
  if (node) {
    // No flags of the process: --input-type=module would have the worker's program read as a module, which it is not.
    const options = { eval: true, execArgv: [], workerData: memory, name: "power-attention" };
    const worker = new node.Worker(WORKER_SOURCE, options);
    await new Promise<void>((resolve, reject) => {
      worker.once("message", () => resolve());
      worker.once("error", reject);
    });
    worker.unref(); // a waiting worker must not keep the process alive
    return { end: () => void worker.terminate() };
  }
  const url = URL.createObjectURL(new Blob([WORKER_SOURCE], { type: "text/javascript" }));
  try {
    const worker = new Worker(url, { name: "power-attention" });
    await new Promise<void>((resolve, reject) => {
      worker.onmessage = () => resolve();
      worker.onerror = (event) =>
        reject(
          new Error(
            `getDevice: worker threads must be able to start from a blob: URL, got ${event.message ?? "a refusal"}; ` +
              "allow worker-src blob: in the page's policy, or pass { threads: 1 }",
          ),
        );
      worker.postMessage(memory);
    });
    return { end: () => worker.terminate() };
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Node's main thread and all workers may block; a page's main thread may only spin. */
const mayBlock = typeof window === "undefined";

/**
 * Worker threads that share one WebAssembly memory. A job is an exported function called once for each item; threads
 * take items by fetch-and-add, the caller's thread among them. Jobs are opened and closed by a generation count, so a
 * thread that wakes late finds the door shut, and the caller never waits for a sleeper.
 */
export class ThreadPool {
  readonly #control: Int32Array;
  #threads: Thread[] = [];

  private constructor(memory: WebAssembly.Memory) {
    this.#control = new Int32Array(memory.buffer, 0, CONTROL.words);
  }

  static async start(memory: WebAssembly.Memory, workers: number): Promise<ThreadPool> {
    const pool = new ThreadPool(memory);
    pool.#threads = await Promise.all(Array.from({ length: workers }, () => startThread(memory)));
    return pool;
  }

  get workers(): number {
    return this.#threads.length;
  }

  /** Runs `call(item)` for all items on this thread and the workers together; returns when all are done. */
  run(
    job: {
      module: number;
      bytes: number;
      length: number;
      export: number;
      args: number;
      items: number;
      scratch: number;
      stride: number;
    },
    call: (item: number) => void,
  ): void {
    const c = this.#control;
    c[CONTROL.module] = job.module;
    c[CONTROL.moduleBytes] = job.bytes;
    c[CONTROL.moduleLength] = job.length;
    c[CONTROL.export] = job.export;
    c[CONTROL.args] = job.args;
    c[CONTROL.items] = job.items;
    c[CONTROL.scratch] = job.scratch;
    c[CONTROL.stride] = job.stride;
    c[CONTROL.failed] = 0;
    c[CONTROL.slot] = 1;
    Atomics.store(c, CONTROL.next, 0);
    Atomics.add(c, CONTROL.generation, 1); // odd: open
    if (Atomics.load(c, CONTROL.sleepers) > 0) Atomics.notify(c, CONTROL.generation);
    let failure: unknown;
    try {
      for (let item = Atomics.add(c, CONTROL.next, 1); item < job.items; item = Atomics.add(c, CONTROL.next, 1))
        call(item);
    } catch (error) {
      failure = error;
      Atomics.store(c, CONTROL.next, job.items);
    }
    Atomics.add(c, CONTROL.generation, 1); // even: closed
    for (let spins = 0; ; spins++) {
      const active = Atomics.load(c, CONTROL.active);
      if (active === 0) break;
      if (mayBlock && spins > 20_000) Atomics.wait(c, CONTROL.active, active, 1);
    }
    if (failure) throw failure;
    if (c[CONTROL.failed])
      throw new Error("wasm: a kernel failed on a worker thread; this is a bug of power-attention");
  }

  dispose(): void {
    for (const thread of this.#threads) thread.end();
    this.#threads = [];
  }
}
