import { noGrad } from "../../tensor/tape.js";
import { squares } from "../reduce/webgpu.js";
import type { SquareSum } from "./contract.js";

export const squareSum: SquareSum = (tensors) => noGrad(() => squares(tensors));
