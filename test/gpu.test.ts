import { describe, expect, it } from "vitest";
import { getDevice } from "../src/devices/get-device.js";
import { hasAdapter, READY } from "./devices.js";

describe("webgpu", () => {
  // One line for each list of suites that has no GPU to run on, so that a report says what it did not test.
  for (const operation of Object.keys(READY)) {
    it.skipIf(!hasAdapter)(`${operation} runs on webgpu`, () =>
      expect(READY[operation as keyof typeof READY]).toContain("webgpu"),
    );
  }

  it.skipIf(hasAdapter)("without an adapter, asking for it says what is needed", async () => {
    await expect(getDevice("webgpu")).rejects.toThrow(/getDevice: "webgpu" needs an adapter.*getDevice\("wasm"\)/);
  });
});
