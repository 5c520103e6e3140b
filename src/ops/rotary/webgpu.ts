import { map } from "../../devices/webgpu/map.js";
import { empty } from "../../tensor/tensor.js";
import type { Rotate } from "./contract.js";

const ROTATE = `
fn apply(i: u32) -> f32 {
  let half = u32(P.half);
  let column = i % (2u * half);
  let t = (i / (2u * half * u32(P.heads))) % u32(P.time);
  let angle = t * half + column % half;
  let sine = P.direction * load_sin(angle);
  if (column < half) { return x_of(i) * load_cos(angle) - x_of(i + half) * sine; }
  return x_of(i) * load_cos(angle) + x_of(i - half) * sine;
}`;

export const rotate: Rotate = ({ time, heads, headDim, direction }, x, cos, sin) => {
  const out = empty(x.shape, x.device, x.dtype);
  // The tables are read by angle, whatever strides say.
  const table = (tensor: typeof cos) => ({ tensor, strides: out.strides });
  map(
    "rotary",
    out,
    { x: { tensor: x, strides: x.strides }, cos: table(cos), sin: table(sin) },
    ROTATE,
    {
      half: headDim / 2,
      heads,
      time,
      direction,
    },
    { byIndex: true },
  );
  return out;
};
