/**
 * Models from files: the safetensors format, and what `lab.py` writes.
 *
 * A safetensors file begins with the length of its header in eight bytes,
 * then comes the header in JSON, which says of each tensor its type, its
 * shape and where its bytes are, then the bytes.
 */

import { MiniMind, RMSNorm } from "./engine.js";
import { Linear } from "./linear.js";
import { Tokenizer } from "./tokenizer.js";

/** @typedef {import("./engine.js").ModelConfig} ModelConfig */
/** @typedef {{shape: number[], data: Float32Array}} Tensor */
/** @typedef {Record<string, Tensor>} Tensors */
/** @typedef {import("./tokenizer.js").TokenizerData} TokenizerData */

/**
 * @typedef {object} Stage What `lab.py` writes for a stage.
 * @property {ModelConfig} config
 * @property {string} weights A safetensors file in base64.
 * @property {TokenizerData} tokenizer
 * @property {{weights: string, scale: number}} [adapter]
 */

/** A model that cannot be used here, and why. */
export class ModelError extends Error {}

/** Tensors by name, which have to be there and of the right shape. */
export class Weights {
  /** @param {Tensors} tensors */
  constructor(tensors) {
    this.tensors = tensors;
    /** @type {Set<string>} */
    this.used = new Set();
  }

  /**
   * @param {string} name
   * @param {number[]} shape
   */
  get(name, shape) {
    const tensor = this.tensors[`${name}.weight`];
    this.used.add(`${name}.weight`);
    if (tensor === undefined) throw new ModelError(`${name} is missing`);
    if (String(tensor.shape) !== String(shape)) {
      throw new ModelError(
        `${name} has the shape (${tensor.shape.join(", ")}), but the ` +
          `configuration asks for (${shape.join(", ")})`,
      );
    }
    return tensor.data;
  }

  /**
   * @param {string} name
   * @param {number} rows
   * @param {number} columns
   */
  linear(name, rows, columns) {
    return new Linear(this.get(name, [rows, columns]), rows, columns);
  }

  /**
   * @param {string} name
   * @param {number} size
   * @param {number} eps
   */
  norm(name, size, eps) {
    return new RMSNorm(this.get(name, [size]), eps);
  }
}

const BYTES = /** @type {Record<string, number>} */ (
  { F32: 4, F16: 2, BF16: 2, I8: 1 }
);
const LARGEST = 100e6;

// What a configuration must say, if it says anything.
const PLAIN = /** @type {Record<string, any>} */ ({
  model_type: "qwen3", hidden_act: "silu", attention_bias: false,
  use_sliding_window: false,
});

/**
 * @param {ArrayBuffer} buffer The content of a safetensors file.
 * @returns {Tensors} In float32.
 */
export function readSafetensors(buffer) {
  const view = new DataView(buffer);
  const size = buffer.byteLength < 8 ? NaN : Number(view.getBigUint64(0, true));
  if (!(size <= Math.min(LARGEST, buffer.byteLength - 8))) {
    throw new ModelError("this is no safetensors file, or it was cut short");
  }
  /** @type {Record<string, any>} */
  let header;
  try {
    const text = new TextDecoder().decode(new Uint8Array(buffer, 8, size));
    header = JSON.parse(text);
  } catch {
    throw new ModelError("the header of the safetensors file is damaged");
  }
  /** @type {Tensors} */
  const tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets: [start, end] } = entry;
    const width = BYTES[dtype];
    if (width === undefined) {
      throw new ModelError(
        `${name} is of type ${dtype}, which cannot be read here`,
      );
    }
    const count = shape.reduce(
      (/** @type {number} */ a, /** @type {number} */ b) => a * b, 1,
    );
    if (end - start !== count * width || 8 + size + end > buffer.byteLength) {
      throw new ModelError(`${name} is cut short: the file is damaged`);
    }
    const bytes = buffer.slice(8 + size + start, 8 + size + end);
    tensors[name] = { shape, data: toFloat32(bytes, dtype) };
  }
  for (const name of Object.keys(tensors)) {
    if (header[name].dtype === "I8") rescale(tensors, name);
  }
  return tensors;
}

/**
 * A matrix of whole numbers, whose rows each have a scale.
 * @param {Tensors} tensors
 * @param {string} name
 */
function rescale(tensors, name) {
  const { shape: [rows, columns], data } = tensors[name];
  const scale = tensors[`${name}.scale`]?.data;
  if (scale?.length !== rows) {
    throw new ModelError(`${name} is in int8, without a scale for each row`);
  }
  for (let n = 0; n < data.length; n++) {
    data[n] *= scale[Math.floor(n / columns)];
  }
  delete tensors[`${name}.scale`];
}

/**
 * @param {ArrayBuffer} bytes
 * @param {string} dtype
 */
function toFloat32(bytes, dtype) {
  if (dtype === "F32") return new Float32Array(bytes);
  if (dtype === "I8") return Float32Array.from(new Int8Array(bytes));
  const halves = new Uint16Array(bytes);
  const data = new Float32Array(halves.length);
  if (dtype === "BF16") {
    // bfloat16 is the upper half of a float32.
    const bits = new Uint32Array(data.buffer);
    for (let n = 0; n < halves.length; n++) bits[n] = halves[n] << 16;
  } else {
    const bits = new Uint32Array(data.buffer);
    for (let n = 0; n < halves.length; n++) {
      const half = halves[n], exponent = half & 0x7c00;
      if (exponent === 0 || exponent === 0x7c00) data[n] = fromHalf(half);
      // The exponent of a float32 has another zero, and three bits more.
      else bits[n] = ((half & 0x8000) << 16) |
        (((half & 0x7fff) << 13) + 0x38000000);
    }
  }
  return data;
}

/**
 * The value of a float16: a sign, five bits of exponent, ten of mantissa.
 * @param {number} bits
 */
export function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}

/**
 * @param {string} text
 * @returns {ArrayBuffer}
 */
export function fromBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let n = 0; n < bytes.length; n++) bytes[n] = binary.charCodeAt(n);
  return bytes.buffer;
}

/**
 * The parts of a `config.json` that the model needs.
 * @param {Record<string, any>} config
 * @returns {ModelConfig}
 */
export function readConfig(config) {
  const named = /** @type {const} */ ([
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "intermediate_size", "max_position_embeddings",
    "rms_norm_eps",
  ]);
  for (const name of named) {
    if (!(config[name] > 0)) {
      throw new ModelError(`config.json: ${name} is missing`);
    }
  }
  const rope = config.rope_parameters ?? config.rope_scaling ?? {};
  if (![undefined, "default"].includes(rope.rope_type ?? rope.type)) {
    throw new ModelError("config.json: only plain rotary positions are known");
  }
  const other = Object.entries(PLAIN).find(
    ([name, value]) => ![undefined, value].includes(config[name]),
  );
  if (other) {
    throw new ModelError(
      `config.json: ${other[0]} is ${config[other[0]]}, and this page runs ` +
        `models where it is ${other[1]}`,
    );
  }
  if (config.num_attention_heads % config.num_key_value_heads) {
    throw new ModelError(
      "config.json: num_attention_heads is no multiple of num_key_value_heads",
    );
  }
  return {
    ...(/** @type {ModelConfig} */ (config)),
    head_dim:
      config.head_dim ?? config.hidden_size / config.num_attention_heads,
    rope_theta: rope.rope_theta ?? config.rope_theta,
    tie_word_embeddings: config.tie_word_embeddings ?? false,
    // A page needs no more, and the cache has room for all of them.
    max_position_embeddings: Math.min(config.max_position_embeddings, 2048),
  };
}

/**
 * A model and its tokenizer from the content of an exported folder.
 * @param {Record<string, any>} config `config.json`
 * @param {TokenizerData} tokenizerData `tokenizer.json`
 * @param {ArrayBuffer} weights `model.safetensors`
 */
export function loadModel(config, tokenizerData, weights) {
  const tokenizer = new Tokenizer(tokenizerData);
  const named = new Weights(readSafetensors(weights));
  const model = new MiniMind(readConfig(config), named);
  for (const name of Object.keys(named.tensors)) {
    // A tied head may be in the file a second time.
    if (!named.used.has(name) && name !== "lm_head.weight") {
      throw new ModelError(`the model has no place for ${name}`);
    }
  }
  if (tokenizer.size > model.config.vocab_size) {
    throw new ModelError(
      `the tokenizer has ${tokenizer.size} tokens, the model only ` +
        `${model.config.vocab_size}: they do not belong together`,
    );
  }
  return { model, tokenizer };
}

/**
 * A model and its tokenizer as `lab.py` has written them.
 * @param {Stage} stage
 */
export function loadStage(stage) {
  const weights = fromBase64(stage.weights);
  const loaded = loadModel(stage.config, stage.tokenizer, weights);
  if (stage.adapter) {
    const tensors = readSafetensors(fromBase64(stage.adapter.weights));
    loadAdapter(loaded.model, tensors, stage.adapter.scale);
  }
  return loaded;
}

// The layers that an adapter may change, by peft's names.
const ADAPTED = new RegExp(
  "^(?:base_model\\.model\\.)?(model\\.layers\\.(\\d+)\\.(\\w+\\.\\w+))" +
    "\\.lora_([AB])(?:\\.default)?\\.weight$",
);

/**
 * Put an adapter beside a model's weights and switch it on; `model.adapted`
 * switches it off and on again.
 * @param {MiniMind} model
 * @param {Tensors} tensors By peft's names.
 * @param {number} scale alpha / rank
 */
export function loadAdapter(model, tensors, scale) {
  const weights = new Weights(tensors);
  for (const name of Object.keys(tensors)) {
    const found = ADAPTED.exec(name);
    const linear = found && targets(model, Number(found[2]))[found[3]];
    if (!found || !linear) {
      throw new ModelError(`${name} is no part of a plain LoRA adapter here`);
    }
    if (found[4] === "B") continue;
    const rank = tensors[name].shape[0];
    const A = name.replace(/\.weight$/, "");
    const B = A.replace(".lora_A", ".lora_B");
    linear.adapt(
      weights.linear(A, rank, linear.columns),
      weights.linear(B, linear.rows, rank),
      scale,
    );
  }
  model.adapted = true;
}

/**
 * @param {MiniMind} model
 * @param {number} layer
 * @returns {Record<string, Linear>}
 */
function targets(model, layer) {
  const block = model.model.layers[layer];
  if (block === undefined) return {};
  const { mlp, selfAttn } = block;
  return {
    "self_attn.q_proj": selfAttn.qProj, "self_attn.k_proj": selfAttn.kProj,
    "self_attn.v_proj": selfAttn.vProj, "self_attn.o_proj": selfAttn.oProj,
    "mlp.gate_proj": mlp.gateProj, "mlp.up_proj": mlp.upProj,
    "mlp.down_proj": mlp.downProj,
  };
}
