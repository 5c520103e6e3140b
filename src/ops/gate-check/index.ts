import { valuesOf } from "../../devices/oracle.js";
import { addressOf, wasmDevice } from "../../devices/wasm/device.js";
import { webgpuDevice } from "../../devices/webgpu/device.js";
import { operation } from "../operation.js";
import type { GateCheck } from "./contract.js";

function throwAtPositive(values: ArrayLike<number>, explain: Parameters<GateCheck>[1]): void {
  for (let at = 0; at < values.length; at++) if (values[at] > 0) throw explain(at, values[at]);
}

/** B·T·H values are read where they lie: a scan in JavaScript costs less than a dispatch to threads. */
export const gateCheck = operation<Parameters<GateCheck>, void>("gateCheck", {
  oracle: (logG, explain) => throwAtPositive(valuesOf(logG), explain),
  wasm: (logG, explain) => {
    throwAtPositive(new Float32Array(wasmDevice(logG).wasmMemory.buffer, addressOf(logG), logG.size), explain);
  },
  // Reading back would stall every call: out of check mode gates above 1 flow through.
  webgpu: (logG, explain) => webgpuDevice(logG).refuseWhere(logG, "value > 0.0", 0, explain),
});
