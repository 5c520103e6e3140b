import { MultiBar, type Options, type SingleBar } from "cli-progress";
import type { Metric, TrainStart } from "../train/index.js";

/** Seconds between lines where there is no terminal. */
const LINE_EVERY = 5;

const mib = (bytes: number) => `${Math.round(bytes / 2 ** 20)} MiB`;

function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  const whole = Math.round(seconds);
  const [h, m, s] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (n: number) => String(n).padStart(2, "0");
  return h > 0 ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

/** A bar on a terminal, a line now and then elsewhere. */
export class TrainProgress {
  /** A group of one bar: groups can write lines above themselves. */
  #group: MultiBar | undefined;
  #bar: SingleBar | undefined;
  #start: TrainStart | undefined;
  #began = performance.now();
  #lastLine = Number.NEGATIVE_INFINITY;
  #heldOut = "";

  constructor(private readonly out: NodeJS.WriteStream) {}

  start(start: TrainStart): void {
    this.#start = start;
    this.#began = performance.now();
    const { device, parameters, tokensPerStep, trainTokens, steps, step } = start;
    this.#write(
      `${parameters.toLocaleString("en")} parameters on ${device}; ${trainTokens.toLocaleString("en")} tokens of text, ${tokensPerStep.toLocaleString("en")} a step`,
    );
    if (step > 0) this.#write(`resumed after step ${step}`);
    if (!this.out.isTTY) return;
    const options: Options = {
      format: "{bar} {value}/{total} {line}",
      stream: this.out,
      barsize: 20,
      hideCursor: true,
      linewrap: false,
      barCompleteChar: "█",
      barIncompleteChar: "░",
    };
    this.#group = new MultiBar(options);
    this.#bar = this.#group.create(steps, step, { line: "" });
  }

  metric(metric: Metric): void {
    const { steps, step: first } = this.#start!;
    if (metric.kind === "sample") {
      this.#write(`step ${metric.step}: ${JSON.stringify(metric.text)}`);
    } else if (metric.kind === "eval") {
      this.#heldOut = ` held out ${metric.loss.toFixed(3)}`;
      if (!this.#bar) this.#write(`step ${metric.step}/${steps}: held-out loss ${metric.loss.toFixed(4)}`);
    } else {
      const { step, loss, tokensPerSecond, memory } = metric;
      const elapsed = (performance.now() - this.#began) / 1000;
      const left = (elapsed / (step - first)) * (steps - step);
      const line = `loss ${loss.toFixed(3)}${this.#heldOut} | ${Math.round(tokensPerSecond)} tok/s | ${mib(memory)} | ${duration(left)} left`;
      if (this.#bar) this.#bar.update(step, { line });
      else if (elapsed - this.#lastLine >= LINE_EVERY || step === steps) {
        this.#lastLine = elapsed;
        this.#write(`step ${step}/${steps}: ${line}`);
      }
    }
  }

  end(): void {
    this.#group?.update();
    this.#group?.stop();
    this.#group = undefined;
    this.#bar = undefined;
  }

  /** A line above the bar. */
  #write(line: string): void {
    if (this.#group) this.#group.log(`${line}\n`);
    else this.out.write(`${line}\n`);
  }
}
