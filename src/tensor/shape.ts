export type Shape = readonly number[];

export function sizeOf(shape: Shape): number {
  return shape.reduce((n, extent) => n * extent, 1);
}

/** Strides of a row-major tensor, in elements. */
export function rowMajor(shape: Shape): number[] {
  const strides = new Array<number>(shape.length);
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    strides[axis] = step;
    step *= shape[axis];
  }
  return strides;
}

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((extent, axis) => extent === b[axis]);
}

/** True where walking the tensor in row-major order touches consecutive elements. */
export function isContiguous(shape: Shape, strides: readonly number[]): boolean {
  let step = 1;
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    if (shape[axis] !== 1 && strides[axis] !== step) return sizeOf(shape) === 0;
    step *= shape[axis];
  }
  return true;
}

/** Checks and normalises an axis that may count from the end. */
export function axisOf(caller: string, axis: number, rank: number): number {
  const at = axis < 0 ? axis + rank : axis;
  if (!Number.isInteger(axis) || at < 0 || at >= rank) {
    throw new RangeError(`${caller}: axis must be an integer from ${-rank} to ${rank - 1}, got ${axis}`);
  }
  return at;
}

export function checkShape(caller: string, shape: Shape): void {
  for (const extent of shape) {
    if (!Number.isInteger(extent) || extent < 0) {
      throw new RangeError(`${caller}: a shape is made of integers of 0 or more, got [${shape.join(", ")}]`);
    }
  }
}

/** The shape that both broadcast to (numpy's rule: align from the right; 1 stretches). */
export function broadcastShape(caller: string, a: Shape, b: Shape): number[] {
  const rank = Math.max(a.length, b.length);
  const out = new Array<number>(rank);
  for (let k = 1; k <= rank; k++) {
    const x = a[a.length - k] ?? 1;
    const y = b[b.length - k] ?? 1;
    if (x !== y && x !== 1 && y !== 1) {
      throw new RangeError(`${caller}: shapes [${a.join(", ")}] and [${b.join(", ")}] do not broadcast`);
    }
    out[rank - k] = x === 1 ? y : x;
  }
  return out;
}
