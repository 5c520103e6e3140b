import { describe, expect, it } from "vitest";
import { f32Bytes, f32Values, readSafetensors, type SafeFile, writeSafetensors } from "../src/safetensors.js";

const file: SafeFile = {
  tensors: {
    a: { dtype: "F32", shape: [2, 1], data: f32Bytes([1.5, -2]) },
    b: { dtype: "U8", shape: [3], data: Uint8Array.of(1, 2, 3) },
    empty: { dtype: "BF16", shape: [0, 4], data: new Uint8Array(0) },
  },
  metadata: { note: "größe" },
};

/** A file of a header given as text, and some bytes of data. */
function raw(header: string | object, data = 0, length?: number): Uint8Array {
  const json = new TextEncoder().encode(typeof header === "string" ? header : JSON.stringify(header));
  const bytes = new Uint8Array(8 + json.length + data);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length ?? json.length), true);
  bytes.set(json, 8);
  return bytes;
}

const entry = (begin: number, end: number, shape = [(end - begin) / 4], dtype = "F32") => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

describe("safetensors", () => {
  it("reads what it writes", () => {
    const bytes = writeSafetensors(file);
    expect(Number(new DataView(bytes.buffer).getBigUint64(0, true)) % 8).toBe(0);
    const back = readSafetensors(bytes);
    expect(back.metadata).toEqual(file.metadata);
    expect(Object.keys(back.tensors).sort()).toEqual(["a", "b", "empty"]);
    for (const [name, { dtype, shape, data }] of Object.entries(file.tensors)) {
      expect(back.tensors[name]).toEqual({ dtype, shape, data });
    }
    expect(f32Values(back.tensors.a)).toEqual(Float32Array.of(1.5, -2));
  });

  it("reads a file inside a larger buffer, and data at odd places", () => {
    const bytes = writeSafetensors({ tensors: { x: file.tensors.b, a: file.tensors.a }, metadata: {} });
    const within = new Uint8Array(bytes.length + 3);
    within.set(bytes, 3);
    expect(f32Values(readSafetensors(within.subarray(3)).tensors.a)).toEqual(Float32Array.of(1.5, -2));
  });

  it("refuses to write a tensor whose data do not fit its shape", () => {
    const wrong = { a: { dtype: "F32", shape: [3], data: new Uint8Array(8) } } as const;
    expect(() => writeSafetensors({ tensors: wrong, metadata: {} })).toThrow(/a must have 12 bytes, got 8; pass all/);
  });

  const bad: [string, Uint8Array, RegExp][] = [
    ["nothing", new Uint8Array(0), /at least 8 bytes, got 0/],
    ["a cut header", raw("{}", 0, 3), /header must end inside the file, got 11 of 10/],
    ["a huge header", raw("{}", 0, 2 ** 40), /header must have at most/],
    ["no JSON", raw("{nope"), /header must be JSON/],
    ["bytes that are not UTF-8", Uint8Array.of(2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe), /header must be JSON/],
    ["a list", raw("[]"), /header must be a JSON object/],
    ["metadata of numbers", raw({ __metadata__: { a: 1 } }), /__metadata__ must map strings to strings/],
    ["an entry of text", raw({ a: "F32" }), /a must be an object/],
    ["an unknown dtype", raw({ a: entry(0, 4, [1], "F8") }, 4), /a's dtype must be one of .*, got "F8"/],
    ["a dtype of the prototype", raw({ a: entry(0, 4, [1], "toString") }, 4), /a's dtype must be one of/],
    ["a negative size", raw({ a: entry(0, 4, [-1]) }, 4), /a's shape must be a list of sizes/],
    ["a fractional size", raw({ a: entry(0, 4, [0.5]) }, 4), /a's shape must be a list of sizes/],
    ["no offsets", raw({ a: { dtype: "F32", shape: [1] } }, 4), /a's data_offsets must be two sizes/],
    ["another length", raw({ a: entry(0, 8, [1]) }, 8), /a must have 4 bytes, got 8/],
    [
      "an overlap",
      raw({ a: entry(0, 8), b: entry(4, 12) }, 12),
      /without overlap or gap, got b at 4 where 8 was expected/,
    ],
    ["a gap", raw({ a: entry(0, 4), b: entry(8, 12) }, 12), /without overlap or gap, got b at 8 where 4/],
    ["missing data", raw({ a: entry(0, 8) }, 4), /data must have 8 bytes, got 4/],
    ["left-over data", raw({ a: entry(0, 4) }, 9), /data must have 4 bytes, got 9/],
  ];
  it.each(bad)("refuses %s", (_, bytes, message) => {
    expect(() => readSafetensors(bytes)).toThrow(RangeError);
    expect(() => readSafetensors(bytes)).toThrow(message);
  });

  it("refuses what is not bytes", () => {
    expect(() => readSafetensors("x" as unknown as Uint8Array)).toThrow(/bytes must be a Uint8Array, got string/);
  });
});
