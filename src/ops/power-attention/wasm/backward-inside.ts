import { type FunctionHandle, i32 } from "../../../devices/wasm/emitter.js";
import { GROUP, LINE, PANEL } from "../../../devices/wasm/tiles.js";
import { BACKWARD_ARGUMENTS, type BackwardBuffer, BLOCK } from "./backward-buffers.js";
import { BLOCK_ROW } from "./intra.js";
import type { Parts } from "./parts.js";
import { panelStride } from "./sequence.js";

/** Attention inside the chunk, backward: blocks of 64 queries by 64 keys; five products each. */
export function writeInsideGradient(parts: Parts): FunctionHandle {
  const { m, dim } = parts;
  const scores = parts.groupTimesGroup(dim.headDim, BLOCK_ROW);
  const dWeights = parts.groupTimesGroup(dim.valueDim, BLOCK_ROW);
  const toValues = parts.rowsTimesPanels(dim.e, BLOCK_ROW);
  const toKeys = parts.rowsTimesPanels(dim.d, BLOCK_ROW);
  const toQueries = parts.groupTimesPanels(dim.d, BLOCK_ROW);
  return m.function(
    "inside-gradient",
    [
      ["args", "i32"],
      ["scratch", "i32"],
      ["groups", "i32"],
    ],
    (f, args, scratch, groups) => {
      const a = BACKWARD_ARGUMENTS.fieldsAt(args);
      const at = (name: BackwardBuffer) => i32.add(scratch, a[name]);
      const stride = f.local("i32", panelStride({ groups }));
      const [width, height, first, index, key, query, block] = f.locals("i32", 7);
      const arrays = f.local("i32", groups.times(LINE));
      f.for(0, groups, BLOCK, (i) => {
        width.set(i32.min(BLOCK, i32.sub(groups, i)));
        f.for(0, width, 1, (k) => {
          const g = f.local("i32", i32.add(i, k));
          f.call(
            parts.advance(),
            g,
            at("groupGates"),
            at("toGroupEnd"),
            at("running"),
            at("decay").plus(i32.mul(k, arrays)),
          );
          const own = k.times(GROUP * LINE);
          f.call(
            parts.diagonalDecay(),
            at("g").plus(g.times(8 * GROUP)),
            at("diagonal").plus(own),
            at("mask").plus(own),
          );
        });
        f.for(0, a.group, 1, (head) => {
          first.set(i32.mul(head, groups));
          f.for(0, i32.add(i, width), BLOCK, (j) => {
            height.set(i32.min(BLOCK, i32.sub(i32.add(i, width), j)));
            f.for(0, height, 1, (kj) => {
              key.set(i32.add(j, kj));
              f.for(0, width, 1, (ki) => {
                query.set(i32.add(i, ki));
                f.if(i32.le(key, query), () => {
                  index.set(i32.add(first, query));
                  block.set(i32.add(kj.times(GROUP * BLOCK_ROW), ki.times(LINE)));
                  const s = at("scores").plus(block);
                  const dw = at("dWeights").plus(block);
                  f.call(scores, at("kT").plus(key.times(dim.d * LINE)), at("qT").plus(index.times(dim.d * LINE)), s);
                  f.call(
                    dWeights,
                    at("vT").plus(key.times(dim.e * LINE)),
                    at("dyT").plus(index.times(dim.e * LINE)),
                    dw,
                  );
                  const dSum = at("dSum").plus(index.times(LINE));
                  f.if(
                    i32.lt(key, query),
                    () => {
                      const decay = at("decay").plus(i32.mul(ki, arrays)).plus(key.times(LINE));
                      f.call(parts.weighGradient(), s, dw, GROUP, decay, at("inGroup").plus(query.times(LINE)), dSum);
                    },
                    () => {
                      const own = ki.times(GROUP * LINE);
                      f.call(
                        parts.weighGradientDiagonal(),
                        s,
                        dw,
                        at("diagonal").plus(own),
                        at("mask").plus(own),
                        dSum,
                      );
                    },
                  );
                });
              });
              // Queries of the block from the key's own group on.
              const skip = f.local("i32", i32.max(0, i32.sub(key, i)));
              const from = f.local("i32", i32.add(i, skip));
              const n = f.local("i32", i32.sub(width, skip).times(GROUP));
              const rows = i32.add(kj.times(GROUP * BLOCK_ROW), skip.times(LINE));
              const dyPanels = at("dyPanels")
                .plus(first.times(GROUP * 4 * dim.e))
                .plus(from.times(GROUP * 4 * PANEL));
              const qPanels = at("qPanels")
                .plus(first.times(GROUP * 4 * dim.d))
                .plus(from.times(GROUP * 4 * PANEL));
              f.call(
                toValues,
                at("scores").plus(rows),
                dyPanels,
                stride,
                at("dv").plus(key.times(GROUP * 4 * dim.e)),
                4,
                n,
                1,
              );
              f.call(
                toKeys,
                at("dWeights").plus(rows),
                qPanels,
                stride,
                at("dk").plus(key.times(GROUP * 4 * dim.d)),
                4,
                n,
                1,
              );
            });
            f.for(0, width, 1, (ki) => {
              query.set(i32.add(i, ki));
              const keys = f.local("i32", i32.min(height, i32.sub(query.plus(1), j)));
              const dq = at("dq").plus(i32.add(first, query).times(GROUP * 4 * dim.d));
              const kPanels = at("kPanels").plus(j.times(GROUP * 4 * PANEL));
              f.call(toQueries, at("dWeights").plus(ki.times(LINE)), kPanels, stride, dq, keys.times(GROUP));
            });
          });
        });
      });
    },
  );
}
