import { sweepOn } from "./sweep.js";

sweepOn("wasm");
