/** The model as the page's folder has it: what model.json says, and the parts of model.bin. */

/** Returns {facts, waves: Float32Array, weights: Float32Array, mapping, synthesis: Uint8Array, ONNX that refers to the weights}. */
export async function loadModel() {
  const facts = await (await fetched("model.json")).json();
  const inflated = (await fetched("model.bin")).body.pipeThrough(new DecompressionStream("gzip"));
  const bytes = await new Response(inflated).arrayBuffer();
  const parts = {};
  let from = 0;
  for (const [name, length] of Object.entries(facts.parts)) {
    parts[name] = bytes.slice(from, from + length);
    from += length;
  }
  return {
    facts,
    waves: new Float32Array(parts.waves),
    weights: unpacked(parts.weights, facts.shapes, facts.bits),
    mapping: new Uint8Array(parts.mapping),
    synthesis: new Uint8Array(parts.synthesis),
  };
}

async function fetched(name) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name} is missing (${answer.status})`);
  return answer;
}

/** Weights of tensors of [rows, columns]: a step for each row, lower bytes of all multiples of it, upper bytes. */
function unpacked(packed, shapes, bits) {
  const rows = shapes.reduce((sum, [count]) => sum + count, 0);
  const count = shapes.reduce((sum, [rows, columns]) => sum + rows * columns, 0);
  const steps = new Float32Array(packed, 0, rows);
  const lower = new Uint8Array(packed, 4 * rows, count);
  const upper = new Uint8Array(packed, 4 * rows + count, count);
  const weights = new Float32Array(count);
  const zero = 2 ** (bits - 1);
  let at = 0;
  let row = 0;
  for (const [rows, columns] of shapes) {
    for (const last = row + rows; row < last; row++) {
      for (const end = at + columns; at < end; at++) weights[at] = (lower[at] + 256 * upper[at] - zero) * steps[row];
    }
  }
  return weights;
}
