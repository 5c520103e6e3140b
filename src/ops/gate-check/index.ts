import { valuesOf } from "../../devices/oracle.js";
import { addressOf, wasmDevice } from "../../devices/wasm/device.js";
import type { Tensor } from "../../tensor/tensor.js";
import { operation } from "../operation.js";
import type { GateCheck } from "./contract.js";

function firstPositive(values: ArrayLike<number>): ReturnType<GateCheck> {
  for (let at = 0; at < values.length; at++) if (values[at] > 0) return { at, value: values[at] };
  return undefined;
}

/** B·T·H values are read where they lie: a scan in JavaScript costs less than a dispatch to threads. */
export const gateCheck = operation<[Tensor], ReturnType<GateCheck>>("gateCheck", {
  oracle: (logG) => firstPositive(valuesOf(logG)),
  // Reading back would stall every call: gates above 1 flow through.
  webgpu: () => undefined,
  wasm: (logG) => firstPositive(new Float32Array(wasmDevice(logG).wasmMemory.buffer, addressOf(logG), logG.size)),
});
