// Sliders and menus that choose one of the frames that are in the page.

function frames(box) {
  const all = [...box.querySelectorAll(":scope > .mm-stack > .mm-frame")];
  const labels = JSON.parse(box.dataset.labels);
  const control = box.querySelector("input, select");
  const says = box.querySelector("output");
  const play = box.querySelector("button");
  let timer;

  function show(n) {
    all.forEach((frame, at) => frame.classList.toggle("shown", at === n));
    if (!says) return;
    says.textContent = labels[n];
    control.setAttribute("aria-valuetext", labels[n]);
  }
  function stop() {
    clearInterval(timer);
    timer = undefined;
    play.textContent = "\u25b6";
    play.ariaLabel = "play";
  }
  control.addEventListener("input", () => {
    if (timer) stop();
    show(says ? Number(control.value) : control.selectedIndex);
  });
  // A key moves the control, and does nothing else to the page.
  control.addEventListener("keydown", (event) => {
    if (event.key.startsWith("Arrow")) event.stopPropagation();
  });
  play?.addEventListener("click", () => {
    if (timer) {
      stop();
      return;
    }
    play.textContent = "\u275a\u275a";
    play.ariaLabel = "pause";
    if (Number(control.value) === all.length - 1) control.value = -1;
    const step = () => {
      control.value = Number(control.value) + 1;
      show(Number(control.value));
      if (Number(control.value) === all.length - 1) stop();
    };
    timer = setInterval(step, Number(play.dataset.wait));
    step();
  });
  box.classList.add("live");
}

document.addEventListener("DOMContentLoaded", () => {
  for (const box of document.querySelectorAll(".mm-frames")) frames(box);
});
