import { addressOf, wasmDevice } from "../../devices/wasm/device.js";
import { f32, f32x4, i32, select, sumLanes } from "../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../devices/wasm/kernel.js";
import { forLanes, horizontalMax } from "../../devices/wasm/lanes.js";
import { exp4, log4 } from "../../devices/wasm/math.js";
import { empty } from "../../tensor/tensor.js";
import { type CrossEntropyRows, checkTarget } from "./contract.js";

const layout = new Arguments({
  logits: "i32",
  targets: "i32",
  losses: "i32",
  rows: "i32",
  classes: "i32",
  scale: "f32",
});
/** Rows of one item. */
const ROWS = 8;

export const crossEntropyRows: CrossEntropyRows = (logits, targets, classes, scale) => {
  const device = wasmDevice(logits);
  const [rows, columns] = logits.shape;
  if (columns !== classes)
    throw new RangeError(`crossEntropy: ${columns} columns for ${classes} classes; none to spare`);
  const wanted = device.readNow(targets.storage, targets.offset, rows);
  for (let r = 0; r < rows; r++) checkTarget(wanted[r], r, classes);
  const overwrite = scale !== undefined;
  const module = device.module(`cross entropy ${overwrite}`, (m) => {
    m.function(
      "rows",
      KERNEL_PARAMS,
      (f, args, item) => {
        const a = layout.locals(f, args);
        const end = f.local("i32", i32.min(i32.mul(i32.add(item, 1), ROWS), a.rows));
        const [top, sum, e] = f.locals("v128", 3);
        const target = f.local("i32");
        f.for(i32.mul(item, ROWS), end, 1, (r) => {
          const row = f.local("i32", a.logits.plus(i32.mul(r, a.classes.times(4))));
          target.set(i32.load(a.targets.plus(r.times(4))));
          top.set(f32x4.const(Number.NEGATIVE_INFINITY));
          forLanes(f, a.classes, (lanes) =>
            top.set(f32x4.max(top, lanes.only(lanes.load("f32", row), Number.NEGATIVE_INFINITY))),
          );
          top.set(f32x4.splat(horizontalMax(top)));
          const wantedAt = f.local("i32", row.plus(i32.max(target, 0).times(4)));
          const wantedLogit = f.local("f32", f32.load(wantedAt));
          sum.set(f32x4.const(0));
          forLanes(f, a.classes, (lanes) => {
            e.set(exp4(f, f32x4.sub(lanes.load("f32", row), top)));
            sum.set(f32x4.add(sum, lanes.only(e)));
            if (overwrite) lanes.store("f32", row, e);
          });
          const total = f.local("f32", sumLanes(sum));
          const logSum = f32x4.extract(log4(f, f32x4.splat(total)), 0);
          const loss = f32.sub(f32.add(logSum, f32x4.extract(top, 0)), wantedLogit);
          const counts = i32.ge(target, 0);
          f.store("f32", a.losses.plus(r.times(4)), select(loss, f32.const(0), counts));
          if (!overwrite) return;
          const factor = f.local("f32", select(a.scale, f32.const(0), counts));
          const share = f.local("v128", f32x4.splat(f32.div(factor, total)));
          forLanes(f, a.classes, (lanes) => lanes.store("f32", row, f32x4.mul(share, lanes.load("f32", row))));
          f.store("f32", wantedAt, f32.sub(f32.load(wantedAt), factor));
        });
      },
      { exported: true },
    );
  });
  const losses = empty([rows], device, "f32");
  const values = {
    logits: addressOf(logits),
    targets: addressOf(targets),
    losses: addressOf(losses),
    rows,
    classes,
    scale: scale ?? 0,
  };
  device.run(module, "rows", layout, values, Math.ceil(rows / ROWS));
  return losses;
};
