/** Text once for each of `count`, with names of their own: compilers may keep what an index names in memory. */
export const each = (count: number, text: (k: number) => string) =>
  Array.from({ length: count }, (_, k) => text(k)).join("\n");
