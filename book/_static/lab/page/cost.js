/**
 * What a training takes: operations, hours, price and memory. The same
 * arithmetic as `minimind_core/cost.py`; tests/test_lab_cost.py compares the
 * two. Nothing here knows of the page.
 */

/** @typedef {{vocab_size: number, hidden_size: number,
 *   num_hidden_layers: number, num_attention_heads: number,
 *   num_key_value_heads: number, head_dim: number,
 *   intermediate_size: number, tie_word_embeddings: boolean}} Shape */
/** @typedef {{rows: number, length: number,
 *   optimizer: string}} Batch The rows that are computed at a time. */
/** @typedef {{name: string, peak: number, memory: number, dtype: string,
 *   peak32: number, utilization: number[]}} Device */

/**
 * The number of parameters by component.
 * @param {Shape} shape
 */
export function partsOf(shape) {
  const { hidden_size: h, head_dim: d, num_hidden_layers: n } = shape;
  const q = shape.num_attention_heads, kv = shape.num_key_value_heads;
  const table = shape.vocab_size * h;
  return {
    embedding: table,
    attention: n * (h * d * (q + 2 * kv) + q * d * h),
    mlp: n * 3 * h * shape.intermediate_size,
    norms: n * (2 * h + 2 * d) + h,
    head: shape.tie_word_embeddings ? 0 : table,
  };
}

/** @param {Shape} shape */
export function parametersOf(shape) {
  return Object.values(partsOf(shape)).reduce((sum, one) => sum + one, 0);
}

/**
 * Operations of a forward and backward pass over rows of this length.
 * @param {Shape} shape @param {number} rows @param {number} length
 */
export function trainingFlops(shape, rows, length) {
  const parts = partsOf(shape);
  const head = shape.vocab_size * shape.hidden_size;
  const queries = shape.num_attention_heads * shape.head_dim;
  return 3 * (
    2 * (parts.attention + parts.mlp) * rows * length +
    2 * head * rows * (length - 1) +
    4 * shape.num_hidden_layers * queries * rows * length ** 2
  );
}

/** @param {Shape} shape @param {number} length */
export function flopsPerToken(shape, length) {
  return trainingFlops(shape, 1, length) / length;
}

/**
 * Hours, and their price.
 * @param {Shape} shape
 * @param {{tokens: number, length: number, device: Device, half: boolean,
 *   utilization: number, price: number, devices: number}} plan
 */
export function estimate(shape, plan) {
  const flops = plan.tokens * flopsPerToken(shape, plan.length);
  const peak = plan.half ? plan.device.peak : plan.device.peak32;
  const hours = flops / (peak * plan.utilization * plan.devices) / 3600;
  return { flops, hours, price: hours * plan.devices * plan.price };
}

/**
 * Bytes of the activations that a forward pass keeps for the backward pass.
 * @param {Shape} shape @param {number} rows @param {number} length
 */
function kept(shape, rows, length) {
  const h = shape.hidden_size, f = shape.intermediate_size;
  const heads = shape.num_attention_heads, few = shape.num_key_value_heads;
  const q = heads * shape.head_dim, kv = few * shape.head_dim;
  const layer =
    2 * (3 * h + 1) + // norms: input, root, result; input of a product
    (2 * q + heads) + (2 * kv + few) + // norms of queries and keys
    q + 2 * kv + q + heads + // attention: q, k, v, result, log-sums
    4 * f; // SwiGLU: gate, silu, up, and their product
  const tokens = rows * length, supervised = rows * (length - 1);
  const numbers =
    tokens * (shape.num_hidden_layers * layer + 2 * h + 1) +
    supervised * (h + shape.vocab_size) +
    2 * length * shape.head_dim + 1;
  return 4 * numbers + 8 * (tokens + 2 * supervised);
}

/**
 * Bytes of memory, by purpose, on a GPU.
 * @param {Shape} shape @param {Batch} batch
 * @param {boolean} half Whether autocast computes in two bytes.
 */
export function memoryOf(shape, { rows, length, optimizer }, half) {
  const parts = partsOf(shape), total = parametersOf(shape);
  const matrices = parts.attention + parts.mlp;
  const head = shape.vocab_size * shape.hidden_size;
  const saved = optimizer === "muon" ? 1 : 2;
  return {
    weights: 4 * total,
    gradients: 4 * total,
    optimizer: 4 * (saved * matrices + 2 * (total - matrices)),
    copies: half ? 2 * (matrices + head) : 0,
    activations: kept(shape, rows, length),
    passing: 8 * rows * (length - 1) * shape.vocab_size,
  };
}

/** @param {Shape} shape @param {Batch} batch @param {boolean} half */
export function needed(shape, batch, half) {
  return Object.values(memoryOf(shape, batch, half))
    .reduce((sum, one) => sum + one, 0);
}

/**
 * How many rows at a time fit; 0 if none does.
 * @param {Shape} shape @param {Batch} batch
 * @param {number} room In bytes. @param {boolean} half
 */
export function largestRows(shape, batch, room, half) {
  const one = needed(shape, { ...batch, rows: 1 }, half);
  const two = needed(shape, { ...batch, rows: 2 }, half);
  const fixed = 2 * one - two;
  return Math.max(0, Math.floor((room - fixed) / (one - fixed)));
}

/**
 * The width of the feed-forward layers where none is given.
 * @param {number} width
 */
export function derivedWidth(width) {
  return Math.ceil((width * Math.PI) / 64) * 64;
}

/**
 * Read a number as people write it: 2,600 and 2.6e3.
 * @param {string} text
 */
export function parse(text) {
  const plain = text.replaceAll(/[,\s_]/g, "");
  return plain === "" ? NaN : Number(plain);
}

/** The fields: what they are called, and their largest and whole values.
 * @type {Record<string, {label: string, top: number, whole?: boolean,
 *   from?: number}>} */
export const FIELDS = {
  width: { label: "Width", top: 1e6, whole: true },
  layers: { label: "Layers", top: 1e4, whole: true },
  heads: { label: "Query heads", top: 1e4, whole: true },
  shared: { label: "Key/value heads", top: 1e4, whole: true },
  inner: { label: "Feed-forward width", top: 1e7, whole: true },
  vocabulary: { label: "Vocabulary", top: 1e7, whole: true },
  tokens: { label: "Tokens, in millions", top: 1e12 },
  length: { label: "Row length, in tokens", top: 1e7, whole: true, from: 2 },
  rows: { label: "Rows at a time", top: 1e6, whole: true },
  cards: { label: "Number of cards", top: 1e6, whole: true },
  utilization: { label: "Utilization, in %", top: 100 },
  price: { label: "Price per hour", top: 1e9, from: 0 },
};

/**
 * What is wrong with the typed numbers, as a sentence; "" if nothing is.
 * @param {Record<string, number>} given By the names of `FIELDS`.
 * @returns {{name: string, said: string}}
 */
export function problem(given) {
  for (const [name, { label, top, whole, from }] of Object.entries(FIELDS)) {
    const value = given[name];
    const wrong = (/** @type {string} */ must) => ({
      name, said: `\u201c${label}\u201d must be ${must}.`,
    });
    const kind = whole ? "a whole number" : "a number";
    if (Number.isNaN(value) || (whole && value % 1 !== 0 && value < top)) {
      return wrong(kind);
    }
    if (from === undefined ? value <= 0 : value < from) {
      return wrong(from === undefined ? `${kind} above 0`
        : `${kind} of at least ${from}`);
    }
    if (value > top) return wrong(`at most ${top.toLocaleString("en")}`);
  }
  const { width, heads, shared } = given;
  if (heads % shared) {
    return { name: "shared", said: `The query heads (${heads}) must be a ` +
      `multiple of the key/value heads (${shared}).` };
  }
  if (width % heads || (width / heads) % 2) {
    return { name: "width", said: `The width (${width}) must divide into ` +
      `${heads} heads of an even number of channels, because RoPE rotates ` +
      "pairs of them." };
  }
  return { name: "", said: "" };
}
