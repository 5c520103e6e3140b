import { scope } from "../../tensor/tensor.js";
import { mapTwo } from "../elementwise/webgpu.js";
import { squares } from "../reduce/webgpu.js";
import type { SquareSum } from "./contract.js";

export const squareSum: SquareSum = (tensors) =>
  scope(() => tensors.map((x) => squares(x).reshape([])).reduce((a, b) => mapTwo("add", a, b)));
