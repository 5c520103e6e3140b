interface NodeModules {
  "node:fs": typeof import("node:fs");
  "node:os": typeof import("node:os");
  "node:worker_threads": typeof import("node:worker_threads");
}

/** A module of Node's own, or undefined elsewhere. No import statement names it, so bundles for pages build. */
export function nodeModule<K extends keyof NodeModules>(name: K): NodeModules[K] | undefined {
  if (typeof process === "undefined" || !process.versions?.node) return undefined;
  return process.getBuiltinModule(name);
}
