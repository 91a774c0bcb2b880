/**
 * Text to tokens and back: byte-level BPE with ChatML's special tokens.
 *
 * As in chapter 2: a text is split into words, the bytes of a word are the
 * first tokens, and the merge that was learnt first is done first. Special
 * tokens are only ever put in by their id: the string `<|im_end|>` in a text
 * is a handful of ordinary tokens, never the end of a turn. The names are
 * those of `tokenizer.py` and `chat.py`.
 */

/**
 * @typedef {object} TokenizerData What is used of a `tokenizer.json`.
 * @property {{type?: string, vocab: Record<string, number>,
 *   merges: (string | [string, string])[]}} model
 * @property {{id: number, content: string}[]} added_tokens
 * @property {any} [normalizer]
 * @property {any} [pre_tokenizer]
 */

/** @typedef {{role: string, content: string}} Message */

export const PAD = "<|endoftext|>";
export const BOS = "<|im_start|>";
export const EOS = "<|im_end|>";
export const IGNORE_INDEX = -100;
const ROLES = ["system", "user", "assistant"];

// GPT-2's words: letters, digits or other signs, each with the space before.
// Unicode's white space is not quite JavaScript's \s.
const WORD = new RegExp(
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+" +
    "| ?[^\\p{White_Space}\\p{L}\\p{N}]+" +
    "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+",
  "gu",
);

/** A tokenizer that cannot be used here, and why. */
export class TokenizerError extends Error {}

/**
 * The characters that stand for the 256 bytes in a vocabulary: themselves
 * where they can be seen, else the ones from U+0100 on.
 * @returns {string[]}
 */
function byteAlphabet() {
  const alphabet = [];
  let hidden = 0;
  for (let byte = 0; byte < 256; byte++) {
    const seen =
      (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    alphabet.push(String.fromCharCode(seen ? byte : 256 + hidden));
    if (!seen) hidden += 1;
  }
  return alphabet;
}

export class Tokenizer {
  /** @param {TokenizerData} data The content of a `tokenizer.json`. */
  constructor(data) {
    checkKind(data);
    const { vocab, merges } = data.model;
    this.size = 0;
    /** The bytes of each token. @type {Uint8Array[]} */
    this.bytes = [];
    /** The special tokens and markers. @type {Map<string, number>} */
    this.special = new Map();
    const alphabet = byteAlphabet();
    const byteOf = new Map(alphabet.map((char, byte) => [char, byte]));
    const utf8 = new TextEncoder();
    const named = data.added_tokens.map(({ content, id }) => [content, id]);
    for (const [token, id] of [...Object.entries(vocab), ...named]) {
      const bytes = [...String(token)].map((char) => byteOf.get(char) ?? -1);
      this.bytes[Number(id)] = bytes.includes(-1)
        ? utf8.encode(String(token))
        : Uint8Array.from(bytes);
      this.size = Math.max(this.size, Number(id) + 1);
    }
    for (const { content, id } of data.added_tokens) {
      this.special.set(content, id);
    }
    const ids = [PAD, BOS, EOS].map((name) => this.special.get(name));
    if (String(ids) !== "0,1,2") {
      throw new TokenizerError(
        `${PAD}, ${BOS} and ${EOS} must have the ids 0, 1 and 2`,
      );
    }
    this.bos = 1;
    this.eos = 2;
    /** The token of each byte. */
    this.first = alphabet.map((char) => vocab[char]);
    if (this.first.includes(/** @type {any} */ (undefined))) {
      throw new TokenizerError("some bytes have no token");
    }
    /** Pair of tokens -> place of the merge, and the token it makes. */
    this.rank = new Map();
    this.made = new Map();
    merges.forEach((merge, place) => {
      const [left, right] = Array.isArray(merge) ? merge : merge.split(" ");
      const pair = vocab[left] * this.size + vocab[right];
      this.rank.set(pair, place);
      this.made.set(pair, vocab[left + right]);
    });
    /** Words that were cut before. @type {Map<string, number[]>} */
    this.words = new Map();
    const longest = [...this.special.keys()].sort(
      (a, b) => b.length - a.length,
    );
    const either = longest.map((s) => s.replace(/[|\\/<>]/g, "\\$&"));
    this.pattern = new RegExp(`(${either.join("|")})`);
  }

  /**
   * Merge the bytes of one word: always the pair that was learnt first, and
   * of several the leftmost.
   * @param {string} word
   * @returns {number[]}
   */
  cut(word) {
    const known = this.words.get(word);
    if (known !== undefined) return known;
    const ids = Array.from(
      new TextEncoder().encode(word), (byte) => this.first[byte],
    );
    for (;;) {
      let best = Infinity;
      for (let n = 0; n + 1 < ids.length; n++) {
        const rank = this.rank.get(ids[n] * this.size + ids[n + 1]);
        if (rank !== undefined && rank < best) best = rank;
      }
      if (best === Infinity) break;
      for (let n = 0; n + 1 < ids.length; n++) {
        const pair = ids[n] * this.size + ids[n + 1];
        if (this.rank.get(pair) === best) {
          ids.splice(n, 2, this.made.get(pair));
        }
      }
    }
    // A text of endless new words must not fill the memory.
    if (this.words.size > 20000) this.words.clear();
    this.words.set(word, ids);
    return ids;
  }

  /**
   * Ids of a text; special tokens' strings in it are plain text.
   * @param {string} text
   * @returns {number[]}
   */
  encode(text) {
    return (text.match(WORD) ?? []).flatMap((word) => this.cut(word));
  }

  /**
   * Ids of one document, with its begin and end.
   * @param {string} text
   */
  encodeDocument(text) {
    return [this.bos, ...this.encode(text), this.eos];
  }

  /**
   * Ids of a whole conversation, and for each the label: itself where it is
   * learnt, else -100.
   * @param {Message[]} messages
   */
  encodeConversation(messages) {
    const builder = new Builder(this);
    for (const message of messages) builder.turn(message);
    builder.flush();
    return { ids: builder.ids, labels: builder.labels };
  }

  /**
   * Ids of a conversation that the assistant is to continue.
   * @param {Message[]} messages
   */
  encodePrompt(messages) {
    const builder = new Builder(this);
    for (const message of messages) builder.turn(message);
    builder.control(BOS, false);
    builder.add("assistant\n", false);
    builder.flush();
    return builder.ids;
  }

  /**
   * The text of some ids, without begin, end and padding. Bytes that are no
   * UTF-8 give U+FFFD.
   * @param {Iterable<number>} ids
   * @returns {string}
   */
  decode(ids) {
    const bytes = [];
    for (const id of ids) {
      if (id > 2 && this.bytes[id]) bytes.push(...this.bytes[id]);
    }
    const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
    return utf8.decode(Uint8Array.from(bytes));
  }
}

/** Ids and labels of one conversation, as it grows. */
class Builder {
  /** @param {Tokenizer} tokenizer */
  constructor(tokenizer) {
    this.tokenizer = tokenizer;
    /** @type {number[]} */
    this.ids = [];
    /** @type {number[]} */
    this.labels = [];
    /** @type {{text: string, learnt: boolean}[]} */
    this.pending = [];
  }

  /** @param {Message} message */
  turn({ role, content }) {
    if (!ROLES.includes(role) || typeof content !== "string") {
      throw new TypeError(`a message needs a role of ${ROLES} and a text`);
    }
    const learnt = role === "assistant";
    this.control(BOS, false);
    this.add(`${role}\n`, false);
    this.given(content, learnt);
    this.control(EOS, learnt);
    this.add("\n", false);
  }

  /**
   * One special token.
   * @param {string} token
   * @param {boolean} learnt
   */
  control(token, learnt) {
    this.flush();
    const id = /** @type {number} */ (this.tokenizer.special.get(token));
    this.ids.push(id);
    this.labels.push(learnt ? id : IGNORE_INDEX);
  }

  /**
   * @param {string} text
   * @param {boolean} learnt
   */
  add(text, learnt) {
    if (text) this.pending.push({ text, learnt });
  }

  /**
   * Text somebody wrote: markers in it are text, on their own.
   * @param {string} text
   * @param {boolean} learnt
   */
  given(text, learnt) {
    text.split(this.tokenizer.pattern).forEach((piece, place) => {
      if (place % 2) this.flush();
      this.add(piece, learnt);
      if (place % 2) this.flush();
    });
  }

  /** Encode what has gathered, in one go, as a template's output would be. */
  flush() {
    const utf8 = new TextEncoder();
    /** @type {boolean[]} */
    const learnt = [];
    for (const piece of this.pending) {
      const bytes = utf8.encode(piece.text).length;
      for (let n = 0; n < bytes; n++) learnt.push(piece.learnt);
    }
    const text = this.pending.map((piece) => piece.text).join("");
    this.pending = [];
    let start = 0;
    for (const id of this.tokenizer.encode(text)) {
      this.ids.push(id);
      // A token that begins before the answer does is not the answer's.
      this.labels.push(learnt[start] ? id : IGNORE_INDEX);
      start += this.tokenizer.bytes[id].length;
    }
  }
}

/** @param {TokenizerData} data */
function checkKind(data) {
  /** @type {any[]} */
  const steps = data.pre_tokenizer?.pretokenizers ?? [data.pre_tokenizer];
  const plain = steps.length === 1 && steps[0]?.type === "ByteLevel" &&
    !steps[0].add_prefix_space && steps[0].use_regex !== false;
  if (!data.model?.merges || !data.model.vocab || !plain || data.normalizer) {
    throw new TokenizerError(
      "this page reads byte-level BPE as chapter 2 builds it, and this " +
        "tokenizer.json describes something else",
    );
  }
}
