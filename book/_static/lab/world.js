/**
 * The microworld in the page: it writes stories, reads them back, and knows
 * how likely each token is.
 *
 * The world is data, which Python and this file both read: `world.json` says
 * what can happen and `english.json` and `chinese.json` say it, all three in
 * `minimind_core/microworld`. What is explained there in `tape.py` and in
 * `truth.py` has the same names here.
 */

/** @typedef {Record<string, string>} State What was decided, by role. */

/**
 * @typedef {object} Role How a role is decided; see `World` in `tape.py`.
 * @property {string} [table]
 * @property {string[] | Record<string, string[]>} [keys]
 * @property {"ranked" | "even" | number[]} [weights]
 * @property {string[]} [by]
 * @property {string} [like]
 * @property {string[]} [without]
 * @property {string[]} [among]
 * @property {Record<string, string>} [is]
 */

/**
 * @typedef {object} WorldData
 * @property {Record<string, Role>} roles
 * @property {string[]} story
 * @property {Record<string, string[]>} [then]
 * @property {Record<string, Way[]>} [asked]
 * @property {string[]} [present]
 */

/**
 * @typedef {object} Way In which a kind of question can be asked.
 * @property {string[]} [plots] Of any, if not given.
 * @property {Record<string, string>} [known] Role -> another role, or a key.
 */

/**
 * @typedef {object} LanguageData
 * @property {string} name
 * @property {Record<string, Record<string, string>>} words
 * @property {Record<string, string>} sentences
 * @property {Record<string, [string, string]>} [questions]
 * @property {string} [greeting]
 * @property {string} [manner]
 * @property {any} [reasons]
 */

/**
 * @typedef {object} Step Something that a story says next.
 * @property {"text" | "field" | "sentence" | "branch"} kind
 * @property {string} name The text, the role, the sentence or the role.
 * @property {string} table Which table of words a field is said in.
 */

/** @typedef {{role: string, options: Options, texts: string[]}} Open */

/**
 * @typedef {object} Choice One decision of a story.
 * @property {number} start Where its text begins.
 * @property {string} role
 * @property {string} key
 * @property {number} logprob In nats.
 */

/** A text leaves the world: where, and why. */
export class NotInLanguage extends Error {
  /**
   * @param {number} position The first character that cannot be.
   * @param {string[]} expected What could have stood there.
   * @param {string} found What stands there.
   * @param {string} reason Why it cannot, in the story's language.
   */
  constructor(position, expected, found, reason) {
    super(reason);
    this.position = position;
    this.expected = expected;
    this.found = found;
    this.reason = reason;
  }
}

/** The ways a choice can go, by keys that are the same in all languages. */
export class Options {
  /**
   * @param {string[]} keys
   * @param {"ranked" | "even" | number[]} weights Ranked: common ones come
   *   first, and the n-th weighs 1 / sqrt(n).
   */
  constructor(keys, weights) {
    this.keys = keys;
    if (weights === "ranked") {
      this.weights = keys.map((_, n) => 1 / Math.sqrt(n + 1));
    } else {
      this.weights = weights === "even" ? keys.map(() => 1) : weights;
    }
    const total = sum(this.weights);
    this.probs = this.weights.map((weight) => weight / total);
  }

  /** @param {string[]} keys What is ruled out. */
  without(keys) {
    const kept = this.keys.filter((key) => !keys.includes(key));
    const weights = kept.map((key) => this.weights[this.keys.indexOf(key)]);
    return new Options(kept, weights);
  }

  /** @param {number} draw A uniform number in [0, 1). */
  position(draw) {
    let at = 0;
    for (let limit = this.probs[0]; draw >= limit; limit += this.probs[at]) {
      if (at === this.probs.length - 1) break;
      at += 1;
    }
    return at;
  }
}

/** What can happen, without a word of any language. */
export class World {
  /** @param {WorldData} data The content of `world.json`. */
  constructor(data) {
    this.roles = data.roles;
    this.story = data.story;
    this.then = data.then ?? {};
    this.asked = data.asked ?? {};
    this.present = data.present ?? [];
    /** @type {Map<string, Options>} */
    this.made = new Map();
  }

  /**
   * The table of words that a role is said in; "" if its keys are sentences.
   * @param {string} role
   * @returns {string}
   */
  table(role) {
    const how = this.roles[role];
    return how.like ? this.table(how.like) : (how.table ?? "");
  }

  /**
   * The ways in which a role can be decided.
   * @param {string} role
   * @param {State} state
   * @returns {Options}
   */
  options(role, state) {
    const how = this.roles[role];
    const needs = how.by ?? how.among ?? how.without ?? [];
    const known = needs.map((other) => state[other]);
    const name = [role, ...known].join(" ");
    let found = this.made.get(name);
    if (found === undefined) {
      if (how.like) found = this.options(how.like, {}).without(known);
      else if (how.among) found = new Options(known, "even");
      else {
        const keys = Array.isArray(how.keys)
          ? how.keys
          : /** @type {any} */ (how.keys)[known.join(" ")];
        found = new Options(keys, how.weights ?? "even");
      }
      this.made.set(name, found);
    }
    return found;
  }

  /**
   * What a role must be by what was decided; undefined if it is open.
   * @param {string} role
   * @param {State} state
   */
  consequence(role, state) {
    const how = this.roles[role];
    return how.is?.[(how.by ?? []).map((other) => state[other]).join(" ")];
  }
}

/** How a world is put into words. */
export class Language {
  /**
   * @param {World} world
   * @param {LanguageData} data The content of a language's file.
   */
  constructor(world, data) {
    this.world = world;
    this.name = data.name;
    this.words = data.words;
    this.sentences = data.sentences;
    this.questions = data.questions ?? {};
    this.greeting = data.greeting ?? "{}";
    this.manner = data.manner ?? "{}";
    this.reasons = data.reasons;
    /** @type {Map<string, Step[]>} */
    this.cut = new Map();
  }

  /**
   * A sentence, cut at its fields, and the steps that follow it.
   * @param {string} sentence
   * @returns {Step[]}
   */
  steps(sentence) {
    let steps = this.cut.get(sentence);
    if (steps === undefined) {
      steps = [];
      for (const part of splitTemplate(this.sentences[sentence])) {
        const { literal, role } = part;
        if (literal) steps.push({ kind: "text", name: literal, table: "" });
        if (!role) continue;
        const table = part.table || this.world.table(role);
        steps.push({ kind: "field", name: role, table });
      }
      steps.push(...(this.world.then[sentence] ?? []).map(asStep));
      this.cut.set(sentence, steps);
    }
    return steps;
  }

  /**
   * The text of each option; without a table, how each sentence begins.
   * @param {Options} options
   * @param {string} table
   */
  texts(options, table) {
    return options.keys.map((key) =>
      table ? this.words[table][key] : this.steps(key)[0].name,
    );
  }

  /**
   * A template with every field taken from a state.
   * @param {string} template
   * @param {State} state
   * @param {State} [said] Texts that take precedence.
   */
  fill(template, state, said = {}) {
    let text = "";
    for (const { literal, role, table } of splitTemplate(template)) {
      text += literal;
      if (role in said) text += said[role];
      else if (role) {
        text += this.words[table || this.world.table(role)][state[role]];
      }
    }
    return text;
  }

  /**
   * Say why a text cannot go on as it does.
   * @param {"memory" | "choice" | "phrase" | "long"} kind
   * @param {Tape} tape
   * @param {string[]} expected
   * @param {string} text What stands here, to the end of the text.
   * @returns {string}
   */
  explain(kind, tape, expected, text) {
    const { reasons, words } = this;
    if (reasons === undefined) return "";
    if (kind === "long") return reasons.long;
    if (expected.some((one) => one.startsWith(text))) return reasons.short;
    const { state, sentence } = tape;
    const { name: role, table } = tape.step;
    let key = "";
    for (const [other, word] of Object.entries(words[table] ?? {})) {
      const longer = !key || word.length > words[table][key].length;
      if (text.startsWith(word) && longer) key = other;
    }
    const names = key ? [`${sentence}.${role}`, table, role] : [];
    const special = kind === "phrase" ? {} : reasons[kind];
    const name = names.find((one) => one in special);
    /** @type {State} */
    const said = { expected: expected[0] };
    let template = reasons.phrase;
    if (name !== undefined) {
      const own = kind === "choice" ? this.world.table(role) : table;
      template = special[name];
      said.found = words[own][key];
    } else if (kind === "choice") {
      template = reasons.word;
      said.found = text.slice(0, 12).trim();
    } else {
      const shared = expected.map((one) => common(one, text));
      const most = Math.max(...shared);
      said.expected = expected[shared.indexOf(most)].slice(most).trim();
      said.found = text.slice(most, most + 12).trim();
    }
    if (state[role] in words.person) said.said = words.person[state[role]];
    return this.fill(template, state, said);
  }
}

/**
 * Cut `"He met {friend:introduced}."` at its fields.
 * @param {string} template
 */
export function splitTemplate(template) {
  const pieces = template.split(/\{(\w+):?(\w*)\}/);
  const parts = [];
  for (let n = 0; n < pieces.length; n += 3) {
    const [literal, role = "", table = ""] = pieces.slice(n, n + 3);
    parts.push({ literal, role, table });
  }
  return parts;
}

/**
 * A step of a world's `story` or `then`.
 * @param {string} name
 * @returns {Step}
 */
function asStep(name) {
  return name.startsWith("?")
    ? { kind: "branch", name: name.slice(1), table: "" }
    : { kind: "sentence", name, table: "" };
}

/**
 * What a program runs on. `Writer` and `Reader` say how a text is said and
 * how a choice is made.
 */
export class Tape {
  /** @param {Language} language */
  constructor(language) {
    this.language = language;
    /** @type {State} */
    this.state = {};
    /** @type {Choice[]} */
    this.choices = [];
    this.logprob = 0;
    this.position = 0;
    this.sentence = "";
    /** What is still to be said, the next thing last. */
    this.todo = language.world.story.map(asStep).reverse();
    this.step = this.todo[this.todo.length - 1];
  }

  /**
   * Say everything up to the next choice; undefined where the story is over.
   * @returns {Open | undefined}
   */
  advance() {
    const { language, state, todo } = this;
    for (let step = todo.pop(); step !== undefined; step = todo.pop()) {
      this.step = step;
      const { kind, name: role, table } = step;
      if (kind === "text") this.emit(step.name);
      else if (kind === "sentence") this.begin(step.name, 0);
      else {
        if (kind === "branch" || !(role in state)) {
          const known = language.world.consequence(role, state);
          if (known === undefined) {
            const options = language.world.options(role, state);
            return { role, options, texts: language.texts(options, table) };
          }
          state[role] = known;
        }
        this.emit(language.words[table][state[role]]);
      }
    }
    return undefined;
  }

  /**
   * Put a sentence, and what follows it, on the list of what to say.
   * @param {string} sentence
   * @param {number} from How many of its steps have been said.
   */
  begin(sentence, from) {
    this.sentence = sentence;
    const steps = this.language.steps(sentence);
    for (let n = steps.length - 1; n >= from; n--) this.todo.push(steps[n]);
  }

  /**
   * Settle a choice.
   * @param {Open} open From `advance`.
   * @param {number} at Which of the options it is.
   * @param {number} start Where its text began.
   */
  decide({ role, options }, at, start) {
    const key = options.keys[at];
    const logprob = Math.log(options.probs[at]);
    this.logprob += logprob;
    this.choices.push({ start, role, key, logprob });
    this.state[role] = key;
    // The beginning of the sentence has been said: it was the choice.
    if (this.step.kind === "branch") this.begin(key, 1);
  }

  /** Run the whole story. */
  run() {
    for (let open = this.advance(); open; open = this.advance()) {
      const start = this.position;
      this.decide(open, this.pick(open), start);
    }
  }

  /** @param {string} _text */
  emit(_text) {
    throw new TypeError("a Tape is a Writer or a Reader");
  }

  /**
   * @param {Open} _open
   * @returns {number}
   */
  pick(_open) {
    throw new TypeError("a Tape is a Writer or a Reader");
  }
}

/** Draws every choice. */
export class Writer extends Tape {
  /**
   * @param {Language} language
   * @param {() => number} random Gives uniform numbers in [0, 1).
   */
  constructor(language, random) {
    super(language);
    this.random = random;
    this.text = "";
  }

  /** @override @param {string} text */
  emit(text) {
    this.text += text;
    this.position = this.text.length;
  }

  /** @override @param {Open} open */
  pick({ options, texts }) {
    const at = options.position(this.random());
    this.emit(texts[at]);
    return at;
  }
}

/** Recovers every choice from a text. */
export class Reader extends Tape {
  /**
   * @param {Language} language
   * @param {string} text
   */
  constructor(language, text) {
    super(language);
    this.text = text;
  }

  /** @override @param {string} text */
  emit(text) {
    if (!this.text.startsWith(text, this.position)) {
      this.leave([text], this.step.kind === "text" ? "phrase" : "memory");
    }
    this.position += text.length;
  }

  /** @override @param {Open} open */
  pick({ texts }) {
    const at = texts.findIndex((one) =>
      this.text.startsWith(one, this.position),
    );
    if (at < 0) {
      this.leave(texts, this.step.kind === "branch" ? "phrase" : "choice");
    }
    this.position += texts[at].length;
    return at;
  }

  /** The program is over, so the text must be, too. */
  finish() {
    if (this.position === this.text.length) return;
    const left = this.text.slice(this.position, this.position + 12);
    const reason = this.language.explain("long", this, [], left);
    throw new NotInLanguage(this.position, ["the end"], left, reason);
  }

  /**
   * @param {string[]} expected
   * @param {"memory" | "choice" | "phrase"} kind
   * @returns {never}
   */
  leave(expected, kind) {
    // The first character that differs from the option that comes closest.
    const here = this.text.slice(this.position);
    const shared = Math.max(...expected.map((one) => common(here, one)));
    const at = this.position + shared;
    const close = expected
      .filter((one) => common(here, one) === shared)
      .map((one) => one.slice(shared));
    const found = this.text.slice(at, at + 12);
    const reason = this.language.explain(kind, this, expected, here);
    throw new NotInLanguage(at, close, found, reason);
  }
}

/**
 * Recover a story's choices and its probability from its text.
 *
 * Where the text leaves the world, `left` says so, and the rest is about the
 * part before.
 * @param {string} text
 * @param {Language} language
 */
export function readStory(text, language) {
  const tape = new Reader(language, text);
  /** @type {NotInLanguage | null} */
  let left = null;
  try {
    tape.run();
    tape.finish();
  } catch (error) {
    if (!(error instanceof NotInLanguage)) throw error;
    left = error;
  }
  return { logprob: tape.logprob, state: tape.state, choices: tape.choices,
    left };
}

/**
 * A story's exact log-probability in nats, minus infinity for a text that is
 * none.
 * @param {string} text
 * @param {Language} language
 */
export function logProbability(text, language) {
  const { left, logprob } = readStory(text, language);
  return left ? -Infinity : logprob;
}

/**
 * Draw a story.
 * @param {Language} language
 * @param {() => number} random
 */
export function writeStory(language, random) {
  const tape = new Writer(language, random);
  tape.run();
  const { text, logprob, state, choices } = tape;
  return { text, logprob, state, choices };
}

// --- the truth, token by token ---------------------------------------------

// How byte-level BPE splits a text into words, for what the world can say.
const WORD = / ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+/uy;

/** One of the stories that are still possible. */
class Branch extends Tape {
  /** @param {Language} language */
  constructor(language) {
    super(language);
    /** Of the choices made so far. */
    this.prob = 1;
    /** What it says beyond the words that were counted. */
    this.ahead = "";
    /** @type {Open | undefined} */
    this.open = undefined;
  }

  /** @override @param {string} text */
  emit(text) {
    this.ahead += text;
  }

  /** @returns {Branch} */
  copy() {
    const copy = Object.assign(Object.create(Branch.prototype), this);
    copy.state = { ...this.state };
    copy.todo = this.todo.slice();
    copy.choices = [];
    return copy;
  }

  /** This branch with its next choice made, in all ways. */
  decided() {
    const open = /** @type {Open} */ (this.open);
    return open.texts.map((text, at) => {
      const copy = this.copy();
      copy.prob *= open.options.probs[at];
      copy.ahead += text;
      copy.decide(open, at, 0);
      copy.open = copy.advance();
      return copy;
    });
  }
}

/**
 * Every word that may come next, with the branches that say it. The empty
 * word stands for the end of the story.
 * @param {Branch[]} branches
 */
function nextWords(branches) {
  /** @type {Map<string, Branch[]>} */
  const found = new Map();
  const stack = branches.slice();
  for (let branch = stack.pop(); branch; branch = stack.pop()) {
    WORD.lastIndex = 0;
    const word = WORD.exec(branch.ahead)?.[0] ?? "";
    // A word that reaches the end of what is known may go on.
    if (branch.open && word.length === branch.ahead.length) {
      stack.push(...branch.decided());
      continue;
    }
    const after = branch.copy();
    after.ahead = branch.ahead.slice(word.length);
    const same = found.get(word);
    if (same) same.push(after);
    else found.set(word, [after]);
  }
  return found;
}

/**
 * @typedef {object} Within A word that the tokens so far may be within.
 * @property {number} prob
 * @property {number[]} tokens Of the word, those still to come.
 * @property {Branch[]} branches After the word.
 */

/** Somewhere in a text, and what may follow. */
export class Place {
  /**
   * @param {Truth} truth
   * @param {Within[]} ways
   */
  constructor(truth, ways) {
    this.truth = truth;
    this.ways = ways.flatMap((way) =>
      way.tokens.length ? [way] : truth.ways(way.branches, way.prob),
    );
  }

  /**
   * The probability of each token that can come next. It sums to one, and is
   * empty where the text has left the world or the story has ended.
   * @returns {Map<number, number>}
   */
  probs() {
    const total = sum(this.ways.map((way) => way.prob));
    const found = new Map();
    for (const { prob, tokens } of this.ways) {
      found.set(tokens[0], (found.get(tokens[0]) ?? 0) + prob / total);
    }
    return found;
  }

  /**
   * The place one token further.
   * @param {number} token
   */
  after(token) {
    if (token === this.truth.eos) return new Place(this.truth, []);
    const kept = this.ways.filter((way) => way.tokens[0] === token);
    const total = sum(kept.map((way) => way.prob));
    return new Place(this.truth, kept.map(({ prob, tokens, branches }) => (
      { prob: prob / total, tokens: tokens.slice(1), branches }
    )));
  }
}

/**
 * The distribution that a model of the world's stories should learn: of all
 * stories whose tokens begin with those seen so far, the share that goes on
 * with a token. See `truth.py`.
 */
export class Truth {
  /**
   * @param {Language} language
   * @param {(text: string) => number[]} encode Without special tokens.
   * @param {number} eos The token that ends a story.
   */
  constructor(language, encode, eos = 2) {
    this.language = language;
    this.encode = encode;
    this.eos = eos;
    /** @type {Map<string, number[]>} */
    this.cuts = new Map([["", [eos]]]);
  }

  /** The place before a story's first token. */
  start() {
    const begun = new Branch(this.language);
    begun.open = begun.advance();
    return new Place(this, [{ prob: 1, tokens: [], branches: [begun] }]);
  }

  /**
   * The probability of each token after some tokens of a story.
   * @param {number[]} tokens
   */
  nextTokenProbabilities(tokens) {
    let place = this.start();
    for (const token of tokens) place = place.after(token);
    return place.probs();
  }

  /**
   * What the truth gives each token of a text, and the end: minus infinity
   * from the token with which the text leaves the world.
   * @param {string} text
   */
  read(text) {
    const tokens = [...this.encode(text), this.eos];
    return { tokens, logprobs: this.logprobs(tokens),
      left: readStory(text, this.language).left };
  }

  /**
   * The log-probability of each token after those before it, in nats.
   * @param {number[]} tokens
   */
  logprobs(tokens) {
    let place = this.start();
    return tokens.map((token) => {
      const prob = place.probs().get(token) ?? 0;
      place = place.after(token);
      return Math.log(prob);
    });
  }

  /**
   * @param {Branch[]} branches
   * @param {number} prob
   * @returns {Within[]}
   */
  ways(branches, prob) {
    const total = sum(branches.map((branch) => branch.prob));
    return [...nextWords(branches)].map(([word, after]) => {
      let tokens = this.cuts.get(word);
      if (!tokens) this.cuts.set(word, (tokens = this.encode(word)));
      const share = sum(after.map((branch) => branch.prob)) / total;
      return { prob: prob * share, tokens, branches: after };
    });
  }
}

/** @param {number[]} numbers */
function sum(numbers) {
  let total = 0;
  for (const number of numbers) total += number;
  return total;
}

/**
 * How many characters two strings begin with alike.
 * @param {string} a
 * @param {string} b
 */
function common(a, b) {
  const limit = Math.min(a.length, b.length);
  let n = 0;
  while (n < limit && a[n] === b[n]) n += 1;
  return n;
}
