import { describe, expect, test } from "vitest";
import { TILED_KERNELS, tileProblem } from "./legal-tiles.js";

const UNITS = { M: 16, K: 16, wide: 16, narrow: 8, subgroupSize: 32 };
const LIMITS = {
  maxComputeWorkgroupStorageSize: 48 * 1024,
  maxComputeInvocationsPerWorkgroup: 1024,
  maxComputeWorkgroupSizeX: 1024,
};

describe("tiles", () => {
  test.each([
    ["accumulate", { groups: 4, steps: 32, down: 4, across: 1 }],
    ["accumulateWide", { groups: 2, steps: 32, down: 2, across: 2 }],
    ["read", { tokens: 256, down: 4, across: 1 }],
    ["readWide", { tokens: 128, down: 2, across: 2 }],
    ["pairs", { rows: 64, keys: 16, down: 4 }],
    ["pairsQueriesWide", { rows: 64, keys: 16, down: 4 }],
    ["pairsKeys", { rows: 64, queries: 16, down: 4 }],
    ["gradient", { down: 2 }],
    ["square", { down: 4, tokens: 2, octets: 4 }],
    ["softmax", { rows: 128, keys: 16, down: 4, across: 1 }],
    ["softmaxQueries", { rows: 64, keys: 16, down: 2, across: 2 }],
    ["softmaxKeys", { rows: 64, queries: 16, down: 4, across: 1 }],
    ["softmaxKeysWide", { rows: 64, queries: 32, down: 4, across: 2 }],
    ["matmul", { rows: 128, columns: 128, steps: 32, down: 2, across: 2 }],
  ])("%s in use are legal", (kernel, tile) => {
    expect(TILED_KERNELS).toContain(kernel);
    expect(tileProblem(kernel, tile, UNITS, LIMITS)).toBeUndefined();
  });

  test.each([
    ["convolve", { rows: 1 }, /one of accumulate, accumulateWide.*got convolve/],
    ["matmulWide", { rows: 1 }, /got matmulWide/],
    ["toString", {}, /got toString/],
    ["gradient", null, /must have the numbers down, got null/],
    ["gradient", { down: 2, across: 1 }, /must have the numbers down, got/],
    ["gradient", { up: 2 }, /must have the numbers down, got/],
    ["gradient", { down: 1.5 }, /down must be a positive integer, got 1.5/],
    ["gradient", { down: "2" }, /down must be a positive integer, got "2"/],
    ["gradient", { down: 0 }, /down must be a positive integer, got 0/],
    ["gradient", { down: 64 }, /at most 1024 invocations on this device, got 2048/],
    ["gradient", { down: 8 }, /at most 49152 bytes of memory on this device, got \d+/],
    ["accumulate", { groups: 1, steps: 32, down: 3, across: 1 }, /64 · groups .* got groups 1 and down 3/],
    ["accumulate", { groups: 4, steps: 64, down: 4, across: 1 }, /steps must divide 32, got 64/],
    ["accumulate", { groups: 4, steps: 8, down: 4, across: 1 }, /steps must be a multiple of 16, got 8/],
    ["read", { tokens: 96, down: 4, across: 1 }, /tokens must be a multiple of 128, got 96/],
    ["read", { tokens: 1024, down: 8, across: 1 }, /bytes of memory on this device, got/],
    ["square", { down: 64, tokens: 1, octets: 4 }, /at most 1024 invocations on this device, got 2048/],
    ["pairs", { rows: 64, keys: 64, down: 4 }, /keys must divide 32, got 64/],
    ["pairsKeys", { rows: 40, queries: 16, down: 2 }, /rows must be a multiple of 32, got 40/],
    ["softmax", { rows: 96, keys: 32, down: 3 }, /must have the numbers rows, keys, down, across, got/],
    ["softmax", { rows: 256, keys: 16, down: 4, across: 1 }, /rows must divide the 128 invocations, got 256/],
    ["softmaxKeys", { rows: 64, queries: 64, down: 4, across: 1 }, /queries must divide 32, got 64/],
    ["softmaxQueries", { rows: 16, keys: 16, down: 4, across: 1 }, /rows must be a multiple of 64, got 16/],
    ["softmaxQueries", { rows: 64, keys: 16, down: 4, across: 2 }, /keys must be a multiple of 32, got 16/],
    ["softmaxQueries", { rows: 256, keys: 32, down: 8, across: 1 }, /bytes of memory on this device, got \d+/],
    ["matmul", { rows: 128, columns: 96, steps: 32, down: 2, across: 2 }, /columns \/ across .* got 48/],
    ["matmul", { rows: 96, columns: 64, steps: 32, down: 2, across: 1 }, /64 invocations .* octets of a line, got 12/],
  ])("%s %j is refused", (kernel, tile, problem) => {
    expect(tileProblem(kernel, tile, UNITS, LIMITS)).toMatch(problem);
  });

  test("the sizes of heads decide too", () => {
    const read = { tokens: 512, down: 8, across: 1 };
    expect(tileProblem("read", read, UNITS, LIMITS, { x: 8, y: 9, sumAt: 8 })).toBeUndefined();
    expect(tileProblem("read", read, UNITS, LIMITS, { x: 32, y: 33, sumAt: 32 })).toMatch(
      /bytes of memory .* got 53760/,
    );
    const across = { tokens: 128, down: 4, across: 2 };
    expect(tileProblem("read", across, UNITS, LIMITS, { x: 16, y: 18, sumAt: 16 })).toBeUndefined();
    expect(tileProblem("read", across, UNITS, LIMITS, { x: 16, y: 17, sumAt: 16 })).toMatch(
      /divide the 17 octets .* got 2/,
    );
  });
});
