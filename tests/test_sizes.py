"""Nothing long is trained in a notebook without consent."""

import dataclasses
import pickle

import pytest

from minimind_core import config, cost
from minimind_core.book import sizes, stages, studies
from minimind_core.book.sizes import Size, choose_size
from minimind_core.book.stages import get_stage
from minimind_core.errors import ConfigError
from minimind_core.precision import DeviceFacts

T4 = DeviceFacts("cuda", "Tesla T4", False, (7, 5))
H100 = DeviceFacts("cuda", "NVIDIA H100 80GB HBM3", True, (9, 0))


@pytest.fixture
def made(monkeypatch, tmp_path):
    """The stages that would have been made, instead of making them."""
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    monkeypatch.setattr(sizes, "detect_device", lambda: T4)
    done = []

    def make(stage, folder, size, *rest):
        done.append((stage, str(size)))

    monkeypatch.setattr(stages, "_make", make)
    return done


def test_a_larger_size_stops_with_its_cost(made):
    with pytest.raises(ConfigError) as caught:
        get_stage("sft", preset="small")
    said = str(caught.value)
    small = config.get_preset("small")
    for card in cost.DEVICES.values():
        span = cost.hours_on(card, small, small.pretrain, small.sft)
        assert f"{card.name:<9} {span}" in said
    assert "on this T4, training pretrain and sft" in said
    assert "3,277M tokens" in said and "GB of memory" in said
    assert "confirm=True" in said
    assert made == []  # not even the tokenizer


def test_with_consent_it_starts(made):
    get_stage("sft", preset="small", confirm=True)
    three = [("tokenizer", "small"), ("pretrain", "small"), ("sft", "small")]
    assert made == three
    get_stage("sft", preset=choose_size("small", confirm=True))
    assert made == three * 2


@pytest.mark.parametrize(
    ("size", "stage", "facts"),
    [
        ("tiny", "merged", T4),  # what the pages show
        ("base", "tokenizer", T4),  # trains no model
        ("t4", "merged", H100),  # takes minutes
    ],
)
def test_what_is_short_needs_no_consent(
    made, monkeypatch, size, stage, facts
):
    monkeypatch.setattr(sizes, "detect_device", lambda: facts)
    get_stage(stage, preset=size)
    assert made[-1] == (stage, size)


def test_what_is_there_needs_no_consent(made, monkeypatch):
    finished = {"pretrain", "sft"}
    monkeypatch.setattr(
        stages, "is_finished", lambda folder: folder.name in finished
    )
    get_stage("hf", preset="base")
    assert [stage for stage, _ in made] == ["tokenizer", "pretrain", "sft",
                                            "hf"]  # fmt: skip
    finished.remove("sft")
    with pytest.raises(ConfigError, match="training sft at the size 'base'"):
        get_stage("hf", preset="base")


def test_a_study_of_a_larger_size_stops_too(made, monkeypatch):
    monkeypatch.setattr(
        studies, "studies", lambda: {"parts": studies_parts}
    )
    with pytest.raises(ConfigError, match="not started: the study 'parts'"):
        studies.get_study("parts", preset="small")
    agreed = Size("small", confirmed=True)
    assert studies.get_study("parts", preset=agreed) == "small"
    # And is there from now on.
    assert studies.get_study("parts", preset="small") == "small"


def studies_parts(preset, progress):
    assert sizes.is_confirmed(preset)
    return str(preset)


studies_parts.__module__ = "minimind_core.book.studies.parts"


def test_the_cost_of_larger_sizes_is_printed(capsys):
    assert choose_size() == "tiny"
    said = capsys.readouterr().out
    assert cost.compare_costs(["t4", "small", "base"]) in said
    choose_size("tiny", until="pretrain")
    less = capsys.readouterr().out
    assert cost.compare_costs(["t4", "small", "base"], ["pretrain"]) in less
    assert less != said and "confirm=True" in less
    assert max(map(len, less.splitlines())) <= 78


def test_a_size_is_a_name_that_remembers_consent():
    size = Size("small", confirmed=True)
    assert size == "small" and f"{size}-0" == "small-0"
    assert config.get_preset(size) is config.PRESETS["small"]
    # Other processes get it as well.
    assert sizes.is_confirmed(pickle.loads(pickle.dumps(size)))
    assert sizes.is_confirmed(Size(size))
    assert not sizes.is_confirmed(Size("small"))
    assert not sizes.is_confirmed("small")
    with pytest.raises(ConfigError, match="unknown preset 'huge'"):
        choose_size("huge")


def test_it_is_the_estimate_that_decides(made, monkeypatch):
    """A training of nine minutes starts; one of eleven does not."""
    t4 = config.PRESETS["t4"]
    whole = cost.hours_on(cost.DEVICES["T4"], t4, t4.pretrain).high
    for minutes, starts in ((9, True), (11, False)):
        steps = int(t4.pretrain.steps * minutes / 60 / whole)
        short = dataclasses.replace(
            t4, pretrain=t4.pretrain.replace(steps=steps)
        )
        monkeypatch.setitem(config.PRESETS, "t4", short)
        made.clear()
        try:
            get_stage("pretrain", preset="t4")
        except ConfigError:
            assert not starts
        assert bool(made) is starts
