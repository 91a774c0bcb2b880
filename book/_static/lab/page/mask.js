/** Choose the mask: which tokens of a conversation should be trained on? */

import { ask, h, need, roving, word } from "./page.js";

/** @typedef {{text: string, special: boolean, learnt: boolean}} Token */

/** @param {HTMLElement} box */
export async function mask(box) {
  await need("tokenizer");
  let seed = 21;
  /** @type {Token[]} */
  let tokens = [];
  /** @type {Set<number>} */
  let chosen = new Set();
  let painting = false, paint = true;
  const text = h("div.lab-tokens", {
    role: "listbox", "aria-multiselectable": "true",
    "aria-label": "The conversation, token by token",
  });
  const said = h("div.lab-total", { role: "status" });

  /** @param {number} n @param {boolean} on */
  function set(n, on) {
    if (on) chosen.add(n);
    else chosen.delete(n);
    text.children[n].setAttribute("aria-selected", String(on));
    text.children[n].removeAttribute("data-verdict");
  }
  /** @param {Event} event */
  const place = (event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    const item = /** @type {HTMLElement | null} */ (
      target.closest("[role=option]"));
    return item ? Number(item.dataset.n) : -1;
  };
  text.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    const n = place(event);
    if (n < 0) return;
    paint = !chosen.has(n);
    set(n, paint);
    // A finger that moves on scrolls the page; a mouse goes on painting.
    painting = event.pointerType === "mouse";
    event.preventDefault();
  });
  text.addEventListener("pointerover", (/** @type {PointerEvent} */ event) => {
    if (painting && event.buttons === 1 && place(event) >= 0) {
      set(place(event), paint);
    }
  });
  window.addEventListener("pointerup", () => { painting = false; });
  text.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== " " && event.key !== "Enter") return;
    event.preventDefault();
    const n = place(event);
    if (n >= 0) set(n, !chosen.has(n));
  });
  roving(text, "[role=option]");

  function show() {
    said.replaceChildren(h("p", {}, "Choose every token whose prediction " +
      "the model should be trained on, then compare."));
    text.replaceChildren(...tokens.map((token, n) => h("span", {
      role: "option", "aria-selected": String(chosen.has(n)), "data-n": n,
      tabindex: n === 0 ? 0 : -1, class: token.special ? "special" : "",
    }, token.text.replaceAll("\n", "\u21b5").replaceAll(" ", "\u00a0"))));
  }

  function compare() {
    const places = [...tokens.keys()];
    const last = Math.max(...places.filter((n) => tokens[n].learnt));
    // Where the assistant's turn begins.
    const header = Math.max(
      ...places.filter((n) => tokens[n].special && n < last));
    const missed = places.filter(
      (n) => tokens[n].learnt && !chosen.has(n));
    const extra = [...chosen].filter((n) => !tokens[n].learnt);
    for (const [n, item] of [...text.children].entries()) {
      const verdict = missed.includes(n) ? "missed"
        : extra.includes(n) ? "extra" : chosen.has(n) ? "right" : "";
      if (verdict) item.setAttribute("data-verdict", verdict);
      else item.removeAttribute("data-verdict");
    }
    const lines = [];
    if (chosen.size === 0) {
      lines.push("Nothing is chosen, so every label is \u2212100: there is " +
        "no loss and nothing is learnt.");
    } else if (!missed.length && !extra.length) {
      lines.push("\u2713 This is the right mask: the answer and the token " +
        "that ends it. The model learns to answer, and to stop.");
    }
    if (missed.includes(last) && chosen.size) {
      lines.push("\u2717 The token that ends the turn is missing. The model " +
        "is not taught to stop, and goes on after its answer.");
    }
    const answer = missed.filter((n) => n !== last);
    if (answer.length && chosen.size) {
      const names = answer.slice(0, 4).map(
        (n) => `\u201c${word(tokens[n].text)}\u201d`);
      lines.push(`\u2717 ${answer.length} of the answer's tokens ` +
        `${answer.length > 1 ? "are" : "is"} not trained on ` +
        `(${names.join(", ")}${answer.length > 4 ? ", \u2026" : ""}).`);
    }
    const users = extra.filter((n) => n < header);
    if (users.length) {
      lines.push(`\u2717 ${users.length} tokens before the assistant's turn ` +
        "are trained on. The model is taught to write stories and questions " +
        "like a user's, and this takes a share of every gradient.");
    }
    if (extra.some((n) => n >= header && n < last)) {
      lines.push("\u2717 The words that open the assistant's turn are " +
        "trained on. They are always the same and are given when the model " +
        "is used, so there is nothing to learn from them.");
    }
    if (extra.some((n) => n > last)) {
      lines.push("\u2717 What follows the end token is trained on, but " +
        "the program stops at the end token.");
    }
    lines.push("Marks: \u2713 right, + should be chosen, \u2212 should not.");
    said.replaceChildren(...lines.map((line) => h("p", {}, line)));
  }

  async function another() {
    const { questions, text: story } = await ask("story", seed);
    const one = questions[seed % Math.min(6, questions.length)];
    tokens = await ask("conversation", [
      { role: "user", content: `${story}\n${one.question}` },
      { role: "assistant", content: one.answer },
    ]);
    chosen = new Set();
    show();
  }
  box.replaceChildren(
    text,
    h("div.lab-buttons", {},
      h("button.lab-main", { click: compare }, "Compare"),
      h("button", {
        click: () => { chosen = new Set(); show(); },
      }, "Clear"),
      h("button", {
        click: () => { seed += 1; another(); },
      }, "Another conversation")),
    said,
  );
  await another();
}
