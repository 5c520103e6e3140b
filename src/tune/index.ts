export { saveTiles } from "./save.js";
export { type TunedKernel, type TuneOptions, tune, tunedTiles } from "./tune.js";
