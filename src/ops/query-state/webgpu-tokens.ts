import { GATES } from "../../devices/webgpu/tiles.js";

/** The weight of token t of a chunk that ends at `end`: scale^p · exp(G_t) of a query, exp(G_end − G_t) of a key. */
export const WEIGHTS = `${GATES}
fn weight_of(gate0: u32, t: u32, end: u32) -> f32 {
  if (!GATED) { return P.factor; }
  if (KEYS) { return P.factor * decay(gate_sum_at(gate0 + end - 1u), gate_sum_at(gate0 + t)); }
  return P.factor * decay(gate_sum_at(gate0 + t), vec2f(0));
}
`;

/** Invocation (r, c) of a workgroup for 64 tokens of a chunk, row0 … end − 1 at most, of a batch's head. */
export const TILE_OF_TOKENS = `let r = lane & 15u;
  let c = lane >> 4u;
  let b = id.z;
  let head = id.y / P.members;
  let tilesPerChunk = (P.chunkSize + TILE - 1u) / TILE;
  let chunk = id.x / tilesPerChunk;
  let start = chunk * P.chunkSize;
  let end = min(start + P.chunkSize, P.time);
  let row0 = start + (id.x % tilesPerChunk) * TILE;
  if (row0 >= end) { return; }`;
