import { resolveObjectURL } from "node:buffer";
import { Worker as NodeWorker } from "node:worker_threads";

const BOOT = `
const { parentPort, workerData } = require("node:worker_threads");
globalThis.self = globalThis;
globalThis.postMessage = (message) => parentPort.postMessage(message);
workerData.text().then((source) => {
  (0, eval)(source);
  parentPort.on("message", (data) => self.onmessage({ data }));
});`;

/** As much of a browser's Worker as jax-js needs to use its threads, which it otherwise lacks in Node. */
class BlobWorker {
  onmessage?: (event: { data: unknown }) => void;
  onerror?: (event: { message: string }) => void;
  readonly #worker: NodeWorker;

  constructor(url: string) {
    this.#worker = new NodeWorker(BOOT, { eval: true, workerData: resolveObjectURL(url) });
    this.#worker.on("message", (data) => this.onmessage?.({ data }));
    this.#worker.on("error", (error) => this.onerror?.({ message: String(error) }));
  }

  postMessage(message: unknown): void {
    this.#worker.postMessage(message);
  }
}

/** Gives this process a global Worker, and `threads` as the number of processors. Call it before jax-js is imported. */
export function installWebWorker(threads: number): void {
  Object.assign(globalThis, { Worker: BlobWorker });
  Object.defineProperty(globalThis, "navigator", { value: { hardwareConcurrency: threads }, configurable: true });
}
