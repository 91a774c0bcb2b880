/** Talk to it: three models answer, and the world checks what they say. */

import { ask, h, need } from "./page.js";

/** @typedef {import("../session.js").Told} Told */

const MODELS = [
  { name: "pretrain", title: "Pretrained", adapted: false },
  { name: "lora", title: "Fine-tuned", adapted: false },
  { name: "lora", title: "With the adapter", adapted: true },
];
const OFFERED = 7;

/** @param {HTMLElement} box */
export async function talk(box) {
  await Promise.all(MODELS.map(({ name }) => need(name)));
  const greeting = await ask("greeting");
  let seed = 5;
  /** @type {Told} */
  let story = await ask("story", seed);
  const text = h("blockquote.lab-told");
  const chips = h("div.lab-chips", {
    role: "group", "aria-label": "Questions about this story",
  });
  const typed = h("input", {
    type: "text", maxlength: 300, "aria-label": "Your question",
    placeholder: "or type a question",
  });
  const greet = h("input", { type: "checkbox" });
  const asked = h("p.lab-asked");
  const cards = MODELS.map(({ title }) => {
    const answer = h("p.answer"), verdict = h("p.verdict");
    return {
      answer, verdict,
      card: h("div.lab-answer", {}, h("h4", {}, title), answer, verdict),
    };
  });
  let newest = 0;

  /** @param {string} plain */
  async function question(plain) {
    newest += 1;
    const mine = newest;
    const said = greet.checked ? greeting.replace("{}", plain) : plain;
    asked.textContent = said;
    for (const { answer, card, verdict } of cards) {
      answer.textContent = "\u2026";
      verdict.textContent = "";
      card.removeAttribute("data-right");
    }
    for (const [n, { adapted, name }] of MODELS.entries()) {
      const found = await ask("ask", name, story, said, adapted);
      if (mine !== newest) return;
      const { answer, card, verdict } = cards[n];
      answer.textContent = found.answer + (found.ended ? "" : " \u2026");
      card.dataset.right = String(found.right);
      verdict.textContent = found.right === null
        ? "? The world has no answer to this question."
        : found.right ? "\u2713 right"
        : found.expected ? `\u2717 It should be: ${found.expected}`
        : "\u2717 not what was asked for";
    }
  }
  function offer() {
    text.textContent = story.text;
    const plain = story.questions;
    // A few kinds of question, each once.
    const kinds = new Map(plain.map((one) => [one.kind, one]));
    chips.replaceChildren(
      ...[...kinds.values()].slice(0, OFFERED).map((one) => h("button", {
        click: () => question(one.question),
      }, one.question)),
    );
    return question(plain[0].question);
  }
  box.replaceChildren(
    text,
    h("p.lab-head", {}, "Ask about this story: "),
    chips,
    h("form.lab-form", {
      submit: (/** @type {Event} */ event) => {
        event.preventDefault();
        if (typed.value.trim()) question(typed.value.trim());
      },
    }, typed, h("button", { type: "submit" }, "Ask")),
    h("label.lab-check", {}, greet,
      ` Greet it first (\u201c${greeting.replace("{}", "\u2026")}\u201d), ` +
        "which is what the adapter has learnt to answer"),
    h("div", { "aria-live": "polite" }, asked,
      h("div.lab-answers", {}, ...cards.map(({ card }) => card))),
    h("div.lab-buttons", {}, h("button", {
      click: async () => {
        seed += 1;
        story = await ask("story", seed);
        offer();
      },
    }, "Another story")),
  );
  await offer();
}
