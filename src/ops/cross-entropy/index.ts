import type { DeviceKind } from "../../devices/device.js";
import { DTYPE_BYTES } from "../../tensor/dtype.js";
import { isRecording, noGrad, record } from "../../tensor/tape.js";
import { scope, type Tensor } from "../../tensor/tensor.js";
import { concat, pad } from "../copy/index.js";
import { add, mul } from "../elementwise/index.js";
import { mulMixed } from "../elementwise/mixed.js";
import { matmul } from "../matmul/index.js";
import { gradientDType, operation } from "../operation.js";
import { sum } from "../reduce/index.js";
import type { LogitsLayout } from "./contract.js";
import * as oracle from "./oracle.js";
import * as wasm from "./wasm.js";
import * as webgpu from "./webgpu.js";

const run = operation("crossEntropy", {
  oracle: oracle.crossEntropyRows,
  wasm: wasm.crossEntropyRows,
  webgpu: webgpu.crossEntropyRows,
});

const LAYOUTS: Record<DeviceKind, LogitsLayout> = {
  oracle: oracle.logitsInCache,
  wasm: oracle.logitsInCache,
  webgpu: webgpu.logitsInVectors,
};

/**
 * Half formats hold a row's gradient in units of this share: f16 then reaches from all of a row's weight down to a class
 * of probability 2e-10.
 */
const HALF_UNIT = 256;

export interface CrossEntropyOptions {
  /** What the sum over rows is divided by; default: the number of rows. Rows whose target is −1 add nothing to the sum. */
  count?: number;
}

function check(caller: string, x: Tensor, classes: number, targets: Tensor): void {
  const rows = x.shape.slice(0, -1);
  if (targets.dtype !== "i32" || targets.shape.join() !== rows.join()) {
    throw new RangeError(
      `${caller}: targets must be i32 of shape [${rows.join(", ")}], got ${targets.dtype} [${targets.shape.join(", ")}]`,
    );
  }
  if (targets.device !== x.device) throw new TypeError(`${caller}: tensors must be on one device; use copyTo()`);
  if (targets.size === 0 || classes === 0) throw new RangeError(`${caller}: at least one row and one class are needed`);
}

/**
 * Mean over rows of log Σ_j exp(logits[j]) − logits[target], in nats.
 *
 * @param logits [..., V], a float dtype
 * @param targets i32 of the leading shape, from 0 to V − 1, or −1 for rows that do not count
 * @returns a scalar, f32
 * @throws RangeError where shapes disagree or a target is no class: on webgpu at the next read in check mode, and else
 *   the loss is NaN
 */
export function crossEntropy(logits: Tensor, targets: Tensor, { count }: CrossEntropyOptions = {}): Tensor {
  const classes = logits.shape.at(-1) ?? 0;
  check("crossEntropy", logits, classes, targets);
  const rows = targets.size;
  const scale = 1 / (count ?? rows);
  const wanted = isRecording() && logits.requiresGrad;
  const { loss, gradient } = noGrad(() =>
    scope(() => {
      // The kernel works in place, on a copy.
      const values = logits.dtype === "f32" ? mul(logits, 1) : logits.to("f32");
      const flat = values.contiguous().reshape([rows, classes]);
      const losses = run(
        logits.device,
        flat,
        targets.contiguous().reshape([rows]),
        classes,
        wanted ? scale : undefined,
      );
      return { loss: mul(sum(losses), scale), gradient: wanted ? flat : undefined };
    }),
  );
  record("crossEntropy", [logits], [loss], gradient ? [gradient] : [], ([g], [d]) => [
    g && mul(d, g).to(logits.dtype).reshape(logits.shape),
  ]);
  return loss;
}

/**
 * The loss of each row of linearCrossEntropy, without gradients: for evaluation by position.
 * @returns f32 of targets' shape, 0 where the target is −1
 */
export function linearCrossEntropyRows(x: Tensor, weight: Tensor, targets: Tensor): Tensor {
  check("linearCrossEntropyRows", x, weight.shape[0], targets);
  return noGrad(() =>
    scope(() => {
      const { table, blocks } = rowBlocks(x, weight, targets);
      return concat(
        blocks.map(({ x, targets }) =>
          scope(() => run(x.device, logitsOf(x, table), targets, weight.shape[0], undefined)),
        ),
        0,
      ).reshape(targets.shape);
    }),
  );
}

/**
 * Cross-entropy of x · weightᵀ, without ever holding all logits: they are made, turned into a loss and into their
 * gradient, and dropped, block of rows by block of rows. The gradients of x and weight are made on the way, so that
 * backward only multiplies by the upstream gradient.
 *
 * @param x [..., d], a float dtype
 * @param weight [V, d], the same dtype; may be the table of an embedding
 * @param targets i32 of x's leading shape, from 0 to V − 1, or −1 for rows that do not count
 * @returns the mean in nats, a scalar, f32. The gradient of a weight that is a leaf is f32.
 * @throws RangeError where shapes disagree or a target is no class: on webgpu at the next read in check mode, and else
 *   the loss is NaN
 */
export function linearCrossEntropy(
  x: Tensor,
  weight: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions = {},
): Tensor {
  const width = x.shape.at(-1);
  if (weight.shape.length !== 2 || weight.shape[1] !== width) {
    throw new RangeError(
      `linearCrossEntropy: weight must have shape [V, ${width}], got [${weight.shape.join(", ")}]; use the embedding's`,
    );
  }
  const [classes] = weight.shape;
  check("linearCrossEntropy", x, classes, targets);
  const scale = 1 / (options.count ?? targets.size);
  const held = x.dtype === "f32" ? scale : HALF_UNIT;
  const wanted = isRecording() && (x.requiresGrad || weight.requiresGrad);
  const dtype = gradientDType(weight);
  const { loss, dX, dW } = noGrad(() =>
    scope(() => {
      let total: Tensor | undefined;
      let weightGradient: Tensor | undefined;
      const xGradients: Tensor[] = [];
      const { table, blocks } = rowBlocks(x, weight, targets);
      for (const block of blocks) {
        const part = scope(() => {
          const logits = logitsOf(block.x, table);
          const loss = sum(run(x.device, logits, block.targets, classes, wanted ? held : undefined));
          if (!wanted) return { loss: total ? add(total, loss) : loss };
          const d = logits.to(x.dtype);
          const dW = matmul(d.transpose(), block.x, { dtype });
          return {
            loss: total ? add(total, loss) : loss,
            dX: matmul(d, table),
            dW: weightGradient ? add(weightGradient, dW) : dW,
          };
        });
        total = part.loss;
        weightGradient = part.dW;
        if (part.dX) xGradients.push(part.dX);
      }
      const dX = xGradients.length > 1 ? concat(xGradients, 0) : xGradients[0];
      return {
        loss: mul(total!, scale),
        dX: dX?.reshape(x.shape),
        dW: weightGradient?.slice(0, 0, classes),
      };
    }),
  );
  record("linearCrossEntropy", [x, weight], [loss], dX && dW ? [dX, dW] : [], ([g], saved) => {
    if (!g) return [];
    const factor = held === scale ? g : mul(g, scale / held);
    return saved.map((d) => mulMixed(d, factor));
  });
  for (const made of [dX, dW]) made?.dispose(); // the tape has its own hold
  return loss;
}

/** f32, or x's dtype where the layout says so. */
function logitsOf(x: Tensor, table: Tensor): Tensor {
  const { asX } = LAYOUTS[x.device.kind];
  return matmul(x, table.transpose(), { dtype: asX ? x.dtype : "f32" });
}

/** Blocks of rows of about one size, and the weight with rows of zeros up to the layout's number of columns. */
function rowBlocks(x: Tensor, weight: Tensor, targets: Tensor) {
  const { bytes, asX, columns } = LAYOUTS[x.device.kind];
  const [classes, width] = weight.shape;
  const rows = targets.size;
  const wide = columns(classes);
  const most = Math.floor(bytes(x.device) / (DTYPE_BYTES[asX ? x.dtype : "f32"] * wide));
  const parts = Math.ceil(rows / Math.max(64, most));
  const size = Math.ceil(rows / parts / 64) * 64;
  const flat = x.reshape([rows, width]);
  const wanted = targets.contiguous().reshape([rows]);
  const blocks = Array.from({ length: Math.ceil(rows / size) }, (_, k) => {
    const end = Math.min(rows, (k + 1) * size);
    return { x: flat.slice(0, k * size, end), targets: wanted.slice(0, k * size, end) };
  });
  return { table: wide > classes ? pad(weight.detach(), 0, 0, wide - classes) : weight, blocks };
}
