import { readFileSync } from "node:fs";
import { expect, it } from "vitest";
import { powerFull } from "../src/power-attention.js";
import { f32Values, readSafetensors } from "../src/safetensors.js";
import { tensor } from "../src/tensor/create.js";
import { expectClose } from "./attention.js";
import { DEVICES, describeOn, deviceOf } from "./devices.js";
import { attentionTolerance, STORED_F32 } from "./tolerances.js";

interface Case {
  name: string;
  degree: number;
  scale: number;
  chunk: number;
  gating: boolean;
}

const folder = new URL("./data/", import.meta.url);
const cases: Case[] = JSON.parse(readFileSync(new URL("attention.json", folder), "utf8"));
const { tensors } = readSafetensors(readFileSync(new URL("attention.safetensors", folder)));

describeOn(DEVICES, "reference data on %s", (kind) => {
  const runs = cases.flatMap((one) => [null, one.chunk].map((chunkSize) => ({ ...one, chunkSize })));
  it.each(runs)("$name, chunkSize $chunkSize", async ({ name, degree, scale, chunkSize, gating }) => {
    const device = await deviceOf(kind);
    const stored = (part: string) => {
      const found = tensors[`${name}.${part}`] ?? tensors[`${name}/${part}`];
      expect(found, `${name} ${part} in ${Object.keys(tensors).join(" ")}`).toBeDefined();
      return found;
    };
    const load = (part: string, requiresGrad = false) =>
      tensor(f32Values(stored(part)), stored(part).shape, { device, requiresGrad });
    const [q, k, v] = ["q", "k", "v"].map((part) => load(part, true));
    const logG = gating ? load("log_g", true) : undefined;
    const out = powerFull(q, k, v, { logG, degree, scale, chunkSize, normalize: "sum" });
    const tolerance = (what: "output" | "gradient") => attentionTolerance(kind, "f32", what) + STORED_F32;
    expectClose(await out.data(), f32Values(stored("out")), tolerance("output"), "out");
    out.backward(load("dout"));
    for (const [part, input] of Object.entries({ dq: q, dk: k, dv: v, dlog_g: logG })) {
      if (!input) continue;
      expectClose(await input.grad!.data(), f32Values(stored(part)), tolerance("gradient"), part);
    }
  });
});
