import { expect, test } from "vitest";
import { exp, getDevice, log, matmul, randn, scope, sum, tensor, zeros } from "../../index.js";

test("one thread and several give the same bits", async () => {
  const results: number[][] = [];
  for (const threads of [1, 2, 3]) {
    const device = await getDevice("wasm", { threads });
    const x = randn([300, 401], { device, seed: 1, requiresGrad: true });
    const y = randn([401, 130], { device, seed: 2 });
    const out = exp(matmul(x.mul(0.05), y)).sum(0);
    sum(out).backward();
    results.push([...(await out.data()), ...(await x.grad!.data())]);
    expect(device.description).toMatch(new RegExp(`^wasm \\(${threads} thread`));
    device.dispose();
  }
  expect(results[1]).toEqual(results[0]);
  expect(results[2]).toEqual(results[0]);
});

test("many small and large jobs in a row, with pauses in which workers fall asleep", async () => {
  const device = await getDevice("wasm", { threads: 2 });
  const x = randn([70_000], { device, seed: 1 });
  const want = (await x.data()).map((v) => Math.fround(v * 2));
  for (let k = 0; k < 300; k++) {
    const y = x.mul(2);
    if (k % 30 === 0) {
      expect(await y.data()).toEqual(want);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    y.dispose();
  }
  device.dispose();
});

test("memory grows while threads work, and its end is an error that says what to do", async () => {
  const device = await getDevice("wasm", { threads: 2, maxMemory: 64 * 2 ** 20 });
  const x = randn([1_000_000], { device, seed: 1 });
  const { reserved } = device.memory();
  const y = x.mul(2).add(x);
  expect(device.memory().reserved).toBeGreaterThan(reserved);
  const [a, b] = await Promise.all([x.data(), y.data()]);
  expect(b.every((v, k) => Math.abs(v - 3 * a[k]) <= 1e-6 * Math.abs(v))).toBe(true);
  expect(() => zeros([20_000_000], { device })).toThrow(
    /wasm: a tensor of 20000000 f32 values needs 76\.3 MiB; .* at most 64\.0 MiB are in use\. Free tensors/,
  );
  expect(
    await scope(() => x.add(1))
      .item()
      .catch((error: Error) => error.message),
  ).toMatch(/^item: /);
  device.dispose();
  expect(() => x.add(1)).toThrow("wasm: the device was disposed");
});

test("check mode names the operation that made a NaN", async () => {
  for (const kind of ["wasm", "oracle"] as const) {
    const device = await getDevice(kind, { check: true, threads: 1 });
    const x = tensor([1, -1, 2], undefined, { device, requiresGrad: true });
    expect(() => log(x)).toThrow("log: produced a NaN (element 1 of 3)");
    expect(() => x.mul(Number.NaN)).toThrow("mul: produced a NaN");
    expect(() => exp(x)).not.toThrow();
    device.dispose();
  }
});

test("options are checked", async () => {
  await expect(getDevice("wasm", { threads: 0 })).rejects.toThrow(
    "getDevice: threads must be a positive integer, got 0",
  );
  await expect(getDevice("wasm", { maxMemory: 1 })).rejects.toThrow(/getDevice: maxMemory must be from/);
  await expect(getDevice("gpu" as never)).rejects.toThrow(/kind must be "oracle", "wasm" or "webgpu", got "gpu"/);
  expect(await getDevice("oracle")).toBe(await getDevice("oracle"));
});
