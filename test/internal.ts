/** What tests reach for below the public entry point. */
export { Scope } from "../src/tensor/scope.js";
export type { Shape } from "../src/tensor/shape.js";
export { fromValues, scope, type Tensor } from "../src/tensor/tensor.js";
