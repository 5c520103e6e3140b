import { Command } from "commander";
import { PREPARE_DEFAULTS, prepare } from "../data/index.js";
import { numberOf, wholeOf } from "./options.js";

const list = (text: string) => text.split(",").filter((item) => item !== "");

export function prepareCommand(): Command {
  const defaults = PREPARE_DEFAULTS;
  return new Command("prepare")
    .description("Turn text into token files with a held-out part: train.bin and val.bin, each with a .json beside it.")
    .argument("<sources...>", 'text files, folders, .jsonl files (a document a line), or "-" for standard input')
    .requiredOption("-o, --out <folder>", "where the token files go")
    .option("--tokenizer <name>", "bytes, gpt2, or the path of a Hugging Face tokenizer.json", "bytes")
    .option("--hold-out <share>", "share of the text that is held out", numberOf, defaults.holdOut)
    .option("--block <characters>", "unit of the split; no held-out context is longer", wholeOf, defaults.block)
    .option("--extensions <list>", "files that count in folders, comma-separated", list, [...defaults.extensions])
    .option("--field <name>", "field of a .jsonl line that holds the text", defaults.field)
    .option("--max-bytes <number>", "stop after this much text (default: never)", numberOf)
    .action(async (sources: string[], flags) => {
      const done = await prepare({ ...flags, sources });
      const number = (n: number) => n.toLocaleString("en");
      const repeated = done.duplicates > 0 ? ` (${number(done.duplicates)} more were copies)` : "";
      console.log(`${number(done.documents)} documents${repeated}, ${number(done.bytes)} bytes`);
      console.log(`${done.train.path}: ${number(done.train.tokens)} tokens to train on`);
      console.log(`${done.val.path}: ${number(done.val.tokens)} tokens held out`);
      console.log(`next: power-attention train ${flags.out} --out runs/first`);
    });
}
