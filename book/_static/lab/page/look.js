/**
 * Look inside: where each head looks, what breaks without it, and what one
 * activation carries.
 */

import {
  ask, h, latest, levels, nats, need, percent, roving, word,
} from "./page.js";

const SVG = "http://www.w3.org/2000/svg";
const FAINT = 0.04; // weights below this are not drawn

/** @param {HTMLElement} box */
export async function look(box) {
  const stage = box.dataset.stage ?? "pretrain";
  await need(stage);
  const { heads, layers } = await ask("describe", stage);
  let seed = 11, layer = layers - 1, head = 0, at = -1;
  /** @type {{maps: number[][][][], tokens: string[], losses: number[],
   *   loss: number}} */
  let found;
  /** @type {typeof found} */
  let whole;
  let told = "";
  const off = new Set();

  const text = h("div.lab-story.arcs", {
    role: "listbox", "aria-label": "A story; choose a word to look from",
  });
  const arcs = document.createElementNS(SVG, "svg");
  arcs.setAttribute("aria-hidden", "true");
  const seen = h("p.lab-detail", { role: "status" });
  const total = h("p.lab-total", { role: "status" });
  const shown = h("div.lab-heads");

  roving(text, "[role=option]", (item) => {
    at = Number(item.dataset.n);
    draw();
  });

  function words() {
    const marks = levels(found.tokens.map((_, n) =>
      n > 0 ? found.losses[n - 1] - whole.losses[n - 1] : 0,
    ));
    const spans = found.tokens.map((token, n) => {
      return h("span", {
        role: "option", "aria-selected": String(n === at), "data-n": n,
        "data-level": marks[n], tabindex: n === Math.max(0, at) ? 0 : -1,
        "aria-label": n === 0 ? "the beginning" : undefined,
      }, n === 0 ? "\u25cf" : token);
    });
    text.replaceChildren(arcs, ...spans);
  }

  function draw() {
    const spans = /** @type {HTMLElement[]} */ (
      [...text.querySelectorAll("[role=option]")]);
    arcs.replaceChildren();
    spans.forEach((span, n) => {
      span.setAttribute("aria-selected", String(n === at));
      span.style.removeProperty("--looked");
      span.classList.remove("looked");
    });
    if (at < 0 || !spans[at]) {
      seen.textContent = "Point at a word, or tap it: arcs lead to the words " +
        "that this head looks at from there.";
      return;
    }
    const weights = found.maps[layer][head][at];
    const frame = text.getBoundingClientRect();
    /** @param {number} n */
    const top = (n) => {
      const place = spans[n].getClientRects()[0];
      return { x: place.left + place.width / 2 - frame.left,
        y: place.top - frame.top + 3 };
    };
    const from = top(at);
    weights.forEach((weight, n) => {
      if (weight < FAINT) return;
      const to = top(n);
      spans[n].classList.add("looked");
      spans[n].style.setProperty("--looked", `${Math.round(100 * weight)}%`);
      if (n === at) return;
      const lift = Math.min(from.y, to.y) - 12 -
        0.05 * Math.abs(from.x - to.x);
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("d", `M ${from.x} ${from.y} C ${from.x} ${lift}, ` +
        `${to.x} ${lift}, ${to.x} ${to.y}`);
      path.setAttribute("stroke-width", String(0.8 + 4 * weight));
      path.setAttribute("opacity", String(0.35 + 0.65 * weight));
      arcs.append(path);
    });
    const order = weights.map((weight, n) => ({ n, weight }))
      .sort((a, b) => b.weight - a.weight)
      .filter((one) => one.weight >= FAINT).slice(0, 4)
      .map(({ n, weight }) =>
        `${n ? `\u201c${word(found.tokens[n])}\u201d` : "the beginning"} ` +
          percent(weight));
    const from_ = at ? `\u201c${word(found.tokens[at])}\u201d` : "the beginning";
    seen.textContent =
      `From ${from_}, head ${head + 1} of layer ${layer + 1} looks at ` +
      `${order.join(", ")}.`;
  }

  const change = latest(
    () => ask("look", stage, told,
      [...off].map((one) => one.split(" ").map(Number))),
    (value) => {
      found = value;
      if (off.size === 0) whole = value;
      words();
      draw();
      if (off.size === 0) {
        total.textContent = "Switch a head off, and the words that it was " +
          `needed for are marked. With all heads, the story costs ` +
          `${nats(found.loss, 1)} nats.`;
        return;
      }
      const hit = found.losses.map((loss, n) => ({
        n: n + 1, cost: loss - whole.losses[n],
      })).sort((a, b) => b.cost - a.cost).filter(({ cost }) => cost > 0.1)
        .slice(0, 4).map(({ cost, n }) =>
          `\u201c${word(found.tokens[n] ?? "")}\u201d +${nats(cost, 1)}`);
      const names = [...off].map((one) => {
        const [l, n] = one.split(" ").map(Number);
        return `head ${n + 1} of layer ${l + 1}`;
      });
      total.textContent = `Without ${names.join(" and ")} the story costs ` +
        `${nats(found.loss, 1)} nats instead of ${nats(whole.loss, 1)}. ` +
        (hit.length ? `Hit hardest: ${hit.join(", ")}.`
          : "No single word costs much more.");
    },
    (error) => { total.textContent = error.message; },
  );

  /** @type {HTMLElement[]} */
  const boxes = [];
  for (let l = 0; l < layers; l++) {
    const row = h("div", { role: "group", "aria-label": `layer ${l + 1}` },
      h("span", {}, `Layer ${l + 1}`));
    for (let n = 0; n < heads; n++) {
      const choose = h("button", {
        "aria-pressed": String(l === layer && n === head),
        "aria-label": `show head ${n + 1} of layer ${l + 1}`,
        click: () => {
          layer = l;
          head = n;
          for (const one of shown.querySelectorAll("button")) {
            one.setAttribute("aria-pressed", String(one === choose));
          }
          draw();
        },
      }, `head ${n + 1}`);
      const on = h("input", {
        type: "checkbox", checked: true,
        "aria-label": `head ${n + 1} of layer ${l + 1} is on`,
        change: () => {
          if (on.checked) off.delete(`${l} ${n}`);
          else off.add(`${l} ${n}`);
          change();
        },
      });
      boxes.push(on);
      row.append(h("span.lab-head-box", {}, choose,
        h("label", {}, on, " on")));
    }
    shown.append(row);
  }

  async function another() {
    told = (await ask("story", seed, "trade")).text;
    at = -1;
    off.clear();
    for (const one of boxes) /** @type {any} */ (one).checked = true;
    await change();
  }
  const patched = h("div.lab-patch");
  box.replaceChildren(
    shown, text, seen, total,
    h("div.lab-buttons", {}, h("button", {
      click: () => { seed += 1; another(); },
    }, "Another story")),
    patched,
  );
  new ResizeObserver(draw).observe(text);
  await another();
  await swap(patched, stage, layers);
}

/**
 * Two stories with their owners swapped: put one activation of the second
 * into the first, and see whom the model names.
 * @param {HTMLElement} box
 * @param {string} stage
 * @param {number} layers
 */
async function swap(box, stage, layers) {
  let seed = 1, depth = layers, at = -1;
  /** @type {{text: string, swapped: string, hero: string, friend: string}} */
  let pair;
  /** @type {string[]} */
  let tokens = [];
  /** @type {string[]} */
  let others = [];
  const first = h("div.lab-story", {
    role: "listbox", "aria-label": "The story; choose a token to replace",
  });
  const second = h("p.lab-told.small");
  const bars = h("div.lab-bars");
  const said = h("p.lab-total", { role: "status" });
  const depths = h("div.lab-chips", {
    role: "group", "aria-label": "Where the activation is replaced",
  });
  roving(first, "[role=option]");
  const choose = (/** @type {Event} */ event) => {
    const item = /** @type {HTMLElement} */ (event.target)
      .closest("[role=option]");
    if (!item) return;
    const n = Number(/** @type {HTMLElement} */ (item).dataset.n);
    at = at === n ? -1 : n;
    show();
  };
  first.addEventListener("click", choose);
  first.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    choose(event);
  });

  const measure = latest(
    async () => {
      const names = [` ${pair.hero}`, ` ${pair.friend}`];
      const patch = at < 0 ? null : { depth, position: at };
      return Promise.all([
        ask("patch", stage, pair.text, pair.swapped, null, names),
        ask("patch", stage, pair.text, pair.swapped, patch, names),
      ]);
    },
    ([before, after]) => {
      const names = [pair.hero, pair.friend];
      bars.replaceChildren(...names.map((name, n) => h("div.lab-bar", {},
        h("span.word", {}, name),
        h("span.track", {},
          h("span.fill", { style: `width:${100 * after[n]}%` }),
          h("span.true", { style: `width:${100 * before[n]}%` })),
        h("span.number", {}, percent(after[n])))));
      const place = depth === 0 ? "after the embedding"
        : `after layer ${depth}`;
      said.textContent = at < 0
        ? `After \u201cNow\u201d the model expects ${pair.hero} with ` +
          `${percent(before[0])} and ${pair.friend} with ` +
          `${percent(before[1])}. Choose a token.`
        : `With the activation of \u201c${word(others[at])}\u201d ${place} in ` +
          `place of \u201c${word(tokens[at])}\u201d: ${pair.hero} ` +
          `${percent(after[0])} (was ${percent(before[0])}), ${pair.friend} ` +
          `${percent(after[1])} (was ${percent(before[1])}).`;
    },
    (error) => { said.textContent = error.message; },
  );

  function show() {
    const focus = first.contains(document.activeElement);
    first.replaceChildren(...tokens.map((token, n) => h("span", {
      role: "option", "aria-selected": String(n === at), "data-n": n,
      "data-level": token === others[n] ? "0" : "1",
      tabindex: n === Math.max(0, at) ? 0 : -1,
      "aria-label": n === 0 ? "the beginning" : undefined,
    }, n === 0 ? "\u25cf" : token)));
    if (focus) /** @type {any} */ (first.querySelector("[tabindex='0']"))?.focus();
    second.textContent = pair.swapped;
    for (const [n, one] of [...depths.children].entries()) {
      one.setAttribute("aria-pressed", String(n === depth));
    }
    measure();
  }
  for (let n = 0; n <= layers; n++) {
    depths.append(h("button", {
      click: () => { depth = n; show(); },
    }, n === 0 ? "after the embedding" : `after layer ${n}`));
  }
  async function another() {
    pair = await ask("swap", stage, seed);
    tokens = (await ask("look", stage, pair.text)).tokens;
    others = (await ask("look", stage, pair.swapped)).tokens;
    at = tokens.length - 1;
    show();
  }
  box.replaceChildren(
    h("h4", {}, "Swap the owners"),
    h("p", {}, "In the second story the two names are exchanged and nothing " +
      "else. Choose a token of the first: what the model has computed at " +
      "this place is replaced by what it computes there in the second."),
    first, second, depths,
    h("p.lab-head", {}, "Who has it now? ",
      h("span", {}, "Filled: with the replacement. Outlined: without.")),
    bars, said,
    h("div.lab-buttons", {}, h("button", {
      click: () => { seed += 1; another(); },
    }, "Another pair")),
  );
  await another();
}
