import { createReadStream, type Dirent, readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";

/** A piece of a document, in order; `last` closes the document. */
export interface TextPiece {
  name: string;
  text: string;
  last: boolean;
}

export interface DocumentOptions {
  /** Ends of names that count in folders, with or without a dot: `md`, `.d.ts`. */
  extensions: readonly string[];
  /** The field of a .jsonl line that holds its text. */
  field: string;
}

/** The text files in a folder, deepest too, in an order that does not depend on the file system. */
function* filesIn(folder: string, extensions: readonly string[]): Generator<string> {
  const byName = (a: Dirent, b: Dirent) => (a.name < b.name ? -1 : 1);
  for (const entry of readdirSync(folder, { withFileTypes: true }).sort(byName)) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) yield* filesIn(path, extensions);
    else if (entry.isFile() && extensions.some((e) => entry.name.toLowerCase().endsWith(e))) yield path;
  }
}

async function* piecesOf(name: string, stream: Readable): AsyncGenerator<TextPiece> {
  stream.setEncoding("utf8");
  let held: string | undefined;
  for await (const chunk of stream) {
    if (held !== undefined) yield { name, text: held, last: false };
    held = chunk as string;
  }
  yield { name, text: held ?? "", last: true };
}

async function* linesOf(name: string, stream: Readable, field: string): AsyncGenerator<TextPiece> {
  let line = 0;
  for await (const json of createInterface({ input: stream, crlfDelay: Number.POSITIVE_INFINITY })) {
    line++;
    if (json.trim() === "") continue;
    let value: unknown;
    try {
      value = JSON.parse(json);
    } catch {
      throw new Error(`prepare: line ${line} of ${name} must be JSON, got ${JSON.stringify(json.slice(0, 40))}`);
    }
    const text = typeof value === "string" ? value : (value as Record<string, unknown> | null)?.[field];
    if (typeof text !== "string") {
      throw new Error(
        `prepare: line ${line} of ${name} must have a text field ${JSON.stringify(field)}; name another with --field`,
      );
    }
    yield { name: `${name}:${line}`, text, last: true };
  }
}

/**
 * The documents of files, folders, .jsonl files (one document a line) and standard input ("-"), piece by piece.
 * @throws Error where a source is missing
 */
export async function* documents(
  sources: readonly string[],
  { extensions, field }: DocumentOptions,
  stdin: Readable = process.stdin,
): AsyncGenerator<TextPiece> {
  const wanted = extensions.map((e) => (e.startsWith(".") ? e : `.${e}`).toLowerCase());
  for (const source of sources) {
    if (source === "-") {
      yield* piecesOf("-", stdin);
      continue;
    }
    const found = statSync(source, { throwIfNoEntry: false });
    if (!found) throw new Error(`prepare: no file or folder ${source}; check the path`);
    for (const path of found.isDirectory() ? filesIn(source, wanted) : [source]) {
      const stream = createReadStream(path);
      yield* path.endsWith(".jsonl") ? linesOf(path, stream, field) : piecesOf(path, stream);
    }
  }
}
