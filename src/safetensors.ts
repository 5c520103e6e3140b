/**
 * The safetensors format: eight bytes of little-endian header length, a JSON header
 * { name: { dtype, shape, data_offsets: [begin, end] }, __metadata__: { string: string } }, and the data without gaps.
 */
export type SafeDType = "F64" | "F32" | "F16" | "BF16" | "I64" | "I32" | "I16" | "I8" | "U8" | "BOOL";

const BYTES: Record<SafeDType, number> = {
  F64: 8,
  F32: 4,
  F16: 2,
  BF16: 2,
  I64: 8,
  I32: 4,
  I16: 2,
  I8: 1,
  U8: 1,
  BOOL: 1,
};

/** The format's own limit, so that a corrupt length does not make us parse gigabytes. */
const MAX_HEADER = 100_000_000;

export interface SafeTensor {
  dtype: SafeDType;
  shape: readonly number[];
  /** Little-endian values, row-major. */
  data: Uint8Array;
}

export interface SafeFile {
  tensors: Record<string, SafeTensor>;
  metadata: Record<string, string>;
}

function byteLength(dtype: SafeDType, shape: readonly number[]): number {
  return shape.reduce((n, extent) => n * extent, BYTES[dtype]);
}

/** Values, rounded to f32, as little-endian bytes whatever the machine. */
export function f32Bytes(values: ArrayLike<number>): Uint8Array {
  const bytes = new Uint8Array(4 * values.length);
  const view = new DataView(bytes.buffer);
  for (let n = 0; n < values.length; n++) view.setFloat32(4 * n, values[n], true);
  return bytes;
}

export function f32Values(tensor: SafeTensor): Float32Array {
  const view = new DataView(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);
  return Float32Array.from({ length: tensor.data.byteLength / 4 }, (_, n) => view.getFloat32(4 * n, true));
}

/** @throws RangeError where a tensor's data is not as long as its shape and dtype say */
export function writeSafetensors({ tensors, metadata }: SafeFile): Uint8Array {
  const header: Record<string, unknown> = { __metadata__: metadata };
  let end = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    if (data.byteLength !== byteLength(dtype, shape)) {
      throw new RangeError(
        `writeSafetensors: ${name} must have ${byteLength(dtype, shape)} bytes, got ${data.byteLength}; pass all its values`,
      );
    }
    header[name] = { dtype, shape, data_offsets: [end, end + data.byteLength] };
    end += data.byteLength;
  }
  const text = new TextEncoder().encode(JSON.stringify(header));
  // Spaces up to a multiple of 8, where the data starts, as readers that map files like it.
  const json = new Uint8Array(8 * Math.ceil(text.length / 8)).fill(0x20);
  json.set(text);
  const file = new Uint8Array(8 + json.length + end);
  new DataView(file.buffer).setBigUint64(0, BigInt(json.length), true);
  file.set(json, 8);
  let at = 8 + json.length;
  for (const { data } of Object.values(tensors)) {
    file.set(data, at);
    at += data.byteLength;
  }
  return file;
}

function fail(rule: string): never {
  throw new RangeError(`readSafetensors: ${rule}; the file is corrupt or not a safetensors file`);
}

/**
 * Reads a whole file; the tensors' data are views of `bytes`.
 * @throws RangeError where the file is truncated, its tensors overlap or leave gaps, or its header makes no sense
 */
export function readSafetensors(bytes: Uint8Array): SafeFile {
  if (!(bytes instanceof Uint8Array)) {
    throw new TypeError(`readSafetensors: bytes must be a Uint8Array, got ${typeof bytes}; read the file first`);
  }
  if (bytes.length < 8) fail(`the file must have at least 8 bytes, got ${bytes.length}`);
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset, 8).getBigUint64(0, true));
  if (length > MAX_HEADER) fail(`the header must have at most ${MAX_HEADER} bytes, got ${length}`);
  if (8 + length > bytes.length)
    fail(`the header must end inside the file, got ${8 + length} of ${bytes.length} bytes`);
  const header = parseHeader(bytes.subarray(8, 8 + length));
  const data = bytes.subarray(8 + length);
  const metadata = (header["__metadata__"] ?? {}) as Record<string, string>;
  delete header["__metadata__"];
  if (!isRecord(metadata) || !Object.values(metadata).every((value) => typeof value === "string")) {
    fail("__metadata__ must map strings to strings");
  }
  const entries = Object.entries(header).map(([name, entry]) => ({ name, ...checkEntry(name, entry) }));
  entries.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let end = 0;
  for (const entry of entries) {
    if (entry.begin !== end) {
      fail(`data must follow without overlap or gap, got ${entry.name} at ${entry.begin} where ${end} was expected`);
    }
    end = entry.end;
  }
  if (end !== data.length) fail(`the data must have ${end} bytes, got ${data.length}`);
  const tensors = Object.fromEntries(
    entries.map(({ name, dtype, shape, begin, end }) => [name, { dtype, shape, data: data.subarray(begin, end) }]),
  );
  return { tensors, metadata };
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function parseHeader(bytes: Uint8Array): Record<string, unknown> {
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    fail("the header must be JSON");
  }
  return isRecord(header) ? header : fail("the header must be a JSON object");
}

function checkEntry(name: string, entry: unknown): { dtype: SafeDType; shape: number[]; begin: number; end: number } {
  const { dtype, shape, data_offsets: offsets } = isRecord(entry) ? entry : fail(`${name} must be an object`);
  const size = (n: unknown) => Number.isSafeInteger(n) && (n as number) >= 0;
  if (typeof dtype !== "string" || !Object.hasOwn(BYTES, dtype)) {
    fail(`${name}'s dtype must be one of ${Object.keys(BYTES).join(", ")}, got ${JSON.stringify(dtype)}`);
  }
  if (!Array.isArray(shape) || !shape.every(size)) fail(`${name}'s shape must be a list of sizes`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(size)) {
    fail(`${name}'s data_offsets must be two sizes`);
  }
  const [begin, end] = offsets as [number, number];
  const wanted = byteLength(dtype as SafeDType, shape);
  if (end - begin !== wanted) fail(`${name} must have ${wanted} bytes, got ${end - begin}`);
  return { dtype: dtype as SafeDType, shape, begin, end };
}
