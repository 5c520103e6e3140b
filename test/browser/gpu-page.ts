/** What webgpu-browser.test.ts calls in a page: the webgpu device against the oracle and wasm, there. */
import { loadTokenizer } from "../../src/data/tokenizer.js";
import { defaultDevice } from "../../src/devices/get-device.js";
import { generateText } from "../../src/generate/index.js";
import {
  type Device,
  fromGPUBuffer,
  Generator,
  getDevice,
  gpuBuffer,
  noGrad,
  PowerState,
  powerFull,
  randn,
  Scope,
  softmaxAttention,
  type Tensor,
  tensor,
} from "../../src/index.js";
import { GPT, gptConfig } from "../../src/models/index.js";
import { AdamW } from "../../src/nn/index.js";
import { attend, difference, type Errors, errorsOf, gatesOf, inputsOn, solve } from "./problem.js";

const adapter = (await navigator.gpu?.requestAdapter())!;
/** With the limits and features that every adapter grants, and no other. */
const gpu = await adapter.requestDevice();
const webgpu = await getDevice("webgpu", { device: gpu });
const oracle = await getDevice("oracle");

async function facts() {
  const own = await getDevice("webgpu");
  const { maxStorageBuffersPerShaderStage, maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup } =
    gpu.limits;
  return {
    limits: [maxStorageBuffersPerShaderStage, maxComputeWorkgroupStorageSize, maxComputeInvocationsPerWorkgroup],
    features: [...gpu.features],
    description: webgpu.description,
    own: own.description,
    byDefault: await defaultDevice(),
    chosen: (await getDevice()).kind,
  };
}

/** Forward and all gradients of power attention against the oracle. */
async function power(degree: number, chunkSize: number | null, ownDevice = false): Promise<Errors> {
  const device = ownDevice ? await getDevice("webgpu") : webgpu;
  const on = (where: Device) => solve(inputsOn(where), (inputs) => attend(inputs, { degree, chunkSize }));
  return errorsOf(await on(device), await on(oracle));
}

async function softmax(): Promise<Errors> {
  const on = (where: Device) => {
    const { q, k, v } = inputsOn(where);
    return solve({ q, k, v }, (x) => softmaxAttention(x.q, x.k, x.v));
  };
  return errorsOf(await on(webgpu), await on(oracle));
}

/** A sequence cut in two, its second part token by token, and its state saved on the way, against the whole. */
async function carried(cut: number) {
  const inputs = inputsOn(webgpu);
  const logG = noGrad(() => gatesOf(inputs));
  const { q, k, v } = inputs;
  const [batch, time, kvHeads, headDim] = k.shape;
  const whole = noGrad(() => powerFull(q, k, v, { logG, chunkSize: 32, returnFinalState: true }));
  const part = (from: number, to: number) => ({
    ...{ q: q.slice(1, from, to), k: k.slice(1, from, to), v: v.slice(1, from, to), logG: logG.slice(1, from, to) },
  });
  const [a, b] = [part(0, cut), part(cut, time)];
  const before = noGrad(() => powerFull(a.q, a.k, a.v, { logG: a.logG, chunkSize: 32, returnFinalState: true }));
  const after = noGrad(() =>
    powerFull(b.q, b.k, b.v, { logG: b.logG, initialState: before.finalState, returnFinalState: true }),
  );
  const end = await whole.output.slice(1, cut, time).contiguous().data();

  let state = PowerState.empty({ device: webgpu, batch, kvHeads, headDim, valueDim: v.shape[3], degree: 2 });
  const feed = ({ q, k, v, logG }: ReturnType<typeof part>) => noGrad(() => state.step(q, k, v, { logG }));
  feed(a);
  const steps: ArrayLike<number>[] = [];
  for (let t = cut; t < time; t++) {
    // Through a file in the middle.
    if (t === cut + 40) state = PowerState.fromSafetensors(await state.toSafetensorsAsync(), { device: webgpu });
    steps.push(await feed(part(t, t + 1)).data());
  }
  const row = q.shape[2] * v.shape[3];
  const length = time - cut;
  const stepped = new Float32Array(end.length);
  for (const [t, values] of steps.entries()) {
    for (let n = 0; n < batch; n++) {
      const own = Array.from({ length: row }, (_, c) => values[n * row + c]);
      stepped.set(own, (n * length + t) * row);
    }
  }
  return {
    output: difference(await after.output.data(), end),
    state: difference(await after.finalState.s.data(), await whole.finalState.s.data()),
    steps: difference(stepped, end),
  };
}

const TEXT = "the cat sat on the mat. the cat sat on the mat. the cat sat on the mat. ";

async function trainAndWrite(device: Device) {
  const config = gptConfig("tiny", { vocabSize: 256, contextLength: 32, nLayer: 2, nEmbd: 32, nHead: 2, headSize: 16 });
  const model = new GPT({ ...config, chunkSize: 16 }, { device, generator: new Generator(1) });
  const optimizer = new AdamW(model.parameters(), { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0, clip: 1 });
  const tokenizer = await loadTokenizer("bytes");
  const ids = tokenizer.encode(TEXT).slice(0, 65);
  const losses: number[] = [];
  for (let step = 0; step < 12; step++) {
    using _ = new Scope();
    const loss = model.loss(model.ids(ids.slice(0, 64), [2, 32]), model.ids(ids.slice(1, 65), [2, 32]));
    loss.backward();
    losses.push(await loss.item());
    optimizer.update(0.01, optimizer.squaredNorm());
    model.clearGrad();
  }
  const { text, stats } = await generateText(model, tokenizer, { prompt: "the c", maxTokens: 20, temperature: 0 });
  return { losses, text, tokens: stats.tokens };
}

/** Training and writing on webgpu, and the same on wasm. */
async function gpt() {
  return { webgpu: await trainAndWrite(webgpu), wasm: await trainAndWrite(await getDevice("wasm", { threads: 1 })) };
}

/** A caller's buffer through one of ours and back, without leaving the GPU. */
async function buffers() {
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const theirs = gpu.createBuffer({ size: 32, usage });
  gpu.queue.writeBuffer(theirs, 0, Float32Array.of(9, 1, 2, 3));
  const x = fromGPUBuffer(theirs, [3], { device: webgpu, byteOffset: 4 });
  const { buffer, byteOffset, byteLength } = gpuBuffer(x.mul(10));
  const landing = gpu.createBuffer({ size: 16, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  const encoder = gpu.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, byteOffset, landing, 0, Math.ceil(byteLength / 4) * 4);
  gpu.queue.submit([encoder.finish()]);
  await landing.mapAsync(GPUMapMode.READ);
  return [...new Float32Array(landing.getMappedRange(), 0, 3)];
}

const messageOf = (promise: Promise<unknown>) =>
  promise.then(
    () => "",
    (error) => String(error),
  );

/** The device of our own is lost; the next one works. */
async function lose() {
  const doomed = await getDevice("webgpu");
  const x = tensor([1, 2], [2], { device: doomed });
  const pending = messageOf(x.add(x).data());
  (doomed as unknown as { gpu: GPUDevice }).gpu.destroy();
  const errors = [await pending, await messageOf(x.data())];
  const fresh = await getDevice("webgpu");
  const y: Tensor = randn([4], { device: fresh, seed: 1 });
  return { errors, other: fresh !== doomed, works: difference(await y.sub(y).add(1).data(), [1, 1, 1, 1]) };
}

/** A GPU's faults that need an answer: gates above 1 in check mode, and bounds checks that are not ours to leave out. */
async function refusals() {
  const checked = await getDevice("webgpu", { check: true });
  const q = randn([1, 3, 1, 4], { device: checked, seed: 1 });
  const logG = tensor([0, -1, 0.5], [1, 3, 1], { device: checked });
  return [
    await messageOf(powerFull(q, q, q, { logG }).data()),
    await messageOf(getDevice("webgpu", { boundsChecks: false })),
  ];
}

export const calls = { facts, power, softmax, carried, gpt, buffers, lose, refusals };
Object.assign(globalThis, { calls, ready: true });
