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
