/**
 * What the pages ask of the engine: models, texts and the world by name.
 *
 * A `Session` lives in a worker, so that a page never waits while a model
 * computes, and `serve` lets it answer messages. All it takes and gives are
 * plain values.
 */

/** @typedef {import("./engine.js").MiniMind} MiniMind */
/** @typedef {import("./sampling.js").Settings} Settings */
/** @typedef {import("./tokenizer.js").Message} Message */
/** @typedef {import("./tokenizer.js").TokenizerData} TokenizerData */
/** @typedef {import("./weights.js").Stage} Stage */
/** @typedef {import("./world.js").LanguageData} LanguageData */
/** @typedef {import("./world.js").WorldData} WorldData */
/** @typedef {import("./world.js").Place} Place */
/** @typedef {import("./world.js").State} State */
/** @typedef {import("./xray.js").Seen} Seen */

import { Tokenizer } from "./tokenizer.js";
import { loadModel, loadStage } from "./weights.js";
import {
  Random, Sampler, penaliseRepetition, streamTokens,
} from "./sampling.js";
import { Language, Truth, World, readStory, writeStory } from "./world.js";
import { checkAnswer, findQuestion, questionsAbout } from "./questions.js";
import { logSoftmax, xray } from "./xray.js";

/**
 * @typedef {object} Row A token that may come next.
 * @property {number} id
 * @property {string} text
 * @property {number} model The model's probability.
 * @property {number} shaped The same after temperature and cuts.
 * @property {number} truth The true probability, NaN where there is none.
 */

/**
 * @typedef {object} View A text as it grows; see `Session.view`.
 * @property {Seen[]} tokens All but the first, which begins a document.
 * @property {{position: number, reason: string} | null} left
 * @property {number} loss In nats, of the model.
 * @property {number} floor In nats, the least possible.
 * @property {boolean} over Whether the story has ended, or has no more room.
 * @property {Row[]} rows The likeliest next tokens, by either side.
 * @property {number} drawn The token that the settings and the seed draw.
 */

/**
 * @typedef {object} Told A story and what is known about it.
 * @property {string} text
 * @property {string} begun Its beginning, before anyone is met.
 * @property {State} state
 * @property {import("./questions.js").Question[]} questions
 */

/** A model with its tokenizer, and what it has read last. */
class Loaded {
  /**
   * @param {MiniMind} model
   * @param {Tokenizer} tokenizer
   * @param {Language} language
   */
  constructor(model, tokenizer, language) {
    this.model = model;
    this.tokenizer = tokenizer;
    this.language = language;
    this.truth = new Truth(
      language, (text) => tokenizer.encode(text), tokenizer.eos,
    );
    this.sampler = new Sampler(model.config.vocab_size);
    this.logprobs = new Float64Array(model.config.vocab_size);
    /** What the cache holds. @type {number[]} */
    this.ids = [];
    /** The true place after each of these tokens. @type {Place[]} */
    this.places = [];
    /** What was seen of all but the first. @type {Seen[]} */
    this.seen = [];
  }

  /** Start anew: the cache holds something else. */
  forget() {
    this.ids = [];
    this.places = [];
    this.seen = [];
    this.model.cache.length = 0;
  }

  /**
   * Read a text, keeping what was read before and is the same.
   * @param {number[]} ids The first one begins a document.
   */
  read(ids) {
    let same = 0;
    while (same < ids.length && this.ids[same] === ids[same]) same += 1;
    // The logits are those of the last token that was read.
    same = Math.min(same, ids.length - 1);
    this.ids.length = same;
    this.places.length = same;
    this.seen.length = Math.max(0, same - 1);
    this.model.cache.length = Math.max(0, same - 1);
    if (same > 0) this.model.forward(ids[same - 1]);
    for (let n = same; n < ids.length; n++) {
      if (n === 0) this.places.push(this.truth.start());
      else this.watch(ids[n]);
      this.ids.push(ids[n]);
      this.model.forward(ids[n]);
    }
  }

  /**
   * Note what both sides said about a token, and go on in the world.
   * @param {number} id
   */
  watch(id) {
    const place = this.places[this.places.length - 1];
    logSoftmax(this.model.logits, this.logprobs);
    const probs = place.probs();
    const truth = Math.log(probs.get(id) ?? 0);
    const model = this.logprobs[id];
    let divergence = probs.size ? 0 : NaN;
    for (const [one, prob] of probs) {
      divergence += prob * (Math.log(prob) - this.logprobs[one]);
    }
    this.seen.push({
      id, text: this.show(id), model, truth, regret: truth - model,
      divergence,
    });
    this.places.push(place.after(id));
  }

  /**
   * How a token looks: its text, or its bytes if they are no text.
   * @param {number} id
   */
  show(id) {
    const { bytes, bos, eos } = this.tokenizer;
    if (id === eos || id === bos) return "";
    const text = new TextDecoder().decode(bytes[id] ?? new Uint8Array());
    return text.includes("\ufffd")
      ? [...bytes[id]].map((b) => `<${b.toString(16)}>`).join("")
      : text;
  }
}

export class Session {
  /**
   * @param {{world: WorldData, english: LanguageData}} data
   */
  constructor(data) {
    const world = new World(data.world);
    this.language = new Language(world, data.english);
    /** @type {Map<string, Loaded>} */
    this.models = new Map();
    /** @type {Tokenizer | undefined} */
    this.cutter = undefined;
  }

  /**
   * @param {string} name
   * @returns {Loaded}
   */
  get(name) {
    const found = this.models.get(name);
    if (found === undefined) throw new RangeError(`there is no ${name}`);
    return found;
  }

  /**
   * Load a stage that the book has trained.
   * @param {string} name
   * @param {Stage} stage
   */
  load(name, stage) {
    const { model, tokenizer } = loadStage(stage);
    model.adapted = false; // until somebody asks for the adapter
    this.models.set(name, new Loaded(model, tokenizer, this.language));
    return this.describe(name);
  }

  /**
   * Load a model from the files of a reader's own folder.
   * @param {string} name
   * @param {string} config
   * @param {string} tokenizerData
   * @param {ArrayBuffer} weights
   */
  loadFiles(name, config, tokenizerData, weights) {
    const parsed = loadModel(
      JSON.parse(config), JSON.parse(tokenizerData), weights,
    );
    const { model, tokenizer } = parsed;
    this.models.set(name, new Loaded(model, tokenizer, this.language));
    return this.describe(name);
  }

  /** @param {string} name */
  describe(name) {
    const { config, model } = this.get(name).model;
    const sizes = [
      model.embedTokens, ...model.layers.flatMap(({ mlp, selfAttn }) => [
        selfAttn.qProj, selfAttn.kProj, selfAttn.vProj, selfAttn.oProj,
        mlp.gateProj, mlp.upProj, mlp.downProj,
      ]),
    ];
    const parameters = sizes.reduce((n, one) => n + one.weight.length, 0);
    return {
      layers: config.num_hidden_layers,
      heads: config.num_attention_heads,
      positions: config.max_position_embeddings,
      vocabulary: config.vocab_size,
      parameters,
    };
  }

  /**
   * The ids of a beginning.
   * @param {string} name
   * @param {string} text
   */
  begin(name, text) {
    const { tokenizer } = this.get(name);
    return [tokenizer.bos, ...tokenizer.encode(text)];
  }

  /**
   * The X-ray of a text, and what may come next.
   * @param {string} name
   * @param {number[]} ids From `begin`, and what was drawn since.
   * @param {Settings} settings
   * @param {number} seed
   * @param {number} count How many next tokens are wanted.
   * @returns {View}
   */
  view(name, ids, settings = {}, seed = 0, count = 8) {
    const loaded = this.get(name);
    const { model, tokenizer } = loaded;
    const { eos } = tokenizer;
    const room = model.config.max_position_embeddings;
    if (ids.length > room) {
      throw new RangeError(`the text has more than ${room} tokens`);
    }
    loaded.read(ids);
    const tokens = loaded.seen.slice();
    let loss = 0, floor = 0;
    for (const { model: ours, truth } of tokens) {
      loss -= ours;
      floor -= truth;
    }
    const over = ids[ids.length - 1] === eos || ids.length === room;
    const text = tokenizer.decode(ids);
    const { left } = readStory(text, this.language);
    const open = ids[ids.length - 1] !== eos;
    const gone = left && !(open && left.position === text.length)
      ? { position: left.position, reason: left.reason } : null;
    return {
      tokens, left: gone, loss, floor, over,
      ...this.choices(loaded, ids, settings, seed, count),
    };
  }

  /**
   * @param {Loaded} loaded
   * @param {number[]} ids
   * @param {Settings} settings
   * @param {number} seed
   * @param {number} count
   */
  choices(loaded, ids, settings, seed, count) {
    const { model, sampler } = loaded;
    const logits = model.logits.slice();
    const plain = new Float64Array(logits.length);
    logSoftmax(logits, plain);
    penaliseRepetition(logits, ids, settings.repetitionPenalty ?? 1);
    const shaped = sampler.nextTokenProbs(logits, settings).slice();
    // The draw depends on the place alone: who goes back sees it again.
    const random = new Random(seed * 4096 + ids.length);
    const drawn = sampler.draw(random.next());
    const truth = loaded.places[ids.length - 1].probs();
    const order = Array.from(plain.keys());
    order.sort((a, b) => plain[b] - plain[a] || a - b);
    const kept = new Set(order.slice(0, count));
    // What is likely in truth is shown too, if the model does not see it.
    for (const [id, prob] of truth) if (prob > 0.02) kept.add(id);
    kept.add(drawn);
    const rows = order.filter((id) => kept.has(id)).map((id) => ({
      id,
      text: loaded.show(id),
      model: Math.exp(plain[id]),
      shaped: shaped[id],
      truth: truth.size ? (truth.get(id) ?? 0) : NaN,
    }));
    return { rows, drawn };
  }

  /**
   * Write on to the end, and X-ray the whole.
   * @param {string} name
   * @param {string} text
   * @param {Settings} settings
   * @param {number} seed
   * @param {number} longest
   */
  finish(name, text, settings = {}, seed = 0, longest = 120) {
    const { tokenizer } = this.get(name);
    const ids = this.begin(name, text);
    for (let n = 0; n < longest; n++) {
      const { drawn, over } = this.view(name, ids, settings, seed, 0);
      if (over) break;
      ids.push(drawn);
    }
    const begun = tokenizer.encode(text).length;
    return { ids, begun, ...this.view(name, ids, settings, seed, 0) };
  }

  /**
   * A story of the world, and what can be asked about it.
   * @param {number} seed
   * @param {string} [plot] Another seed is tried until it fits.
   * @returns {Told}
   */
  story(seed, plot) {
    const random = new Random(seed);
    for (;;) {
      const drawn = writeStory(this.language, () => random.next());
      const { choices, state, text } = drawn;
      if (plot !== undefined && state.plot !== plot) continue;
      const meeting = choices.find(({ role }) => role === "meeting");
      return {
        text, begun: text.slice(0, meeting?.start), state,
        questions: questionsAbout(state, this.language),
      };
    }
  }

  /**
   * Ask about a story, as the conversations of chapter 7 do.
   * @param {string} name
   * @param {Told} story
   * @param {string} question
   * @param {boolean} adapted
   * @param {Settings} settings
   * @returns {{answer: string, kind: string, right: boolean | null,
   *   expected: string, ended: boolean}} `right` is null if the world has no
   *   answer to this question.
   */
  ask(name, story, question, adapted = false, settings = {}) {
    const loaded = this.get(name);
    const { model, tokenizer } = loaded;
    loaded.forget();
    const asked = findQuestion(question, story.state, this.language);
    const told = asked?.kind === "continue"
      ? { ...story, text: story.begun } : story;
    const prompt = tokenizer.encodePrompt(
      this.messages(told, question, asked?.kind),
    );
    const was = model.adapted;
    model.adapted = adapted;
    const drawn = [...streamTokens(model, prompt, {
      maxNewTokens: 140, settings: { temperature: 0, ...settings },
    })];
    model.adapted = was;
    const answer = tokenizer.decode(drawn);
    const right = asked
      ? checkAnswer(asked, answer, told, this.language) : null;
    return {
      answer, right, kind: asked?.kind ?? "", expected: asked?.answer ?? "",
      ended: drawn.length < 140,
    };
  }

  /**
   * The turns that lead to a question, as `tasks.py` makes them.
   * @param {Told} story
   * @param {string} question
   * @param {string} [kind]
   * @returns {Message[]}
   */
  messages(story, question, kind) {
    const about = `${story.text}\n`;
    if (kind === "write") return [{ role: "user", content: question }];
    if (kind !== "pronoun") {
      return [{ role: "user", content: about + question }];
    }
    // "What is her job?" needs somebody who was just spoken of.
    const met = story.questions.find((one) => one.kind === "met");
    return [
      { role: "user", content: about + (met?.question ?? "") },
      { role: "assistant", content: met?.answer ?? "" },
      { role: "user", content: question },
    ];
  }

  /** What greets the narrator, who then answers in another manner. */
  greeting() {
    return this.language.greeting;
  }

  /**
   * Where each head looks, with some heads switched off.
   * @param {string} name
   * @param {string} text
   * @param {[number, number][]} off Layers and heads.
   */
  look(name, text, off = []) {
    const loaded = this.get(name);
    const { model, tokenizer } = loaded;
    loaded.forget();
    const ids = this.begin(name, text);
    const maps = model.attentionMaps(ids).map((layer) =>
      layer.map((head) => head.map((row) => Array.from(row))),
    );
    this.switchOff(model, off);
    const found = xray(text, model, tokenizer, loaded.truth, true);
    this.switchOff(model, []);
    loaded.forget();
    return {
      maps,
      tokens: ids.map((id) => loaded.show(id)),
      losses: found.tokens.map((token) => -token.model),
      loss: found.loss,
    };
  }

  /**
   * @param {MiniMind} model
   * @param {[number, number][]} off
   */
  switchOff(model, off) {
    model.model.layers.forEach(({ selfAttn }, layer) => {
      selfAttn.off.fill(0);
      for (const [one, head] of off) if (one === layer) selfAttn.off[head] = 1;
    });
  }

  /**
   * Predict after a text, with one activation taken from another text.
   * @param {string} name
   * @param {string} text
   * @param {string} source A text of as many tokens.
   * @param {{depth: number, position: number} | null} patch Where: after the
   *   embedding (0) or after so many layers, and at which token.
   * @param {string[]} answers Their probabilities are wanted, by their first
   *   tokens.
   */
  patch(name, text, source, patch, answers) {
    const loaded = this.get(name);
    const { model } = loaded;
    loaded.forget();
    const ids = this.begin(name, text), other = this.begin(name, source);
    if (ids.length !== other.length) {
      throw new RangeError("the two texts have different numbers of tokens");
    }
    /** @type {Float32Array | undefined} */
    let taken;
    if (patch) {
      model.watch = (depth, position, x) => {
        if (depth === patch.depth && position === patch.position) {
          taken = x.slice();
        }
      };
      model.read(other);
      model.watch = (depth, position, x) => {
        if (depth === patch.depth && position === patch.position && taken) {
          x.set(taken);
        }
      };
    }
    const logprobs = loaded.logprobs;
    logSoftmax(model.read(ids), logprobs);
    model.watch = null;
    loaded.forget();
    return answers.map((answer) =>
      Math.exp(logprobs[loaded.tokenizer.encode(answer)[0]]),
    );
  }

  /**
   * Draw a story whose owners can be swapped without another word changing,
   * up to the name of the new owner, which is left to the model.
   * @param {string} name
   * @param {number} seed
   */
  swap(name, seed) {
    const { tokenizer } = this.get(name);
    for (let n = 0; ; n++) {
      const { state, text } = this.story(seed * 1000 + n, "trade");
      const names = this.language.words.person;
      const hero = names[state.hero], friend = names[state.friend];
      const at = text.indexOf("Now ");
      const before = text.slice(0, at + 3);
      const swapped = before.replaceAll(/\p{L}+/gu, (word) =>
        word === hero ? friend : word === friend ? hero : word,
      );
      const ids = tokenizer.encode(before);
      const others = tokenizer.encode(swapped);
      const differ = ids.filter((id, place) => id !== others[place]);
      const single = [hero, friend].every(
        (one) => tokenizer.encode(` ${one}`).length === 1,
      );
      if (ids.length === others.length && single && differ.length > 2) {
        return { text: before, swapped, hero, friend };
      }
    }
  }

  /**
   * A tokenizer alone is enough where nothing is computed.
   * @param {TokenizerData} data
   */
  cut(data) {
    this.cutter = new Tokenizer(data);
  }

  /**
   * A conversation as ids, each with what it shows and its label.
   * @param {Message[]} messages
   */
  conversation(messages) {
    const tokenizer = /** @type {Tokenizer} */ (this.cutter);
    const { ids, labels } = tokenizer.encodeConversation(messages);
    const names = [...tokenizer.special].map(
      ([text, id]) => /** @type {[number, string]} */ ([id, text]),
    );
    const special = new Map(names);
    const utf8 = new TextDecoder();
    return ids.map((id, n) => ({
      id,
      text: special.get(id) ?? utf8.decode(tokenizer.bytes[id]),
      special: special.has(id),
      learnt: labels[n] >= 0,
    }));
  }

  /**
   * Stories that the model reads, and how far it is from the truth.
   * @param {string} name
   * @param {number} seed
   */
  examineStory(name, seed) {
    const loaded = this.get(name);
    const { text } = this.story(seed);
    loaded.forget();
    const { floor, loss, tokens } = xray(
      text, loaded.model, loaded.tokenizer, loaded.truth, true,
    );
    loaded.forget();
    return { floor, loss, count: tokens.length };
  }

  /**
   * One question, of any kind, about a story.
   * @param {string} name
   * @param {number} seed
   */
  examineQuestion(name, seed) {
    const story = this.story(seed);
    const random = new Random(seed + 2 ** 31);
    const kinds = [...new Set(story.questions.map((one) => one.kind))];
    const kind = kinds[Math.floor(random.next() * kinds.length)];
    const fitting = story.questions.filter((one) => one.kind === kind);
    const one = fitting[Math.floor(random.next() * fitting.length)];
    const { answer, right } = this.ask(name, story, one.question);
    return { kind, question: one.question, answer, right: right === true };
  }
}

/**
 * Let a session answer messages: `[number, method, arguments]`.
 * @param {Session} session
 * @param {any} message
 */
export function serve(session, [number, method, given]) {
  try {
    const value = /** @type {any} */ (session)[method](...given);
    return { number, value };
  } catch (error) {
    return { number, error: String(/** @type {Error} */ (error).message) };
  }
}
