/** Words of the control block, which starts at address 0 of the shared memory. */
export const CONTROL = {
  /** Odd while a job is open. Threads wait on it. */
  generation: 0,
  /** Workers inside the open job. */
  active: 1,
  sleepers: 2,
  next: 3,
  items: 4,
  module: 5,
  moduleBytes: 6,
  moduleLength: 7,
  export: 8,
  args: 9,
  scratch: 10,
  stride: 11,
  failed: 12,
  /** Scratch slots taken in this job; the caller has slot 0. */
  slot: 13,
  words: 16,
} as const;

const C = CONTROL;

/**
 * The program of a worker thread, as text, so that it starts the same from a bundle, from source and in a page. It
 * compiles the modules it is sent through shared memory, and otherwise only loops over a job's items.
 */
export const WORKER_SOURCE = `
const inNode = typeof process !== "undefined" && process.versions && process.versions.node;
function serve(memory) {
  const c = new Int32Array(memory.buffer, 0, ${C.words});
  const modules = new Map();
  const load = () => {
    const id = c[${C.module}];
    let exports = modules.get(id);
    if (!exports) {
      const bytes = new Uint8Array(memory.buffer, c[${C.moduleBytes}] >>> 0, c[${C.moduleLength}]).slice();
      const instance = new WebAssembly.Instance(new WebAssembly.Module(bytes), { env: { memory } });
      exports = Object.values(instance.exports);
      modules.set(id, exports);
    }
    return exports[c[${C.export}]];
  };
  for (;;) {
    let generation = Atomics.load(c, ${C.generation});
    for (let spins = 0; (generation & 1) === 0; spins++) {
      if (spins === 10000) {
        Atomics.add(c, ${C.sleepers}, 1);
        Atomics.wait(c, ${C.generation}, generation);
        Atomics.sub(c, ${C.sleepers}, 1);
        spins = 0;
      }
      generation = Atomics.load(c, ${C.generation});
    }
    Atomics.add(c, ${C.active}, 1);
    if (Atomics.load(c, ${C.generation}) === generation) {
      try {
        const kernel = load();
        const scratch = (c[${C.scratch}] >>> 0) + Atomics.add(c, ${C.slot}, 1) * c[${C.stride}];
        const items = c[${C.items}];
        for (let item = Atomics.add(c, ${C.next}, 1); item < items; item = Atomics.add(c, ${C.next}, 1)) {
          kernel(c[${C.args}], item, scratch);
        }
      } catch (error) {
        Atomics.store(c, ${C.failed}, 1);
        Atomics.store(c, ${C.next}, c[${C.items}]);
      }
      // A worker that ran out of items waits for the job to close, so that it takes part in it only once.
      Atomics.sub(c, ${C.active}, 1);
      Atomics.notify(c, ${C.active});
      while (Atomics.load(c, ${C.generation}) === generation);
    } else {
      Atomics.sub(c, ${C.active}, 1);
      Atomics.notify(c, ${C.active});
    }
  }
}
if (inNode) {
  const { parentPort, workerData } = require("node:worker_threads");
  parentPort.postMessage("ready");
  parentPort.unref();
  serve(workerData);
} else {
  self.onmessage = (event) => {
    self.postMessage("ready");
    serve(event.data);
  };
}
`;
