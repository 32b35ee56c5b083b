/**
 * The latent of a seed, the same as in Python: NumPy's SeedSequence, PCG64 and ziggurat (float32), after their published
 * descriptions (O'Neill 2014 and 2015; Marsaglia and Tsang 2000).
 */

const MASK64 = (1n << 64n) - 1n;
const MASK128 = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

/** CRC-32 of a text of ASCII characters: streams are told apart by that of their name. */
function crc32(text) {
  let crc = 0xffffffff;
  for (const character of text) {
    crc ^= character.charCodeAt(0);
    for (let i = 0; i < 8; i++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return ~crc >>> 0;
}

/** SeedSequence(words).generate_state(8, uint32). */
function seedWords(words) {
  let constant = 0x43b0d7e5;
  const hashed = (value, multiplier) => {
    value = (value ^ constant) >>> 0;
    constant = Math.imul(constant, multiplier) >>> 0;
    value = Math.imul(value, constant) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
  const mixed = (x, y) => {
    const value = (Math.imul(x, 0xca01f9dd) - Math.imul(y, 0x4973f715)) >>> 0;
    return (value ^ (value >>> 16)) >>> 0;
  };
  const pool = [0, 1, 2, 3].map((i) => hashed(words[i] ?? 0, 0x931e8875));
  for (let from = 0; from < 4; from++) {
    for (let to = 0; to < 4; to++) if (from !== to) pool[to] = mixed(pool[to], hashed(pool[from], 0x931e8875));
  }
  constant = 0x8b51f9dd;
  return Array.from({ length: 8 }, (_, i) => hashed(pool[i % 4], 0x58f38ded));
}

/** A source of uniform 32-bit numbers: PCG64 (XSL-RR), the lower half of each output first. */
function pcg64(words) {
  const pair = (i) => (BigInt(words[i + 1]) << 32n) | BigInt(words[i]);
  const state0 = (pair(0) << 64n) | pair(2);
  const increment = ((((pair(4) << 64n) | pair(6)) << 1n) | 1n) & MASK128;
  let state = ((increment + state0) * MULTIPLIER + increment) & MASK128;
  let kept = null;
  return () => {
    if (kept !== null) {
      const upper = kept;
      kept = null;
      return upper;
    }
    state = (state * MULTIPLIER + increment) & MASK128;
    const value = ((state >> 64n) ^ state) & MASK64;
    const turn = state >> 122n;
    const output = ((value >> turn) | (value << ((64n - turn) & 63n))) & MASK64;
    kept = Number(output >> 32n);
    return Number(output & 0xffffffffn);
  };
}

const R = 3.6541528853610088;
const AREA = 0.00492867323399;
const LAYERS = 256;
const STEPS = 2 ** 23;
const { limits, widths, heights } = ziggurat();

/** Tables of Marsaglia and Tsang's method: 256 layers of equal area under exp(-x^2/2). */
function ziggurat() {
  const limits = new Uint32Array(LAYERS);
  const widths = new Float32Array(LAYERS);
  const heights = new Float32Array(LAYERS);
  let x = R;
  let before = R;
  const base = AREA / Math.exp(-0.5 * R * R);
  limits[0] = (R / base) * STEPS;
  limits[1] = 0;
  widths[0] = base / STEPS;
  widths[LAYERS - 1] = R / STEPS;
  heights[0] = 1;
  heights[LAYERS - 1] = Math.exp(-0.5 * R * R);
  for (let i = LAYERS - 2; i >= 1; i--) {
    x = Math.sqrt(-2 * Math.log(AREA / x + Math.exp(-0.5 * x * x)));
    limits[i + 1] = (x / before) * STEPS;
    before = x;
    heights[i] = Math.exp(-0.5 * x * x);
    widths[i] = x / STEPS;
  }
  return { limits, widths, heights };
}

/** `count` standard normal numbers, Float32Array, from the stream `name` of `seed`. */
export function normals(seed, name, count) {
  const next = pcg64(seedWords([seed >>> 0, crc32(name)]));
  const uniform = () => Math.fround((next() >>> 8) / 2 ** 24);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = normal(next, uniform);
  return values;
}

function normal(next, uniform) {
  for (;;) {
    const bits = next();
    const layer = bits & 0xff;
    const size = bits >>> 9;
    const x = Math.fround(size * widths[layer]) * (bits & 0x100 ? -1 : 1);
    if (size < limits[layer]) return x;
    if (layer === 0) {
      for (;;) {
        const xx = -Math.log1p(-uniform()) / R;
        const yy = -Math.log1p(-uniform());
        if (yy + yy > xx * xx) return (size >>> 8) & 1 ? -(R + xx) : R + xx;
      }
    }
    if ((heights[layer - 1] - heights[layer]) * uniform() + heights[layer] < Math.exp(-0.5 * x * x)) return x;
  }
}
