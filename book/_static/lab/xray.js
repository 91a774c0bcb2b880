/**
 * A text under the X-ray: what the model and the truth gave each token.
 */

/** @typedef {import("./engine.js").MiniMind} MiniMind */
/** @typedef {import("./tokenizer.js").Tokenizer} Tokenizer */
/** @typedef {import("./world.js").Truth} Truth */
/** @typedef {import("./world.js").NotInLanguage} NotInLanguage */

import { readStory } from "./world.js";

/**
 * @typedef {object} Seen One token; all numbers are in nats.
 * @property {number} id
 * @property {string} text The characters that are whole with this token.
 * @property {number} model The log-probability that the model gave it.
 * @property {number} truth The true one; minus infinity where the text has
 *   left the world.
 * @property {number} regret How much less the model gave it than the truth.
 *   Of one token it may be negative: the model was lucky.
 * @property {number} divergence How far the model's whole distribution is
 *   from the true one here, which is never negative: the regret to be
 *   expected. NaN where there is no truth.
 */

/**
 * The logarithms of a softmax.
 * @param {Float32Array} logits
 * @param {Float64Array} out Written to.
 */
export function logSoftmax(logits, out) {
  let highest = -Infinity, total = 0;
  for (let n = 0; n < logits.length; n++) {
    if (logits[n] > highest) highest = logits[n];
  }
  for (let n = 0; n < logits.length; n++) {
    total += Math.exp(logits[n] - highest);
  }
  const least = highest + Math.log(total);
  for (let n = 0; n < logits.length; n++) out[n] = logits[n] - least;
}

/**
 * @param {string} text
 * @param {MiniMind} model
 * @param {Tokenizer} tokenizer
 * @param {Truth} truth
 * @param {boolean} whole Whether the text is over; else its end is left
 *   open, and no end token follows.
 * @returns {{tokens: Seen[], left: NotInLanguage | null, loss: number,
 *   floor: number}} Where and why the text leaves the world, and the two
 *   surprises in nats: of the model, and the least possible one.
 */
export function xray(text, model, tokenizer, truth, whole = true) {
  const ids = tokenizer.encode(text);
  if (whole) ids.push(tokenizer.eos);
  const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  const logprobs = new Float64Array(model.config.vocab_size);
  let place = truth.start(), loss = 0, floor = 0;
  model.cache.length = 0;
  model.forward(tokenizer.bos);
  const tokens = ids.map((id, n) => {
    logSoftmax(model.logits, logprobs);
    const probs = place.probs();
    const seen = {
      id,
      text: id === tokenizer.eos
        ? "" : utf8.decode(tokenizer.bytes[id], { stream: true }),
      model: logprobs[id],
      truth: Math.log(probs.get(id) ?? 0),
      regret: Math.log(probs.get(id) ?? 0) - logprobs[id],
      divergence: divergence(probs, logprobs),
    };
    loss -= seen.model;
    floor -= seen.truth;
    place = place.after(id);
    if (n + 1 < ids.length) model.forward(id);
    return seen;
  });
  let { left } = readStory(text, truth.language);
  // A beginning may stop anywhere.
  if (!whole && left !== null && left.position === text.length) left = null;
  return { tokens, left, loss, floor };
}

/**
 * @param {Map<number, number>} probs
 * @param {Float64Array} logprobs
 */
function divergence(probs, logprobs) {
  if (probs.size === 0) return NaN;
  let sum = 0;
  for (const [id, prob] of probs) sum += prob * (Math.log(prob) - logprobs[id]);
  return sum;
}
