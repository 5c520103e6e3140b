/** What browser.test.ts runs in a page, and in a worker of a page: wasm against the oracle, there. */
import { type DType, getDevice, type PowerOptions } from "../../src/index.js";
import { attend, type Errors, errorsOf, inputsOn, solve } from "./problem.js";

export interface Report extends Errors {
  description: string;
  isolated: boolean;
}

export async function compare(dtype: DType, options: PowerOptions, threads?: number): Promise<Report> {
  const wasm = await getDevice("wasm", threads === undefined ? {} : { threads });
  const oracle = await getDevice("oracle");
  const got = await solve(inputsOn(wasm, dtype), (inputs) => attend(inputs, options));
  const want = await solve(inputsOn(oracle, dtype), (inputs) => attend(inputs, options));
  return { ...errorsOf(got, want), description: wasm.description, isolated: globalThis.crossOriginIsolated };
}

Object.assign(globalThis, { compare, ready: true });

// Messages are for a worker that runs this file; a page is called by the test.
if (typeof window === "undefined") {
  globalThis.onmessage = ({ data }: MessageEvent<Parameters<typeof compare>>) =>
    compare(...data).then(postMessage, (error) => postMessage(String(error)));
}
