import { create, globals } from "webgpu";

/** Dawn's instance: were it collected while work goes on, the process would die at random. */
let dawn: GPU;

/** Gives this process a browser's `navigator.gpu` through Dawn. Call it before a peer is imported. */
export function installWebGpu(): void {
  dawn = create([]);
  Object.assign(globalThis, globals);
  // jax-js asks the user agent whether it runs on a phone.
  Object.defineProperty(globalThis, "navigator", { value: { gpu: dawn, userAgent: "node" }, configurable: true });
}
