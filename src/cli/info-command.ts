import { readFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { Command } from "commander";
import { defaultDevice, getDevice } from "../devices/get-device.js";

/** The package's own version; package.json lies beside dist/ or src/. */
export function packageVersion(): string {
  for (const up of ["../../package.json", "../../../package.json"]) {
    try {
      const json = JSON.parse(readFileSync(new URL(up, import.meta.url), "utf8"));
      if (json.name === "power-attention") return json.version;
    } catch {}
  }
  return "unknown";
}

export function infoCommand(): Command {
  return new Command("info")
    .description("Devices, threads, features and versions of this machine.")
    .option("--json", "as JSON")
    .action(async (flags) => {
      const devices: Record<string, string> = {};
      for (const kind of ["wasm", "webgpu", "oracle"] as const) {
        try {
          devices[kind] = (await getDevice(kind)).description;
        } catch (error) {
          devices[kind] = `not available (${error instanceof Error ? error.message : error})`;
        }
      }
      const { kind, reason } = await defaultDevice();
      const facts = {
        "power-attention": packageVersion(),
        node: process.version,
        platform: `${process.platform} ${process.arch}`,
        cores: availableParallelism(),
        devices,
        default: kind,
        reason,
      };
      if (flags.json) {
        console.log(JSON.stringify(facts));
        return;
      }
      const { devices: _, reason: __, ...plain } = { ...facts, default: `${kind} (${reason})` };
      for (const [name, value] of Object.entries({ ...plain, ...devices })) console.log(`${name}: ${value}`);
    });
}
