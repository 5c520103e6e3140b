import { type Command, Option } from "commander";
import { TRAIN_OPTIONS } from "../train/config.js";
import { wholeOf } from "./options.js";

export function addDeviceOptions(command: Command): Command {
  const { device, threads } = TRAIN_OPTIONS;
  return command
    .addOption(new Option("--device <kind>", device.help).choices(device.choices).default(device.default))
    .option("--threads <number>", threads.help, wholeOf, threads.default);
}
