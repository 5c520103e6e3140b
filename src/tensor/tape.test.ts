import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Device, getDevice, noGrad, randn, scope, type Tensor, tensor } from "../index.js";
import { record } from "./tape.js";

const devices: Device[] = [];

beforeAll(async () => {
  devices.push(await getDevice("wasm", { threads: 1 }), await getDevice("oracle", {}));
});
afterAll(() => {
  for (const device of devices) device.dispose();
});

const leaf = (device: Device, values: number[]) => tensor(values, undefined, { device, requiresGrad: true });
const grad = async (x: Tensor) => [...(await x.grad!.data())];

describe("backward", () => {
  test("accumulates until cleared", async () => {
    for (const device of devices) {
      const x = leaf(device, [1, 2]);
      x.mul(3).sum().backward();
      x.mul(4).sum().backward();
      expect(await grad(x)).toEqual([7, 7]);
      x.grad = null;
      x.sum().backward();
      expect(await grad(x)).toEqual([1, 1]);
    }
  });

  test("adds what arrives by several ways", async () => {
    for (const device of devices) {
      const x = leaf(device, [2, 3]);
      const y = x.mul(x); // 2x
      const z = y.mul(y).add(y).sub(x); // (2y + 1)·2x − 1
      z.backward(tensor([1, 10], undefined, { device }));
      expect(await grad(x)).toEqual([35, 1130]);
    }
  });

  test("a deep chain does not overflow the stack", async () => {
    const [device] = devices;
    const x = leaf(device, [1]);
    let y: Tensor = x;
    for (let k = 0; k < 5000; k++) y = y.add(1);
    y.backward();
    expect(await grad(x)).toEqual([1]);
  });

  test("of a leaf itself gives the upstream", async () => {
    for (const device of devices) {
      const x = leaf(device, [1, 2]);
      x.backward(tensor([5, 6], undefined, { device }));
      expect(await grad(x)).toEqual([5, 6]);
    }
  });

  test("several outputs, some of them unused", async () => {
    for (const device of devices) {
      const x = leaf(device, [1, 2, 3, 4]);
      const [a, , c] = x.split([1, 1, 2]);
      a.mul(10).add(c.sum()).sum().backward();
      expect(await grad(x)).toEqual([10, 0, 1, 1]);
    }
  });

  test("a second one through a freed graph is a clear error, also where only a part was freed", () => {
    for (const device of devices) {
      const x = leaf(device, [1, 2]);
      const shared = x.exp();
      const [a, b] = [shared.sum(), shared.mul(2).sum()];
      a.backward();
      expect(() => a.backward()).toThrow(/backward: the graph behind \w+ was freed by an earlier backward/);
      expect(() => b.backward()).toThrow(
        /the graph behind exp was freed by an earlier backward; run the forward again/,
      );
    }
  });

  test("checks the upstream gradient", () => {
    const [device, other] = devices;
    const x = leaf(device, [1, 2]);
    const y = x.mul(2);
    expect(() => y.backward()).toThrow("a tensor of shape [2] needs an upstream gradient of that shape");
    expect(() => y.backward(randn([3], { device }))).toThrow("must have shape [2], got [3]");
    expect(() => y.backward(randn([2], { device: other }))).toThrow(/the upstream gradient is on oracle/);
    expect(() => randn([1], { device }).backward()).toThrow(/does not depend on any tensor made with requiresGrad/);
  });
});

test("noGrad records nothing, also after an exception", async () => {
  for (const device of devices) {
    const x = leaf(device, [1, 2]);
    const y = noGrad(() => x.mul(2));
    expect(y.requiresGrad).toBe(false);
    expect(() =>
      noGrad(() => {
        throw new Error("inside");
      }),
    ).toThrow("inside");
    expect(x.mul(2).requiresGrad).toBe(true);
    x.mul(x.detach()).sum().backward();
    expect(await grad(x)).toEqual([1, 2]);
  }
});

test("values that a backward saved are freed with the graph", () => {
  const [device] = devices;
  const x = leaf(device, [1, 2, 3]);
  const { used } = device.memory();
  const y = x.exp();
  const z = y.sum();
  y.dispose();
  z.backward();
  z.dispose();
  x.grad!.dispose();
  expect(device.memory().used).toBe(used);
});

test("they are freed too where no backward comes: once the results and all that was made of them are gone", async () => {
  for (const device of devices) {
    const x = leaf(device, [1, 2, 3]);
    const { used } = device.memory();
    scope(() => void x.exp().mul(x.exp()).sum());
    expect(device.memory().used).toBe(used);
    // A result that is left keeps what its own way back needs, whatever else is disposed.
    const shared = x.exp();
    const [gone, left] = [shared.mul(shared), shared.mul(x)];
    shared.dispose();
    gone.dispose();
    expect(device.memory().used).toBeGreaterThan(used);
    left.sum().backward();
    expect((await grad(x)).map((g, k) => Math.abs(g / ((k + 2) * Math.exp(k + 1)) - 1) < 1e-5)).toEqual([
      true,
      true,
      true,
    ]);
    // Deeper than a stack of calls.
    let deep = x.mul(1);
    for (let k = 0; k < 20_000; k++) {
      const next = deep.add(0);
      deep.dispose();
      deep = next;
    }
    expect(() => deep.dispose()).not.toThrow();
  }
});

test("a disposed result has no backward", () => {
  const [device] = devices;
  const y = leaf(device, [1]).mul(2);
  y.dispose();
  expect(() => y.backward()).toThrow(/used after it was disposed/);
});

test("an operation's own backward gets undefined where no gradient arrived", async () => {
  const [device] = devices;
  const x = leaf(device, [3]);
  const [a, b] = noGrad(() => [x.mul(1), x.mul(2)]);
  const seen: boolean[] = [];
  record("pair", [x], [a, b], [], (grads) => {
    seen.push(...grads.map((g) => g !== undefined));
    return [grads[1]];
  });
  b.backward();
  expect(seen).toEqual([false, true]);
  expect(await grad(x)).toEqual([1]);
});
