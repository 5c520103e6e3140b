export * from "./copy/index.js";
export * from "./elementwise/index.js";
export * from "./matmul/index.js";
export * from "./reduce/index.js";
