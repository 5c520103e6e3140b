import { powerFull, scope } from "../src/index.js";
import { makeInputs, type Question } from "./context.js";
import { mainShape } from "./forward.js";

const MIB = 2 ** 20;

export const memory: Question = {
  name: "memory",
  question: "How much memory does a forward pass take beyond inputs and outputs? (T=65,536, 8 heads)",
  target: "under 25 % of the quadratic form's weights at T=4,096 (8 × 4,096² × 4 bytes)",
  async run(context) {
    const device = await context.device(context.threads);
    const shape = mainShape(context.quick ? 8192 : 65536);
    const inputs = makeInputs(device, shape, false);
    const { q, k, v, logG } = inputs;
    const run = () =>
      scope(() => {
        const out = powerFull(q, k, v, { logG });
        return 4 * out.size;
      });
    run(); // compiles: modules live in the device's memory too, once
    const before = device.memory().used;
    device.resetPeak();
    const outputBytes = run();
    const beyond = device.memory().peak - before - outputBytes;
    inputs.dispose();
    const quadratic = shape.queryHeads * 4096 ** 2 * 4;
    return {
      figures: [
        { name: "share of the quadratic form's", value: (100 * beyond) / quadratic, unit: "%", atMost: 25 },
        { name: "beyond inputs and outputs", value: beyond / MIB, unit: "MiB" },
        { name: "inputs and outputs", value: (before + outputBytes) / MIB, unit: "MiB" },
      ],
      notes: { ...shape, threads: context.threads },
    };
  },
};
