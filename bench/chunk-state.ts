import type { WasmDevice } from "../src/devices/wasm/device.js";
import { chunkState, scope } from "../src/index.js";
import { chunkStateOperations } from "./arithmetic.js";
import { makeInputs, type Question } from "./context.js";
import { mainShape } from "./forward.js";
import { interleave } from "./measure.js";
import { peakProbe } from "./probe.js";
import { rate, shareOfPeak } from "./share-of-peak.js";

export const chunkStateQuestion: Question = {
  name: "chunk-state",
  question: "How near the multiply-add peak is φ(k)ᵀv? (d=64, p=2, gated, one thread)",
  target: "80 % of the peak",
  async run(context) {
    // Long chunks: the states themselves (0.5 MiB each) must not be what is measured.
    const shape = { ...mainShape(4096), chunkSize: 1024 };
    const device = await context.device(1);
    const inputs = makeInputs(device, shape, false);
    const { k, v, logG } = inputs;
    const probe = peakProbe(device as WasmDevice);
    const { degree, chunkSize } = shape;
    const task = () => void scope(() => void chunkState(k, v, { logG, degree, chunkSize }));
    const times = await interleave({ probe: probe.run, task }, context.rounds);
    inputs.dispose();
    const operations = chunkStateOperations(shape);
    return {
      figures: [
        {
          name: "share of peak",
          value: shareOfPeak(operations, times.task, probe.operations, times.probe),
          unit: "%",
          atLeast: 80,
          spread: times.task.spread,
        },
        { name: "rate", value: rate(operations, times.task.median), unit: "GFLOP/s" },
        { name: "peak", value: rate(probe.operations, times.probe.fastest), unit: "GFLOP/s" },
      ],
      notes: { ...shape, probe: probe.form },
    };
  },
};
