// The little that the pages ask of a script beyond their theme.

document.addEventListener("DOMContentLoaded", () => {
  // The button says "Search" and its keys; its label would hide the keys.
  for (const button of document.querySelectorAll(".search-button-field")) {
    button.removeAttribute("aria-label");
  }
  // What unfolds in the list of pages is named after the page above it.
  for (const fold of document.querySelectorAll(".bd-sidebar-primary summary")) {
    const above = fold.closest("li")?.querySelector("a");
    fold.ariaLabel = `pages below: ${above?.textContent.trim()}`;
  }
});

// A formula that is wider than the column can be scrolled by keys.
function reachWideFormulas() {
  for (const formula of document.querySelectorAll(".katex-display")) {
    if (formula.scrollWidth > formula.clientWidth) {
      formula.setAttribute("tabindex", "0");
    } else formula.removeAttribute("tabindex");
  }
}
addEventListener("load", reachWideFormulas);
addEventListener("resize", reachWideFormulas);

// What a term means and what a citation names, beside the word. It comes when
// one points at the word or reaches it by keys, stays as long as one points at
// either, and goes with Escape. A finger follows the link instead.
const SAYS = "article a[title]:has(> .std-term), article .bibtex-citation a[title]";
const WAIT = 250; // milliseconds: who passes over a word is not held up

function preview() {
  const links = document.querySelectorAll(SAYS);
  if (!links.length) return;
  const box = document.createElement("div");
  Object.assign(box, { id: "mm-preview", role: "tooltip", hidden: true });
  document.body.append(box);
  let shown;
  let timer;

  function hide() {
    clearTimeout(timer);
    shown?.removeAttribute("aria-describedby");
    shown = undefined;
    box.hidden = true;
  }
  function show(link) {
    hide();
    shown = link;
    box.textContent = link.dataset.says;
    box.hidden = false;
    link.setAttribute("aria-describedby", box.id);
    const word = link.getClientRects()[0];
    const wide = document.documentElement.clientWidth;
    const { width, height } = box.getBoundingClientRect();
    const left = Math.max(8, Math.min(word.left, wide - width - 8));
    const below = word.bottom + 4;
    const fits = below + height <= window.innerHeight || word.top < height;
    const top = fits ? below : word.top - height - 4;
    box.style.left = `${left + window.scrollX}px`;
    box.style.top = `${top + window.scrollY}px`;
  }
  function later(what, ...given) {
    clearTimeout(timer);
    timer = setTimeout(what, WAIT, ...given);
  }
  for (const link of links) {
    link.dataset.says = link.title;
    link.removeAttribute("title"); // or it would be shown twice
    link.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "touch") return;
      if (shown === link) clearTimeout(timer);
      else later(show, link);
    });
    link.addEventListener("pointerleave", () => later(hide));
    link.addEventListener("focus", () => {
      if (link.matches(":focus-visible")) show(link);
    });
    link.addEventListener("blur", hide);
  }
  box.addEventListener("pointerenter", () => clearTimeout(timer));
  box.addEventListener("pointerleave", () => later(hide));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
}
document.addEventListener("DOMContentLoaded", preview);

// Paper is white: a page is printed in its light colours.
const paper = window.matchMedia("print");
let onScreen;

function onPaper(yes) {
  const root = document.documentElement;
  if (yes && onScreen === undefined) {
    onScreen = root.dataset.theme;
    root.dataset.theme = "light";
  } else if (!yes && onScreen !== undefined) {
    root.dataset.theme = onScreen;
    onScreen = undefined;
  }
}
paper.addEventListener("change", (event) => onPaper(event.matches));
window.addEventListener("beforeprint", () => onPaper(true));
window.addEventListener("afterprint", () => onPaper(false));
