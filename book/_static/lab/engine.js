/**
 * The transformer of chapter 3, in JavaScript: the same parts under the same
 * names, in the same order as in `minimind_core/model.py`.
 *
 *     const model = new MiniMind(config, new Weights(tensors));
 *     const logits = model.read(ids);          // after the last token
 *     const more = model.forward(token);       // one token further
 *
 * What differs: there is no batch and no gradient, and the tokens come one at
 * a time, each looking back into the cache. So the shapes of chapter 3 lose
 * their first two dimensions, and the causal mask is not needed: what is yet
 * to come is not in the cache. Every part writes into memory of its own that
 * was laid out at the start, so that a token allocates nothing.
 */

/**
 * @typedef {object} ModelConfig The names of a `config.json`.
 * @property {number} vocab_size
 * @property {number} hidden_size
 * @property {number} num_hidden_layers
 * @property {number} num_attention_heads
 * @property {number} num_key_value_heads
 * @property {number} head_dim
 * @property {number} intermediate_size
 * @property {number} max_position_embeddings
 * @property {number} rope_theta
 * @property {number} rms_norm_eps
 * @property {boolean} tie_word_embeddings
 */

/** @typedef {import("./weights.js").Weights} Weights */

/** Divide by the root mean square, then scale each channel. */
export class RMSNorm {
  /**
   * @param {Float32Array} weight
   * @param {number} eps Added to the mean square.
   */
  constructor(weight, eps) {
    this.weight = weight;
    this.eps = eps;
  }

  /**
   * @param {Float32Array} x
   * @param {Float32Array} y Written to; may be `x`.
   * @param {number} start Where the channels begin, in both.
   */
  forward(x, y, start = 0) {
    const { weight, eps } = this;
    const size = weight.length;
    let squares = 0;
    for (let n = start; n < start + size; n++) squares += x[n] * x[n];
    const scale = 1 / Math.sqrt(squares / size + eps);
    for (let n = 0; n < size; n++) {
      y[start + n] = x[start + n] * scale * weight[n];
    }
  }
}

/** Turn each pair of channels by an angle that grows with position. */
export class RotaryEmbedding {
  /**
   * @param {number} headDim
   * @param {number} theta Pair i turns by theta ** (-2 i / headDim).
   */
  constructor(headDim, theta) {
    const half = headDim / 2;
    // Rounded to float32 where PyTorch rounds.
    this.invFreq = new Float32Array(half);
    for (let n = 0; n < half; n++) {
      const step = Math.fround((2 * n) / headDim);
      this.invFreq[n] = 1 / Math.fround(theta ** step);
    }
    this.cos = new Float32Array(half);
    this.sin = new Float32Array(half);
  }

  /** @param {number} position Fills `cos` and `sin` for it. */
  forward(position) {
    for (let n = 0; n < this.invFreq.length; n++) {
      const angle = Math.fround(position * this.invFreq[n]);
      this.cos[n] = Math.cos(angle);
      this.sin[n] = Math.sin(angle);
    }
  }
}

/**
 * Apply the rotation to each head: a pair (a, b), half a head apart, becomes
 * (a cos - b sin, b cos + a sin).
 * @param {Float32Array} x (heads * headDim), changed in place.
 * @param {RotaryEmbedding} rope
 */
export function rotate(x, { cos, sin }) {
  const half = cos.length;
  for (let start = 0; start < x.length; start += 2 * half) {
    for (let n = start; n < start + half; n++) {
      const a = x[n], b = x[n + half];
      x[n] = a * cos[n - start] - b * sin[n - start];
      x[n + half] = b * cos[n - start] + a * sin[n - start];
    }
  }
}

/**
 * Softmax attention of one head.
 * @param {Float32Array} q Its query begins at `query`.
 * @param {Float32Array} k Its keys begin at `past`.
 * @param {Float32Array} v So do its values.
 * @param {{query: number, past: number, length: number, headDim: number}} at
 *   Also how many tokens there are to look at.
 * @param {Float32Array} weights (length), written to: who is looked at.
 * @param {Float32Array} out Written to, from `query` on.
 */
export function attend(q, k, v, { query, past, length, headDim }, weights,
  out) {
  const scale = 1 / Math.sqrt(headDim);
  let highest = -Infinity;
  for (let t = 0; t < length; t++) {
    const key = past + t * headDim;
    let score = 0;
    for (let n = 0; n < headDim; n++) score += q[query + n] * k[key + n];
    weights[t] = score * scale;
    if (weights[t] > highest) highest = weights[t];
  }
  let total = 0;
  for (let t = 0; t < length; t++) {
    weights[t] = Math.exp(weights[t] - highest);
    total += weights[t];
  }
  for (let n = 0; n < headDim; n++) out[query + n] = 0;
  for (let t = 0; t < length; t++) {
    weights[t] /= total;
    const value = past + t * headDim;
    for (let n = 0; n < headDim; n++) {
      out[query + n] += weights[t] * v[value + n];
    }
  }
}

/** Keys and values of the tokens seen so far, in memory laid out ahead. */
export class KVCache {
  /** @param {ModelConfig} config */
  constructor(config) {
    const { num_hidden_layers, num_key_value_heads, head_dim } = config;
    this.maxLength = config.max_position_embeddings;
    this.heads = num_key_value_heads;
    this.headDim = head_dim;
    const size = this.heads * this.maxLength * head_dim;
    const layers = Array.from({ length: num_hidden_layers });
    this.keys = layers.map(() => new Float32Array(size));
    this.values = layers.map(() => new Float32Array(size));
    /** Tokens held. A smaller number forgets those after it. */
    this.length = 0;
  }

  /**
   * Append the newest key and value of each head of a layer.
   * @param {number} layer
   * @param {Float32Array} k (heads * headDim)
   * @param {Float32Array} v
   */
  update(layer, k, v) {
    const { headDim, heads, length, maxLength } = this;
    for (let head = 0; head < heads; head++) {
      const to = (head * maxLength + length) * headDim;
      for (let n = 0; n < headDim; n++) {
        this.keys[layer][to + n] = k[head * headDim + n];
        this.values[layer][to + n] = v[head * headDim + n];
      }
    }
  }
}

/** Grouped-query attention with normalised queries and keys. */
export class Attention {
  /**
   * @param {ModelConfig} config
   * @param {number} layer
   * @param {Weights} weights
   */
  constructor(config, layer, weights) {
    const { hidden_size, num_attention_heads, num_key_value_heads } = config;
    const { head_dim, rms_norm_eps, max_position_embeddings } = config;
    const qWidth = num_attention_heads * head_dim;
    const kvWidth = num_key_value_heads * head_dim;
    const name = `model.layers.${layer}.self_attn`;
    this.layer = layer;
    this.heads = num_attention_heads;
    this.shared = num_attention_heads / num_key_value_heads;
    this.headDim = head_dim;
    this.qProj = weights.linear(`${name}.q_proj`, qWidth, hidden_size);
    this.kProj = weights.linear(`${name}.k_proj`, kvWidth, hidden_size);
    this.vProj = weights.linear(`${name}.v_proj`, kvWidth, hidden_size);
    this.oProj = weights.linear(`${name}.o_proj`, hidden_size, qWidth);
    this.qNorm = weights.norm(`${name}.q_norm`, head_dim, rms_norm_eps);
    this.kNorm = weights.norm(`${name}.k_norm`, head_dim, rms_norm_eps);
    this.q = new Float32Array(qWidth);
    this.k = new Float32Array(kvWidth);
    this.v = new Float32Array(kvWidth);
    this.mixed = new Float32Array(qWidth);
    /** Where each head looks from the newest position. */
    this.weights = Array.from(
      { length: this.heads }, () => new Float32Array(max_position_embeddings),
    );
    /** Heads that are switched off: they add nothing. */
    this.off = new Uint8Array(this.heads);
    this.at = { query: 0, past: 0, length: 0, headDim: head_dim };
  }

  /**
   * @param {Float32Array} x (hidden)
   * @param {RotaryEmbedding} rope
   * @param {KVCache} cache
   * @param {Float32Array} out (hidden), written to.
   * @param {boolean} adapted
   */
  forward(x, rope, cache, out, adapted) {
    const { at, headDim, k, layer, mixed, q, v } = this;
    this.qProj.forward(x, q, adapted);
    this.kProj.forward(x, k, adapted);
    this.vProj.forward(x, v, adapted);
    for (let n = 0; n < q.length; n += headDim) this.qNorm.forward(q, q, n);
    for (let n = 0; n < k.length; n += headDim) this.kNorm.forward(k, k, n);
    rotate(q, rope);
    rotate(k, rope);
    cache.update(layer, k, v);
    at.length = cache.length + 1;
    const keys = cache.keys[layer], values = cache.values[layer];
    for (let head = 0; head < this.heads; head++) {
      // Several heads of queries share one of keys and values.
      const group = Math.floor(head / this.shared);
      at.query = head * headDim;
      at.past = group * cache.maxLength * headDim;
      attend(q, keys, values, at, this.weights[head], mixed);
      if (this.off[head]) mixed.fill(0, at.query, at.query + headDim);
    }
    this.oProj.forward(mixed, out, adapted);
  }
}

/** The feed-forward part: one half gates the other. */
export class SwiGLU {
  /**
   * @param {ModelConfig} config
   * @param {number} layer
   * @param {Weights} weights
   */
  constructor(config, layer, weights) {
    const { hidden_size: width, intermediate_size: inner } = config;
    const name = `model.layers.${layer}.mlp`;
    this.gateProj = weights.linear(`${name}.gate_proj`, inner, width);
    this.upProj = weights.linear(`${name}.up_proj`, inner, width);
    this.downProj = weights.linear(`${name}.down_proj`, width, inner);
    this.gate = new Float32Array(inner);
    this.up = new Float32Array(inner);
  }

  /**
   * @param {Float32Array} x (hidden)
   * @param {Float32Array} out (hidden), written to.
   * @param {boolean} adapted
   */
  forward(x, out, adapted) {
    const { gate, up } = this;
    this.gateProj.forward(x, gate, adapted);
    this.upProj.forward(x, up, adapted);
    for (let n = 0; n < gate.length; n++) {
      const silu = gate[n] / (1 + Math.exp(-gate[n]));
      gate[n] = silu * up[n];
    }
    this.downProj.forward(gate, out, adapted);
  }
}

/** One layer: attention, then feed-forward, each added to the stream. */
export class Block {
  /**
   * @param {ModelConfig} config
   * @param {number} layer
   * @param {Weights} weights
   */
  constructor(config, layer, weights) {
    const { hidden_size: width, rms_norm_eps: eps } = config;
    const name = `model.layers.${layer}`;
    this.selfAttn = new Attention(config, layer, weights);
    this.mlp = new SwiGLU(config, layer, weights);
    this.inputLayernorm = weights.norm(
      `${name}.input_layernorm`, width, eps,
    );
    this.postAttentionLayernorm = weights.norm(
      `${name}.post_attention_layernorm`, width, eps,
    );
    /** Parts that are switched off add nothing to the stream. */
    this.off = { attention: false, mlp: false };
    this.normed = new Float32Array(width);
    this.added = new Float32Array(width);
  }

  /**
   * @param {Float32Array} x The residual stream, changed in place.
   * @param {RotaryEmbedding} rope
   * @param {KVCache} cache
   * @param {boolean} adapted
   */
  forward(x, rope, cache, adapted) {
    const { added, normed } = this;
    this.inputLayernorm.forward(x, normed);
    this.selfAttn.forward(normed, rope, cache, added, adapted);
    if (!this.off.attention) add(x, added);
    this.postAttentionLayernorm.forward(x, normed);
    this.mlp.forward(normed, added, adapted);
    if (!this.off.mlp) add(x, added);
  }
}

/**
 * @param {Float32Array} x Changed in place.
 * @param {Float32Array} more
 */
function add(x, more) {
  for (let n = 0; n < x.length; n++) x[n] += more[n];
}

/** Embedding, blocks and final norm: all but the output head. */
export class Decoder {
  /**
   * @param {ModelConfig} config
   * @param {Weights} weights
   */
  constructor(config, weights) {
    const { hidden_size: width, num_hidden_layers } = config;
    this.embedTokens = weights.linear(
      "model.embed_tokens", config.vocab_size, width,
    );
    this.layers = Array.from(
      { length: num_hidden_layers }, (_, n) => new Block(config, n, weights),
    );
    this.norm = weights.norm("model.norm", width, config.rms_norm_eps);
    this.rotaryEmb = new RotaryEmbedding(config.head_dim, config.rope_theta);
    this.x = new Float32Array(width);
    this.hidden = new Float32Array(width);
  }

  /**
   * @param {number} token
   * @param {KVCache} cache
   * @param {boolean} adapted
   * @param {Watch | null} watch
   * @returns {Float32Array} (hidden), to be used before the next call.
   */
  forward(token, cache, adapted, watch) {
    const { hidden, x } = this;
    const row = token * x.length;
    for (let n = 0; n < x.length; n++) {
      x[n] = this.embedTokens.weight[row + n];
    }
    this.rotaryEmb.forward(cache.length);
    if (watch) watch(0, cache.length, x);
    for (let n = 0; n < this.layers.length; n++) {
      this.layers[n].forward(x, this.rotaryEmb, cache, adapted);
      if (watch) watch(n + 1, cache.length, x);
    }
    this.norm.forward(x, hidden);
    return hidden;
  }
}

/**
 * @callback Watch Called with the residual stream of each position: after the
 *   embedding (depth 0) and after each layer (1, 2, ...). It may be changed
 *   in place, which is how an activation is patched.
 * @param {number} depth
 * @param {number} position
 * @param {Float32Array} x
 * @returns {void}
 */

/** A causal language model. */
export class MiniMind {
  /**
   * @param {ModelConfig} config
   * @param {Weights} weights By the names of the model's state dict.
   */
  constructor(config, weights) {
    this.config = config;
    this.model = new Decoder(config, weights);
    this.lmHead = config.tie_word_embeddings
      ? this.model.embedTokens
      : weights.linear("lm_head", config.vocab_size, config.hidden_size);
    this.cache = new KVCache(config);
    this.logits = new Float32Array(config.vocab_size);
    /** Whether an adapter is used that was loaded. */
    this.adapted = false;
    /** @type {Watch | null} */
    this.watch = null;
  }

  /**
   * Predict what follows one more token.
   * @param {number} token
   * @param {boolean} last Whether the logits are wanted.
   * @returns {Float32Array} The logits (vocab), to be used before the next
   *   call.
   */
  forward(token, last = true) {
    const { cache, logits } = this;
    if (cache.length === cache.maxLength) {
      throw new RangeError(
        `the model has no more than ${cache.maxLength} positions`,
      );
    }
    const hidden = this.model.forward(
      token, cache, this.adapted, this.watch,
    );
    cache.length += 1;
    if (last) this.lmHead.forward(hidden, logits);
    return logits;
  }

  /**
   * Predict what follows some tokens.
   * @param {ArrayLike<number>} ids
   * @param {number} known How many of them the cache holds already.
   */
  read(ids, known = 0) {
    this.cache.length = Math.max(0, Math.min(known, ids.length - 1));
    for (let n = this.cache.length; n < ids.length; n++) {
      this.forward(ids[n], n === ids.length - 1);
    }
    return this.logits;
  }

  /**
   * Attention weights of every layer and head; row t says how much each
   * earlier token counts at position t.
   * @param {ArrayLike<number>} ids
   * @returns {Float32Array[][][]} (layers)(heads)(time)(t + 1)
   */
  attentionMaps(ids) {
    /** @type {Float32Array[][][]} */
    const maps = this.model.layers.map((block) =>
      block.selfAttn.weights.map(() => []),
    );
    this.cache.length = 0;
    for (let t = 0; t < ids.length; t++) {
      this.forward(ids[t], false);
      this.model.layers.forEach(({ selfAttn }, layer) => {
        selfAttn.weights.forEach((weights, head) => {
          maps[layer][head].push(weights.slice(0, t + 1));
        });
      });
    }
    return maps;
  }
}
