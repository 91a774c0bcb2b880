/**
 * From the distribution over the next token to text, as in chapter 6 and in
 * `minimind_core/generate.py`.
 */

/** @typedef {import("./engine.js").MiniMind} MiniMind */

/**
 * @typedef {object} Settings
 * @property {number} [temperature] Below 1 sharper, above 1 flatter; 0
 *   leaves only the most likely token.
 * @property {number} [topK] Keep the so many most likely tokens; 0: all.
 * @property {number} [topP] Keep the smallest set of tokens whose
 *   probability reaches this; 1 keeps all.
 * @property {number} [minP] Keep tokens at least this share as likely as the
 *   most likely one; 0 keeps all.
 * @property {number} [repetitionPenalty] 1 changes nothing.
 */

/** Uniform numbers that a seed repeats: sfc32 of PractRand. */
export class Random {
  /** @param {number} seed A whole number. */
  constructor(seed) {
    this.state = Uint32Array.of(seed, seed / 2 ** 32, 0x9e3779b9, 1);
    for (let n = 0; n < 16; n++) this.next();
  }

  /** A number in [0, 1). */
  next() {
    const { state } = this;
    const a = state[0], b = state[1], c = state[2], counter = state[3];
    const sum = (a + b + counter) >>> 0;
    state[0] = b ^ (b >>> 9);
    state[1] = c + (c << 3);
    state[2] = ((c << 21) | (c >>> 11)) + sum;
    state[3] = counter + 1;
    return sum / 2 ** 32;
  }
}

/**
 * Make tokens that are already there less likely: positive logits are divided
 * by the penalty, negative ones multiplied.
 * @param {Float32Array} logits Changed in place.
 * @param {Iterable<number>} seen
 * @param {number} penalty
 */
export function penaliseRepetition(logits, seen, penalty) {
  if (penalty === 1) return;
  for (const token of new Set(seen)) {
    const found = logits[token];
    logits[token] = found > 0 ? found / penalty : found * penalty;
  }
}

/** Shapes and cuts distributions over a vocabulary. */
export class Sampler {
  /** @param {number} size Of the vocabulary. */
  constructor(size) {
    this.probs = new Float64Array(size);
    this.order = new Uint32Array(size);
  }

  /**
   * Shape and cut the distribution over the next token. The cuts apply one
   * after the other, in the order below, each to what the last one left.
   * @param {Float32Array} logits
   * @param {Settings} settings
   * @returns {Float64Array} Probabilities that sum to 1, to be used before
   *   the next call.
   */
  nextTokenProbs(logits, settings = {}) {
    const { temperature = 1, topK = 0, topP = 1, minP = 0 } = settings;
    check(temperature >= 0, "temperature must be >= 0", temperature);
    check(topK >= 0, "topK must be >= 0", topK);
    check(topP > 0 && topP <= 1, "topP must be in (0, 1]", topP);
    check(minP >= 0 && minP < 1, "minP must be in [0, 1)", minP);
    const { order, probs } = this;
    let best = 0;
    for (let n = 1; n < logits.length; n++) {
      if (logits[n] > logits[best]) best = n;
    }
    if (temperature === 0) {
      probs.fill(0);
      probs[best] = 1;
      return probs;
    }
    for (let n = 0; n < probs.length; n++) {
      probs[n] = Math.exp((logits[n] - logits[best]) / temperature);
    }
    normalise(probs);
    if ((topK > 0 && topK < probs.length) || topP < 1) {
      for (let n = 0; n < order.length; n++) order[n] = n;
      order.sort((a, b) => probs[b] - probs[a] || a - b);
      if (topK > 0) {
        for (let n = topK; n < order.length; n++) probs[order[n]] = 0;
        normalise(probs);
      }
      if (topP < 1) {
        // The most likely token stays even if it alone exceeds topP.
        for (let n = 0, before = 0; n < order.length; n++) {
          const prob = probs[order[n]];
          if (before >= topP) probs[order[n]] = 0;
          before += prob;
        }
        normalise(probs);
      }
    }
    if (minP > 0) {
      const limit = minP * probs[best];
      for (let n = 0; n < probs.length; n++) {
        if (probs[n] < limit) probs[n] = 0;
      }
      normalise(probs);
    }
    return probs;
  }

  /**
   * Draw from the last distribution.
   * @param {number} uniform In [0, 1).
   */
  draw(uniform) {
    const { probs } = this;
    let last = 0;
    for (let n = 0, before = 0; n < probs.length; n++) {
      if (probs[n] === 0) continue;
      before += probs[n];
      if (uniform < before) return n;
      last = n;
    }
    return last; // what rounding left over
  }
}

/**
 * Continue a prompt, token by token as they are drawn. The end token is not
 * among them.
 * @param {MiniMind} model
 * @param {number[]} ids
 * @param {object} options
 * @param {number} options.maxNewTokens Fewer if the positions run out.
 * @param {Settings} [options.settings]
 * @param {Random} [options.random] Not needed at temperature 0.
 * @param {number} [options.eos]
 * @returns {Generator<number, void, void>}
 */
export function* streamTokens(model, ids, options) {
  const { maxNewTokens, settings = {}, eos = 2 } = options;
  const random = options.random ?? new Random(0);
  const penalty = settings.repetitionPenalty ?? 1;
  check(penalty > 0, "repetitionPenalty must be > 0", penalty);
  const sampler = new Sampler(model.config.vocab_size);
  const seen = ids.slice();
  const room = model.config.max_position_embeddings - ids.length;
  /** @type {Float32Array} */
  let logits = room >= 0 ? model.read(ids) : model.logits;
  for (let n = 0; n < Math.min(maxNewTokens, room); n++) {
    penaliseRepetition(logits, seen, penalty);
    sampler.nextTokenProbs(logits, settings);
    const token = sampler.draw(random.next());
    if (token === eos) return;
    yield token;
    seen.push(token);
    logits = model.forward(token);
  }
}

/** @param {Float64Array} probs */
function normalise(probs) {
  let total = 0;
  for (let n = 0; n < probs.length; n++) total += probs[n];
  for (let n = 0; n < probs.length; n++) probs[n] /= total;
}

/**
 * @param {boolean} holds
 * @param {string} what
 * @param {number} value
 */
function check(holds, what, value) {
  if (!holds) throw new RangeError(`${what}, not ${value}`);
}
