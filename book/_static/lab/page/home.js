/**
 * The front page: the loss falls onto the floor, and each point of the curve
 * is a model that writes.
 */

import { h, index, nats, say } from "./page.js";
import { write } from "./write.js";

/** @param {HTMLElement} box With the curve that the build has drawn. */
export async function home(box) {
  const { stages, steps } = index();
  const curve = /** @type {HTMLElement} */ (box.querySelector(".lab-curve"));
  const chosen = box.dataset.stage ?? steps[steps.length - 1];
  box.dataset.stage = chosen;
  const { use } = await write(box, "A colored word cost more than it had to; " +
    "point at it, or tap it, to see how much. What the world does not allow " +
    "is underlined.");

  const said = h("p.lab-said", { role: "status" });
  /** @param {string} name */
  function tell(name) {
    const { floor = NaN, loss = NaN, step } = stages[name];
    say(said, `After ${step} steps the loss on new stories is ` +
      `${nats(loss, 3)} nats per token, ${nats(loss - floor, 3)} above the ` +
      "floor. This model writes:");
  }
  for (const spot of curve.querySelectorAll(".lab-point")) {
    const { stage = "" } = /** @type {HTMLElement} */ (spot).dataset;
    const { loss = NaN, step } = stages[stage];
    spot.replaceWith(h("label.lab-point", { style: spot.getAttribute("style") },
      h("input", {
        type: "radio", name: "lab-step", value: stage,
        checked: stage === chosen,
        "aria-label": `after ${step} steps, loss ${nats(loss, 3)}`,
        change: () => {
          tell(stage);
          use(stage);
        },
        // An arrow moves to the next point and does not turn the page.
        keydown: (/** @type {Event} */ event) => event.stopPropagation(),
      }),
      ...spot.childNodes));
  }
  const plot = /** @type {HTMLElement} */ (curve.querySelector(".lab-plot"));
  plot.setAttribute("role", "radiogroup");
  plot.setAttribute("aria-label", "Choose after how many steps of training " +
    "the model writes");
  curve.querySelector(".lab-axis.below")?.replaceChildren(
    "Steps of training: choose a point");
  tell(chosen);
  // Who wants to begin the story, or to change the sampling, unfolds it.
  const typed = /** @type {HTMLElement} */ (box.querySelector(".lab-typed"));
  const more = /** @type {HTMLElement} */ (box.querySelector(".lab-more"));
  more.querySelector("summary")?.replaceChildren("Begin the story yourself");
  more.querySelector("summary")?.after(typed);
  box.prepend(curve, said);
}
