import { addressOf, type WasmDevice, wasmDevice } from "../../devices/wasm/device.js";
import { type FunctionHandle, f32x4, i32, type ModuleBuilder, v128 } from "../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../devices/wasm/kernel.js";
import { Layout } from "../../devices/wasm/layout.js";
import { writeLoadRows, writeStoreRows, writeTranspose, writeUntranspose } from "../../devices/wasm/pack.js";
import { GROUP, LINE, PANEL, roundUp } from "../../devices/wasm/tiles.js";
import { DTYPE_BYTES, type DType } from "../../tensor/dtype.js";
import { empty } from "../../tensor/tensor.js";
import { SUB_BLOCK, writeExpand, writeExpandGradient } from "../power-attention/wasm/expand.js";
import { tablesOf } from "../power-attention/wasm/run.js";
import type { FeatureMapBackward, FeatureMapForward, FeaturePlan } from "./contract.js";

/** Sub-blocks of features in an item of the forward; the backward adds all features up, 16 vectors an item. */
const ITEM_BLOCKS = 256;

const ARGUMENTS = new Arguments({
  rows: "i32",
  /** Items that a group of 16 vectors is cut into. */
  parts: "i32",
  /** Whole sub-blocks of features. */
  blocks: "i32",
  starts: "i32",
  runs: "i32",
  root: "i32",
  x: "i32",
  /** [rows, D]: the features or their gradient. */
  features: "i32",
  dx: "i32",
});

function buffersOf(d: number) {
  const layout = new Layout();
  const at = {
    rows: layout.take(GROUP * 4 * Math.max(d, SUB_BLOCK)),
    x: layout.take(d * LINE),
    dx: layout.take(d * LINE),
    lines: layout.take(SUB_BLOCK * LINE),
    ones: layout.take(LINE),
  };
  return { at, bytes: layout.bytes };
}

/** lines[n][16] *= root[n]: the monomials' multiplicities. */
function writeScaleLines(m: ModuleBuilder): FunctionHandle {
  return m.function(
    "scale-lines",
    [
      ["lines", "i32"],
      ["root", "i32"],
      ["n", "i32"],
    ],
    (f, lines, root, n) => {
      const by = f.local("v128");
      f.doWhile(() => {
        by.set(v128.load32Splat(root));
        for (let k = 0; k < 4; k++) f.store("v128", lines, f32x4.mul(by, v128.load(lines, 16 * k)), 16 * k);
        lines.add(LINE);
        root.add(4);
        n.set(n.minus(1));
      }, n);
    },
  );
}

/**
 * 16 vectors at a time lie transposed, one line of lanes a dimension; a run of the table makes a line of lanes a feature;
 * sub-blocks of 16 features by 16 vectors turn into rows. Backward the same way round, lines of gradients into dx.
 */
function write(m: ModuleBuilder, { headDim, degree, expandedDim }: FeaturePlan, dtype: DType): void {
  const d = roundUp(headDim, PANEL);
  const { at: buffers } = buffersOf(d);
  const bytes = DTYPE_BYTES[dtype];
  const tail = expandedDim % SUB_BLOCK;
  const loadX = writeLoadRows(m, dtype, headDim, d, "load-x");
  const storeX = writeStoreRows(m, dtype, headDim, d, "store-x");
  const transposeX = writeTranspose(m, d, "transpose-x");
  const untransposeX = writeUntranspose(m, d, "untranspose-x");
  const transpose = writeTranspose(m, SUB_BLOCK, "transpose");
  const untranspose = writeUntranspose(m, SUB_BLOCK, "untranspose");
  const load = writeLoadRows(m, "f32", SUB_BLOCK, SUB_BLOCK, "load");
  const store = writeStoreRows(m, "f32", SUB_BLOCK, SUB_BLOCK, "store");
  const loadTail = writeLoadRows(m, "f32", tail, SUB_BLOCK, "load-tail");
  const storeTail = writeStoreRows(m, "f32", tail, SUB_BLOCK, "store-tail");
  const expand = writeExpand(m, degree, "plain");
  const gradient = writeExpandGradient(m, degree);
  const scaleLines = writeScaleLines(m);

  for (const backward of [false, true]) {
    m.function(
      backward ? "backward" : "forward",
      KERNEL_PARAMS,
      (f, args, item, scratch) => {
        const a = ARGUMENTS.fieldsAt(args);
        const at = (name: keyof typeof buffers) => scratch.plus(buffers[name]);
        const row = f.local("i32", i32.div(item, a.parts).times(GROUP));
        const n = f.local("i32", i32.min(GROUP, i32.sub(a.rows, row)));
        const from = f.local("i32", i32.mul(i32.rem(item, a.parts), ITEM_BLOCKS));
        const end = f.local("i32", a.blocks);
        if (!backward) end.set(i32.min(end, from.plus(ITEM_BLOCKS)));
        f.call(loadX, a.x.plus(i32.mul(row, headDim * bytes)), headDim * bytes, n, at("rows"));
        f.call(transposeX, at("rows"), at("x"));
        for (let k = 0; k < 4; k++) f.store("v128", at("ones"), f32x4.const(1), 16 * k);
        if (backward) f.fill(at("dx"), 0, d * LINE);

        const [first, runs, target, count] = f.locals("i32", 4);
        f.for(from, end, 1, (block) => {
          first.set(i32.load(a.starts.plus(block.times(4))));
          runs.set(i32.sub(i32.load(a.starts.plus(block.times(4)), 4), first));
          const table = a.runs.plus(first.times(4 * (degree + 1)));
          const feature = block.times(SUB_BLOCK);
          target.set(a.features.plus(i32.add(i32.mul(row, expandedDim), feature).times(4)));
          count.set(i32.min(SUB_BLOCK, i32.sub(i32.const(expandedDim), feature)));
          const whole = i32.eq(count, SUB_BLOCK);
          const root = a.root.plus(feature.times(4));
          const stride = 4 * expandedDim;
          if (backward) {
            f.if(
              whole,
              () => f.call(load, target, stride, n, at("rows")),
              () => f.call(loadTail, target, stride, n, at("rows")),
            );
            f.call(transpose, at("rows"), at("lines"));
            f.call(scaleLines, at("lines"), root, count);
            f.call(gradient, at("x"), table, runs, at("lines"), at("dx"));
          } else {
            f.call(expand, at("x"), at("ones"), table, runs, at("lines"), LINE, 0, 0);
            f.call(scaleLines, at("lines"), root, count);
            f.call(untranspose, at("lines"), at("rows"));
            f.if(
              whole,
              () => f.call(store, at("rows"), n, target, stride),
              () => f.call(storeTail, at("rows"), n, target, stride),
            );
          }
        });
        if (backward) {
          f.call(untransposeX, at("dx"), at("rows"));
          f.call(storeX, at("rows"), n, a.dx.plus(i32.mul(row, headDim * bytes)), headDim * bytes);
        }
      },
      { exported: true },
    );
  }
}

function run(
  device: WasmDevice,
  plan: FeaturePlan,
  dtype: DType,
  name: "forward" | "backward",
  addresses: { x: number; features: number; dx: number },
): void {
  const { rows, headDim, degree, expandedDim } = plan;
  const module = device.module(`feature-map d=${headDim} p=${degree} ${dtype}`, (m) => write(m, plan, dtype));
  const { runs, starts, root } = tablesOf(device, headDim, degree);
  const blocks = Math.ceil(expandedDim / SUB_BLOCK);
  const parts = name === "forward" ? Math.ceil(blocks / ITEM_BLOCKS) : 1;
  const values = { rows, parts, blocks, starts, runs, root, ...addresses };
  device.run(
    module,
    name,
    ARGUMENTS,
    values,
    Math.ceil(rows / GROUP) * parts,
    buffersOf(roundUp(headDim, PANEL)).bytes,
  );
}

export const featureMapWasm: FeatureMapForward = (plan, x) => {
  const device = wasmDevice(x);
  const out = empty([plan.rows, plan.expandedDim], device, "f32");
  run(device, plan, x.dtype, "forward", { x: addressOf(x), features: addressOf(out), dx: 0 });
  return out;
};

export const featureMapWasmBackward: FeatureMapBackward = (plan, x, upstream) => {
  const device = wasmDevice(x);
  const dx = empty([plan.rows, plan.headDim], device, x.dtype);
  run(device, plan, x.dtype, "backward", { x: addressOf(x), features: addressOf(upstream), dx: addressOf(dx) });
  return dx;
};
