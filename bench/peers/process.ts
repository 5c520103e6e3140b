import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";
import type { Question } from "./child.js";
import type { PeerForm, PeerTask } from "./peer.js";

/** A peer in a process of its own, so that its memory, threads and globals do not touch what is measured beside it. */
export class PeerProcess {
  readonly #child: ChildProcess;
  version = "";
  threads = 1;

  private constructor(readonly name: string) {
    this.#child = fork(fileURLToPath(new URL("./child.js", import.meta.url)), { stdio: ["ignore", 2, 2, "ipc"] });
  }

  static async start(
    name: "tfjs" | "jax-js",
    threads: number,
    backend: "wasm" | "webgpu" = "wasm",
  ): Promise<PeerProcess> {
    const peer = new PeerProcess(name);
    try {
      const info = await peer.#ask<{ version: string; threads: number }>({ ask: "start", name, threads, backend });
      peer.version = info.version;
      peer.threads = info.threads;
      return peer;
    } catch (error) {
      peer.end();
      throw error;
    }
  }

  #ask<T>(question: Question): Promise<T> {
    return new Promise((resolve, reject) => {
      const ended = (code: number | null) => reject(new Error(`${this.name}: its process ended (${code})`));
      this.#child.once("exit", ended);
      this.#child.once("message", (reply: { value: T; error?: string }) => {
        this.#child.off("exit", ended);
        if (reply.error === undefined) resolve(reply.value);
        else reject(new Error(`${this.name}: ${reply.error}`));
      });
      this.#child.send(question);
    });
  }

  /** The largest error of its outputs and gradients against float64. */
  check(): Promise<number> {
    return this.#ask({ ask: "check" });
  }

  load(tokens: number, heads: number, headDim: number): Promise<void> {
    return this.#ask({ ask: "load", tokens, heads, headDim });
  }

  /** Its fastest form for sequences of that length, by measurement; `load` again afterwards. */
  choose(task: PeerTask, tokens: number, headDim: number): Promise<PeerForm> {
    return this.#ask({ ask: "choose", task, tokens, headDim });
  }

  /** Milliseconds of one run, measured inside the process. */
  run(task: PeerTask, form: PeerForm): Promise<number> {
    return this.#ask({ ask: "run", task, form });
  }

  end(): void {
    this.#child.kill();
  }
}
