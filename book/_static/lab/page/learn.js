/** Watch it learn: the same story, written after more and more steps. */

import { Story, ask, h, index, latest, nats, need } from "./page.js";

/** @param {HTMLElement} box */
export async function learn(box) {
  const { stages, steps } = index();
  let seed = 3, at = 0;
  const story = new Story("What the model writes after these steps");
  story.hint = "Point at a word to see what it cost. Words that the world " +
    "does not allow are underlined, and so is all that follows.";
  const typed = h("textarea", {
    rows: 2, spellcheck: "false", maxlength: 2000,
    "aria-label": "The beginning of the story", input: () => look(),
  });
  typed.value = box.dataset.text ?? "One rainy evening,";
  const said = (/** @type {number} */ n) =>
    `after ${stages[steps[n]].step} steps`;
  const output = h("output", {}, said(0));
  const total = h("p.lab-total");
  const input = h("input", {
    type: "range", min: 0, max: steps.length - 1, step: 1, value: 0,
    "aria-valuetext": said(0), list: "",
    input: () => {
      at = Number(input.value);
      output.textContent = said(at);
      input.setAttribute("aria-valuetext", said(at));
      look();
    },
    keydown: (/** @type {KeyboardEvent} */ event) => event.stopPropagation(),
  });
  const look = latest(
    async () => {
      const name = steps[at];
      box.setAttribute("aria-busy", "true");
      await need(name);
      const found = await ask("finish", name, typed.value, {}, seed);
      return { name, ...found };
    },
    ({ begun, left, loss, name, tokens }) => {
      box.removeAttribute("aria-busy");
      story.show(tokens, left, begun);
      const { floor = NaN, loss: mean = NaN, step } = stages[name];
      total.textContent = `After ${step} steps the loss on new stories is ` +
        `${nats(mean, 3)} nats per token; the floor is ${nats(floor, 3)}. ` +
        `Writing this one, the model was surprised by ${nats(loss, 1)} nats.`;
    },
    (error) => { story.reason.textContent = error.message; },
  );
  box.replaceChildren(
    h("label.lab-typed", {}, h("span", {}, "You begin:"), typed),
    h("label.lab-slider.wide", {}, h("span", {}, "Training"), input, output),
    h("div", {}, story.text, story.reason, story.detail),
    h("div.lab-buttons", {}, h("button", {
      click: () => { seed += 1; look(); },
    }, "Another story")),
    total,
  );
  await look();
}
