/**
 * A seeded random generator (xoshiro128**, Blackman and Vigna 2018, seeded through splitmix32). Its state is four
 * 32-bit words, so a run can be saved and continued.
 */
export class Generator {
  // Plain 32-bit integers: several times faster than a typed array.
  #a = 0;
  #b = 0;
  #c = 0;
  #d = 0;

  constructor(seed = 0) {
    let x = seed >>> 0;
    this.state = Array.from({ length: 4 }, () => {
      x = (x + 0x9e3779b9) >>> 0;
      let z = x;
      z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
      z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
      return (z ^ (z >>> 15)) >>> 0;
    });
  }

  get state(): number[] {
    return [this.#a, this.#b, this.#c, this.#d].map((word) => word >>> 0);
  }

  set state(words: readonly number[]) {
    if (words.length !== 4 || words.every((w) => w === 0)) {
      throw new RangeError("Generator.state: four 32-bit words, not all zero, are needed");
    }
    [this.#a, this.#b, this.#c, this.#d] = words.map((word) => word | 0);
  }

  /** 32 random bits. */
  bits(): number {
    const product = Math.imul(this.#b, 5);
    const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
    const t = this.#b << 9;
    this.#c ^= this.#a;
    this.#d ^= this.#b;
    this.#b ^= this.#c;
    this.#a ^= this.#d;
    this.#c ^= t;
    this.#d = (this.#d << 11) | (this.#d >>> 21);
    return result;
  }

  /** Uniform in [0, 1), 53 bits. */
  uniform(): number {
    return ((this.bits() >>> 5) * 67108864 + (this.bits() >>> 6)) / 9007199254740992;
  }

  /** An integer from 0 to n − 1. */
  integer(n: number): number {
    return Math.floor(this.uniform() * n);
  }

  /** Standard normal (Box–Muller; the second value is not kept, so the state is the four words alone). */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  /** Fills `out` with standard normal values, two from each pair of uniform ones: other values than `normal` gives. */
  fillNormal(out: Float32Array): Float32Array {
    for (let k = 0; k < out.length; k += 2) {
      const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
      const angle = (2 * Math.PI * this.bits()) / 4294967296;
      out[k] = radius * Math.cos(angle);
      if (k + 1 < out.length) out[k + 1] = radius * Math.sin(angle);
    }
    return out;
  }
}

const shared = new Generator(0);

/** The generator that `randn` and `uniform` use when they are given none. */
export function defaultGenerator(): Generator {
  return shared;
}

/** Restarts the default generator: what follows is reproducible. */
export function manualSeed(seed: number): void {
  shared.state = new Generator(seed).state;
}
