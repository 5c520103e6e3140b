import type { WasmDevice, WasmModule } from "../src/devices/wasm/device.js";
import { type Expr, f32x4, v128 } from "../src/devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../src/devices/wasm/kernel.js";

const LAYOUT = new Arguments({ iterations: "i32", factor: "f32" });
const SCRATCH = 512;

/** A tile of rows × columns accumulators; the columns' vectors come from the first cache level, the rows' stay put. */
interface Form {
  rows: number;
  columns: number;
  /** Steps in the loop's body. */
  unroll: number;
}

/** Which one is fastest depends on the machine (latencies) and the engine (registers, spills): all are measured. */
const FORMS: readonly Form[] = [
  { rows: 4, columns: 2, unroll: 1 },
  { rows: 2, columns: 4, unroll: 1 },
  { rows: 3, columns: 2, unroll: 2 },
  { rows: 6, columns: 1, unroll: 1 },
  { rows: 5, columns: 2, unroll: 1 },
  { rows: 6, columns: 2, unroll: 1 },
  { rows: 6, columns: 2, unroll: 2 },
  { rows: 8, columns: 1, unroll: 4 },
];

/** A loop of x ← x + row·column. The columns are loaded anew in each step, so no product can be moved out of it. */
function loop(device: WasmDevice, { rows, columns, unroll }: Form): WasmModule {
  return device.module(`probe ${rows}x${columns}x${unroll}`, (m) => {
    m.function(
      "probe",
      KERNEL_PARAMS,
      (f, args, _item, scratch) => {
        const { iterations, factor } = LAYOUT.locals(f, args);
        const left = f.locals("v128", rows);
        const right = f.locals("v128", columns);
        const sums = f.locals("v128", rows * columns);
        for (const [i, row] of left.entries()) row.set(f32x4.mul(f32x4.splat(factor), f32x4.const(i + 1)));
        f.for(0, SCRATCH / 16, 1, (i) => {
          f.store("v128", scratch.plus(i.times(16)), f32x4.const(0.25, 0.5, 0.75, 1));
        });
        f.for(0, iterations, 1, () => {
          for (let step = 0; step < unroll; step++) {
            for (const [j, column] of right.entries()) column.set(v128.load(scratch, 16 * (step * columns + j)));
            for (const [i, row] of left.entries()) {
              for (const [j, column] of right.entries()) {
                const sum = sums[i * columns + j];
                sum.set(m.madd(row, column, sum));
              }
            }
          }
        });
        // Stored, or the engine could drop the loop.
        f.store(
          "v128",
          scratch,
          sums.reduce<Expr>((all, sum) => f32x4.add(all, sum), left[0]),
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
  const perIteration = form.unroll * form.rows * form.columns * 8;
  const iterations = Math.ceil((operations * device.threads) / items / perIteration);
  return {
    form: `${form.rows}x${form.columns} tile, unrolled ${form.unroll}×`,
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
