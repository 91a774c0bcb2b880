/** The calculator: does it fit, how long does it take, what does it cost? */

import {
  derivedWidth, estimate, FIELDS, flopsPerToken, largestRows, memoryOf,
  parametersOf, parse, partsOf, problem,
} from "./cost.js";
import { h, index, say, slider } from "./page.js";

/** @typedef {import("./cost.js").Shape} Shape */
/** @typedef {import("./cost.js").Device} Device */
/** @typedef {{shape: Shape, tokens: number, length: number, rows: number,
 *   optimizer: string}} Preset */
/** @typedef {{presets: Record<string, Preset>,
 *   devices: Record<string, Device>, utilization32: number[],
 *   room: number}} Figures From Python, see `cost_figures`. */

const MODEL = ["width", "layers", "heads", "shared", "inner", "vocabulary"];
const DATA = ["tokens", "length", "rows"];
const OWN = "my own";

const RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079";

/** What the memory is for, in the order of the bar. */
const PURPOSES = {
  weights: "weights", gradients: "gradients", optimizer: "optimizer",
  copies: "copies in two bytes", activations: "activations",
  passing: "gradient of the logits",
};

/**
 * A number with three digits that matter.
 * @param {number} value
 */
function plain(value) {
  if (value === 0) return "0";
  if (value >= 1e6 || value < 1e-3) {
    const power = Math.floor(Math.log10(value) + 1e-12);
    const digits = [...String(power)].map((one) =>
      one === "-" ? "\u207b" : RAISED[Number(one)]);
    const first = Number((value / 10 ** power).toPrecision(3));
    return `${first} \u00d7 10${digits.join("")}`;
  }
  return Number(value.toPrecision(3)).toLocaleString("en", {
    maximumSignificantDigits: 3,
  });
}

/** The units of time, each from this many seconds on.
 * @type {[number, string][]} */
const UNITS = [
  [2 * 365 * 86400, "year"], [3 * 86400, "day"], [1.5 * 3600, "hour"],
  [60, "minute"], [1, "second"],
];
const LASTS = { year: 365 * 86400, day: 86400, hour: 3600, minute: 60,
  second: 1 };

/**
 * A time, or a range, in the unit that people would say it in.
 * @param {number} hours @param {number} [until]
 */
function time(hours, until = hours) {
  const found = UNITS.find(([from]) => until * 3600 >= from);
  if (!found) return "a second or less";
  const [, unit] = found;
  const lasts = /** @type {Record<string, number>} */ (LASTS)[unit];
  const [first, last] = [hours, until].map(
    (one) => plain(Number(((one * 3600) / lasts).toPrecision(2))));
  const range = first === last ? last : `${first} to ${last}`;
  return `${range} ${unit}${range === "1" ? "" : "s"}`;
}

/** @param {number} bytes */
function gigabytes(bytes) {
  const value = bytes / 1e9;
  return `${value < 10 ? value.toFixed(1) : plain(value)} GB`;
}

/**
 * A formula: its name, what it is, and the same with the numbers put in.
 * @param {string} general @param {string} filled
 */
function formula(general, filled) {
  return h("p.lab-formula", {}, h("span", {}, general),
    h("span", {}, filled));
}

/** @param {HTMLElement} box */
export async function price(box) {
  const figures = /** @type {any} */ (index()).cost;
  const { presets, devices, utilization32, room } =
    /** @type {Figures} */ (figures);
  /** @type {Record<string, HTMLInputElement>} */
  const fields = {};

  /** @param {string} name @param {string} value */
  function field(name, value = "") {
    fields[name] = h("input", {
      type: "text", inputmode: "decimal", autocomplete: "off", value,
      input: () => changed(name),
      keydown: (/** @type {KeyboardEvent} */ event) => event.stopPropagation(),
    });
    return h("label.lab-field", {}, h("span", {}, FIELDS[name].label),
      fields[name]);
  }
  /**
   * @param {string} label @param {string[][]} options Values and names.
   * @param {() => void} chosen
   */
  function choice(label, options, chosen) {
    const select = h("select", {
      change: chosen,
      keydown: (/** @type {KeyboardEvent} */ event) => event.stopPropagation(),
    }, ...options.map(([value, name]) => h("option", { value }, name)));
    return { select,
      label: h("label.lab-field", {}, h("span", {}, label), select) };
  }
  /** @param {string} legend @param {...Node} inputs */
  const group = (legend, ...inputs) => h("fieldset.lab-fields", {},
    h("legend", {}, legend), ...inputs);

  const size = choice("Model", [...Object.keys(presets), OWN].map(
    (name) => [name, name]), () => fill());
  const optimizer = choice("Optimizer",
    [["muon", "Muon"], ["adamw", "AdamW"]], () => show());
  const card = choice("Card", Object.keys(devices).map(
    (name) => [name, name]), () => suited());
  const precision = choice("Precision",
    [["half", "half"], ["single", "float32"]], () => suited());
  const share = slider("Utilization", { min: 1, max: 100, step: 1, value: 20 },
    () => show(), (value) => `${value}%`);
  const shareInput = /** @type {HTMLInputElement} */ (
    share.querySelector("input"));

  const sum = h("p.lab-sum", { role: "status" });
  const answers = h("div.lab-costs");
  box.replaceChildren(
    group("Model", size.label, ...MODEL.map((name) => field(name))),
    group("Data", ...DATA.map((name) => field(name)), optimizer.label),
    group("Hardware", card.label, field("cards", "1"), precision.label,
      field("price", "0.4"), share),
    sum, answers,
    h("p.lab-source", {}, "Estimates: communication between cards, " +
      "validation and the optimizer\u2019s own products are left out. The " +
      "same arithmetic is in the package, as ",
    h("code", {}, "minimind_core.cost"), "."),
  );

  /** Take the numbers of the chosen preset. */
  function fill() {
    const preset = presets[size.select.value];
    if (preset) {
      const { shape } = preset;
      const values = {
        width: shape.hidden_size, layers: shape.num_hidden_layers,
        heads: shape.num_attention_heads, shared: shape.num_key_value_heads,
        inner: shape.intermediate_size, vocabulary: shape.vocab_size,
        tokens: Number((preset.tokens / 1e6).toPrecision(6)),
        length: preset.length, rows: preset.rows,
      };
      for (const [name, value] of Object.entries(values)) {
        fields[name].value = String(value);
      }
      optimizer.select.value = preset.optimizer;
    }
    show();
  }
  /** The shares of the peak to expect of the chosen card. */
  function range() {
    return precision.select.value === "half"
      ? devices[card.select.value].utilization : utilization32;
  }
  /** Begin in the middle of the range that the card suggests. */
  function suited() {
    const [low, high] = range();
    shareInput.value = String(Math.round(100 * Math.sqrt(low * high)));
    shareInput.dispatchEvent(new Event("input"));
  }
  /** @param {string} name */
  function changed(name) {
    if (MODEL.includes(name)) size.select.value = OWN;
    const width = parse(fields.width.value);
    if (name === "width" && width > 0 && width <= FIELDS.width.top) {
      fields.inner.value = String(derivedWidth(width));
    }
    show();
  }

  function show() {
    /** @type {Record<string, number>} */
    const given = { utilization: Number(shareInput.value),
      ...Object.fromEntries(Object.entries(fields).map(
        ([name, input]) => [name, parse(input.value)])) };
    const wrong = problem(given);
    for (const [name, input] of Object.entries(fields)) {
      input.setAttribute("aria-invalid", String(name === wrong.name));
    }
    answers.hidden = wrong.said !== "";
    sum.classList.toggle("wrong", answers.hidden);
    if (wrong.said) {
      say(sum, wrong.said);
      return;
    }
    /** @type {Shape} */
    const shape = {
      vocab_size: given.vocabulary, hidden_size: given.width,
      num_hidden_layers: given.layers, num_attention_heads: given.heads,
      num_key_value_heads: given.shared, head_dim: given.width / given.heads,
      intermediate_size: given.inner, tie_word_embeddings: true,
    };
    const device = devices[card.select.value];
    const half = precision.select.value === "half";
    const batch = { rows: given.rows, length: given.length,
      optimizer: optimizer.select.value };
    const plan = { tokens: given.tokens * 1e6, length: given.length, device,
      half, devices: given.cards, price: given.price };
    /** @param {number} utilization */
    const at = (utilization) => estimate(shape, { ...plan, utilization });
    const found = at(given.utilization / 100);
    const [low, high] = range();
    const span = [at(high), at(low)];

    const memory = memoryOf(shape, batch, half);
    const whole = Object.values(memory).reduce((a, b) => a + b, 0);
    const usable = room * device.memory;
    const fits = whole < usable;
    const most = largestRows(shape, batch, usable, half);
    const count = parametersOf(shape);
    const where = given.cards === 1 ? `the ${device.name}`
      : `each ${device.name}`;
    say(sum, `A model of ${plain(count / 1e6)} million parameters ` +
      (fits ? `fits into ${where}. Its training takes about ` +
        `${time(found.hours)} and costs about ${plain(found.price)}.`
        : `does not fit into ${where} with these rows.`));
    answers.replaceChildren(
      fit(memory, whole, device, fits, most, shape, batch, half),
      howLong(shape, plan, given, found.hours, span.map((one) => one.hours)),
      howMuch(plan, found, span.map((one) => one.price)),
    );
  }

  /**
   * @param {Record<string, number>} memory @param {number} whole
   * @param {Device} device @param {boolean} fits @param {number} most
   * @param {Shape} shape
   * @param {{rows: number, length: number, optimizer: string}} batch
   * @param {boolean} half
   */
  function fit(memory, whole, device, fits, most, shape, batch, half) {
    const scale = Math.max(whole, device.memory);
    const used = Object.entries(PURPOSES).filter(([key]) => memory[key] > 0);
    const parts = partsOf(shape);
    const m = parts.attention + parts.mlp, p = parametersOf(shape);
    const fixed = whole - memory.activations - memory.passing;
    const each = (memory.activations + memory.passing) / batch.rows;
    const muon = batch.optimizer === "muon";
    const says = !fits && most === 0
      ? "Not even one row at a time fits; take a smaller model or a card " +
        "with more memory."
      : `Up to ${most.toLocaleString("en")} rows at a time fit, if a tenth ` +
        "of the memory is left to CUDA.";
    return h("section.lab-cost", { "aria-label": "Does it fit?" },
      h("h3", {}, "Does it fit?"),
      h("p.lab-figure", { class: `lab-figure ${fits ? "good" : "bad"}` },
        `${fits ? "\u2713 Yes" : "\u2717 No"}: ${gigabytes(whole)} of ` +
        `${gigabytes(device.memory)}`),
      h("div.lab-stack", { "aria-hidden": "true" },
        ...used.map(([key]) => h("span", {
          "data-part": key,
          style: `width: ${(100 * memory[key]) / scale}%`,
        })),
        whole > device.memory ? h("i", {
          style: `left: ${(100 * device.memory) / scale}%`,
        }) : ""),
      h("ul.lab-legend", {}, ...used.map(([key, said]) => h("li", {
        "data-part": key,
      }, `${said} ${gigabytes(memory[key])}`))),
      h("p", {}, says),
      formula(
        `bytes = ${half ? "(8 P + 2 M)" : "8 P"} + 4 ${muon
          ? "(2 P \u2212 B)" : "\u00b7 2 P"} + rows \u00d7 bytes per row`,
        `= ${gigabytes(fixed)} + ${batch.rows} \u00d7 ${plain(each)}`),
      h("p.lab-where", {}, `P = ${plain(p)} parameters` +
        (half ? `, M = ${plain(m + shape.vocab_size * shape.hidden_size)} ` +
          "of them in matrices, each with a copy in two bytes" : "") +
        (muon ? `, B = ${plain(m)} in the matrices of the blocks, for which ` +
          "Muon keeps one number and AdamW would keep two" : "") +
        ". Activations count as float32, of which autocast halves some."));
  }

  /**
   * @param {Shape} shape
   * @param {{tokens: number, length: number, device: Device, half: boolean,
   *   devices: number}} plan
   * @param {Record<string, number>} given
   * @param {number} hours @param {number[]} span
   */
  function howLong(shape, plan, given, hours, span) {
    const c = flopsPerToken(shape, plan.length);
    const peak = plan.half ? plan.device.peak : plan.device.peak32;
    const parts = partsOf(shape);
    const n = parts.attention + parts.mlp +
      shape.vocab_size * shape.hidden_size;
    const [low, high] = range();
    return h("section.lab-cost", { "aria-label": "How long?" },
      h("h3", {}, "How long?"),
      h("p.lab-figure", {}, `About ${time(hours)}`),
      h("p", {}, `At ${given.utilization}% of the ${plan.device.name}\u2019s ` +
        `peak of ${plain(peak / 1e12)} TFLOP/s in ` +
        `${plan.half ? plan.device.dtype : "float32"}. Over the ` +
        `utilizations that we would expect, ${Math.round(100 * high)}% down ` +
        `to ${Math.round(100 * low)}%, it is ${time(span[0], span[1])}. ` +
        "Measure yours."),
      formula("hours = tokens \u00d7 c / (3600 \u00d7 cards \u00d7 peak " +
        "\u00d7 utilization)",
      `= ${plain(plan.tokens)} \u00d7 ${plain(c)} / (3600 \u00d7 ` +
        `${plan.devices} \u00d7 ${plain(peak)} \u00d7 ` +
        `${given.utilization / 100})`),
      formula("c = 6 N + 12 L d T",
        `= 6 \u00b7 ${plain(n)} + 12 \u00b7 ${shape.num_hidden_layers} ` +
        `\u00b7 ${shape.num_attention_heads * shape.head_dim} \u00b7 ` +
        `${plan.length}`),
      h("p.lab-where", {}, "The last position of a row predicts nothing, so " +
        "that c is a little smaller than this."));
  }

  /**
   * @param {{devices: number, price: number}} plan
   * @param {{hours: number, price: number}} found @param {number[]} span
   */
  function howMuch(plan, found, span) {
    return h("section.lab-cost", { "aria-label": "How much?" },
      h("h3", {}, "How much?"),
      h("p.lab-figure", {}, `About ${plain(found.price)}`),
      h("p", {}, `${plain(span[0])} to ${plain(span[1])} over the same ` +
        "utilizations, in the currency of your price."),
      formula("price = hours \u00d7 cards \u00d7 price per hour",
        `= ${plain(found.hours)} \u00d7 ${plan.devices} \u00d7 ` +
        `${plain(plan.price)}`));
  }

  size.select.value = presets.base ? "base" : Object.keys(presets)[0];
  suited();
  fill();
}
