import { foldedRows, type Matrices, rowStride } from "./matrix-text.js";

/** A kernel's numbers, by the names that the kernel gives them. */
export type Tile = Readonly<Record<string, number>>;

/**
 * Tile shapes by kernel that replace the table's. Those of power attention have two each: by their own name for heads of
 * up to 64 elements, and with "Wide" after it for larger ones.
 */
export type TunedTiles = Record<string, Tile>;

/** Octets of a packed row of queries or keys, of packed values, and of those before their column for sums. */
export interface TileSizes {
  x: number;
  y: number;
  sumAt: number;
  /** Octets of a packed row that features of degrees 3 and 4 are made from in workgroup memory; none at others. */
  kept?: number;
}

export type TileLimits = Pick<
  GPUSupportedLimits,
  "maxComputeWorkgroupStorageSize" | "maxComputeInvocationsPerWorkgroup" | "maxComputeWorkgroupSizeX"
>;

/** A rule that holds or not, in words that end in the value. */
type Rule = readonly [holds: boolean, words: string];

interface Rules {
  numbers: readonly string[];
  subgroups(tile: Tile): number;
  /** Bytes of workgroup memory. */
  bytes(tile: Tile, units: Matrices, sizes: TileSizes): number;
  rules(tile: Tile, units: Matrices, sizes: TileSizes): Rule[];
}

/** Columns of a strip of a product's results that pass through workgroup memory together. */
export const stripColumns = ({ columns, across }: { columns: number; across: number }) =>
  Math.min(32, columns / across);

/** Octets of y that the gradient of squares takes together: as many as divide them, up to `limit`. */
export function octetsAtOnce(octets: number, { K }: Matrices, limit: number): number {
  const step = Math.max(K / 8, 1);
  let most = step;
  for (let n = step; n <= limit; n += step) if (octets % n === 0) most = n;
  return most;
}

/** Its subgroups: the part of a state that workgroup memory also has grows with heads. */
export const squareDown = (down: number, octets: number) => Math.min(down, octets <= 8 ? 8 : octets <= 16 ? 4 : 2);

/** Octets of features that reading a state makes at a time. */
export const READ_OCTETS = 4;

const line = (octets: number) => 16 * rowStride(octets);

/** Halves from one kept row to the next: an odd number of words, so that 32 rows start in different banks. */
export const elementStride = (octets: number) => 8 * octets + 2;

/** Octets of rows that the gradient through features of degrees 3 and 4 keeps: longer ones leave no room for its results. */
export const keptForGradient = (octets = 0) => (octets <= 8 ? octets : 0);

const keptRow = (octets = 0) => (octets > 0 ? 2 * elementStride(octets) : 0);

const divides = (tile: Tile, name: string, multiple: number): Rule => [
  tile[name] % multiple === 0,
  `${name} must be a multiple of ${multiple}, got ${tile[name]}`,
];

/** Chunks are padded to 32 rows: what steps through one must end where it does. */
const stepsThroughChunk = (tile: Tile, name: string, { K, narrow }: Matrices): Rule[] => [
  [32 % tile[name] === 0, `${name} must divide 32, got ${tile[name]}`],
  divides(tile, name, Math.max(K, narrow)),
];

const acrossColumns = ({ across }: Tile, { y }: TileSizes): Rule => [
  y % across === 0,
  `across must divide the ${y} octets of values, got ${across}`,
];

/**
 * Pairs of tokens: f32 tiles of `scores`, rows × others by fours, in which weights take the scores' place; `levels` numbers of
 * each of the others and `lifts` of each row.
 */
function ofPairs(others: string, scores: number, levels: number, lifts: number): Rules {
  return {
    numbers: ["rows", others, "down"],
    subgroups: ({ down }) => down,
    bytes: ({ rows, [others]: count }, _, { x, y }) =>
      count * (line(x) + line(y) + 4 * levels) + rows * (scores * line(count / 4) + 4 * lifts) + 8,
    rules: (tile, units) => [
      divides(tile, "rows", tile.down * units.M),
      [
        (tile.down * units.subgroupSize) % tile.rows === 0,
        `rows must divide the ${tile.down * units.subgroupSize} invocations, got ${tile.rows}`,
      ],
      ...stepsThroughChunk(tile, others, units),
      // A matrix of sums passes through a tile of scores.
      [tile[others] >= units.wide, `${others} must be at least ${units.wide}, got ${tile[others]}`],
      [
        tile[others] <= tile.down * units.subgroupSize,
        `${others} must be at most the ${tile.down * units.subgroupSize} invocations, got ${tile[others]}`,
      ],
    ],
  };
}

/**
 * Softmax's pairs: scores as above, `weights` tiles of halves beside them, and `numbers` of each of the others; lanes look after rows, and `lane`
 * and `more` are bytes of each invocation and of the workgroup. `sums`: where the columns of sums come from.
 */
function ofSoftmax(
  others: string,
  {
    scores,
    numbers,
    weights = 0,
    lane = 0,
    more = 0,
  }: { scores: number; numbers: number; weights?: number; lane?: number; more?: number },
  sums: readonly ("x" | "y")[],
): Rules {
  const invocations = ({ down, across }: Tile, { subgroupSize }: Matrices) => down * across * subgroupSize;
  return {
    numbers: ["rows", others, "down", "across"],
    subgroups: ({ down, across }) => down * across,
    bytes: (tile, units, { x, y }) =>
      tile[others] * (line(x) + line(y) + 4 * numbers) +
      tile.rows * (scores * line(tile[others] / 4) + weights * line(tile[others] / 8)) +
      lane * invocations(tile, units) +
      more,
    rules: (tile, units, sizes) => [
      divides(tile, "rows", tile.down * units.M),
      ...stepsThroughChunk(tile, others, units),
      [
        invocations(tile, units) % tile.rows === 0,
        `rows must divide the ${invocations(tile, units)} invocations, got ${tile.rows}`,
      ],
      divides(tile, others, (8 * invocations(tile, units)) / tile.rows),
      divides(tile, others, tile.across * units.narrow),
      ...sums.map(
        (side): Rule => [
          sizes[side] % tile.across === 0,
          `across must divide the ${sizes[side]} octets of sums, got ${tile.across}`,
        ],
      ),
    ],
  };
}

const KERNELS: Record<string, Rules> = {
  accumulate: {
    numbers: ["groups", "steps", "down", "across"],
    subgroups: ({ down, across }) => down * across,
    bytes: ({ groups, steps }, _, { y, kept }) => steps * (line(8 * groups) + line(y) + keptRow(kept)),
    rules: (tile, units, sizes) => [
      [
        (64 * tile.groups) % (tile.down * units.M) === 0,
        `64 · groups must be a multiple of down · ${units.M}, got groups ${tile.groups} and down ${tile.down}`,
      ],
      ...stepsThroughChunk(tile, "steps", units),
      acrossColumns(tile, sizes),
    ],
  },
  read: {
    numbers: ["tokens", "down", "across"],
    subgroups: ({ down, across }) => down * across,
    bytes: ({ tokens }, { M }, { y, kept }) =>
      16 * foldedRows(READ_OCTETS, M).size(tokens) + tokens * keptRow(kept) + 8 * READ_OCTETS * line(y),
    rules: (tile, units, sizes) => [divides(tile, "tokens", 2 * tile.down * units.M), acrossColumns(tile, sizes)],
  },
  pairs: ofPairs("keys", 1, 1, 1),
  pairsQueries: ofPairs("keys", 2, 1, 1),
  pairsKeys: ofPairs("queries", 2, 2, 2),
  gradient: {
    numbers: ["down"],
    subgroups: ({ down }) => down,
    bytes: ({ down }, { subgroupSize }, { x, y, kept }) =>
      64 * line(y) + 256 + down * subgroupSize * (line(16) + 4 * (8 * x + 1) + keptRow(keptForGradient(kept))),
    rules: () => [],
  },
  square: {
    numbers: ["down", "tokens", "octets"],
    subgroups: ({ down, tokens }) => down * tokens,
    bytes: ({ down, tokens, octets }, units, { x, sumAt }) => {
      const inner = octetsAtOnce(sumAt, units, octets);
      const rows = squareDown(down, x) * tokens * units.subgroupSize;
      return 16 * (foldedRows(inner, units.M).size(rows) + foldedRows(inner, units.wide).size(8 * x));
    },
    rules: (tile, { M, K, subgroupSize }) => [
      divides(tile, "octets", Math.max(K / 8, 1)),
      [
        (tile.tokens * subgroupSize) % (2 * M) === 0,
        `tokens · ${subgroupSize} must be a multiple of ${2 * M}, got ${tile.tokens}`,
      ],
    ],
  },
  softmax: ofSoftmax("keys", { scores: 1, weights: 1, numbers: 2, lane: 4, more: 4 }, ["y"]),
  softmaxQueries: ofSoftmax("keys", { scores: 2, numbers: 2 }, ["x"]),
  softmaxKeys: ofSoftmax("queries", { scores: 2, numbers: 3 }, ["x", "y"]),
  matmul: {
    numbers: ["rows", "columns", "steps", "down", "across"],
    subgroups: ({ down, across }) => down * across,
    bytes: ({ rows, columns, steps, down, across }, { M }) => {
      // Lines of either tile run along whichever axis is contiguous: the longer way to lay them out counts.
      const side = (long: number) => Math.max(long * line(steps / 8), steps * line(long / 8));
      const strips = down * across * M * line(stripColumns({ columns, across }) / 4);
      return Math.max(side(rows) + side(columns), strips);
    },
    rules: (tile, { M, K, narrow, subgroupSize }) => {
      const { rows, columns, steps, down, across } = tile;
      const lanes = down * across * subgroupSize;
      const own = columns / across;
      return [
        divides(tile, "rows", Math.max(down * M, 8)),
        divides(tile, "columns", across * narrow),
        divides(tile, "steps", Math.max(K, 8)),
        [own <= 32 || own % 32 === 0, `columns / across must be at most 32 or a multiple of it, got ${own}`],
        // A lane keeps to one octet of a line.
        ...[rows, columns, steps].map(
          (length): Rule => [
            lanes % (length / 8) === 0,
            `the ${lanes} invocations must be a multiple of the octets of a line, got ${length / 8}`,
          ],
        ),
      ];
    },
  },
};

const rulesOf = (kernel: string): Rules | undefined => {
  const base = kernel.replace(/Wide$/, "");
  if (kernel !== base && base === "matmul") return undefined;
  return Object.hasOwn(KERNELS, base) ? KERNELS[base] : undefined;
};

/** Kernels that have tiles, those for wide heads too. */
export const TILED_KERNELS: readonly string[] = Object.keys(KERNELS).flatMap((name) =>
  name === "matmul" ? [name] : [name, `${name}Wide`],
);

/**
 * The rule that numbers break as a kernel's tile, with the value that breaks it; undefined where they are legal.
 * `sizes`: of the heads that it is for; without them, whether it is legal for any.
 */
export function tileProblem(
  kernel: string,
  tile: unknown,
  units: Matrices,
  limits: TileLimits,
  sizes?: TileSizes,
): string | undefined {
  const known = rulesOf(kernel);
  if (!known) return `a kernel with a tile must be one of ${TILED_KERNELS.join(", ")}, got ${kernel}`;
  const names = tile !== null && typeof tile === "object" ? Object.keys(tile) : [];
  if (names.length !== known.numbers.length || known.numbers.some((name) => !names.includes(name))) {
    return `a tile must have the numbers ${known.numbers.join(", ")}, got ${JSON.stringify(tile)}`;
  }
  const numbers = tile as Tile;
  for (const name of names) {
    if (!Number.isSafeInteger(numbers[name]) || numbers[name] < 1) {
      return `${name} must be a positive integer, got ${JSON.stringify(numbers[name])}`;
    }
  }
  const least = Math.max(units.K, 8) / 8;
  const across = numbers.across ?? 1;
  const given = sizes ?? {
    x: Math.ceil(least / across) * across,
    y: Math.ceil((least + 1) / across) * across,
    sumAt: least,
  };
  for (const [holds, words] of known.rules(numbers, units, given)) if (!holds) return words;
  const invocations = known.subgroups(numbers) * units.subgroupSize;
  const most = Math.min(limits.maxComputeInvocationsPerWorkgroup, limits.maxComputeWorkgroupSizeX);
  if (invocations > most) return `a workgroup has at most ${most} invocations on this device, got ${invocations}`;
  const bytes = known.bytes(numbers, units, given);
  const memory = limits.maxComputeWorkgroupStorageSize;
  if (bytes > memory) return `a workgroup has at most ${memory} bytes of memory on this device, got ${bytes}`;
  return undefined;
}
