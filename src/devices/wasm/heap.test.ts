import fc from "fast-check";
import { expect, test } from "vitest";
import { Heap } from "./heap.js";

test("blocks never overlap, stay inside, and join again when all are freed", () => {
  const action = fc.oneof(
    { weight: 3, arbitrary: fc.record({ allocate: fc.integer({ min: 0, max: 5000 }) }) },
    { weight: 2, arbitrary: fc.record({ free: fc.nat(1000) }) },
  );
  fc.assert(
    fc.property(fc.array(action, { maxLength: 200 }), fc.integer({ min: 0, max: 200 }), (actions, start) => {
      const limit = 100_000;
      let end = 10_000;
      const heap = new Heap(start, end, (bytes) => {
        if (end + bytes > limit) return 0;
        end += bytes + (bytes % 128);
        return bytes + (bytes % 128);
      });
      const live = new Map<number, number>();
      for (const a of actions) {
        if ("allocate" in a) {
          const address = heap.allocate(a.allocate);
          if (address === undefined) continue;
          expect(address % 64).toBe(0);
          expect(address).toBeGreaterThanOrEqual(start);
          expect(address + a.allocate).toBeLessThanOrEqual(end);
          for (const [other, bytes] of live) {
            expect(address + a.allocate <= other || other + bytes <= address || a.allocate * bytes === 0).toBe(true);
          }
          expect(live.has(address)).toBe(false);
          live.set(address, a.allocate);
        } else if (live.size > 0) {
          const address = [...live.keys()][a.free % live.size];
          live.delete(address);
          heap.free(address);
        }
        expect(heap.used).toBe([...live.values()].reduce((sum, n) => sum + Math.max(1, Math.ceil(n / 64)) * 64, 0));
      }
      for (const address of live.keys()) heap.free(address);
      expect(heap.used).toBe(0);
      // One block again: all of the range can be had at once, without growing.
      const first = Math.ceil(start / 64) * 64;
      const before = end;
      expect(heap.allocate(Math.floor((end - first) / 64) * 64)).toBe(first);
      expect(end).toBe(before);
    }),
    { numRuns: 300 },
  );
});

test("freeing what is no block is an error; no room is undefined", () => {
  const heap = new Heap(0, 1024, () => 0);
  const a = heap.allocate(512)!;
  expect(heap.allocate(1024)).toBeUndefined();
  expect(() => heap.free(a + 64)).toThrow("Heap.free: no block starts at 64");
  heap.free(a);
  expect(() => heap.free(a)).toThrow(/no block starts/);
  expect(heap.peak).toBe(512);
});
