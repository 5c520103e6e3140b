import { peerConfig, peerText, peerWeights } from "./gpt.js";
import { installWebWorker } from "./web-worker.js";

/** A process that trains a GPT in another framework: `node gpt-child.js NAME THREADS TOKENS`; each message is a step. */
const [name, threads, tokens] = process.argv.slice(2);
// Our own weights first: the peer's stand-in for a browser's Worker must not meet our threads.
const config = peerConfig(Number(tokens));
const weights = await peerWeights(config);
if (name === "jax-js" && Number(threads) > 1) installWebWorker(Number(threads));
const peer =
  name === "tfjs" ? await (await import("./gpt-tfjs.js")).gptTfjs() : await (await import("./gpt-jax-js.js")).gptJax();
await peer.load(config, weights, peerText(config));

process.on("message", async () => {
  const start = performance.now();
  const loss = await peer.step();
  process.send!({ loss, milliseconds: performance.now() - start });
});
process.send!({ threads: peer.threads });
