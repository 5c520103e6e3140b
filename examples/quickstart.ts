/** The README's first example, with what it prints explained: `npm run quickstart`. */
import { getDevice, logSigmoid, powerFull, randn } from "power-attention";

const device = await getDevice(); // or getDevice("wasm"), getDevice("oracle")
const [b, t, h, d] = [2, 1024, 8, 64];
const like = { device, dtype: "bf16", requiresGrad: true } as const;
const q = randn([b, t, h, d], like);
const k = randn([b, t, h, d], like);
const v = randn([b, t, h, d], like);
const logG = logSigmoid(randn([b, t, h], { device }));

const start = performance.now();
const out = powerFull(q, k, v, { logG, degree: 2, scale: 1 / Math.sqrt(d), chunkSize: 128 });
await device.sync();
const forward = performance.now();
out.sum().backward();
await device.sync();
const backward = performance.now();

console.log(`device            ${device.description}`);
console.log(`q, k, v           [${q.shape.join(", ")}] ${q.dtype}: batch, time, heads, head dim`);
console.log(`log gates         [${logG.shape.join(", ")}] ${logG.dtype}`);
console.log(`output            [${out.shape.join(", ")}] ${out.dtype}`);
console.log(`gradient of q     [${q.grad!.shape.join(", ")}] ${q.grad!.dtype}`);
console.log(`its last values   ${[...(await q.grad!.data()).slice(-4)].map((x) => x.toPrecision(3)).join(", ")}`);
console.log(`forward           ${(forward - start).toFixed(0)} ms, kernels written and compiled on the way`);
console.log(`backward          ${(backward - forward).toFixed(0)} ms`);
