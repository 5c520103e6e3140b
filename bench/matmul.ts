/** Matrix products on one thread against the multiply-add peak of 128-bit vectors, measured in the same run. */
import { WasmDevice } from "../src/devices/wasm/device.js";
import { f32x4, i32 } from "../src/devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../src/devices/wasm/kernel.js";
import { matmul, randn } from "../src/index.js";

/** Best rate of `run`, in GFLOP/s, over about half a second after warming up. */
function best(flops: number, run: () => void): number {
  let fastest = Number.POSITIVE_INFINITY;
  for (const seconds of [0.3, 0.7]) {
    fastest = Number.POSITIVE_INFINITY;
    for (const end = performance.now() + 1000 * seconds; performance.now() < end; ) {
      const start = performance.now();
      run();
      fastest = Math.min(fastest, performance.now() - start);
    }
  }
  return flops / fastest / 1e6;
}

/** Eight independent multiply-adds a turn, in registers alone. */
function peak(device: WasmDevice): number {
  const layout = new Arguments({ turns: "i32", out: "i32" });
  const module = device.module("peak probe", (m) => {
    m.function(
      "probe",
      KERNEL_PARAMS,
      (f, args) => {
        const a = layout.locals(f, args);
        const sums = f.locals("v128", 8);
        const x = f.local("v128", f32x4.const(0.999));
        f.doWhile(() => {
          for (const sum of sums) sum.set(m.madd(x, x, sum));
          a.turns.set(i32.sub(a.turns, 1));
        }, a.turns);
        for (const sum of sums) x.set(f32x4.add(x, sum));
        f.store("v128", a.out, x);
      },
      { exported: true },
    );
  });
  const out = device.reserve(64, "the probe");
  const turns = 100_000;
  return best(turns * 8 * 8, () => device.run(module, "probe", layout, { turns, out }, 1));
}

const device = await WasmDevice.create({ threads: Number(process.argv[2] ?? 1) });
const rows: Record<string, unknown>[] = [];
const probe = peak(device);
for (const n of [64, 256, 1024]) {
  for (const dtype of ["f32", "bf16"] as const) {
    const [a, b] = [randn([n, n], { device, dtype }), randn([n, n], { device, dtype })];
    for (const [form, x, y] of [
      ["a·b", a, b],
      ["aᵀ·b", a.transpose(), b],
      ["a·bᵀ", a, b.transpose()],
    ] as const) {
      const rate = best(2 * n ** 3, () => matmul(x, y).dispose());
      rows.push({ n, dtype, form, "GFLOP/s": Math.round(rate), "of peak": `${Math.round((100 * rate) / probe)} %` });
    }
  }
}
console.log(`${device.description}, peak ${probe.toFixed(1)} GFLOP/s a thread`);
console.table(rows);
device.dispose();
