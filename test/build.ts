import { execFileSync } from "node:child_process";
import { readdirSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** Compiles once before all tests where something is newer than what was compiled: commands are tested as they ship. */
export default function build(): void {
  const root = fileURLToPath(new URL("..", import.meta.url));
  const built = statSync(`${root}dist/src/cli/main.js`, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  const newest = ["src", "bench", "examples"].flatMap((folder) =>
    readdirSync(root + folder, { recursive: true }).map((name) => statSync(`${root}${folder}/${name}`).mtimeMs),
  );
  if (Math.max(...newest) < built) return;
  execFileSync(process.execPath, [`${root}node_modules/typescript/bin/tsc`, "-p", root], { stdio: "inherit" });
}
