import { empty, type Tensor } from "../tensor/tensor.js";

// filled in below
export class SoftmaxCache {
  tokens = 0;
  step(_q: Tensor, _k: Tensor, _v: Tensor): Tensor {
    return empty([], _q.device, "f32");
  }
}
