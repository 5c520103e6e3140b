import { expect, test } from "vitest";
import type { Device } from "../src/devices/device.js";
import { getDevice } from "../src/devices/get-device.js";
import { chunkAttention } from "../src/ops/chunk-attention/index.js";
import { chunkState } from "../src/ops/chunk-state/index.js";
import { queryState } from "../src/ops/query-state/index.js";
import { powerFull } from "../src/power-attention.js";
import { randn } from "../src/tensor/create.js";
import { scope } from "../src/tensor/tensor.js";
import { describeOnGpu } from "./devices.js";

/** Dawn without a driver: it checks and counts everything and runs nothing. Held, as its instance must not be collected. */
const dawn = await import("webgpu").then(
  ({ create, globals }) => {
    for (const [name, value] of Object.entries(globals)) Object.assign(globalThis, { [name]: value });
    return create(["backend=null"]);
  },
  () => undefined,
);

/** Runs forward and backward `calls` times, in turn in one chunk and in two. */
async function repeat(device: Device, calls: number): Promise<void> {
  const q = randn([1, 8, 1, 4], { device, requiresGrad: true });
  for (let k = 0; k < calls; k++) {
    const chunkSize = k % 2 === 0 ? null : 4;
    scope(() => powerFull(q, q, q, { chunkSize }).sum().backward());
    q.grad!.dispose();
    q.grad = null;
    if (k % 100 === 99) await device.sync();
  }
  q.dispose();
  await device.sync();
}

test.skipIf(!dawn)("ten thousand calls leak nothing, webgpu without a driver", async () => {
  const gpu = await (await dawn!.requestAdapter())!.requestDevice();
  const device = await getDevice("webgpu", { device: gpu });
  await repeat(device, 2000);
  const { used, reserved } = device.memory();
  const resident = process.memoryUsage.rss();
  await repeat(device, 8000);
  expect(device.memory()).toMatchObject({ used, reserved });
  // 1 KiB for each of a call's forty dispatches would be 300 MiB.
  expect(process.memoryUsage.rss() - resident).toBeLessThan(100 * 2 ** 20);
  device.dispose();
  gpu.destroy();
});

describeOnGpu("memory of a GPU", () => {
  test("stays flat over calls, on webgpu", async () => {
    const device = await getDevice("webgpu");
    await repeat(device, 20);
    const { used, reserved } = device.memory();
    await repeat(device, 300);
    expect(device.memory()).toMatchObject({ used, reserved });
  });

  test("stays flat over calls of the parts, half inputs", async () => {
    const device = await getDevice("webgpu");
    const q = randn([2, 8, 1, 4], { device, dtype: "bf16", requiresGrad: true });
    const calls = async (count: number) => {
      for (let k = 0; k < count; k++) {
        scope(() => {
          const states = chunkState(q, q, { chunkSize: 4 });
          const inside = chunkAttention(q, q, q, { chunkSize: 4 }).output;
          inside
            .add(queryState(q, states, { chunkSize: 4 }).output)
            .sum()
            .backward();
        });
        q.grad!.dispose();
        q.grad = null;
      }
      await device.sync();
    };
    await calls(5);
    const { used, reserved } = device.memory();
    await calls(50);
    expect(device.memory()).toMatchObject({ used, reserved });
    q.dispose();
  });
});
