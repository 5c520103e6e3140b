import { expect, it } from "vitest";
import { getDevice } from "../src/devices/get-device.js";
import { hasAdapter } from "./devices.js";

it.skipIf(hasAdapter)("without an adapter, asking for webgpu says what is needed", async () => {
  await expect(getDevice("webgpu")).rejects.toThrow(/getDevice: "webgpu" needs an adapter.*getDevice\("wasm"\)/);
});
