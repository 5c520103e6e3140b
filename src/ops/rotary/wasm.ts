import { addressOf, wasmDevice } from "../../devices/wasm/device.js";
import { f32x4, i32 } from "../../devices/wasm/emitter.js";
import { Arguments, KERNEL_PARAMS } from "../../devices/wasm/kernel.js";
import { forLanes } from "../../devices/wasm/lanes.js";
import { DTYPE_BYTES } from "../../tensor/dtype.js";
import { empty } from "../../tensor/tensor.js";
import type { Rotate } from "./contract.js";

const layout = new Arguments({
  x: "i32",
  cos: "i32",
  sin: "i32",
  output: "i32",
  tokens: "i32",
  time: "i32",
  heads: "i32",
  half: "i32",
  strideB: "i32",
  strideT: "i32",
  strideH: "i32",
  direction: "f32",
});
/** Tokens of one item. */
const TOKENS = 16;

export const rotate: Rotate = ({ batch, time, heads, headDim, direction }, x, cos, sin) => {
  const device = wasmDevice(x);
  const bytes = DTYPE_BYTES[x.dtype];
  const module = device.module(`rotary ${x.dtype}`, (m) => {
    m.function(
      "rotate",
      KERNEL_PARAMS,
      (f, args, item) => {
        const a = layout.locals(f, args);
        const direction = f.local("v128", f32x4.splat(a.direction));
        const end = f.local("i32", i32.min(i32.mul(i32.add(item, 1), TOKENS), a.tokens));
        const [low, high, c, s] = f.locals("v128", 4);
        f.for(i32.mul(item, TOKENS), end, 1, (token) => {
          const t = f.local("i32", i32.rem(token, a.time));
          const b = f.local("i32", i32.div(token, a.time));
          const table = f.local("i32", i32.mul(t, a.half.times(4)));
          const cosRow = f.local("i32", a.cos.plus(table));
          const sinRow = f.local("i32", a.sin.plus(table));
          const from = f.local("i32", a.x.plus(i32.mul(b, a.strideB)).plus(i32.mul(t, a.strideT)));
          const to = f.local("i32", a.output.plus(i32.mul(token, i32.mul(a.heads, a.half.times(2 * bytes)))));
          f.for(0, a.heads, 1, () => {
            const fromHigh = f.local("i32", from.plus(a.half.times(bytes)));
            const toHigh = f.local("i32", to.plus(a.half.times(bytes)));
            forLanes(f, a.half, (lanes) => {
              low.set(lanes.load(x.dtype, from));
              high.set(lanes.load(x.dtype, fromHigh));
              c.set(lanes.load("f32", cosRow));
              s.set(f32x4.mul(direction, lanes.load("f32", sinRow)));
              lanes.store(x.dtype, to, f32x4.sub(f32x4.mul(low, c), f32x4.mul(high, s)));
              lanes.store(x.dtype, toHigh, f32x4.add(f32x4.mul(high, c), f32x4.mul(low, s)));
            });
            from.add(a.strideH);
            to.add(a.half.times(2 * bytes));
          });
        });
      },
      { exported: true },
    );
  });
  const output = empty(x.shape, device, x.dtype);
  const [strideB, strideT, strideH] = x.strides.map((n) => n * bytes);
  const values = {
    x: addressOf(x),
    cos: addressOf(cos),
    sin: addressOf(sin),
    output: addressOf(output),
    tokens: batch * time,
    time,
    heads,
    half: headDim / 2,
    strideB,
    strideT,
    strideH,
    direction,
  };
  device.run(module, "rotate", layout, values, Math.ceil((batch * time) / TOKENS));
  return output;
};
