// Questions that a reader answers before the page shows what is true.
//
// A prediction is HTML that works without this script: its answer unfolds.
// With it, the choices become buttons, or a field takes a number; the results
// below stay covered until the reader has decided; and then the guess and the
// truth stand side by side.

const ANSWERS = ".cell.tag_answer";
const PAPER = window.matchMedia("print");
const UNTIL = "h1, h2, h3, .mm-predict, .admonition";

// The cells that a prediction is about: those with results that follow it,
// up to the next question or heading.
function covered(question) {
  const found = [];
  let here = question.closest(".cell") ?? question;
  for (here = here.nextElementSibling; here; here = here.nextElementSibling) {
    if (here.matches(UNTIL) || here.querySelector(UNTIL)) break;
    if (here.matches(ANSWERS)) found.push(here);
  }
  return found;
}

function button(text) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  return made;
}

function ask(question) {
  const fold = question.querySelector("details");
  if (!fold) return;
  const cells = covered(question);
  const verdict = document.createElement("p");
  verdict.className = "mm-verdict";
  verdict.setAttribute("role", "status");
  fold.before(verdict);
  for (const cell of cells) cell.classList.add("mm-covered");

  let done = false;
  function reveal() {
    fold.open = true;
    for (const cell of cells) cell.classList.remove("mm-covered");
  }
  fold.addEventListener("toggle", () => fold.open && reveal());
  // On paper nobody can click.
  PAPER.addEventListener("change", () => PAPER.matches && reveal());
  window.addEventListener("beforeprint", reveal);
  function decide(said, right, how) {
    if (!done) verdict.textContent = `You said: ${said}. ${how}`;
    question.classList.add(right ? "mm-right" : "mm-wrong");
    done = true;
    reveal();
  }

  const choices = [...question.querySelectorAll("ol > li")];
  const answer = Number(question.dataset.answer);
  choices.forEach((item, index) => {
    const choice = button("");
    choice.append(...item.childNodes);
    item.append(choice);
    choice.addEventListener("click", () => {
      if (done) return;
      choice.setAttribute("aria-pressed", "true");
      choices[answer].classList.add("mm-truth");
      const right = index === answer;
      decide(
        choice.textContent.trim(),
        right,
        right ? "That is right." : "It is another one, marked ✓.",
      );
    });
  });
  if (choices.length) return;

  const form = document.createElement("form");
  form.innerHTML =
    '<label>Your prediction <input inputmode="decimal" size="9" ' +
    'autocomplete="off"></label> ';
  const unit = question.dataset.unit;
  if (unit) form.append(`${unit} `);
  form.append(button("Compare"));
  form.lastChild.type = "submit";
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const typed = form.querySelector("input").value.replaceAll(",", "");
    const value = Number.parseFloat(typed);
    if (Number.isNaN(value)) {
      verdict.textContent = "Please type a number.";
      return;
    }
    const off = Math.abs(value - answer);
    const near = off <= Math.abs(answer) * 0.1;
    const far = near ? "Within a tenth of it." : "Compare it with this:";
    decide(typed, near, off === 0 ? "That is exactly right." : far);
  });
  fold.before(form, verdict);
}

document.addEventListener("DOMContentLoaded", () => {
  for (const question of document.querySelectorAll(".mm-predict")) {
    ask(question);
  }
});
