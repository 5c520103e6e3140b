import { sweepOn } from "./sweep.js";

sweepOn("webgpu", true);
