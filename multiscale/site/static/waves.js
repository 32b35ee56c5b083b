/**
 * The factors of a view's Fourier features, in float64: sines and cosines along x and y of one injection point.
 *
 * As `waves_of_views` and `bent` in Python: feature k is sin(alpha_k(x) + beta_k(y)), alpha with the phase at the view's centre, which
 * at deep zooms has thousands of turns and is reduced to one before it becomes float32; or a packet, a sum of `terms` bent waves.
 */

const TURN = 2 * Math.PI;
const clamp01 = (value) => Math.min(Math.max(value, 0), 1);
const fraction = (value) => value - Math.floor(value);

/**
 * `model`: what model.json says; `point`: one of its points, with `packets` of `drawPackets` if its features are packets;
 * `waves`: Float32Array of (omega x, omega y, phase, bin) for each wave of the point;
 * `view`: {scale, x, y, cos, sin}, world units that N pixels span, the centre of the image, and the angle that it is turned by;
 * {columns, rows}: samples of the point's grid.
 * Returns [along x, along y], each Float32Array [2, K terms, samples].
 */
export function along(model, point, waves, view, { columns, rows }) {
  const count = waves.length / 4;
  const octave = -Math.log2(view.scale);
  const { bandwidth, anchor, fade, terms, slowest, fastest } = model.packets;
  const alongX = new Float32Array(2 * count * terms * columns);
  const alongY = new Float32Array(2 * count * terms * rows);
  const passed = model.band_limit === null ? null : point.rate / model.band_limit;
  for (let k = 0; k < count; k++) {
    const [ox, oy, phase, bin] = waves.subarray(4 * k, 4 * k + 4);
    const offset = model.bin_offset * bin;
    const factor = point.unit * 2 ** offset;
    const [wx, wy] = [ox * factor, oy * factor];
    const vx = (wx * view.cos + wy * view.sin) * view.scale;
    const vy = (wy * view.cos - wx * view.sin) * view.scale;
    let amplitude = bin === 0 ? 1 : clamp01((octave - offset - model.blend_offset) / model.blend_width);
    const frequency = Math.hypot(wx, wy);
    const single = !point.packets || frequency < anchor;
    if (single && passed !== null) amplitude *= clamp01(1 - (Math.hypot(vx, vy) - passed) / (point.rate / 2 - passed));
    const atCentre = point.shift_gain * (wx * view.x + wy * view.y) + phase;
    const spread = bandwidth * frequency;
    const corner = [Math.abs(wx) + spread, Math.abs(wy) + spread];
    const shrunk = point.rate / 2 / (view.scale * Math.hypot(...corner)); // the part of the packet's box that the grid can hold
    for (let term = 0; term < terms; term++) {
      const row = k * terms + term;
      if (single) {
        fill(alongX, count * terms, row, columns, atCentre, vx / point.rate, amplitude / terms);
        fill(alongY, count * terms, row, rows, 0, vy / point.rate, 1);
        continue;
      }
      for (const [axis, into, samples, centre] of [[0, alongX, columns, view.x], [1, alongY, rows, view.y]]) {
        const first = 2 * ((2 * k + axis) * terms + term);
        const [ofShift, ofBend] = point.packets.place.subarray(first, first + 2);
        const [phaseOfShift, phaseOfBend] = point.packets.phase.subarray(first, first + 2);
        const most = spread / 2; // frequencies in turns a unit of the world
        const shift = most * (2 * ofShift - 1);
        const slow = spread * (slowest + (fastest - slowest) * ofBend);
        fillBent(into, count * terms, row, samples, {
          sample: view.scale / point.rate,
          mean: [wx, wy][axis] + shift,
          slow,
          most,
          phase: fraction((axis === 0 ? atCentre : 0) + shift * centre + phaseOfShift),
          phaseOfBend: fraction(slow * centre + phaseOfBend),
          amplitude: axis === 0 ? amplitude / Math.sqrt(terms) : 1,
          end: shrunk * corner[axis],
          fade: fade * corner[axis],
        });
      }
    }
  }
  return [alongX, alongY];
}

/** Places and phases of `count` packets, Float32Array [K, 2, terms, 2] each, as `draw_packets` in Python has them. */
export function drawPackets(count, stream, terms) {
  const size = 4 * count * terms;
  const first = Math.imul(0x9e3779b9, stream + 1);
  const uniform = (place) => {
    let x = (first + place) | 0;
    x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
    return (((x ^ (x >>> 16)) >>> 0) + 0.5) / 2 ** 32;
  };
  return {
    place: Float32Array.from({ length: size }, (_, i) => uniform(i)),
    phase: Float32Array.from({ length: size }, (_, i) => uniform(size + i)),
  };
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

/** As `fill`, of a wave whose frequency swings about `mean`; it fades where that passes `end`. Packets are not in turned views. */
function fillBent(into, rows, row, samples, { sample, mean, slow, most, phase, phaseOfBend, amplitude, end, fade }) {
  const depth = most / (TURN * slow);
  for (let j = 0, at = row * samples; j < samples; j++, at++) {
    const x = sample * (j - (samples - 1) / 2);
    const turn = TURN * (phaseOfBend + slow * x);
    const kept = amplitude * clamp01((end - Math.abs(mean + most * Math.cos(turn))) / fade);
    const angle = TURN * fraction(phase + mean * x + depth * Math.sin(turn));
    into[at] = kept * Math.sin(angle);
    into[at + rows * samples] = kept * Math.cos(angle);
  }
}
