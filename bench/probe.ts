import type { WasmDevice, WasmModule } from "../src/devices/wasm/device.js";
import { type Expr, f32x4, v128 } from "../src/devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../src/devices/wasm/kernel.js";

const LAYOUT = new Arguments({ iterations: "i32", factor: "f32" });
const SCRATCH = 512;

interface Form {
  /** Chains of additions side by side: enough to hide latency, few enough to stay in registers. */
  accumulators: number;
  /** Steps in the loop's body. */
  unroll: number;
  /** chain: x ← x·a + c, in registers alone. load: x ← x + m·a with m from the first cache level. */
  kind: "chain" | "load";
}

/** Which one is fastest depends on the machine (latencies) and the engine (registers): all are measured. */
const FORMS: readonly Form[] = [
  ...[8, 10, 12, 13, 14].map((accumulators) => ({ accumulators, unroll: 4, kind: "chain" as const })),
  ...[8, 10, 12].flatMap((accumulators) => [1, 2].map((unroll) => ({ accumulators, unroll, kind: "load" as const }))),
];

/** A loop of multiply-adds; no step can be shared or moved out of it. */
function loop(device: WasmDevice, { accumulators, unroll, kind }: Form): WasmModule {
  return device.module(`probe ${kind} ${accumulators}x${unroll}`, (m) => {
    m.function(
      "probe",
      KERNEL_PARAMS,
      (f, args, _item, scratch) => {
        const { iterations, factor } = LAYOUT.locals(f, args);
        const a = f.local("v128", f32x4.splat(factor));
        const c = f.local("v128", f32x4.const(0.25, 0.5, 0.75, 1));
        const x = f.locals("v128", accumulators);
        for (const [k, local] of x.entries()) local.set(f32x4.const(k + 1));
        f.for(0, 32, 1, (i) => f.store("v128", scratch.plus(i.times(16)), c));
        f.for(0, iterations, 1, () => {
          for (let step = 0; step < unroll; step++) {
            for (const [k, local] of x.entries()) {
              if (kind === "chain") local.set(m.madd(local, a, c));
              else local.set(m.madd(v128.load(scratch, 16 * (step * accumulators + k)), a, local));
            }
          }
        });
        // Stored, or the engine could drop the loop.
        f.store(
          "v128",
          scratch,
          x.reduce<Expr>((sum, local) => f32x4.add(sum, local), c),
        );
      },
      { exported: true },
    );
  });
}

export interface Probe {
  /** Runs the loop on every thread of the device: `operations` floating-point operations in all. */
  run(): undefined;
  operations: number;
  form: string;
}

function probe(device: WasmDevice, form: Form, operations: number): Probe {
  const module = loop(device, form);
  // Several items for each thread, so that one that wakes late does not idle the rest.
  const items = device.threads === 1 ? 1 : 8 * device.threads;
  const perIteration = form.unroll * form.accumulators * 8;
  const iterations = Math.ceil((operations * device.threads) / items / perIteration);
  return {
    form: `${form.kind} ${form.accumulators}x${form.unroll}`,
    operations: items * iterations * perIteration,
    run: () => void device.run(module, "probe", LAYOUT, { iterations, factor: 0.5 }, items, SCRATCH),
  };
}

const chosen = new WeakMap<WasmDevice, Probe>();

/** The fastest form of the loop on this device, about 20 ms a run: what kernels are held to. */
export function peakProbe(device: WasmDevice): Probe {
  const known = chosen.get(device);
  if (known) return known;
  const probes = FORMS.map((form) => probe(device, form, 1e9));
  const fastest = probes.map(() => Number.POSITIVE_INFINITY);
  for (let round = 0; round < 5; round++) {
    for (const [k, candidate] of probes.entries()) {
      const start = performance.now();
      candidate.run();
      fastest[k] = Math.min(fastest[k], (performance.now() - start) / candidate.operations);
    }
  }
  const best = probes[fastest.indexOf(Math.min(...fastest))];
  chosen.set(device, best);
  return best;
}
