import { type Expr, type FunctionBuilder, f32, f64, i32, type Local } from "./emitter.js";

type Field = "i32" | "f32" | "f64";
export type ArgumentValues<A extends Record<string, Field>> = { [K in keyof A]: number };

/** The arguments of a kernel, as a block in memory: the host writes it, the kernel loads fields into locals. */
export class Arguments<A extends Record<string, Field>> {
  readonly #offsets: Record<string, number> = {};
  readonly bytes: number;

  constructor(readonly fields: A) {
    let at = 0;
    for (const [name, type] of Object.entries(fields)) {
      const size = type === "f64" ? 8 : 4;
      at = Math.ceil(at / size) * size;
      this.#offsets[name] = at;
      at += size;
    }
    this.bytes = at;
  }

  write(buffer: ArrayBufferLike, address: number, values: ArgumentValues<A>): void {
    const view = new DataView(buffer, address, this.bytes);
    for (const [name, type] of Object.entries(this.fields)) {
      const at = this.#offsets[name];
      const value = values[name];
      if (type === "f64") view.setFloat64(at, value, true);
      else if (type === "f32") view.setFloat32(at, value, true);
      else view.setInt32(at, value, true);
    }
  }

  /** Each field loaded when it is used. */
  fieldsAt(block: Local): { [K in keyof A]: Expr } {
    return Object.fromEntries(
      Object.entries(this.fields).map(([name, type]) => {
        const load = type === "i32" ? i32.load : type === "f32" ? f32.load : f64.load;
        return [name, load(block, this.#offsets[name])];
      }),
    ) as { [K in keyof A]: Expr };
  }

  /** Each field loaded once, now, into a local. */
  locals(f: FunctionBuilder, block: Local): { [K in keyof A]: Local } {
    const fields = this.fieldsAt(block);
    return Object.fromEntries(
      Object.entries(fields).map(([name, expr]) => [name, f.local((expr as Expr).type, expr as Expr)]),
    ) as { [K in keyof A]: Local };
  }
}

/** The parameters of every function that `WasmDevice.run` calls. */
export const KERNEL_PARAMS = [
  ["args", "i32"],
  ["item", "i32"],
  ["scratch", "i32"],
] as const;
