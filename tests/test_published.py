"""Stages from a published book: fetched, or refused and trained here.

A server on this machine offers small files in the real format. Nothing is
trained: what would be is noted.
"""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from minimind_core.book import __main__ as book
from minimind_core.book import published, publishing, stages, studies
from minimind_core.book.published import FOLDER, VARIABLE
from minimind_core.book.stages import STAGES, get_stage
from minimind_core.book.studies import adapters

KEY = "microworld-0"
RAN = {"dtype": "bfloat16", "device_name": "Some Processor", "threads": 2}


def twice(preset, progress):
    """A study."""
    return "computed here"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, or what a test puts in the place of one."""

    def do_GET(self):
        self.server.asked.append(self.path)
        for end, answer in self.server.instead.items():
            if self.path.endswith(end):
                return answer(self)
        return super().do_GET()

    def log_message(self, *args):
        pass


class Site:
    """A published book on a server of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER / stages.code_digest()
        self.web = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0),
            lambda *args: Handler(*args, directory=str(folder)),
        )
        self.asked = self.web.asked = []
        self.instead = self.web.instead = {}
        self.url = f"http://127.0.0.1:{self.web.server_port}"
        threading.Thread(
            target=self.web.serve_forever, args=(0.01,), daemon=True
        ).start()

    def index(self) -> dict:
        return json.loads((self.folder / "index.json").read_text("utf8"))

    def file(self, entry: str, path: str) -> str:
        """The name of a file on the server, which is its SHA-256."""
        return self.index()["entries"][entry]["files"][path]["sha256"]

    def rewrite(self, change) -> None:
        found = self.index()
        change(found)
        (self.folder / "index.json").write_text(json.dumps(found))


def make(folder: Path, more: str = "") -> None:
    """A stage with everything that a trained one has, but small."""
    (folder / "checkpoints" / "step_1").mkdir(parents=True)
    (folder / "checkpoints" / "step_1" / "training.pt").write_bytes(b"no")
    (folder / "checkpoints" / "step_1" / "state.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(folder.name.encode() * 999)
    (folder / "log.jsonl").write_text('{"step": 1, "seconds": 2.0}\n')
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    (folder / "tokenizer.json").write_text("{}\n")
    about = {"format": 1, "finished": True, "runtime": RAN,
             "base": more or None}  # fmt: skip
    (folder / "minimind.json").write_text(json.dumps(about))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site that offers all stages, a study and an adapter."""
    monkeypatch.setattr(studies, "studies", lambda: {"twice": twice})
    monkeypatch.setattr(publishing, "studies", studies.studies)
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "author"))
    home = stages.find_shelf().stages(KEY)
    for stage in STAGES:
        make(home / stage)
        for file in (home / stage).rglob("*"):
            os.utime(file, (1_700_000_000, 1_700_000_000))
    assert studies.get_study("twice") == "computed here"
    name = f"{stages.local_digest()}-{adapters.greeting_name('tiny')}"
    make(home.parents[1] / "studies" / name, f"../../stages/{home.name}/hf")
    (kept,) = (tmp_path / "author" / "studies").glob("*twice.json")
    kept.write_text(json.dumps({"result": "computed there"}))
    publishing.publish(tmp_path / "html" / FOLDER)

    found = Site(tmp_path / "html")
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "reader"))
    monkeypatch.setenv(VARIABLE, found.url)
    published.forget()
    yield found
    found.web.shutdown()
    found.web.server_close()
    published.forget()


@pytest.fixture
def trained(monkeypatch):
    """The stages that are trained here, in place of training them."""
    made: list[str] = []

    def note(stage, folder, *rest):
        if not (folder / stage).exists():
            made.append(stage)
            make(folder / stage)

    monkeypatch.setattr(stages, "_make", note)
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "checkpoints" not in path.parts
    }


def test_every_stage_is_fetched_and_nothing_is_trained(
    site, trained, tmp_path, capsys
):
    folder = get_stage("merged")
    assert trained == []
    theirs = tmp_path / "author" / "stages"
    (theirs,) = theirs.glob(f"*-{KEY}")
    for stage in STAGES:
        assert files(folder.parent / stage) == files(theirs / stage)
        assert published.was_fetched(folder.parent / stage)
    assert not list(folder.parent.rglob("checkpoints"))
    said = capsys.readouterr().out
    assert said.count("\n") == len(STAGES)
    for part in (
        f"\nmerged: fetched from {site.url} (", "made on 2023-11-14",
        f"with torch {torch.__version__} (here {torch.__version__})",
        "in bfloat16 on Some Processor",
    ):  # fmt: skip
        assert part in said

    # What is there is not asked for again, not even the index.
    before = len(site.asked)
    published.forget()
    assert get_stage("merged") == folder and len(site.asked) == before
    assert not list(tmp_path.rglob(".partial-*"))


def test_a_reader_of_one_stage_fetches_no_later_one(site, trained):
    folder = get_stage("pretrain", progress=False)
    there = {path.name for path in folder.parent.iterdir() if path.is_dir()}
    assert there == {"tokenizer", "pretrain"} and trained == []


def test_studies_and_the_adapter_are_fetched(site, trained, capsys):
    assert studies.get_study("twice") == "computed there"
    assert studies.get_studies("twice") == {"twice": "computed there"}
    greeting = adapters.greeting_adapter("tiny")
    about = json.loads((greeting / "minimind.json").read_text("utf8"))
    base = (greeting / about["base"]).resolve()
    assert base == get_stage("hf").resolve(), "the adapter lost its base"
    assert trained == []
    assert "\ntwice: fetched" in capsys.readouterr().out


def test_the_same_files_are_published_once(site):
    listed = [
        item["sha256"]
        for entry in site.index()["entries"].values()
        for item in entry["files"].values()
    ]
    kept = {path.name for path in site.folder.iterdir()} - {"index.json"}
    assert kept == set(listed) and len(listed) > 2 * len(kept)
    for name in kept:
        data = (site.folder / name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == name


def test_what_other_code_published_is_removed(site, tmp_path, monkeypatch):
    old = site.folder.with_name("0123456789ab")
    old.mkdir()
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "author"))
    assert f"{KEY}/sft" in publishing.publish(tmp_path / "html" / FOLDER)
    assert not old.exists() and site.folder.exists()
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "empty"))
    assert publishing.publish(tmp_path / "html" / FOLDER) == {}
    assert not site.folder.exists()


def test_another_version_of_torch_fetches_what_the_index_offers(
    site, trained, monkeypatch, capsys
):
    before, own = stages.code_digest(), stages.local_digest()
    there = torch.__version__
    monkeypatch.setattr(torch, "__version__", "2.99.0+colab")
    stages.code_digest.cache_clear()
    assert stages.local_digest() != own and stages.code_digest() == before
    get_stage("pretrain")
    assert trained == []
    said = capsys.readouterr().out
    assert f"with torch {there} (here 2.99.0+colab)" in said


@pytest.mark.parametrize("value", ["off", "OFF", "", None])
def test_nothing_is_asked_for_unless_an_address_is_set(
    site, trained, monkeypatch, value
):
    if value is None:
        monkeypatch.delenv(VARIABLE)
    else:
        monkeypatch.setenv(VARIABLE, value)
    folder = get_stage("sft", progress=False)
    assert trained == ["tokenizer", "pretrain", "sft"] and site.asked == []
    assert folder.parents[1].parent.name == "reader"
    assert studies.get_study("twice", progress=False) == "computed here"
    assert site.asked == []


def test_who_asks_for_training_gets_it_and_keeps_to_it(site, trained):
    fetched = get_stage("pretrain", progress=False)
    own = get_stage("pretrain", progress=False, train=True)
    assert own != fetched and trained == ["tokenizer", "pretrain"]
    asked = len(site.asked)
    # What follows goes on from what was trained here.
    assert get_stage("sft", progress=False).parent == own.parent
    assert trained[-1] == "sft" and len(site.asked) == asked


def test_snapshots_are_of_the_own_model(site, trained, monkeypatch):
    seen = []

    def again(out, *, tokenizer, callbacks, progress):
        seen.append(tokenizer)

    monkeypatch.setattr(stages, "pretrain", again)
    get_stage("pretrain", progress=False)
    stages.get_snapshots(progress=False)
    assert trained == ["tokenizer", "pretrain"]
    assert "published" not in seen[0].parts


def test_a_damaged_file_is_refused_by_its_hash(
    site, trained, tmp_path, capsys
):
    path = site.folder / site.file(f"{KEY}/sft", "model.safetensors")
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    folder = get_stage("hf", progress=False)
    # Nor is an export of theirs put beside a model of ours.
    assert trained == ["sft", "hf"]
    assert published.was_fetched(folder.parent / "pretrain")
    assert not published.was_fetched(folder.parent / "sft")
    said = capsys.readouterr().err
    assert "sft is made here, not fetched from" in said
    assert "model.safetensors is damaged: its SHA-256 differs" in said
    assert not list(tmp_path.rglob(".partial-*"))


def in_first(**values):
    """Change what the index says of the tokenizer's first file."""

    def change(index):
        listed = index["entries"][f"{KEY}/tokenizer"]["files"]
        listed["tokenizer.json"] |= values

    return change


def with_path(path):
    """Let the index name a further file."""

    def change(index):
        listed = index["entries"][f"{KEY}/tokenizer"]["files"]
        listed[path] = listed["tokenizer.json"]

    return change


def without(key):
    return lambda index: index.pop(key)


FOREIGN = {
    "upwards": (with_path("../../x.json"), "names the path"),
    "upwards inside": (with_path("a/../../../x.json"), "names the path"),
    "absolute": (with_path("/elsewhere/x.json"), "names the path"),
    "a drive": (with_path("C:\\x.json"), "names the path"),
    "empty": (with_path(""), "names the path"),
    "hidden": (with_path(".x.json"), "names the path"),
    "a pickle": (with_path("x.pt"), "names the file"),
    "code": (with_path("modeling.py"), "names the file"),
    "oversize": (in_first(bytes=2**40), "more than"),
    "negative": (in_first(bytes=-1), "a size that is none"),
    "a size in words": (in_first(bytes="3"), "a size that is none"),
    "a hash that is a path": (in_first(sha256="../x"), "SHA-256 that is"),
    "no hash": (in_first(sha256=None), "SHA-256 that is none"),
    "another size": (in_first(bytes=2), "bytes instead of"),
    "other code": (lambda i: i.update(code="other"), "of other code"),
    "another format": (lambda i: i.update(format=2), "another format"),
    "no entries": (without("entries"), "not whole"),
    "a list": (lambda i: i.update(entries=[1]), "not whole"),
    "nothing": (lambda i: i.update(entries={}), "does not list it"),
    "too many files": (
        lambda i: [with_path(f"x{n}.json")(i) for n in range(99)],
        "it has 1",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_index_is_refused(site, trained, tmp_path, capsys, name):
    change, complaint = FOREIGN[name]
    site.rewrite(change)
    before = {*tmp_path.rglob("*"), *tmp_path.parent.glob("*")}
    folder = get_stage("tokenizer", progress=False)
    assert trained == ["tokenizer"]
    assert "published" not in folder.parts
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1, said
    new = {*tmp_path.rglob("*"), *tmp_path.parent.glob("*")} - before
    assert all("reader" in path.parts for path in new)
    assert not list(tmp_path.rglob("x*.json"))


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"<html>Log in to this network</html>", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "another format"),
        (b" " * 2**21, "not JSON"),
    ],
)
def test_what_is_no_index_is_refused(site, trained, capsys, data, complaint):
    (site.folder / "index.json").write_bytes(data)
    get_stage("tokenizer", progress=False)
    assert trained == ["tokenizer"]
    assert complaint in capsys.readouterr().err


def status(code, **headers):
    def answer(handler):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def longer(handler):
    """More than was promised, and no end to it."""
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(10_000):
            handler.wfile.write(b"x" * 2**16)
    except OSError:
        handler.server.cut_off = True


def shorter(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"{")


def silent(handler):
    handler.server.stopped.wait(30)


def dripping(handler):
    """A byte now and then, so that no single wait is long."""
    handler.send_response(200)
    handler.end_headers()
    try:
        for _ in range(200):
            if handler.server.stopped.wait(0.05):
                break
            handler.wfile.write(b" ")
            handler.wfile.flush()
    except OSError:
        pass


@pytest.mark.parametrize(
    ("end", "answer", "complaint"),
    [
        ("index.json", status(404), "none of this version of the code"),
        ("index.json", status(500), "answers 500"),
        ("index.json", status(302, Location="http://127.0.0.2/"), "redirect"),
        ("index.json", status(302, Location="file:///etc/passwd"), "302"),
        ("index.json", longer, "not JSON"),
        ("index.json", shorter, "not JSON"),
        ("index.json", silent, "timed out"),
        ("index.json", dripping, "it took more than"),
        ("tokenizer.json", status(404), "answers 404"),
        ("tokenizer.json", longer, "bytes instead of"),
        ("tokenizer.json", shorter, "bytes instead of"),
        ("tokenizer.json", silent, "timed out"),
    ],
)
def test_a_server_that_fails_is_told(
    site, trained, tmp_path, monkeypatch, capsys, end, answer, complaint
):
    monkeypatch.setattr(published, "TIMEOUT", 0.5)
    if answer is dripping:
        monkeypatch.setattr(published, "LONGEST", 0.5)
    site.web.stopped = threading.Event()
    if end == "tokenizer.json":
        end = site.file(f"{KEY}/tokenizer", end)
    site.instead[end] = answer
    try:
        get_stage("tokenizer", progress=False)
    finally:
        site.web.stopped.set()
    assert trained == ["tokenizer"]
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.rglob(".partial-*"))
    if answer is longer:  # nobody reads it to its end
        for _ in range(200):
            if hasattr(site.web, "cut_off"):
                break
            time.sleep(0.05)
        assert site.web.cut_off


def test_a_redirect_within_the_site_is_followed(site, trained):
    moved = f"{site.url}/{FOLDER}/{site.folder.name}/moved"
    (site.folder / "moved").write_bytes(
        (site.folder / "index.json").read_bytes()
    )
    site.instead["index.json"] = status(301, Location=moved)
    get_stage("tokenizer", progress=False)
    assert trained == []


def test_offline_it_trains_and_says_so_once(
    site, trained, monkeypatch, capsys
):
    site.web.shutdown()
    site.web.server_close()
    get_stage("sft", progress=False)
    assert studies.get_study("twice", progress=False) == "computed here"
    assert trained == ["tokenizer", "pretrain", "sft"]
    said = capsys.readouterr().err
    assert said.count("no trained models from") == said.count("\n") == 1
    assert "cannot be reached" in said and "made here" in said


@pytest.mark.parametrize(
    "value",
    ["file:///etc", "ftp://127.0.0.1", "yes", "https://", "http://a/?b"],
)
def test_what_is_no_address_is_not_opened(
    site, trained, monkeypatch, capsys, value
):
    monkeypatch.setenv(VARIABLE, value)
    get_stage("tokenizer", progress=False)
    assert trained == ["tokenizer"]
    assert f"{VARIABLE} must be an address" in capsys.readouterr().err


def test_what_an_index_says_is_printed_without_control_characters(
    site, trained, capsys
):
    site.rewrite(
        lambda index: index["entries"][f"{KEY}/tokenizer"].update(
            made={"torch": "2\x1b[2J\n" + "9" * 500}
        )
    )
    get_stage("tokenizer")
    said = capsys.readouterr().out
    assert "with torch 2?[2J?999" in said and len(said) < 300


def test_two_who_ask_at_once_fetch_once(site, trained):
    found = []
    askers = [
        threading.Thread(
            target=lambda: found.append(get_stage("sft", progress=False))
        )
        for _ in range(4)
    ]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert trained == [] and len(set(found)) == 1 and len(found) == 4
    wanted = site.file(f"{KEY}/sft", "model.safetensors")
    entries = site.index()["entries"]
    sharing = [
        name
        for name in (f"{KEY}/tokenizer", f"{KEY}/pretrain", f"{KEY}/sft")
        for item in entries[name]["files"].values()
        if item["sha256"] == wanted
    ]
    assert sum(p.endswith(wanted) for p in site.asked) == len(sharing) == 1


# --- a book that is built here was trained here -----------------------------


def test_the_command_that_trains_fetches_nothing(
    site, trained, monkeypatch, capsys
):
    monkeypatch.setattr(book, "studies", lambda: {"twice": twice})
    book.main(["--jobs", "1"])
    assert trained == list(STAGES) and site.asked == []


@pytest.fixture
def extension(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    path = ROOT / "book" / "_ext" / "publish.py"
    spec = importlib.util.spec_from_file_location("publish", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_build_fetches_nothing_and_offers_what_it_has(
    site, tmp_path, monkeypatch, extension
):
    connected = {}
    extension.setup(SimpleNamespace(connect=connected.__setitem__))
    assert os.environ[VARIABLE] == "off"
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "author"))
    out = tmp_path / "out"
    app = SimpleNamespace(
        builder=SimpleNamespace(name="html"), outdir=str(out),
        srcdir=str(tmp_path),
    )  # fmt: skip
    connected["build-finished"](app, None)
    assert not out.exists(), "no notebook here uses a stage"
    app.srcdir = str(ROOT)
    connected["build-finished"](app, RuntimeError("no"))
    assert not out.exists()
    connected["build-finished"](app, None)
    made = out / FOLDER / stages.code_digest()
    assert files(made) == files(site.folder)


def test_torch_is_not_loaded_before_the_set_up():
    """How threads wait is chosen before, in `threads.set_wait_policy`."""
    import subprocess

    program = (
        "import sys, minimind_core.book.colab\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 0
