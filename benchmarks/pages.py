"""How fast the model writes in a page, on this machine and four times slower.

    python benchmarks/pages.py          # after `make book`; needs Chromium

Opens the built front page and lets the engine write as fast as it can. A
token is a forward pass with the cache, a distribution and a draw; "and X-ray"
adds what the widget shows beside it, the true distribution and the verdict on
the whole text. Chromium's CPU throttle slows a page but not its workers, so
these two run in the page itself. In the widget they run in a worker: the last
line says how long the page was then held up at most.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

SITE = Path(__file__).resolve().parents[1] / "_build" / "html"
PAGE = SITE / "book" / "index.html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# The widget's own session is out of reach, so this makes one like it, in the
# page or, from the same text, in a worker.
SESSION = """
const write = (lab, data, stage) => {
  const session = new lab.Session(data);
  session.load("m", stage);
  return (kind, count) => {
    const { model } = session.get("m");
    const begun = performance.now();
    let done = 0;
    for (let seed = 0; done < count; seed++) {
      let ids = session.begin("m", "One sunny morning, Mia");
      if (kind === "plain") {
        session.get("m").forget();
        const drawn = lab.streamTokens(model, ids, {
          maxNewTokens: 90, random: new lab.Random(seed) });
        for (const token of drawn) done += 1;
      } else {
        for (let n = 0; n < 90; n++) {
          const view = session.view("m", ids, {}, seed);
          if (view.over) break;
          ids = [...ids, view.drawn];
          done += 1;
        }
      }
    }
    return 1000 * done / (performance.now() - begun);
  };
};
"""
START = (
    "() => {"
    + SESSION
    + """
  const { data, install, stages: { pretrain } } = MiniMindLab;
  window.here = write(MiniMindLab, data, pretrain);
  const text = `(${install})(self); const write = ${write};
    const run = write(MiniMindLab, ${JSON.stringify(data)},
      ${JSON.stringify(pretrain)});
    onmessage = ({ data }) => postMessage(run(...data));`;
  window.worker = new Worker(URL.createObjectURL(new Blob([text])));
}"""
)
HERE = "([kind, count]) => here(kind, count)"

IN_WORKER = """async ([kind, count]) => {
  let longest = 0, last = performance.now(), on = true;
  const tick = () => {
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
    if (on) setTimeout(tick);
  };
  tick();
  const rate = await new Promise((answer) => {
    worker.onmessage = ({ data }) => answer(data);
    worker.postMessage([kind, count]);
  });
  on = false;
  return [rate, longest];
}"""


def load(page: Page) -> None:
    """Open the front page, with the engine and a model, but no widget."""
    page.goto(PAGE.as_uri())
    for name in ("engine.js", "world.js", "pretrain.js"):
        page.add_script_tag(url=f"../_static/live/{name}")
    page.evaluate(START)
    page.evaluate(HERE, ["plain", 200])  # until it is compiled


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokens", type=int, default=1500)
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None or not PAGE.exists():
        sys.exit("this needs the built book (make book) and Chromium")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=browser, args=["--no-sandbox"]
        )
        page = chromium.new_page()
        load(page)
        devtools = page.context.new_cdp_session(page)
        for slower in (1, 4):
            devtools.send("Emulation.setCPUThrottlingRate", {"rate": slower})
            for kind, what in (("plain", "writing"), ("view", "and X-ray")):
                rate = page.evaluate(HERE, [kind, options.tokens // slower])
                print(f"{slower}x slower  {what:<9} {rate:7,.0f} tokens/s")
        devtools.send("Emulation.setCPUThrottlingRate", {"rate": 1})
        rate, longest = page.evaluate(IN_WORKER, ["view", options.tokens])
        print(
            f"in a worker          {rate:7,.0f} tokens/s, and the page was "
            f"held up for at most {longest:.0f} ms"
        )
        chromium.close()


if __name__ == "__main__":
    main()
