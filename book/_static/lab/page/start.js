/**
 * Puts the widgets into the page. A place for one is HTML that says something
 * by itself, for readers without scripts and on paper. A model is loaded when
 * the reader asks for it, and nothing moves in the page before; on the front
 * page it is loaded when its place is seen, unless the reader saves data.
 */

import { exam } from "./exam.js";
import { home } from "./home.js";
import { learn } from "./learn.js";
import { look } from "./look.js";
import { mask } from "./mask.js";
import { h, index, need, source, sparing } from "./page.js";
import { price } from "./price.js";
import { talk } from "./talk.js";
import { write } from "./write.js";

/** Those that are `ready` need no model, and stand in the page at once.
 * @type {Record<string, {make: (box: HTMLElement) => Promise<unknown>,
 *   stages: () => string[], label: string, ready?: boolean}>} */
const WIDGETS = {
  home: { make: home, label: "Let the model write",
    stages: () => index().steps.slice(-1) },
  write: { make: (box) => write(box), label: "Write with the model",
    stages: () => ["pretrain"] },
  learn: { make: learn, label: "Watch it learn",
    stages: () => index().steps.slice(0, 1) },
  look: { make: look, label: "Look inside", stages: () => ["pretrain"] },
  talk: { make: talk, label: "Talk to the models",
    stages: () => ["pretrain", "lora"] },
  exam: { make: exam, label: "Sit the exam", stages: () => [] },
  mask: { make: mask, label: "Choose the mask", stages: () => ["tokenizer"] },
  cost: { make: price, label: "", stages: () => [], ready: true },
};

/**
 * Call when the reader sees a place, and the page itself has come.
 * @param {HTMLElement} place
 * @param {() => void} call
 */
function whenSeen(place, call) {
  const observer = new IntersectionObserver((seen) => {
    if (!seen.some((one) => one.isIntersecting)) return;
    observer.disconnect();
    if (document.readyState === "complete") call();
    else addEventListener("load", () => call(), { once: true });
  });
  observer.observe(place);
}

/** @param {HTMLElement} place */
function mount(place) {
  const widget = WIDGETS[place.dataset.lab ?? ""];
  if (!widget) return;
  if (widget.ready) {
    const box = h("div.lab-box");
    place.append(box);
    widget.make(box).then(() => place.classList.add("started"));
    return;
  }
  const { stages } = index();
  const bytes = widget.stages().reduce((n, one) => n + stages[one].bytes, 0);
  const size = bytes ? ` (${(bytes / 1e6).toFixed(1)} MB)` : "";
  const box = h("div.lab-box", { hidden: true });
  for (const [key, value] of Object.entries(place.dataset)) {
    box.dataset[key] = value;
  }
  const status = h("p.lab-status", { role: "status" });
  /** @type {Promise<void> | undefined} */
  let started;
  const start = h("button.lab-main.lab-start", {
    click: () => begin(),
  }, `${widget.label}${size}`);
  function begin() {
    started ??= (async () => {
      start.disabled = true;
      status.textContent = "Loading the model \u2026";
      try {
        const still = place.querySelector(".lab-curve");
        box.replaceChildren(...(still ? [still.cloneNode(true)] : []));
        await widget.make(box);
        box.hidden = false;
        box.append(h("p.lab-source", {}, "The model runs in this page, on ",
          "your machine. ", h("a", { href: source("engine.js") },
            "Its code reads like chapter 3.")));
        place.classList.add("started");
        status.remove();
        start.remove();
      } catch (error) {
        start.disabled = false;
        started = undefined;
        status.textContent = "This did not work: " +
          /** @type {Error} */ (error).message;
      }
    })();
    return started;
  }
  place.append(box, h("div.lab-buttons.lab-first", {}, start), status);
  // Who points at it will ask for it: by then the model may be there.
  if (!sparing()) {
    if (place.dataset.start === "seen") whenSeen(place, begin);
    start.addEventListener("pointerenter", () => {
      for (const stage of widget.stages()) need(stage).catch(() => {});
    }, { once: true });
  }
}

document.addEventListener("DOMContentLoaded", () => {
  for (const place of document.querySelectorAll(".mm-lab")) {
    mount(/** @type {HTMLElement} */ (place));
  }
});
