import { afterAll, beforeAll, expect, test } from "vitest";
import { type Device, getDevice, matmul, randn, Scope, scope, type Tensor } from "../index.js";

const devices: Device[] = [];

beforeAll(async () => {
  devices.push(await getDevice("wasm", { threads: 2 }), await getDevice("oracle", {}));
});
afterAll(() => {
  for (const device of devices) device.dispose();
});

test("a thousand steps leave memory flat", () => {
  for (const device of devices) {
    const w = randn([8, 8], { device, requiresGrad: true });
    const x = randn([4, 8], { device });
    const step = () => {
      using _ = new Scope();
      const h = matmul(x, w);
      h.mul(h).sum(0).exp().mean().backward();
      w.grad?.dispose();
      w.grad = null;
    };
    for (let k = 0; k < 3; k++) step();
    const { used, reserved } = device.memory();
    device.resetPeak();
    for (let k = 0; k < 1000; k++) step();
    expect(device.memory().used).toBe(used);
    expect(device.memory().reserved).toBe(reserved);
    expect(device.memory().peak).toBeGreaterThan(used);
  }
});

test("gradients of leaves outlive the scope, and so does what is kept", async () => {
  for (const device of devices) {
    const w = randn([3], { device, requiresGrad: true });
    let kept!: Tensor;
    let lost!: Tensor;
    scope(() => {
      const inner = new Scope();
      lost = w.mul(2);
      kept = w.mul(3).keep();
      inner.end();
      w.mul(5).sum().backward();
      w.mul(5).sum().backward();
    });
    expect(lost.isDisposed).toBe(true);
    expect([...(await w.grad!.data())]).toEqual([10, 10, 10]);
    expect((await kept.data()).length).toBe(3);
    expect(() => lost.add(1)).toThrow(
      "used after it was disposed; return it from the scope, or take it out with keep()",
    );
  }
});

test("a scope hands on what it returns, to the scope around it", () => {
  const [device] = devices;
  let nested: { y: Tensor; rest: Tensor[] } | undefined;
  scope(() => {
    nested = scope(() => {
      const y = randn([2], { device });
      randn([2], { device });
      return { y, rest: [y.mul(2)] };
    });
    expect(nested.y.isDisposed).toBe(false);
    expect(nested.rest[0].isDisposed).toBe(false);
  });
  expect(nested!.y.isDisposed).toBe(true);
  expect(nested!.rest[0].isDisposed).toBe(true);
  expect(scope(() => randn([2], { device })).isDisposed).toBe(false);
});

test("an exception ends the scope and its tensors", () => {
  const [device] = devices;
  const { used } = device.memory();
  expect(() =>
    scope(() => {
      randn([100], { device });
      scope(() => {
        randn([100], { device });
        throw new RangeError("inside");
      });
    }),
  ).toThrow("inside");
  expect(device.memory().used).toBe(used);
});

test("misuse is an error", () => {
  const outer = new Scope();
  const inner = new Scope();
  expect(() => outer.end()).toThrow(/scopes end in the reverse order of their making/);
  inner.end();
  inner.end();
  outer.end();
  expect(() => scope(async () => {})).toThrow(/the function must not be async/);
});
