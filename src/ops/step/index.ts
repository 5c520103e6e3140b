import { operation } from "../operation.js";
import type { FoldTail, StepForward } from "./contract.js";
import { foldTailOracle, stepOracle } from "./oracle.js";

export const stepForward = operation<Parameters<StepForward>, ReturnType<StepForward>>("step", { oracle: stepOracle });

export const foldTail = operation<Parameters<FoldTail>, void>("fold", { oracle: foldTailOracle });
