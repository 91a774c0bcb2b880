/**
 * Sit the exam: a model from the reader's own folder, or the book's, reads
 * stories and answers questions. Nothing leaves the machine.
 */

import { ask, h, nats, need, percent } from "./page.js";

const WANTED = ["config.json", "tokenizer.json", "model.safetensors"];
const STORIES = 40, QUESTIONS = 120;

/**
 * The files of what was dropped: of a folder, those in it.
 * @param {DataTransfer} dropped
 * @returns {Promise<File[]>}
 */
async function filesOf(dropped) {
  const entries = [...dropped.items]
    .map((item) => item.webkitGetAsEntry?.())
    .filter((entry) => entry !== null && entry !== undefined);
  /** @type {(entry: any) => Promise<File[]>} */
  const within = async (entry) => {
    if (entry.isFile) {
      return [await new Promise((done, failed) => entry.file(done, failed))];
    }
    const reader = entry.createReader();
    const inside = await new Promise((done, failed) =>
      reader.readEntries(done, failed));
    const files = inside.filter((/** @type {any} */ one) => one.isFile);
    return (await Promise.all(files.map(within))).flat();
  };
  const found = (await Promise.all(entries.map(within))).flat();
  return found.length ? found : [...dropped.files];
}

/** @param {HTMLElement} box */
export async function exam(box) {
  let newest = 0, loaded = 0;
  const status = h("p.lab-total", { role: "status" },
    "Choose the folder that `minimind export` has written, or these three " +
      `files of it: ${WANTED.join(", ")}.`);
  const bar = h("progress", { max: 1, value: 0, hidden: true,
    "aria-label": "How much of the exam is done" });
  const result = h("div.lab-marks");

  /** @param {string} name @param {string} title */
  async function examine(name, title) {
    newest += 1;
    const mine = newest;
    result.replaceChildren();
    bar.hidden = false;
    const parts = await ask("describe", name);
    const sum = { loss: 0, floor: 0, count: 0 };
    /** @type {Map<string, {right: number, asked: number, wrong: string}>} */
    const kinds = new Map();
    for (let n = 0; n < STORIES + QUESTIONS; n++) {
      if (mine !== newest) return;
      bar.value = n / (STORIES + QUESTIONS);
      status.textContent = `${title}: ${parts.parameters.toLocaleString("en")}` +
        ` parameters. ${n < STORIES ? "Reading stories" : "Answering"} …`;
      if (n < STORIES) {
        const one = await ask("examineStory", name, 70000 + n);
        sum.loss += one.loss;
        sum.floor += one.floor;
        sum.count += one.count;
        continue;
      }
      const one = await ask("examineQuestion", name, 80000 + n);
      const marks = kinds.get(one.kind) ?? { right: 0, asked: 0, wrong: "" };
      marks.asked += 1;
      marks.right += Number(one.right);
      if (!one.right) marks.wrong ||= `${one.question} \u2192 ${one.answer}`;
      kinds.set(one.kind, marks);
    }
    bar.hidden = true;
    const rows = [...kinds.entries()].sort().map(
      ([kind, { asked, right, wrong }]) => h("tr", {},
        h("th", { scope: "row" }, kind), h("td", {}, `${right} / ${asked}`),
        h("td", {}, right === asked ? "\u2713" : wrong.slice(0, 160))),
    );
    const all = [...kinds.values()];
    const right = all.reduce((n, one) => n + one.right, 0);
    status.textContent = `${title} reads ${STORIES} new stories at ` +
      `${nats(sum.loss / sum.count, 3)} nats per token; the floor for these ` +
      `is ${nats(sum.floor / sum.count, 3)}, so it is at ` +
      `${(sum.loss / sum.floor).toFixed(3)} times the floor. It answers ` +
      `${right} of ${QUESTIONS} questions right ` +
      `(${percent(right / QUESTIONS)}).`;
    result.replaceChildren(h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "kind"),
        h("th", { scope: "col" }, "right"),
        h("th", { scope: "col" }, "a wrong answer"))),
      h("tbody", {}, ...rows)));
  }

  /** @param {File[]} files */
  async function take(files) {
    newest += 1;
    bar.hidden = true;
    result.replaceChildren();
    const found = WANTED.map(
      (name) => files.find((file) => file.name === name));
    const missing = WANTED.filter((_, n) => found[n] === undefined);
    if (missing.length) {
      const adapter = files.some(({ name }) => name === "adapter_config.json");
      status.textContent = adapter
        ? "This is an adapter. Merge it first: minimind merge."
        : `${missing.join(" and ")} is not among these files. A run ` +
          "becomes such a folder with: minimind export.";
      return;
    }
    try {
      const [config, tokenizer, weights] = /** @type {File[]} */ (found);
      loaded += 1;
      const name = `own ${loaded}`;
      await ask("loadFiles", name, await config.text(),
        await tokenizer.text(), await weights.arrayBuffer());
      await examine(name, "Your model");
    } catch (error) {
      bar.hidden = true;
      status.textContent = "This model cannot sit the exam: " +
        `${/** @type {Error} */ (error).message}.`;
    }
  }

  /** @param {boolean} folder */
  const chooser = (folder) => {
    const input = h("input", {
      type: "file", multiple: true, webkitdirectory: folder, hidden: true,
      change: () => {
        take([...(input.files ?? [])]);
        input.value = "";
      },
    });
    return input;
  };
  const folder = chooser(true), files = chooser(false);
  const place = h("div.lab-drop", {
    dragover: (/** @type {DragEvent} */ event) => {
      event.preventDefault();
      place.classList.add("over");
    },
    dragleave: () => place.classList.remove("over"),
    drop: async (/** @type {DragEvent} */ event) => {
      event.preventDefault();
      place.classList.remove("over");
      if (event.dataTransfer) take(await filesOf(event.dataTransfer));
    },
  },
    h("p", {}, "Drop a model's folder here. It stays on your machine."),
    h("div.lab-buttons", {},
      h("button", { click: () => folder.click() }, "Choose a folder"),
      h("button", { click: () => files.click() }, "Choose files"),
      h("button", {
        click: async () => {
          status.textContent = "Loading the book's own model …";
          await need("lora");
          await examine("lora", "The book's own model");
        },
      }, "Examine the book's model")),
    folder, files);
  box.replaceChildren(place, status, bar, result);
}
