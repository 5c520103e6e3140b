import { type ChildProcess, fork } from "node:child_process";
import { fileURLToPath } from "node:url";

/** Loading, compiling and the first step; no step time follows from it. */
const START_LIMIT = 75_000;
/** One more step. */
const STEP_LIMIT = 20_000;

/** A GPT that another framework trains in a process of its own, which is ended where it takes too long. */
export class GptProcess {
  readonly #child: ChildProcess;
  /** Losses before each update so far. */
  readonly losses: number[] = [];
  threads: number;
  /** What it did not do in time, if so; its process is gone then. */
  late: "start" | "step" | undefined;

  private constructor(
    readonly name: "tfjs" | "jax-js",
    threads: number,
    tokens: number,
  ) {
    this.threads = threads;
    const path = fileURLToPath(new URL("./gpt-child.js", import.meta.url));
    this.#child = fork(path, [name, String(threads), String(tokens)], { stdio: ["ignore", 2, 2, "ipc"] });
  }

  /** Started, compiled, and one step done, or `late`. */
  static async start(name: "tfjs" | "jax-js", threads: number, tokens: number): Promise<GptProcess> {
    const made = new GptProcess(name, threads, tokens);
    const began = performance.now();
    const loaded = await made.#reply<{ threads: number }>(START_LIMIT);
    if (loaded) made.threads = loaded.threads;
    const first = loaded && (await made.#ask(START_LIMIT - (performance.now() - began)));
    if (!first) made.late = "start";
    return made;
  }

  get key(): string {
    return `${this.name}, ${this.threads} thread${this.threads > 1 ? "s" : ""}`;
  }

  /** Milliseconds of a step by its own clock; where it is late, the time that it was given, which it took at least. */
  async step(): Promise<number> {
    if (this.late) return STEP_LIMIT;
    const milliseconds = await this.#ask(STEP_LIMIT);
    if (milliseconds === undefined) this.late = "step";
    return milliseconds ?? STEP_LIMIT;
  }

  async #ask(limit: number): Promise<number | undefined> {
    const answer = this.#reply<{ loss: number; milliseconds: number }>(limit);
    this.#child.send("step");
    const step = await answer;
    if (step) this.losses.push(step.loss);
    return step?.milliseconds;
  }

  /** The next message, or undefined and the process is ended where none comes in time. */
  #reply<T>(limit: number): Promise<T | undefined> {
    return new Promise((resolve, reject) => {
      const settle = (then: () => void) => {
        clearTimeout(timer);
        this.#child.off("exit", ended).off("message", said);
        then();
      };
      const said = (message: unknown) => settle(() => resolve(message as T));
      const ended = (code: number | null) =>
        settle(() => reject(new Error(`${this.name}: its process ended (${code})`)));
      const timer = setTimeout(
        () =>
          settle(() => {
            this.#child.kill("SIGKILL");
            resolve(undefined);
          }),
        limit,
      );
      this.#child.once("exit", ended).once("message", said);
    });
  }

  end(): void {
    this.#child.kill();
  }
}
