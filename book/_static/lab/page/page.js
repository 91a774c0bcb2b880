/**
 * What the widgets of the pages have in common: elements, the model in its
 * worker, and a text whose tokens can be looked at.
 */

/** @typedef {import("../session.js").Session} Session */
/** @typedef {import("../xray.js").Seen} Seen */
/** @typedef {{bytes: number, nats?: number, step?: number, loss?: number,
 *   floor?: number}} Listed A stage in `index.js`. */
/** @typedef {{stages: Record<string, Listed>, steps: string[],
 *   levels: number[]}} Index From Python, see `write_lab`. */

// This script lies beside those that it loads.
const HERE = /** @type {HTMLScriptElement} */ (document.currentScript).src;

/**
 * Make an element. Texts are put in as texts, never as HTML.
 * @param {string} tag With classes: `p.note`.
 * @param {Record<string, any>} given Attributes; functions are listeners.
 * @param {...(Node | string | number)} children
 * @returns {any}
 */
export function h(tag, given = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name);
  if (classes.length) made.className = classes.join(" ");
  if (name === "button") made.setAttribute("type", "button");
  for (const [key, value] of Object.entries(given)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (typeof value === "boolean") made.toggleAttribute(key, value);
    else if (value !== undefined) made.setAttribute(key, String(value));
  }
  made.append(...children.map((child) =>
    typeof child === "number" ? String(child) : child,
  ));
  return made;
}

/** @type {Map<string, Promise<void>>} */
const scripts = new Map();

/**
 * Load one of the scripts beside this one. A page that was opened as a file
 * may do this, and may not fetch.
 * @param {string} name
 * @returns {Promise<void>}
 */
function load(name) {
  let found = scripts.get(name);
  if (found === undefined) {
    found = new Promise((done, failed) => {
      document.head.append(h("script", {
        src: new URL(name, HERE).href,
        load: () => done(),
        error: () => failed(new Error(`${name} could not be loaded`)),
      }));
    });
    found.catch(() => scripts.delete(name)); // to be tried again
    scripts.set(name, found);
  }
  return found;
}

/**
 * The address of one of the engine's modules, for people to read.
 * @param {string} name
 */
export function source(name) {
  return new URL(`../lab/${name}`, HERE).href;
}

/** @returns {any} What the scripts share. */
export function shared() {
  return /** @type {any} */ (globalThis).MiniMindLab;
}

/** @returns {Index} */
export function index() {
  return shared().index;
}

/** The engine in a worker of its own. */
class Engine {
  constructor() {
    const { data, install } = shared();
    const text = `(${install})(self);
      const session = new MiniMindLab.Session(${JSON.stringify(data)});
      onmessage = ({ data }) => postMessage(MiniMindLab.serve(session, data));`;
    const url = URL.createObjectURL(new Blob([text]));
    this.worker = new Worker(url);
    URL.revokeObjectURL(url);
    this.number = 0;
    /** @type {Map<number, {done: Function, failed: Function}>} */
    this.waiting = new Map();
    this.worker.onmessage = ({ data: { number, value, error } }) => {
      const { done, failed } = /** @type {any} */ (this.waiting.get(number));
      this.waiting.delete(number);
      if (error === undefined) done(value);
      else failed(new Error(error));
    };
  }

  /**
   * @param {string} method
   * @param {any[]} given
   * @returns {Promise<any>}
   */
  call(method, given) {
    this.number += 1;
    const { number } = this;
    return new Promise((done, failed) => {
      this.waiting.set(number, { done, failed });
      this.worker.postMessage([number, method, given]);
    });
  }
}

/** @type {Promise<Engine> | undefined} */
let engine;

/**
 * Ask the session in the worker.
 * @template {keyof Session} Method
 * @param {Method} method
 * @param {any[]} given What the method takes.
 * @returns {Promise<any>}
 */
export async function ask(method, ...given) {
  engine ??= Promise.all([load("engine.js"), load("world.js")]).then(
    () => new Engine(),
  );
  engine.catch(() => { engine = undefined; });
  return (await engine).call(method, given);
}

/** @type {Map<string, Promise<void>>} */
const stages = new Map();

/**
 * Bring a trained model into the worker, once.
 * @param {string} name
 */
export function need(name) {
  let found = stages.get(name);
  if (found === undefined) {
    found = load(`${name}.js`).then(async () => {
      const stage = shared().stages[name];
      delete shared().stages[name]; // the worker has it from now on
      if (name === "tokenizer") await ask("cut", stage);
      else await ask("load", name, stage);
    });
    found.catch(() => stages.delete(name));
    stages.set(name, found);
  }
  return found;
}

/** Whether the reader wants nothing to move. */
export function calm() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/** Whether the reader wants to load no more than was asked for. */
export function sparing() {
  const { connection } = /** @type {any} */ (navigator);
  return connection?.saveData === true ||
    matchMedia("(prefers-reduced-data: reduce)").matches;
}

/** @param {number} share */
export function percent(share) {
  if (Number.isNaN(share)) return "\u2013";
  if (share === 0) return "0%";
  if (share < 0.001) return "<0.1%";
  if (share > 0.9995 && share < 1) return ">99.9%";
  const digits = share < 0.1 || (share >= 0.995 && share < 1) ? 1 : 0;
  return `${(100 * share).toFixed(digits)}%`;
}

/** @param {number} value @param {number} digits */
export function nats(value, digits = 2) {
  const said = value.toFixed(digits);
  return Number(said) === 0 ? (0).toFixed(digits) : said.replace("-", "\u2212");
}

/**
 * How each token is marked: by how many bounds its cost exceeds, and as "out"
 * from the first that cannot be.
 * @param {number[]} costs In nats; minus infinity where the world is left.
 */
export function levels(costs) {
  let gone = false;
  return costs.map((cost) => {
    gone ||= cost === -Infinity;
    const passed = index().levels.filter((bound) => cost > bound);
    return gone ? "out" : String(passed.length);
  });
}

/**
 * Say something where it is read aloud, and only if it is new.
 * @param {HTMLElement} where
 * @param {string} text
 */
export function say(where, text) {
  if (where.textContent !== text) where.textContent = text;
}

/**
 * How a token is written where it stands alone.
 * @param {string} text "" is the end of the text.
 */
export function word(text) {
  if (text === "") return "the end";
  const plain = text.replaceAll("\n", "\u21b5");
  return plain.trim() === "" ? "\u2423" : plain.trim();
}

/**
 * What the X-ray says of one token.
 * @param {Seen} token
 */
export function explain(token) {
  const name = token.text === "" ? "The end" : `\u201c${word(token.text)}\u201d`;
  const model = percent(Math.exp(token.model));
  if (token.truth === -Infinity) {
    return `${name}: the model gave it ${model}, and in the world it cannot ` +
      "stand here.";
  }
  const truth = percent(Math.exp(token.truth));
  const sign = token.regret < -0.005 ? "gain" : "regret";
  return `${name}: the model gave it ${model}, the truth gives it ${truth}; ` +
    `${sign} ${nats(Math.abs(token.regret))} nats.`;
}

/**
 * Move a focus among elements by arrow keys; one of them takes the Tab key.
 * @param {HTMLElement} box
 * @param {string} items A selector.
 * @param {(item: HTMLElement) => void} [seen]
 */
export function roving(box, items, seen) {
  /** @param {HTMLElement} item */
  const focus = (item) => {
    for (const one of box.querySelectorAll("[tabindex='0']")) {
      one.setAttribute("tabindex", "-1");
    }
    item.setAttribute("tabindex", "0");
    item.focus();
  };
  box.addEventListener("keydown", (event) => {
    const all = /** @type {HTMLElement[]} */ ([...box.querySelectorAll(items)]);
    const at = all.indexOf(/** @type {HTMLElement} */ (event.target));
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const next = event.key === "Home" ? 0
      : event.key === "End" ? all.length - 1
      : at + (/** @type {any} */ (step)[event.key] ?? NaN);
    if (at < 0 || !all[next]) return;
    event.preventDefault();
    event.stopPropagation();
    focus(all[next]);
  });
  if (!seen) return;
  for (const type of ["pointerover", "focusin", "click"]) {
    box.addEventListener(type, (event) => {
      const target = /** @type {HTMLElement} */ (event.target);
      const item = target.closest(items);
      if (item) seen(/** @type {HTMLElement} */ (item));
    });
  }
}

/** A text whose tokens say what the model and the truth gave them. */
export class Story {
  /** @param {string} label */
  constructor(label) {
    this.text = h("div.lab-story", {
      role: "listbox", "aria-label": label, "aria-orientation": "horizontal",
    });
    this.detail = h("p.lab-detail", { role: "status" });
    this.reason = h("p.lab-reason", { role: "status" });
    this.hint = "Point at a word, or tap it, to see what it cost.";
    /** @type {Seen[]} */
    this.tokens = [];
    roving(this.text, "[role=option]", (item) => {
      for (const one of this.text.querySelectorAll("[aria-selected=true]")) {
        one.setAttribute("aria-selected", "false");
      }
      item.setAttribute("aria-selected", "true");
      this.detail.textContent = explain(this.tokens[Number(item.dataset.n)]);
    });
  }

  /**
   * @param {Seen[]} tokens
   * @param {{position: number, reason: string} | null} left
   * @param {number} begun How many tokens were given and not drawn.
   */
  show(tokens, left, begun = 0) {
    this.tokens = tokens;
    const marks = levels(tokens.map((token) => token.regret));
    const gone = marks.indexOf("out");
    const spans = tokens.map(({ text }, n) => {
      return h("span", {
        role: "option", "aria-selected": "false", "data-level": marks[n],
        "data-n": n, tabindex: n === 0 ? 0 : -1,
        class: `${n < begun ? "given" : ""}${n === gone ? " first" : ""}`,
        "aria-label": text === "" ? "end" : undefined,
      }, text === "" ? " \u220e" : text);
    });
    this.text.replaceChildren(...spans);
    say(this.detail, this.hint);
    say(this.reason, left && gone >= 0
      ? `\u2717 The text leaves the world: ${left.reason}.` : "");
  }
}

/**
 * A slider with its name and its value.
 * @param {string} label
 * @param {{min: number, max: number, step: number, value: number}} range
 * @param {(value: number) => void} changed
 * @param {(value: number) => string} said
 */
export function slider(label, range, changed, said = String) {
  const output = h("output", {}, said(range.value));
  const input = h("input", {
    type: "range", ...range, "aria-valuetext": said(range.value),
    input: () => {
      const value = Number(input.value);
      output.textContent = said(value);
      input.setAttribute("aria-valuetext", said(value));
      changed(value);
    },
    // An arrow moves the slider and does not turn the page.
    keydown: (/** @type {KeyboardEvent} */ event) => event.stopPropagation(),
  });
  return h("label.lab-slider", {}, h("span", {}, label), input, output);
}

/**
 * Let the last call win: answers that come too late are dropped.
 * @template Value
 * @param {(...given: any[]) => Promise<Value>} work
 * @param {(value: Value) => void} show
 * @param {(error: Error) => void} failed
 */
export function latest(work, show, failed) {
  let newest = 0;
  return async (/** @type {any[]} */ ...given) => {
    newest += 1;
    const number = newest;
    try {
      const value = await work(...given);
      if (number === newest) show(value);
    } catch (error) {
      if (number === newest) failed(/** @type {Error} */ (error));
    }
  };
}
