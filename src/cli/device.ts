import { type Command, Option } from "commander";
import type { Device } from "../devices/device.js";
import { getDevice } from "../devices/get-device.js";
import { wholeOf } from "./options.js";

export interface DeviceFlags {
  device: "auto" | "wasm" | "webgpu" | "oracle";
  threads: number;
}

export function addDeviceOptions(command: Command): Command {
  const kinds = ["auto", "wasm", "webgpu", "oracle"];
  return command
    .addOption(new Option("--device <kind>", "where to run").choices(kinds).default("auto"))
    .option("--threads <number>", "CPU threads (0: all cores, or POWER_ATTENTION_THREADS)", wholeOf, 0);
}

export function deviceOf({ device, threads }: DeviceFlags): Promise<Device> {
  return getDevice(device === "auto" ? undefined : device, threads > 0 ? { threads } : undefined);
}
