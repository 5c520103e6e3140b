// Run by first-result.ts in a process of its own; prints milliseconds as JSON.
const start = performance.now();
const { getDevice, logSigmoid, powerFull, randn } = await import("../src/index.js");
const imported = performance.now();
const device = await getDevice("wasm");
const [q, k, v] = [1, 2, 3].map((seed) => randn([1, 1024, 8, 64], { device, seed }));
const logG = logSigmoid(randn([1, 1024, 8], { device, seed: 4 }));
await powerFull(q, k, v, { logG, chunkSize: 128 }).data();
const first = performance.now();
await powerFull(q, k, v, { logG, chunkSize: 128 }).data();
const second = performance.now();
process.stdout.write(JSON.stringify({ imported: imported - start, first: first - imported, second: second - first }));
