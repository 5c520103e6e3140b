import { operation } from "../operation.js";
import type { FoldTail, StepForward } from "./contract.js";
import { foldTailOracle, stepOracle } from "./oracle.js";
import { turning } from "./turn.js";
import { foldTailWasm, stepWasm } from "./wasm.js";
import { foldTailWebGpu, stepWebGpu } from "./webgpu.js";

export const stepForward = operation<Parameters<StepForward>, ReturnType<StepForward>>("step", {
  oracle: turning(stepOracle),
  wasm: turning(stepWasm),
  webgpu: stepWebGpu,
});

export const foldTail = operation<Parameters<FoldTail>, void>("fold", {
  oracle: foldTailOracle,
  wasm: foldTailWasm,
  webgpu: foldTailWebGpu,
});
