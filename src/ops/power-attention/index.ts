import { operation } from "../operation.js";
import type { PowerBackward, PowerForward } from "./contract.js";
import { powerOracle, powerOracleBackward } from "./oracle.js";
import { powerBackwardWasm, powerForwardWasm } from "./wasm/index.js";
import { powerBackwardWebGpu, powerWebGpu } from "./webgpu.js";

export const powerForward = operation<Parameters<PowerForward>, ReturnType<PowerForward>>("powerFull", {
  oracle: powerOracle,
  wasm: powerForwardWasm,
  webgpu: powerWebGpu,
});

export const powerBackward = operation<Parameters<PowerBackward>, ReturnType<PowerBackward>>("powerFull backward", {
  oracle: powerOracleBackward,
  wasm: powerBackwardWasm,
  webgpu: powerBackwardWebGpu,
});
