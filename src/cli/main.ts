#!/usr/bin/env node
import { Command } from "commander";
import { evalCommand } from "./eval-command.js";
import { explain } from "./explain.js";
import { generateCommand } from "./generate-command.js";
import { infoCommand, packageVersion } from "./info-command.js";
import { prepareCommand } from "./prepare-command.js";
import { trainCommand } from "./train-command.js";
import { tuneCommand } from "./tune-command.js";

const program = new Command("power-attention")
  .description("Train and run small language models with symmetric power attention.")
  .version(packageVersion())
  .configureHelp({ helpWidth: 110 });
const commands = [prepareCommand(), trainCommand(), generateCommand(), evalCommand(), infoCommand(), tuneCommand()];
for (const command of commands) program.addCommand(command.configureHelp({ helpWidth: 110 }));

try {
  await program.parseAsync();
} catch (error) {
  console.error(`error: ${explain(error)}`);
  process.exitCode = 1;
}
