import {
  closeSync,
  fstatSync,
  fsyncSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import type { TokenizerSpec } from "./tokenizer.js";
import { writeFileWhole } from "./whole-file.js";

/** What the JSON beside a token file says. */
export interface TokenFileInfo {
  format: "power-attention tokens";
  version: 1;
  dtype: "uint16" | "uint32";
  tokens: number;
  vocabSize: number;
  endOfText: number;
  tokenizer: TokenizerSpec;
}

/** train.bin → train.json */
export function infoPath(path: string): string {
  return path.replace(/\.bin$/, "") + ".json";
}

/**
 * A file of token ids, little-endian uint16 or uint32 without a header, as nanoGPT reads them; what it holds is in
 * the JSON beside it. Read by position, so that its size does not matter.
 */
export class TokenFile {
  readonly #fd: number;
  readonly #bytes: 2 | 4;

  private constructor(
    readonly path: string,
    readonly info: TokenFileInfo,
    fd: number,
  ) {
    this.#fd = fd;
    this.#bytes = info.dtype === "uint16" ? 2 : 4;
  }

  /** @throws Error where a file is missing, or its length is not what its JSON says */
  static open(path: string): TokenFile {
    let info: TokenFileInfo;
    try {
      info = JSON.parse(readFileSync(infoPath(path), "utf8"));
    } catch (error) {
      throw new Error(
        `TokenFile.open: cannot read ${infoPath(path)}, which describes ${path} (${messageOf(error)}); run prepare`,
      );
    }
    if (info.format !== "power-attention tokens" || info.version !== 1 || !["uint16", "uint32"].includes(info.dtype)) {
      throw new Error(`TokenFile.open: ${infoPath(path)} is not the description of a token file; run prepare again`);
    }
    let fd: number;
    try {
      fd = openSync(path, "r");
    } catch (error) {
      throw new Error(`TokenFile.open: cannot read ${path} (${messageOf(error)}); run prepare`);
    }
    const have = fstatSync(fd).size;
    const want = info.tokens * (info.dtype === "uint16" ? 2 : 4);
    if (have !== want) {
      closeSync(fd);
      throw new Error(
        `TokenFile.open: ${path} must be ${want} bytes for ${info.tokens} ${info.dtype} tokens, got ${have}; it is cut short or of another run: run prepare again`,
      );
    }
    return new TokenFile(path, info, fd);
  }

  get length(): number {
    return this.info.tokens;
  }

  /**
   * `count` ids from `position` on.
   * @throws RangeError beyond the end, or where an id is not below vocabSize
   */
  read(position: number, count: number): Int32Array {
    if (!(position >= 0 && count >= 0 && position + count <= this.length)) {
      throw new RangeError(
        `TokenFile.read: ${this.path} has tokens 0 … ${this.length - 1}, asked for ${position} … ${position + count - 1}`,
      );
    }
    const buffer = Buffer.allocUnsafe(count * this.#bytes);
    for (let at = 0; at < buffer.length; ) {
      const got = readSync(this.#fd, buffer, at, buffer.length - at, position * this.#bytes + at);
      if (got === 0) throw new Error(`TokenFile.read: ${this.path} became shorter while it was read`);
      at += got;
    }
    const ids = new Int32Array(count);
    for (let k = 0; k < count; k++) {
      const id = this.#bytes === 2 ? buffer.readUInt16LE(2 * k) : buffer.readUInt32LE(4 * k);
      if (id >= this.info.vocabSize) {
        throw new RangeError(
          `TokenFile.read: token ${position + k} of ${this.path} must be below ${this.info.vocabSize}, got ${id}; the file is damaged or its JSON is of another tokenizer`,
        );
      }
      ids[k] = id;
    }
    return ids;
  }

  close(): void {
    closeSync(this.#fd);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Writes a token file under a temporary name; it appears whole, with its JSON, at `finish`. */
export class TokenWriter {
  readonly #temporary: string;
  readonly #fd: number;
  readonly #dtype: "uint16" | "uint32";
  #tokens = 0;
  #open = true;

  constructor(
    readonly path: string,
    private readonly tokenizer: { spec: TokenizerSpec; vocabSize: number; endOfText: number },
  ) {
    this.#temporary = `${path}.${process.pid}.tmp`;
    this.#fd = openSync(this.#temporary, "w");
    this.#dtype = tokenizer.vocabSize <= 65536 ? "uint16" : "uint32";
  }

  get tokens(): number {
    return this.#tokens;
  }

  write(ids: readonly number[]): void {
    const values = this.#dtype === "uint16" ? Uint16Array.from(ids) : Uint32Array.from(ids);
    const bytes = Buffer.from(values.buffer);
    for (let at = 0; at < bytes.length; ) at += writeSync(this.#fd, bytes, at);
    this.#tokens += ids.length;
  }

  finish(): TokenFileInfo {
    const { spec, vocabSize, endOfText } = this.tokenizer;
    const info: TokenFileInfo = {
      format: "power-attention tokens",
      version: 1,
      dtype: this.#dtype,
      tokens: this.#tokens,
      vocabSize,
      endOfText,
      tokenizer: spec,
    };
    fsyncSync(this.#fd);
    this.#close();
    renameSync(this.#temporary, this.path);
    writeFileWhole(infoPath(this.path), `${JSON.stringify(info)}\n`);
    return info;
  }

  /** Leaves nothing behind. */
  abandon(): void {
    if (!this.#open) return;
    this.#close();
    rmSync(this.#temporary, { force: true });
  }

  #close(): void {
    this.#open = false;
    closeSync(this.#fd);
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
