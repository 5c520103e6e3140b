import { findGpu } from "../../src/devices/webgpu/adapter.js";

/** Gives this process a browser's `navigator.gpu`, by Dawn, which the library keeps alive. Call it before a peer is imported. */
export async function installWebGpu(): Promise<void> {
  const gpu = await findGpu();
  if (!gpu) throw new Error("no WebGPU here; install the package webgpu and a driver");
  // jax-js asks the user agent whether it runs on a phone.
  Object.defineProperty(globalThis, "navigator", { value: { gpu, userAgent: "node" }, configurable: true });
}
