/** The model as the page's folder has it: what model.json says, and the parts of model.bin. */

/**
 * Returns {facts, waves: Float32Array, frame: Float64Array or null, weights: Float32Array, mapping, synthesis: Uint8Array, ONNX that
 * refers to the weights}.
 */
export async function loadModel() {
  const facts = await (await fetched("model.json")).json();
  const whole = await (await fetched("model.bin")).blob();
  const parts = {};
  let from = 0;
  for (const [name, length] of Object.entries(facts.parts)) {
    const inflated = whole.slice(from, from + length).stream().pipeThrough(new DecompressionStream("deflate"));
    parts[name] = await new Response(inflated).arrayBuffer();
    from += length;
  }
  return {
    facts,
    waves: new Float32Array(parts.waves),
    frame: parts.frame ? new Float64Array(parts.frame) : null,
    weights: unpacked(parts, facts.shapes),
    mapping: new Uint8Array(parts.mapping),
    synthesis: new Uint8Array(parts.synthesis),
  };
}

/** A file of the folder, asked for anew: what a browser kept may be of an earlier export. */
export async function fetched(name) {
  const answer = await fetch(new URL(name, import.meta.url), { cache: "no-cache" });
  if (!answer.ok) throw new Error(`${name} is missing (${answer.status})`);
  return answer;
}

/**
 * Weights of tensors of [rows, columns]: whole multiples of 2^(step / 4), with a step for each row. The lowest bits of a multiple, as
 * many as its row's shift says, are in `lower`, one after the other; what is left of it is in `upper`.
 */
function unpacked(parts, shapes) {
  const steps = new Int8Array(parts.steps);
  const shifts = new Uint8Array(parts.shifts);
  const upper = new Int8Array(parts.upper);
  const lower = new Uint8Array(parts.lower);
  const weights = new Float32Array(upper.length);
  let [row, at, next, bits, held] = [0, 0, 0, 0, 0]; // held: bits that are read and not used
  for (const [rows, columns] of shapes) {
    for (const last = row + rows; row < last; row++) {
      const [step, shift] = [Math.fround(2 ** (steps[row] / 4)), shifts[row]];
      for (const end = at + columns; at < end; at++) {
        for (; held < shift; held += 8) bits |= lower[next++] << held;
        weights[at] = (upper[at] * 2 ** shift + (bits & (2 ** shift - 1))) * step;
        bits >>>= shift;
        held -= shift;
      }
    }
  }
  return weights;
}
