/**
 * A seeded random generator (xoshiro128**, Blackman and Vigna 2018, seeded through splitmix32). Its state is four
 * 32-bit words, so a run can be saved and continued.
 */
export class Generator {
  #s: Uint32Array;

  constructor(seed = 0) {
    let x = seed >>> 0;
    this.#s = Uint32Array.from({ length: 4 }, () => {
      x = (x + 0x9e3779b9) >>> 0;
      let z = x;
      z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
      z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
      return z ^ (z >>> 15);
    });
  }

  get state(): number[] {
    return [...this.#s];
  }

  set state(words: readonly number[]) {
    if (words.length !== 4 || words.every((w) => w === 0)) {
      throw new RangeError("Generator.state: four 32-bit words, not all zero, are needed");
    }
    this.#s = Uint32Array.from(words);
  }

  /** 32 random bits. */
  bits(): number {
    const s = this.#s;
    const product = Math.imul(s[1], 5);
    const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
    const t = s[1] << 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 11) | (s[3] >>> 21);
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
