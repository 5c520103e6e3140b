import { DTYPE_BYTES } from "../../tensor/dtype.js";
import { empty, type Tensor } from "../../tensor/tensor.js";
import { load1, load4, store1, store4 } from "./convert.js";
import type { WasmDevice } from "./device.js";
import { type Expr, type FunctionBuilder, f32x4, i32, type Local } from "./emitter.js";
import { type Operand, type RowWriter, rowParams, runRows, type Step } from "./rows.js";

/** Four lanes of each input (locals) to four lanes of output; `number` holds the call's number in all lanes. */
export type MapBody = (f: FunctionBuilder, inputs: readonly Local[], number: Local) => Expr;

/** Four elements of an operand, however far apart. */
function gather(f: FunctionBuilder, dtype: Tensor["dtype"], address: Local, step: Step, bytes: Local): Expr {
  if (step === 1) return load4(f, dtype, address);
  const first = f32x4.splat(load1(f, dtype, address));
  if (step === 0) return first;
  let at: Expr = address;
  let lanes = first;
  for (const lane of [1, 2, 3]) {
    at = i32.add(at, bytes);
    lanes = f32x4.replace(lanes, lane, load1(f, dtype, at));
  }
  return lanes;
}

/**
 * Writes `body` of the inputs' elements to `out`, where f32 lanes stand for elements of whatever dtype. Inputs
 * broadcast to `out`; all may be views.
 * @param key names the body: equal keys must come with equal bodies
 */
export function mapInto(
  device: WasmDevice,
  key: string,
  out: Operand,
  inputs: readonly Operand[],
  body: MapBody,
  number = 0,
): void {
  const operands = [out, ...inputs];
  const dtypes = operands.map((tensor) => tensor.dtype);
  const write: RowWriter = (m, steps) =>
    m.function("row", rowParams(operands.length, [["number", "f32"]]), (f, n, ...rest) => {
      const addresses = rest.slice(0, operands.length);
      const strides = rest.slice(operands.length, 2 * operands.length);
      const lanes = f.local("v128", f32x4.splat(rest[2 * operands.length]));
      const x = f.locals("v128", inputs.length);
      const advance = (count: number) => {
        for (const [k, address] of addresses.entries()) {
          if (steps[k] === 1) address.add(count * DTYPE_BYTES[dtypes[k]]);
          else if (steps[k] === "any") address.add(strides[k].times(count));
        }
      };
      const wide = f.local("i32", i32.shrU(n, 2));
      // A fixed operand is loaded once for the row.
      for (const [k, local] of x.entries()) {
        if (steps[k + 1] === 0) local.set(gather(f, dtypes[k + 1], addresses[k + 1], 0, strides[k + 1]));
      }
      if (steps[0] === 1) {
        f.if(wide, () =>
          f.doWhile(() => {
            for (const [k, local] of x.entries()) {
              if (steps[k + 1] !== 0) {
                local.set(gather(f, dtypes[k + 1], addresses[k + 1], steps[k + 1], strides[k + 1]));
              }
            }
            store4(f, dtypes[0], addresses[0], body(f, x, lanes));
            advance(4);
            wide.set(i32.sub(wide, 1));
          }, wide),
        );
        n.set(i32.and(n, 3));
      }
      f.if(n, () =>
        f.doWhile(() => {
          for (const [k, local] of x.entries()) {
            if (steps[k + 1] !== 0) local.set(f32x4.splat(load1(f, dtypes[k + 1], addresses[k + 1])));
          }
          store1(f, dtypes[0], addresses[0], f32x4.extract(body(f, x, lanes), 0));
          advance(1);
          n.set(i32.sub(n, 1));
        }, n),
      );
    });
  runRows(device, `map ${key} ${dtypes.join(",")}`, operands, write, {
    extra: { number: { type: "f32", value: number } },
  });
}

/** A new tensor of `shape` that `body` fills. */
export function map(
  device: WasmDevice,
  key: string,
  shape: readonly number[],
  dtype: Tensor["dtype"],
  inputs: readonly Operand[],
  body: MapBody,
  number = 0,
): Tensor {
  const out = empty(shape, device, dtype);
  mapInto(device, key, out, inputs, body, number);
  return out;
}
