// Run by first-result.ts in a process of its own; prints milliseconds as JSON.
// Arguments: tokens, heads, "forward" or "forward-backward", chunk size or "" for the library's choice, "unchecked" or "".
const [tokens, heads] = process.argv.slice(2, 4).map(Number);
const backward = process.argv[4] === "forward-backward";
const chunkSize = process.argv[5] ? Number(process.argv[5]) : undefined;
const start = performance.now(); // from the start of the process
const { getDevice, powerFull, scope } = await import("../../src/index.js");
const imported = performance.now();
const device = await getDevice("webgpu", { boundsChecks: process.argv[6] === "unchecked" ? false : undefined });
const ready = performance.now();
const { fastInputs } = await import("./inputs.js");
const shape = { batch: 1, tokens, queryHeads: heads, heads, headDim: 64, valueDim: 64 };
const { q, k, v, logG, upstream } = fastInputs(device, shape, { dtype: "bf16", requiresGrad: backward });
await device.sync();
/** Some values of the output, read back: the result is there. */
async function call(): Promise<number> {
  const began = performance.now();
  const last = scope(() => {
    const out = powerFull(q, k, v, { logG, chunkSize });
    const end = out.detach().slice(1, -1).contiguous();
    if (backward) out.backward(upstream);
    return backward ? { end, gradient: q.grad!.detach().slice(1, -1).contiguous() } : { end };
  });
  for (const tensor of Object.values(last)) {
    const values = await tensor.data();
    if (!values.every(Number.isFinite)) throw new Error("the result has values that are not finite");
    tensor.dispose();
  }
  return performance.now() - began;
}
const made = performance.now();
const first = await call();
const second = await call();
process.stdout.write(
  JSON.stringify({
    node: start,
    imported: imported - start,
    device: ready - imported,
    inputs: made - ready,
    first,
    second,
  }),
);
// A device keeps no process alive, but a driver's threads may take their time.
device.dispose();
