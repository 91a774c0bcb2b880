"""The cache of trained stages: made once, keyed on what makes them."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import minimind_core
from minimind_core import config
from minimind_core.book import stages
from minimind_core.book.stages import STAGES, get_stage
from minimind_core.callbacks import Callback
from minimind_core.errors import ConfigError
from minimind_core.run import is_finished


def digest_of(monkeypatch, folder):
    stages.code_digest.cache_clear()
    monkeypatch.setattr(minimind_core, "__file__", str(folder / "x.py"))
    found = stages.code_digest()
    stages.code_digest.cache_clear()
    return found


def test_the_key_is_the_code_and_not_its_comments(tmp_path, monkeypatch):
    source = Path(minimind_core.__file__).parent
    copy = tmp_path / "package"
    shutil.copytree(source, copy)
    before = digest_of(monkeypatch, copy)
    assert before == digest_of(monkeypatch, copy)

    def changed(name, old, new):
        path = copy / name
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        found = digest_of(monkeypatch, copy)
        path.write_text(text, encoding="utf-8")
        return found

    loud = '"""The transformer, written out'
    assert changed("model.py", loud, '"""Other words') == before
    assert changed("model.py", "import math", "import math  # so") == before
    # What only shows or starts things does not make a model.
    figures = "book/viz/figures.py"
    assert changed(figures, "WIDTH = 6.4", "WIDTH = 6.0") == before
    constant = "IGNORE_INDEX = -100"
    assert changed("model.py", constant, "IGNORE_INDEX = -1") != before
    table = "microworld/english.json"
    assert changed(table, '"mia": "Mia",', '"mia": "Mina",') != before
    assert changed(table, '"mia": "Mia",', '"mia":   "Mia",') == before


@pytest.mark.parametrize("name", ["torch", *stages.LIBRARIES])
def test_another_version_of_a_library_trains_again(name, monkeypatch):
    code, local = stages.code_digest(), stages.local_digest()
    assert local == stages.local_digest() != code
    real = stages.metadata.version
    monkeypatch.setattr(
        stages.metadata,
        "version",
        lambda asked: "99.1" if asked == name else real(asked),
    )
    if name == "torch":
        monkeypatch.setattr(stages.torch, "__version__", "99.1")
    assert stages.versions()[name] == "99.1"
    stages.code_digest.cache_clear()
    assert stages.local_digest() != local
    # What is published is known by its code alone.
    assert stages.code_digest() == code


def test_an_unknown_stage_names_the_known_ones():
    with pytest.raises(ConfigError, match="tokenizer, pretrain, sft"):
        get_stage("dpo")


def test_a_stage_is_made_once_with_all_before_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    tiny = config.PRESETS["tiny"]
    short = {
        name: getattr(tiny, name).replace(
            steps=2, batch_size=2, sample_every=0
        )
        for name in ("pretrain", "sft", "lora")
    }
    monkeypatch.setitem(config.PRESETS, "tiny", replace(tiny, **short))
    folder = get_stage("sft", progress=False)
    home = folder.parent
    assert home.parent == tmp_path / "stages"
    made = {path.name for path in home.iterdir()}
    assert made == {"tokenizer", "pretrain", "sft"}
    assert is_finished(folder)
    times = {p: p.stat().st_mtime_ns for p in home.rglob("*")}
    assert get_stage("sft", progress=False) == folder
    assert {p: p.stat().st_mtime_ns for p in home.rglob("*")} == times
    merged = get_stage("merged", progress=False)
    assert {path.name for path in home.iterdir()} == set(STAGES)
    assert (merged / "model.safetensors").exists()
    # Another seed is another model.
    other = get_stage("tokenizer", seed=1, progress=False)
    assert other.parent != home


# Two studies that wait for one another, and one that fails.
STUDIES = """
from pathlib import Path
import time

def meet(own, other):
    def study(preset, progress):
        Path(own).touch()
        for _ in range(600):
            if Path(other).exists():
                print(own, "met", other)
                return own
            time.sleep(0.1)
        raise TimeoutError(f"{own} was alone")
    return study

def broken(preset, progress):
    return 1 / 0

STUDIES = {"left": meet("left", "right"), "right": meet("right", "left")}
"""


NO_TRAINING = """

def _make(stage, folder, *rest):
    (folder / stage).mkdir(parents=True, exist_ok=True)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_studies_are_made_two_at_a_time(tmp_path, jobs):
    """In processes of their own; what they say, and which failed, is told."""
    package = tmp_path / "minimind_core"
    shutil.copytree(
        Path(minimind_core.__file__).parent,
        package,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for path in (package / "book" / "studies").glob("[a-z]*.py"):
        path.unlink()
    study = STUDIES
    if jobs == 1:  # nobody to wait for: it is the other that fails here
        study += 'STUDIES = {"left": broken, "right": broken}\n'
    pairs = package / "book" / "studies" / "pairs.py"
    pairs.write_text(study, encoding="utf-8")
    stages_file = package / "book" / "stages.py"
    code = stages_file.read_text(encoding="utf-8")
    stages_file.write_text(code + NO_TRAINING, encoding="utf-8")
    program = (
        "from minimind_core.book import __main__ as book\n"
        "if __name__ == '__main__':\n"
        f"    book.main(['--jobs', '{jobs}'])\n"
    )
    (tmp_path / "go.py").write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "go.py"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "MINIMIND_CACHE": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    if jobs == 2:
        assert done.returncode == 0, said
        assert "  left: left met right\n" in done.stdout
        assert "8/8 " in done.stdout and "ready" in done.stdout
        made = list((tmp_path / "cache" / "studies").glob("*.json"))
        assert len(made) == 2
    else:
        assert done.returncode != 0
        assert "ZeroDivisionError" in said and "return 1 / 0" in said
        assert "in the study 'left'" in done.stderr
        assert "ready" not in said


def test_who_asks_for_a_tokenizer_does_not_wait_for_the_training(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    folder = get_stage("tokenizer", progress=False).parent
    with stages.locked(folder.parent, f"{folder.name}-pretrain"):
        assert get_stage("tokenizer", progress=False).exists()


def test_snapshots_are_the_weights_of_their_steps(small_runs, tmp_path,
                                                  monkeypatch):  # fmt: skip
    from safetensors.torch import load_file

    from minimind_core import pretrain

    monkeypatch.setattr(stages, "SNAPSHOTS", (2, 4))
    run = pretrain(
        tmp_path / "run", tokenizer=small_runs / "tokenizer", steps=4,
        batch_size=4, device="cpu", progress=False,
        callbacks=[stages.Snapshots(tmp_path / "steps")],
    )  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == [
        "2.safetensors", "4.safetensors",
    ]  # fmt: skip
    early, late = (
        load_file(tmp_path / "steps" / f"{step}.safetensors")
        for step in (2, 4)
    )
    final = load_file(run.path / "model.safetensors")
    assert late.keys() == final.keys()
    assert all(late[name].equal(final[name]) for name in final)
    assert any(not early[name].equal(final[name]) for name in final)


def test_snapshots_that_an_older_cache_lacks_are_trained_again(
    small_runs, tmp_path, monkeypatch
):
    stage = tmp_path / "stages" / "key" / "pretrain"
    trained = []

    def again(out, *, tokenizer, callbacks, progress):
        trained.append(tokenizer)
        (keep,) = callbacks
        keep.folder.mkdir(parents=True, exist_ok=True)
        for step in stages.SNAPSHOTS:
            (keep.folder / f"{step}.safetensors").write_bytes(b"")

    monkeypatch.setattr(stages, "get_stage", lambda name, **_: stage)
    monkeypatch.setattr(stages, "pretrain", again)
    for _ in range(2):
        found = stages.get_snapshots(progress=False)
        assert list(found) == list(stages.SNAPSHOTS)
        assert all(file.exists() for file in found.values())
    assert trained == [stage.parent / "tokenizer"]


KILLED = """
import dataclasses, json, os, sys
from minimind_core import config
from minimind_core.book import stages
from minimind_core.callbacks import Callback

stage, short = sys.argv[1], json.loads(sys.argv[2])
tiny = config.PRESETS["tiny"]
config.PRESETS["tiny"] = dataclasses.replace(
    tiny, **{stage: getattr(tiny, stage).replace(**short)})

class Dies(Callback):
    def on_step_end(self, trainer, record):
        if trainer.step == 4:
            os._exit(9)  # as if the machine had disappeared

def dying(run):
    return lambda *given, **settings: run(
        *given, **{**settings, "callbacks": [Dies()]})

name = {"lora": "train_lora"}.get(stage, stage)
setattr(stages, name, dying(getattr(stages, name)))
stages.SAVE_EVERY = dict.fromkeys(stages.SAVE_EVERY, 2)
stages.get_stage(stage, progress=False)
"""


@pytest.mark.parametrize("stage", ["pretrain", "lora"])
def test_a_killed_stage_goes_on_from_its_checkpoint(
    small_runs, tmp_path, monkeypatch, stage
):
    """In a folder that outlives the process, as on a mounted drive."""
    name = {"lora": "train_lora"}.get(stage, stage)
    tiny = config.PRESETS["tiny"]
    short = {"steps": 5, "batch_size": 2, "sample_every": 0, "dtype":
             "float32", "threads": 1}  # fmt: skip
    own = replace(tiny, **{stage: getattr(tiny, stage).replace(**short)})
    monkeypatch.setitem(config.PRESETS, "tiny", own)
    computed = []

    class Counts(Callback):
        def on_step_end(self, trainer, record):
            computed.append(trainer.step)

    real = getattr(stages, name)
    monkeypatch.setattr(stages, name, lambda *given, **settings: real(
        *given, **{**settings, "callbacks": [Counts()]}
    ))  # fmt: skip

    def prepare(cache):
        """A cache with all that the stage begins with."""
        monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / cache))
        folder = stages.find_shelf().stages("microworld-0")
        for before in STAGES[: STAGES.index(stage)]:
            shutil.copytree(small_runs / before, folder / before)
        return folder / stage

    killed = prepare("kept")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, stage, json.dumps(short)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 9, done.stderr
    assert not is_finished(killed)
    assert get_stage(stage, progress=False) == killed
    # Step 4 was lost before it was saved; steps 1 and 2 are not repeated.
    assert computed == [3, 4, 5]
    # And the result is that of a run which nobody killed.
    whole = prepare("whole")
    assert get_stage(stage, progress=False) == whole
    assert computed[3:] == [1, 2, 3, 4, 5]
    file = {"lora": "adapter_model"}.get(stage, "model") + ".safetensors"
    assert (killed / file).read_bytes() == (whole / file).read_bytes()
