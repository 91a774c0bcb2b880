// The little that the pages ask of a script beyond their theme.

// The widget bundle speaks to MathJax 2 and a page has MathJax 3, or none.
// This listener is there before the bundle's own.
window.addEventListener("load", () => {
  if (!window.MathJax) return;
  window.MathJax.Hub = {
    Queue: ([, , element]) => window.MathJax.typesetPromise?.([element]),
  };
});

// Names for those who hear a page instead of seeing it.
const PLAYER = ["play or pause", "stop", "repeat"];

function name(root) {
  for (const handle of root.querySelectorAll(".noUi-handle")) {
    const box = handle.closest(".jupyter-widgets");
    const label = box?.querySelector(".widget-label")?.textContent.trim();
    if (!handle.hasAttribute("aria-label")) {
      handle.setAttribute("aria-label", label || "position");
    }
    // What the slider says, not the number of its step.
    const says = box?.querySelector(".widget-readout")?.textContent.trim();
    if (says) handle.setAttribute("aria-valuetext", says);
  }
  for (const player of root.querySelectorAll(".widget-play")) {
    player.querySelectorAll("button").forEach((button, index) => {
      button.title ||= PLAYER[index] ?? "play";
    });
  }
  for (const choice of root.querySelectorAll(".jupyter-widgets select")) {
    choice.ariaLabel ||= "choice";
  }
}

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
  const pages = document.querySelector("article");
  if (!pages?.querySelector("script[type*='widget-view']")) return;
  // Arrow keys move a slider that has the focus, and do not turn the page.
  pages.addEventListener("keydown", (event) => {
    const inside = event.target.closest(".jupyter-widgets");
    if (inside && event.key.startsWith("Arrow")) event.stopPropagation();
  });
  new MutationObserver(() => name(pages)).observe(pages, {
    childList: true,
    subtree: true,
  });
});

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
