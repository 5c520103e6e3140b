import { readFileSync } from "node:fs";
import { type Command, InvalidArgumentError, Option } from "commander";
import { type OptionSpec, TRAIN_OPTIONS, type TrainConfig } from "../train/config.js";

const specs: Record<string, OptionSpec> = TRAIN_OPTIONS;

const kebab = (name: string) => name.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`);

export function numberOf(text: string): number {
  const value = text.trim() === "" ? Number.NaN : Number(text);
  if (Number.isNaN(value)) throw new InvalidArgumentError("a number is needed.");
  return value;
}

export function wholeOf(text: string): number {
  const value = numberOf(text);
  if (!Number.isInteger(value) || value < 0) throw new InvalidArgumentError("an integer of 0 or more is needed.");
  return value;
}

/** One flag for every training option, its default shown but not set: a file may say something else. */
export function addTrainOptions(command: Command): Command {
  for (const [name, spec] of Object.entries(specs)) {
    const negatable = typeof spec.default === "boolean";
    const flag = negatable ? `--${kebab(name)} [true|false]` : `--${kebab(name)} <${typeof spec.default}>`;
    const option = new Option(flag, `${spec.help} (default: ${spec.default})`);
    if (spec.choices) option.choices([...spec.choices]);
    else if (typeof spec.default === "number") option.argParser(numberOf);
    else if (negatable) option.preset("true").argParser(booleanOf);
    command.addOption(option);
  }
  return command;
}

function booleanOf(text: string): boolean {
  if (text !== "true" && text !== "false") throw new InvalidArgumentError("true or false is needed.");
  return text === "true";
}

/** What flags and file say about training; flags win. */
export function trainOptions(flags: Record<string, unknown>, file: string | undefined): Partial<TrainConfig> {
  let fromFile: Record<string, unknown> = {};
  if (file !== undefined) {
    try {
      fromFile = JSON.parse(readFileSync(file, "utf8"));
    } catch (error) {
      throw new Error(`train: cannot read ${file} (${error instanceof Error ? error.message : error})`);
    }
    if (fromFile === null || typeof fromFile !== "object" || Array.isArray(fromFile)) {
      throw new Error(`train: ${file} must hold a JSON object of training options`);
    }
  }
  const given = Object.fromEntries(Object.keys(specs).flatMap((k) => (k in flags ? [[k, flags[k]]] : [])));
  return { ...fromFile, ...given } as Partial<TrainConfig>;
}
