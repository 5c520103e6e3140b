/**
 * A small typed WebAssembly emitter: expressions are trees of bytes with a type, statements append to a function.
 *
 *     const m = new ModuleBuilder({ shared: true, relaxed: false });
 *     m.function("scale", [["ptr", "i32"], ["n", "i32"]], (f, ptr, n) => {
 *       f.for(0, n, 4, (i) => f.store(v128, ptr.plus(i.times(4)), f32x4.mul(...)));
 *     }, { exported: true });
 *     const bytes = m.bytes();
 *
 * It emits what it is told: no optimiser beyond the engine's, no checks beyond types and local counts.
 */

export type ValueType = "i32" | "i64" | "f32" | "f64" | "v128";

const TYPE_CODE: Record<ValueType, number> = { i32: 0x7f, i64: 0x7e, f32: 0x7d, f64: 0x7c, v128: 0x7b };

function unsigned(value: number): number[] {
  const out: number[] = [];
  let rest = value;
  do {
    const byte = rest % 128;
    rest = Math.floor(rest / 128);
    out.push(rest > 0 ? byte | 0x80 : byte);
  } while (rest > 0);
  return out;
}

function signed(value: bigint): number[] {
  const out: number[] = [];
  let rest = value;
  for (;;) {
    const byte = Number(rest & 0x7fn);
    rest >>= 7n;
    const done = (rest === 0n && (byte & 0x40) === 0) || (rest === -1n && (byte & 0x40) !== 0);
    out.push(done ? byte : byte | 0x80);
    if (done) return out;
  }
}

function floatBytes(value: number, bytes: 4 | 8): number[] {
  const view = new DataView(new ArrayBuffer(8));
  if (bytes === 4) view.setFloat32(0, value, true);
  else view.setFloat64(0, value, true);
  return [...new Uint8Array(view.buffer, 0, bytes)];
}

function name(text: string): number[] {
  const bytes = new TextEncoder().encode(text);
  return [...unsigned(bytes.length), ...bytes];
}

/** A typed expression: the bytes that leave one value of `type` on the stack. */
export class Expr {
  constructor(
    readonly type: ValueType,
    readonly code: readonly number[],
  ) {}

  /** i32 sum, with constants folded away when they are zero. */
  plus(other: Int): Expr {
    return other === 0 ? this : i32.add(this, other);
  }

  minus(other: Int): Expr {
    return other === 0 ? this : i32.sub(this, other);
  }

  /** i32 product; a power of two becomes a shift. */
  times(other: Int): Expr {
    if (other === 1) return this;
    if (typeof other === "number" && other > 0 && Number.isInteger(Math.log2(other))) {
      return i32.shl(this, Math.log2(other));
    }
    return i32.mul(this, other);
  }
}

/** An i32 operand: an expression or a constant. */
export type Int = Expr | number;

/** A local variable: an expression that reads it, and `set`, the statement that writes it. */
export class Local extends Expr {
  constructor(
    readonly owner: FunctionBuilder,
    readonly index: number,
    type: ValueType,
  ) {
    super(type, [0x20, ...unsigned(index)]);
  }

  set(value: Expr | number): void {
    const expr = operand(this.type, value);
    this.owner.emit([...expr.code, 0x21, ...unsigned(this.index)]);
  }

  /** Writes `value` and is it: a subexpression kept for the rest of the expression. */
  tee(value: Expr | number): Expr {
    return new Expr(this.type, [...operand(this.type, value).code, 0x22, ...unsigned(this.index)]);
  }

  /** `this += value` for an i32 local. */
  add(value: Int): void {
    this.set(this.plus(value));
  }
}

function operand(type: ValueType, value: Expr | number): Expr {
  if (typeof value === "number") return constant(type, value);
  if (value.type !== type) throw new TypeError(`emitter: expected ${type}, got ${value.type}`);
  return value;
}

function constant(type: ValueType, value: number): Expr {
  switch (type) {
    case "i32":
      return new Expr("i32", [0x41, ...signed(BigInt(value | 0))]);
    case "i64":
      return new Expr("i64", [0x42, ...signed(BigInt(value))]);
    case "f32":
      return new Expr("f32", [0x43, ...floatBytes(value, 4)]);
    case "f64":
      return new Expr("f64", [0x44, ...floatBytes(value, 8)]);
    case "v128":
      throw new TypeError("emitter: a v128 constant needs f32x4.const or i32x4.const");
  }
}

type Op = readonly number[];
const simd = (code: number): Op => [0xfd, ...unsigned(code)];

function unary(result: ValueType, input: ValueType, op: Op) {
  return (a: Expr | number) => new Expr(result, [...operand(input, a).code, ...op]);
}

function binary(result: ValueType, input: ValueType, op: Op, second: ValueType = input) {
  return (a: Expr | number, b: Expr | number) =>
    new Expr(result, [...operand(input, a).code, ...operand(second, b).code, ...op]);
}

function loader(type: ValueType, op: Op, alignment: number) {
  return (address: Int, offset = 0) =>
    new Expr(type, [...operand("i32", address).code, ...op, alignment, ...unsigned(offset)]);
}

const b32 = (op: number) => binary("i32", "i32", [op]);

export const i32 = {
  const: (value: number) => constant("i32", value),
  eqz: unary("i32", "i32", [0x45]),
  eq: b32(0x46),
  ne: b32(0x47),
  lt: b32(0x48),
  ltU: b32(0x49),
  gt: b32(0x4a),
  le: b32(0x4c),
  ge: b32(0x4e),
  geU: b32(0x4f),
  clz: unary("i32", "i32", [0x67]),
  add: b32(0x6a),
  sub: b32(0x6b),
  mul: b32(0x6c),
  div: b32(0x6d),
  rem: b32(0x6f),
  divU: b32(0x6e),
  remU: b32(0x70),
  and: b32(0x71),
  or: b32(0x72),
  xor: b32(0x73),
  shl: b32(0x74),
  shr: b32(0x75),
  shrU: b32(0x76),
  min: (a: Int, b: Int) => select(a, b, i32.lt(a, b)),
  max: (a: Int, b: Int) => select(a, b, i32.gt(a, b)),
  fromF32: unary("i32", "f32", [0xfc, 0x00]),
  fromF64: unary("i32", "f64", [0xfc, 0x02]),
  fromI64: unary("i32", "i64", [0xa7]),
  bits: unary("i32", "f32", [0xbc]),
  load: loader("i32", [0x28], 2),
  load8U: loader("i32", [0x2d], 0),
  load16U: loader("i32", [0x2f], 1),
};

export const i64 = {
  const: (value: number) => constant("i64", value),
  add: binary("i64", "i64", [0x7c]),
  sub: binary("i64", "i64", [0x7d]),
  shl: binary("i64", "i64", [0x86]),
  and: binary("i64", "i64", [0x83]),
  or: binary("i64", "i64", [0x84]),
  shrU: binary("i64", "i64", [0x88]),
  fromI32: unary("i64", "i32", [0xac]),
  fromF64: unary("i64", "f64", [0xfc, 0x06]),
  bits: unary("i64", "f64", [0xbd]),
};

function scalarFloat(type: "f32" | "f64", base: { compare: number; math: number; load: number; align: number }) {
  const math = (k: number) => [base.math + k];
  return {
    const: (value: number) => constant(type, value),
    eq: binary("i32", type, [base.compare]),
    ne: binary("i32", type, [base.compare + 1]),
    lt: binary("i32", type, [base.compare + 2]),
    gt: binary("i32", type, [base.compare + 3]),
    le: binary("i32", type, [base.compare + 4]),
    ge: binary("i32", type, [base.compare + 5]),
    abs: unary(type, type, math(0)),
    neg: unary(type, type, math(1)),
    floor: unary(type, type, math(3)),
    nearest: unary(type, type, math(5)),
    sqrt: unary(type, type, math(6)),
    add: binary(type, type, math(7)),
    sub: binary(type, type, math(8)),
    mul: binary(type, type, math(9)),
    div: binary(type, type, math(10)),
    min: binary(type, type, math(11)),
    max: binary(type, type, math(12)),
    copysign: binary(type, type, math(13)),
    load: loader(type, [base.load], base.align),
  };
}

export const f32 = {
  ...scalarFloat("f32", { compare: 0x5b, math: 0x8b, load: 0x2a, align: 2 }),
  fromI32: unary("f32", "i32", [0xb2]),
  fromF64: unary("f32", "f64", [0xb6]),
  fromBits: unary("f32", "i32", [0xbe]),
};

export const f64 = {
  ...scalarFloat("f64", { compare: 0x61, math: 0x99, load: 0x2b, align: 3 }),
  fromI32: unary("f64", "i32", [0xb7]),
  fromI64: unary("f64", "i64", [0xb9]),
  fromF32: unary("f64", "f32", [0xbb]),
  fromBits: unary("f64", "i64", [0xbf]),
};

const vv = (code: number) => binary("v128", "v128", simd(code));
const v1 = (code: number) => unary("v128", "v128", simd(code));

export const v128 = {
  load: loader("v128", simd(0x00), 4),
  load32Splat: loader("v128", simd(0x09), 2),
  load64Splat: loader("v128", simd(0x0a), 3),
  /** Four 16-bit values, widened to the lanes of an i32x4 with their sign, or with zeros. */
  load16x4S: loader("v128", simd(0x03), 3),
  load16x4U: loader("v128", simd(0x04), 3),
  load32Zero: loader("v128", simd(0x5c), 2),
  load64Zero: loader("v128", simd(0x5d), 3),
  not: v1(0x4d),
  and: vv(0x4e),
  andnot: vv(0x4f),
  or: vv(0x50),
  xor: vv(0x51),
  anyTrue: unary("i32", "v128", simd(0x53)),
  /** Bits of `a` where `mask` is set, bits of `b` elsewhere. */
  bitselect: (a: Expr, b: Expr, mask: Expr) => new Expr("v128", [...a.code, ...b.code, ...mask.code, ...simd(0x52)]),
};

const lane = (result: ValueType, op: number) => (v: Expr, index: number) =>
  new Expr(result, [...operand("v128", v).code, ...simd(op), index]);

export const i8x16 = {
  /** Bytes of the concatenation a‖b, named by index 0–31. */
  shuffle: (a: Expr, b: Expr, lanes: readonly number[]) =>
    new Expr("v128", [...a.code, ...b.code, ...simd(0x0d), ...lanes]),
};

/** Lanes of 32 bits of the concatenation a‖b, named by index 0–7. */
export function shuffle32(a: Expr, b: Expr, lanes: readonly [number, number, number, number]): Expr {
  return i8x16.shuffle(
    a,
    b,
    lanes.flatMap((l) => [4 * l, 4 * l + 1, 4 * l + 2, 4 * l + 3]),
  );
}

const shift = (op: number) => binary("v128", "v128", simd(op), "i32");

export const i16x8 = {
  /** The eight i32 lanes of a‖b, saturated to unsigned 16 bits. */
  narrowU: vv(0x86),
};

export const i32x4 = {
  const: (a: number, b = a, c = a, d = a) =>
    new Expr("v128", [...simd(0x0c), ...new Uint8Array(Int32Array.of(a, b, c, d).buffer)]),
  splat: unary("v128", "i32", simd(0x11)),
  extract: lane("i32", 0x1b),
  eq: vv(0x37),
  lt: vv(0x39),
  gt: vv(0x3b),
  gtU: vv(0x3c),
  le: vv(0x3d),
  ge: vv(0x3f),
  shl: shift(0xab),
  shr: shift(0xac),
  shrU: shift(0xad),
  add: vv(0xae),
  sub: vv(0xb1),
  mul: vv(0xb5),
  max: vv(0xb8),
  bitmask: unary("i32", "v128", simd(0xa4)),
  extendLow16U: v1(0xa9),
  fromF32: v1(0xf8),
  fromF64Low: v1(0xfc),
};

export const i64x2 = {
  shl: shift(0xcb),
};

export const f32x4 = {
  const: (a: number, b = a, c = a, d = a) =>
    new Expr("v128", [...simd(0x0c), ...new Uint8Array(Float32Array.of(a, b, c, d).buffer)]),
  splat: unary("v128", "f32", simd(0x13)),
  extract: lane("f32", 0x1f),
  replace: (v: Expr, index: number, value: Expr) => new Expr("v128", [...v.code, ...value.code, ...simd(0x20), index]),
  eq: vv(0x41),
  ne: vv(0x42),
  lt: vv(0x43),
  gt: vv(0x44),
  le: vv(0x45),
  ge: vv(0x46),
  floor: v1(0x68),
  nearest: v1(0x6a),
  abs: v1(0xe0),
  neg: v1(0xe1),
  sqrt: v1(0xe3),
  add: vv(0xe4),
  sub: vv(0xe5),
  mul: vv(0xe6),
  div: vv(0xe7),
  min: vv(0xe8),
  max: vv(0xe9),
  /** b < a ? b : a and a < b ? b : a, one instruction each; the first operand wins where either is NaN. */
  pmin: vv(0xea),
  pmax: vv(0xeb),
  fromI32: v1(0xfa),
  fromF64: v1(0x5e),
};

export const f64x2 = {
  const: (a: number, b = a) => new Expr("v128", [...simd(0x0c), ...new Uint8Array(Float64Array.of(a, b).buffer)]),
  splat: unary("v128", "f64", simd(0x14)),
  extract: lane("f64", 0x21),
  add: vv(0xf0),
  sub: vv(0xf1),
  mul: vv(0xf2),
  div: vv(0xf3),
  min: vv(0xf4),
  max: vv(0xf5),
  fromF32Low: v1(0x5f),
  fromI32Low: v1(0xfe),
};

/** The sum of the four lanes; `v` is read four times, so let it be a local. */
export function sumLanes(v: Local): Expr {
  const lane = (k: number) => f32x4.extract(v, k);
  return f32.add(f32.add(lane(0), lane(1)), f32.add(lane(2), lane(3)));
}

/** `condition ? a : b`; both are evaluated. */
export function select(a: Int, b: Int, condition: Expr): Expr {
  const type = a instanceof Expr ? a.type : b instanceof Expr ? b.type : "i32";
  return new Expr(type, [
    ...operand(type, a).code,
    ...operand(type, b).code,
    ...condition.code,
    ...(type === "v128" ? [0x1c, 1, TYPE_CODE.v128] : [0x1b]),
  ]);
}

const STORE: Record<string, { type: ValueType; op: Op; align: number }> = {
  i32: { type: "i32", op: [0x36], align: 2 },
  i64: { type: "i64", op: [0x37], align: 3 },
  f32: { type: "f32", op: [0x38], align: 2 },
  f64: { type: "f64", op: [0x39], align: 3 },
  i32_8: { type: "i32", op: [0x3a], align: 0 },
  i32_16: { type: "i32", op: [0x3b], align: 1 },
  v128: { type: "v128", op: simd(0x0b), align: 4 },
};

/** Functions are referred to by this handle, before or after their body is written. */
export interface FunctionHandle {
  readonly index: number;
  readonly params: readonly ValueType[];
  readonly result: ValueType | undefined;
}

type Params = readonly (readonly [string, ValueType])[];
type ParamLocals<P extends Params> = { [K in keyof P]: Local };

/** The body of one function, written statement by statement. */
export class FunctionBuilder {
  #body: number[] = [];
  readonly #locals: ValueType[] = [];

  constructor(
    readonly module: ModuleBuilder,
    readonly params: readonly ValueType[],
  ) {}

  emit(code: readonly number[]): void {
    for (const byte of code) this.#body.push(byte);
  }

  local(type: ValueType, initial?: Expr | number): Local {
    const local = new Local(this, this.params.length + this.#locals.length, type);
    this.#locals.push(type);
    if (initial !== undefined) local.set(initial);
    return local;
  }

  locals(type: ValueType, count: number): Local[] {
    return Array.from({ length: count }, () => this.local(type));
  }

  store(
    kind: "i32" | "i64" | "f32" | "f64" | "v128" | "i32_8" | "i32_16",
    address: Int,
    value: Expr | number,
    offset = 0,
  ) {
    const { type, op, align } = STORE[kind];
    this.emit([...operand("i32", address).code, ...operand(type, value).code, ...op, align, ...unsigned(offset)]);
  }

  /** Stores lane 0's low 8 bytes (two f32) of a vector. */
  store64Lane(address: Int, value: Expr, index: 0 | 1, offset = 0): void {
    this.emit([...operand("i32", address).code, ...value.code, ...simd(0x5b), 3, ...unsigned(offset), index]);
  }

  /** `for (i = start; i < end; i += step)`, tested at the top. The variable may be given to reuse a local. */
  for(start: Int, end: Int, step: Int, body: (i: Local) => void, variable?: Local): void {
    const i = variable ?? this.local("i32");
    i.set(start);
    this.while(i32.lt(i, end), () => {
      body(i);
      i.add(step);
    });
  }

  while(condition: Expr, body: () => void): void {
    this.if(condition, () => this.doWhile(body, condition));
  }

  /** The tightest loop: body, then `condition` decides whether to go round again. */
  doWhile(body: () => void, condition: Expr | (() => Expr)): void {
    this.emit([0x03, 0x40]);
    body();
    const test = typeof condition === "function" ? condition() : condition;
    this.emit([...test.code, 0x0d, 0, 0x0b]);
  }

  if(condition: Expr, then: () => void, otherwise?: () => void): void {
    this.emit([...condition.code, 0x04, 0x40]);
    then();
    if (otherwise) {
      this.emit([0x05]);
      otherwise();
    }
    this.emit([0x0b]);
  }

  call(fn: FunctionHandle, ...args: (Expr | number)[]): void {
    this.emit(callCode(fn, args));
    if (fn.result) this.emit([0x1a]);
  }

  /** The value of a function that returns one. */
  value(fn: FunctionHandle, ...args: (Expr | number)[]): Expr {
    if (!fn.result) throw new TypeError("emitter: the function returns nothing");
    return new Expr(fn.result, callCode(fn, args));
  }

  return(value?: Expr): void {
    this.emit([...(value?.code ?? []), 0x0f]);
  }

  fill(address: Int, byte: Int, length: Int): void {
    this.emit([...operand("i32", address).code, ...operand("i32", byte).code, ...operand("i32", length).code]);
    this.emit([0xfc, 0x0b, 0]);
  }

  copy(to: Int, from: Int, length: Int): void {
    this.emit([...operand("i32", to).code, ...operand("i32", from).code, ...operand("i32", length).code]);
    this.emit([0xfc, 0x0a, 0, 0]);
  }

  bytes(): number[] {
    const groups: [number, ValueType][] = [];
    for (const type of this.#locals) {
      const last = groups.at(-1);
      if (last && last[1] === type) last[0]++;
      else groups.push([1, type]);
    }
    const head = [...unsigned(groups.length), ...groups.flatMap(([n, t]) => [...unsigned(n), TYPE_CODE[t]])];
    const size = head.length + this.#body.length + 1;
    const out = unsigned(size);
    for (const b of head) out.push(b);
    for (const b of this.#body) out.push(b);
    out.push(0x0b);
    return out;
  }
}

function callCode(fn: FunctionHandle, args: (Expr | number)[]): number[] {
  if (args.length !== fn.params.length)
    throw new TypeError(`emitter: ${fn.params.length} arguments, got ${args.length}`);
  return [...args.flatMap((a, k) => operand(fn.params[k], a).code), 0x10, ...unsigned(fn.index)];
}

export interface ModuleOptions {
  /** Imported memory is shared between threads. */
  shared: boolean;
  /** The engine has relaxed SIMD: multiply-adds are fused. */
  relaxed: boolean;
}

/** A module that imports one memory (`env.memory`) and exports functions. */
export class ModuleBuilder {
  readonly #functions: { handle: FunctionHandle; builder: FunctionBuilder; exported: string | undefined }[] = [];

  constructor(readonly options: ModuleOptions) {}

  function<const P extends Params>(
    functionName: string,
    params: P,
    write: (f: FunctionBuilder, ...locals: ParamLocals<P>) => void,
    more: { exported?: boolean; result?: ValueType } = {},
  ): FunctionHandle {
    const types = params.map(([, type]) => type);
    const builder = new FunctionBuilder(this, types);
    const handle = { index: this.#functions.length, params: types, result: more.result };
    this.#functions.push({ handle, builder, exported: more.exported ? functionName : undefined });
    const locals = types.map((type, k) => new Local(builder, k, type)) as unknown as ParamLocals<P>;
    write(builder, ...locals);
    return handle;
  }

  /** a·b + c in each lane, fused where the engine can. */
  madd(a: Expr, b: Expr, c: Expr): Expr {
    if (!this.options.relaxed) return f32x4.add(c, f32x4.mul(a, b));
    return new Expr("v128", [...a.code, ...b.code, ...c.code, ...simd(0x105)]);
  }

  bytes(): Uint8Array<ArrayBuffer> {
    const section = (id: number, body: number[]) => [id, ...unsigned(body.length), ...body];
    const vector = (items: number[][]) => [...unsigned(items.length), ...items.flat()];
    const fns = this.#functions;
    const types = vector(
      fns.map(({ handle }) => [
        0x60,
        ...vector(handle.params.map((t) => [TYPE_CODE[t]])),
        ...vector(handle.result ? [[TYPE_CODE[handle.result]]] : []),
      ]),
    );
    const limits = this.options.shared ? [0x03, ...unsigned(1), ...unsigned(65536)] : [0x00, ...unsigned(1)];
    const head = [
      ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
      ...section(1, types),
      ...section(2, vector([[...name("env"), ...name("memory"), 0x02, ...limits]])),
      ...section(3, vector(fns.map((_, k) => unsigned(k)))),
      ...section(
        7,
        vector(fns.flatMap(({ exported }, k) => (exported ? [[...name(exported), 0x00, ...unsigned(k)]] : []))),
      ),
    ];
    const bodies = fns.map(({ builder }) => builder.bytes());
    const size = bodies.reduce((n, b) => n + b.length, 0);
    const count = unsigned(fns.length);
    const code = [10, ...unsigned(size + count.length), ...count];
    const out = new Uint8Array(head.length + code.length + size);
    out.set(head);
    out.set(code, head.length);
    let at = head.length + code.length;
    for (const body of bodies) {
      out.set(body, at);
      at += body.length;
    }
    return out;
  }
}
