import { webgpuDevice } from "../../devices/webgpu/device.js";
import { each } from "../../devices/webgpu/each.js";
import type { Binding, KernelSource } from "../../devices/webgpu/kernel.js";
import { rowsAreWide, WIDE } from "../../devices/webgpu/wide.js";
import { empty, scope, type Tensor } from "../../tensor/tensor.js";
import { cast } from "../copy/webgpu.js";
import { reduce } from "../reduce/webgpu.js";
import type { NormBackward, NormForward } from "./contract.js";

const read = (x: Tensor, wide = false): Binding => ({ dtype: x.dtype, access: "read", wide });

/** Turns that a lane's share of a row may take for the row to stay in registers. */
const MOST_TURNS = 8;

/**
 * A row for each 32 lanes. A lane takes eight neighbours a turn, as two vec4f; where rows do not begin where vectors can,
 * one element, and FIRST masks the other seven. Every turn's values are variables of their own, because arrays may end up
 * in memory; long rows are read again instead.
 */
class RowText {
  readonly kept: boolean;

  constructor(
    readonly wide: boolean,
    readonly turns: number,
  ) {
    this.kept = turns <= MOST_TURNS;
  }

  static of(width: number, wide: boolean): RowText {
    return new RowText(wide, Math.ceil(width / (32 * (wide ? WIDE : 1))));
  }

  get head(): string {
    return `
var<workgroup> partial: array<vec2f, 256>;
fn row_sums(value: vec2f, lane: u32) -> vec2f {
  workgroupBarrier();
  partial[lane] = value;
  for (var reach = 16u; reach > 0u; reach /= 2u) {
    workgroupBarrier();
    if ((lane & 31u) < reach) { partial[lane] += partial[lane + reach]; }
  }
  workgroupBarrier();
  return partial[lane & 224u];
}
struct Share { a: vec4f, b: vec4f }
const ZERO = Share(vec4f(), vec4f());
const FIRST = Share(${this.wide ? "vec4f(1), vec4f(1)" : "vec4f(1, 0, 0, 0), vec4f()"});
fn total(v: Share) -> f32 { return dot(v.a, vec4f(1)) + dot(v.b, vec4f(1)); }
fn product(v: Share, w: Share) -> f32 { return dot(v.a, w.a) + dot(v.b, w.b); }
fn times(v: Share, w: Share) -> Share { return Share(v.a * w.a, v.b * w.b); }
fn plus(v: Share, w: Share) -> Share { return Share(v.a + w.a, v.b + w.b); }
fn normal_of(v: Share, mean: f32, rstd: f32) -> Share {
  return Share((v.a - mean) * rstd * FIRST.a, (v.b - mean) * rstd * FIRST.b);
}
fn column_of(lane: u32, turn: u32) -> u32 { return ${this.wide ? WIDE : 1}u * ((lane & 31u) + 32u * turn); }
`;
  }

  /** `share_of_x(i)` and, where it is written, `put_x(i, share)`. */
  accessors(name: string, written = false): string {
    return this.wide
      ? `fn share_of_${name}(i: u32) -> Share { let x = load8_${name}(i); return Share(x.a, x.b); }
${written ? `fn put_${name}(i: u32, v: Share) { store8_${name}(i, v.a, v.b); }` : ""}`
      : `fn share_of_${name}(i: u32) -> Share { return Share(vec4f(load_${name}(i), 0, 0, 0), vec4f()); }
${written ? `fn put_${name}(i: u32, v: Share) { store_${name}(i, v.a.x); }` : ""}`;
  }

  /** Reads the share of x's row from `start` on that the lane keeps. */
  get keep(): string {
    if (!this.kept) return "";
    return each(
      this.turns,
      (t) => `let c_${t} = column_of(lane, ${t}u);
let here_${t} = alive && c_${t} < P.width;
var v_${t} = ZERO;
if (here_${t}) { v_${t} = share_of_x(start + c_${t}); }`,
    );
  }

  /** What happens on each turn: `body` is made of names of x's share, of its column and of the turn. */
  each(body: (v: string, c: string, turn: string) => string): string {
    if (this.kept) {
      return each(this.turns, (t) => `if (here_${t}) { ${body(`v_${t}`, `c_${t}`, String(t))} }`);
    }
    return `for (var turn = 0u; turn < ${this.turns}u; turn++) {
  let c = column_of(lane, turn);
  if (alive && c < P.width) { let v = share_of_x(start + c); ${body("v", "c", "turn")} }
}`;
  }

  /** Sums that a lane keeps of each turn, from row to row. */
  sums(name: string): { declared: string; at: (turn: string) => string } {
    if (this.kept) {
      return {
        declared: each(this.turns, (t) => `var ${name}_${t} = ZERO;`),
        at: (turn) => `${name}_${turn}`,
      };
    }
    return { declared: `var ${name}: array<Share, ${this.turns}>;`, at: (turn) => `${name}[${turn}]` };
  }
}

export const normForward: NormForward = ({ rows, width, epsilon, centered, dtype }, { x, weight, bias }) => {
  const device = webgpuDevice(x);
  const output = empty(x.shape, device, dtype);
  const statistics = empty([rows, 2], device, "f32");
  const wide = rowsAreWide(width, x, weight, bias);
  const row = RowText.of(width, wide);
  const shifted = (value: string, c: string) => (bias ? `plus(${value}, share_of_bias(${c}))` : value);
  const source: KernelSource = {
    name: "norm",
    constants: { CENTERED: centered, TURNS: row.turns },
    tensors: {
      x: read(x, wide),
      weight: read(weight, wide),
      ...(bias && { bias: read(bias, wide) }),
      statistics: { dtype: "f32", access: "write" },
      result: { dtype, access: "write", wide },
    },
    parameters: { rows: "u32", width: "u32", epsilon: "f32" },
    body: () => `${row.head}
${row.accessors("x")}
${row.accessors("weight")}
${bias ? row.accessors("bias") : ""}
${row.accessors("result", true)}
@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(num_workgroups) groups: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let row = (id.x + id.y * groups.x) * 8u + lane / 32u;
  let alive = row < P.rows;
  let start = row * P.width;
  ${row.keep}
  var mean = 0.0;
  if (CENTERED) {
    var sum = 0.0;
    ${row.each((v) => `sum += total(${v});`)}
    mean = row_sums(vec2f(sum, 0.0), lane).x / f32(P.width);
  }
  var squares = 0.0;
  ${row.each((v) => `let off = normal_of(${v}, mean, 1.0); squares += product(off, off);`)}
  let rstd = 1.0 / sqrt(row_sums(vec2f(squares, 0.0), lane).x / f32(P.width) + P.epsilon);
  if (alive && (lane & 31u) == 0u) { store2_statistics(2u * row, mean, rstd); }
  ${row.each((v, c) => {
    const scaled = `times(normal_of(${v}, mean, rstd), share_of_weight(${c}))`;
    return `put_result(start + ${c}, ${shifted(scaled, c)});`;
  })}
}`,
  };
  device.dispatch(source, {
    tensors: { x, weight, ...(bias && { bias }), statistics, result: output },
    parameters: { rows, width, epsilon },
    workgroups: device.spread(Math.ceil(rows / 8)),
  });
  return { output, statistics };
};

/** Workgroups that share the rows of a backward: each adds up its rows' gradients of weight and bias. */
const MOST_PARTS = 512;

export const normBackward: NormBackward = (plan, { x, weight, bias }, statistics, dOutput, more) =>
  scope(() => {
    const { rows, width, centered } = plan;
    const device = webgpuDevice(x);
    const dX = empty(x.shape, device, x.dtype);
    const wide = rowsAreWide(width, x, weight, dOutput, more);
    const parts = Math.max(1, Math.min(MOST_PARTS, Math.ceil(rows / 8)));
    const partials = empty([parts, 2, width], device, "f32");
    const row = RowText.of(width, wide);
    const [weights, biases] = [row.sums("weights"), row.sums("biases")];
    const gather = (turn: string) => `{
    let c = column_of(lane, u32(${turn}));
    let weight_sums = eight_rows(${weights.at(turn)}, lane);
    let bias_sums = eight_rows(${biases.at(turn)}, lane);
    if (lane < 32u && c < P.width) {
      put_partials(2u * id.x * P.width + c, weight_sums);
      put_partials((2u * id.x + 1u) * P.width + c, bias_sums);
    }
  }`;
    const source: KernelSource = {
      name: "norm-backward",
      constants: { CENTERED: centered, PARTS: parts, TURNS: row.turns },
      tensors: {
        x: read(x, wide),
        weight: read(weight, wide),
        statistics: read(statistics),
        dOutput: read(dOutput, wide),
        ...(more && { more: read(more, wide) }),
        dX: { dtype: x.dtype, access: "write", wide },
        partials: { dtype: "f32", access: "write", wide },
      },
      parameters: { rows: "u32", width: "u32", turns: "u32" },
      body: () => `${row.head}
${row.accessors("x")}
${row.accessors("weight")}
${row.accessors("dOutput")}
${more ? row.accessors("more") : "fn share_of_more(i: u32) -> Share { return ZERO; }"}
${row.accessors("dX", true)}
${row.accessors("partials", true)}
var<workgroup> shared_sums: array<Share, 256>;

// The sum over the workgroup's eight rows, for its first 32 lanes.
fn eight_rows(value: Share, lane: u32) -> Share {
  workgroupBarrier();
  shared_sums[lane] = value;
  workgroupBarrier();
  var sum = ZERO;
  for (var n = 0u; n < 8u; n++) { sum = plus(sum, shared_sums[(lane & 31u) + 32u * n]); }
  return sum;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3u, @builtin(local_invocation_index) lane: u32) {
  ${weights.declared}
  ${biases.declared}
  for (var n = 0u; n < P.turns; n++) {
    let row = (n * PARTS + id.x) * 8u + lane / 32u;
    let alive = row < P.rows;
    let start = row * P.width;
    var mean = 0.0;
    var rstd = 0.0;
    if (alive) { mean = load_statistics(2u * row); rstd = load_statistics(2u * row + 1u); }
    ${row.keep}
    var sums = vec2f(0);
    ${row.each(
      (v, c, turn) => `
      let normal = normal_of(${v}, mean, rstd);
      let d = share_of_dOutput(start + ${c});
      ${weights.at(turn)} = plus(${weights.at(turn)}, times(d, normal));
      ${biases.at(turn)} = plus(${biases.at(turn)}, d);
      let g = times(d, share_of_weight(${c}));
      sums += vec2f(total(g), product(g, normal));`,
    )}
    let means = row_sums(sums, lane) / f32(P.width);
    ${row.each(
      (v, c) => `
      let normal = normal_of(${v}, mean, rstd);
      let g = times(share_of_dOutput(start + ${c}), share_of_weight(${c}));
      let shift = select(0.0, means.x, CENTERED);
      let more = share_of_more(start + ${c});
      put_dX(start + ${c}, Share(
        more.a + rstd * (g.a - shift - normal.a * means.y),
        more.b + rstd * (g.b - shift - normal.b * means.y)));`,
    )}
  }
  ${row.kept ? each(row.turns, (t) => gather(String(t))) : `for (var turn = 0u; turn < TURNS; turn++) ${gather("turn")}`}
}`,
    };
    device.dispatch(source, {
      tensors: { x, weight, statistics, dOutput, ...(more && { more }), dX, partials },
      parameters: { rows, width, turns: Math.ceil(rows / (8 * parts)) },
      workgroups: [parts],
    });
    const sums = reduce("sum", partials, [0]);
    const take = (n: number, like: Tensor) => {
      const own = sums
        .reshape([2, width])
        .slice(0, n, n + 1)
        .reshape([width]);
      return like.dtype === "f32" ? own : cast(own, like.dtype);
    };
    return { x: dX, weight: take(0, weight), bias: bias && take(1, bias) };
  });
