/**
 * The factors of a view's Fourier features, in float64: sines and cosines along x and y of one injection point.
 *
 * As `waves_of_views` in Python: feature k is sin(alpha_k(x) + beta_k(y)), alpha with the phase at the view's centre, which at deep
 * zooms has thousands of turns and is reduced to one before it becomes float32.
 */

const TURN = 2 * Math.PI;
const clamp01 = (value) => Math.min(Math.max(value, 0), 1);
const fraction = (value) => value - Math.floor(value);

/**
 * `model`: what model.json says; `waves`: Float32Array of (omega x, omega y, phase, bin) for each wave of the point;
 * `view`: {scale, x, y, cos, sin}, world units that N pixels span, the centre of the image, and the angle that it is turned by;
 * {columns, rows}: samples of the point's grid.
 * Returns [along x, along y], each Float32Array [2, K, samples].
 */
export function along(model, point, waves, view, { columns, rows }) {
  const count = waves.length / 4;
  const octave = -Math.log2(view.scale);
  const alongX = new Float32Array(2 * count * columns);
  const alongY = new Float32Array(2 * count * rows);
  const passed = model.band_limit === null ? null : point.rate / model.band_limit;
  for (let k = 0; k < count; k++) {
    const [ox, oy, phase, bin] = waves.subarray(4 * k, 4 * k + 4);
    const offset = model.bin_offset * bin;
    const factor = point.unit * 2 ** offset;
    const [wx, wy] = [ox * factor, oy * factor];
    const vx = (wx * view.cos + wy * view.sin) * view.scale;
    const vy = (wy * view.cos - wx * view.sin) * view.scale;
    let amplitude = bin === 0 ? 1 : clamp01((octave - offset - model.blend_offset) / model.blend_width);
    if (passed !== null) amplitude *= clamp01(1 - (Math.hypot(vx, vy) - passed) / (point.rate / 2 - passed));
    const atCentre = point.shift_gain * (wx * view.x + wy * view.y) + phase;
    fill(alongX, count, k, columns, atCentre, vx / point.rate, amplitude);
    fill(alongY, count, k, rows, 0, vy / point.rate, 1);
  }
  return [alongX, alongY];
}

/**
 * A view {scale, x, y} in the frame of a world, {scale, x, y, cos, sin}: turned about the world's middle, then shifted.
 *
 * `frame`: Float64Array [4, D + 1], which turns the world's first `w` [D], and a 1 behind it, into (cos, sin, x, y) times a length;
 * null: all worlds have the frame of the views.
 */
export function framed(frame, w, { scale, x, y }) {
  if (!frame) return { scale, x, y, cos: 1, sin: 0 };
  const size = w.length + 1;
  const sums = [0, 1, 2, 3].map((row) => w.reduce((sum, value, i) => sum + frame[row * size + i] * value, frame[row * size + w.length]));
  const length = Math.hypot(sums[0], sums[1]);
  const [cos, sin, right, down] = sums.map((sum) => sum / length);
  return { scale, x: cos * x - sin * y + right, y: sin * x + cos * y + down, cos, sin };
}

/** Sines into row k of the first half, cosines into that of the second; `phase` and `step` are in turns. */
function fill(into, count, k, samples, phase, step, amplitude) {
  const cosines = count * samples;
  for (let j = 0, at = k * samples; j < samples; j++, at++) {
    const turns = fraction(phase + step * (j - (samples - 1) / 2));
    into[at] = amplitude * Math.sin(TURN * turns);
    into[at + cosines] = amplitude * Math.cos(TURN * turns);
  }
}
