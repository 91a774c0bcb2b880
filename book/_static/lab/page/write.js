/**
 * Write with the model: a story grows word by word, beside the model's and
 * the true distribution over the next token.
 */

import {
  Story, ask, calm, h, latest, nats, need, percent, slider, word,
} from "./page.js";

/** @typedef {import("../session.js").View} View */
/** @typedef {import("../session.js").Row} Row */

const PAUSE = 110; // milliseconds between words: slow enough to read
const SHOWN = 8;

/**
 * @param {Row} row
 * @param {boolean} drawn
 * @param {(id: number) => void} choose
 */
function bar(row, drawn, choose) {
  const { id, shaped, text, truth } = row;
  const said = Number.isNaN(truth)
    ? percent(shaped) : `${percent(shaped)} | ${percent(truth)}`;
  return h("button.lab-bar", {
    "data-id": id,
    class: `lab-bar${drawn ? " drawn" : ""}`,
    click: () => choose(id),
    "aria-current": drawn ? "true" : undefined,
  },
    h("span.word", {},
      h("span", { "aria-hidden": "true" }, drawn ? "\u25b8 " : ""),
      word(text)),
    h("span.track", {},
      h("span.fill", { style: `width:${100 * shaped}%` }),
      h("span.true", { hidden: !truth, style: `width:${100 * truth}%` })),
    h("span.number", {}, said),
  );
}

/**
 * @param {HTMLElement} box
 * @param {string} [hint] What is said of the story's words at first.
 * @returns {Promise<{use: (name: string) => Promise<void>}>} Lets another
 *   model write the story, from its beginning.
 */
export async function write(box, hint) {
  let stage = box.dataset.stage ?? "pretrain", wanted = stage;
  await need(stage);
  const settings = {
    temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1,
  };
  let seed = 1;
  /** @type {number[]} */
  let ids = [];
  let begun = 0, playing = 0;
  /** @type {View | undefined} */
  let view;
  /** @type {View["left"]} The reason that is shown. */
  let told = null;

  const story = new Story("The story, token by token");
  if (hint) story.hint = hint;
  const bars = h("div.lab-bars", {
    role: "group", "aria-label": "The next token: choose one",
  });
  const total = h("p.lab-total");
  const typed = h("textarea", {
    rows: 2, spellcheck: "false", maxlength: 2000,
    "aria-label": "The beginning of the story",
  });
  typed.value = box.dataset.text ?? "One sunny morning, Mia";
  const play = h("button.lab-main", { click: () => (playing ? stop() : go()) });
  const undo = h("button", { click: () => { stop(); back(); } }, "Undo");
  const one = h("button", {
    click: () => { stop(); if (view) add(view.drawn); },
  }, "One token");
  const again = h("button", {
    click: () => { stop(); seed += 1; restart(true); },
  }, "Another story");
  const failed = (/** @type {Error} */ error) => {
    stop();
    story.reason.textContent = error.message;
  };

  /** @param {View} found */
  function show(found) {
    view = found;
    // A reason quotes what follows. While the story grows, that grows too,
    // and the reason would be read aloud again with every word.
    if (!playing || told?.position !== found.left?.position) told = found.left;
    story.show(found.tokens, told, begun);
    const rows = found.rows.slice()
      .sort((a, b) => Math.max(b.shaped, b.truth || 0)
        - Math.max(a.shaped, a.truth || 0));
    const kept = rows.slice(0, SHOWN);
    const drawn = rows.find((row) => row.id === found.drawn);
    if (drawn && !kept.includes(drawn)) kept[kept.length - 1] = drawn;
    const focus = bars.contains(document.activeElement);
    bars.replaceChildren(...(found.over
      ? [h("p", {}, "The story is over. Undo goes back to its last word.")]
      : kept.map((row) => bar(row, row.id === found.drawn, choose))));
    if (focus) bars.querySelector("button")?.focus();
    const gone = found.tokens.some((token) => token.truth === -Infinity);
    total.textContent = gone
      ? `${found.tokens.length} tokens. Beyond the marked word there is no ` +
        "truth to compare with."
      : `${found.tokens.length} tokens cost the model ${nats(found.loss)} ` +
        `nats. With the true probabilities they cost ${nats(found.floor)}.`;
    one.disabled = found.over;
    undo.disabled = ids.length <= 1;
    if (found.over) stop();
    else label();
  }

  const look = latest(
    () => ask("view", stage, ids, settings, seed, SHOWN), show, failed,
  );

  /** @param {number} id */
  function add(id) {
    if (view?.over) return Promise.resolve();
    ids = [...ids, id];
    return look();
  }
  /** @param {number} id */
  function choose(id) {
    stop();
    add(id);
  }
  function back() {
    if (ids.length <= 1) return;
    ids = ids.slice(0, -1);
    begun = Math.min(begun, ids.length - 1);
    look();
  }
  async function restart(keep = false) {
    ids = await ask("begin", stage, typed.value);
    begun = ids.length - 1;
    view = undefined;
    if (!keep || !calm()) await look();
    if (keep) go().catch(failed);
  }
  function label() {
    play.textContent = playing ? "Pause" : view?.over ? "Again" : "Write";
  }
  function stop() {
    playing = 0;
    label();
  }
  async function go() {
    if (view?.over) await restart();
    if (calm()) { // the whole story at once
      ({ ids } = await ask("finish", stage, typed.value, settings, seed));
      await look();
      return;
    }
    const mine = Math.random();
    playing = mine;
    label();
    while (playing === mine && view && !view.over) {
      await add(view.drawn);
      await new Promise((done) => setTimeout(done, PAUSE));
    }
  }
  typed.addEventListener("input", () => {
    stop();
    restart().catch(failed);
  });

  /** @param {string} name */
  async function use(name) {
    stop();
    wanted = name;
    box.setAttribute("aria-busy", "true");
    try {
      await need(name);
      if (name !== wanted) return;
      stage = name;
      await restart(true);
    } catch (error) {
      if (name === wanted) failed(/** @type {Error} */ (error));
    } finally {
      if (name === wanted) box.removeAttribute("aria-busy");
    }
  }

  /** @type {(name: keyof typeof settings) => (value: number) => void} */
  const set = (name) => (value) => {
    settings[name] = value;
    look();
  };
  box.replaceChildren(
    h("label.lab-typed", {}, h("span", {}, "You begin:"), typed),
    h("div.lab-two", {},
      h("div", {}, h("div.lab-page", {}, story.text, story.reason),
        story.detail,
        h("div.lab-buttons", {}, play, one, undo, again), total),
      h("div", {},
        h("p.lab-head", {}, "What comes next? ",
          h("span", {}, "Filled, first number: the model. Outlined, second " +
            "number: the truth.")),
        bars)),
    h("details.lab-more", {}, h("summary", {}, "Sampling"),
      slider("temperature", { min: 0, max: 2, step: 0.1, value: 1 },
        set("temperature"), (value) => value.toFixed(1)),
      slider("top-k", { min: 0, max: 20, step: 1, value: 0 }, set("topK"),
        (value) => (value ? String(value) : "off")),
      slider("top-p", { min: 0.1, max: 1, step: 0.05, value: 1 },
        set("topP"), (value) => (value < 1 ? value.toFixed(2) : "off")),
      slider("min-p", { min: 0, max: 0.5, step: 0.02, value: 0 },
        set("minP"), (value) => (value ? value.toFixed(2) : "off")),
      slider("repetition penalty",
        { min: 1, max: 2, step: 0.05, value: 1 }, set("repetitionPenalty"),
        (value) => (value > 1 ? value.toFixed(2) : "off"))),
  );
  label();
  await restart();
  const written = go().catch(failed);
  if (calm()) await written;
  return { use };
}
