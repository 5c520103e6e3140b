import { expect, it } from "vitest";
import { against } from "../bench/training-peers.js";

it("compares with the fastest rival, and says where that is only a bound", () => {
  expect(against(2, [{ milliseconds: 10 }, { milliseconds: 6 }])).toEqual({ ratio: 3, bound: false });
  expect(against(2, [{ milliseconds: 10 }, { milliseconds: 20, late: true }])).toEqual({ ratio: 5, bound: false });
  expect(against(2, [{ milliseconds: 30 }, { milliseconds: 20, late: true }])).toEqual({ ratio: 10, bound: true });
});
