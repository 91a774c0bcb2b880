"""Studies: computed once, kept under the code they came from."""

import json
from pathlib import Path

import pytest

from minimind_core import studies
from minimind_core.errors import ConfigError


@pytest.fixture
def counted(tmp_path, monkeypatch):
    """A cache with one study in it, and how often that was computed."""
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    calls = []

    def twice(preset, progress):
        calls.append((preset, progress))
        return [preset, len(calls)]

    monkeypatch.setattr(studies, "studies", lambda: {"twice": twice})
    return calls


def test_a_study_is_computed_once_for_each_size(counted):
    assert studies.get_study("twice", progress=False) == ["tiny", 1]
    assert studies.get_study("twice") == ["tiny", 1]
    assert studies.get_study("twice", preset="small") == ["small", 2]
    assert counted == [("tiny", False), ("small", True)]


def test_other_code_makes_another_result(counted, tmp_path, monkeypatch):
    studies.get_study("twice")
    monkeypatch.setattr(studies, "code_digest", lambda: "other")
    assert studies.get_study("twice") == ["tiny", 2]
    left = [path.name for path in (tmp_path / "studies").glob("*.json")]
    assert len(left) == 1 and left[0].startswith("other-"), left


def test_an_unknown_study_is_named_with_those_there_are(counted):
    with pytest.raises(ConfigError, match=r"unknown study 'thrice'.*twice"):
        studies.get_study("thrice")


def test_a_study_that_fails_leaves_nothing(counted, tmp_path, monkeypatch):
    def fails(preset, progress):
        raise RuntimeError("no")

    monkeypatch.setattr(studies, "studies", lambda: {"fails": fails})
    with pytest.raises(RuntimeError):
        studies.get_study("fails")
    assert not list((tmp_path / "studies").glob("*.json"))


def test_the_books_studies_return_what_json_can_hold():
    kept = Path(studies.cache_folder() / "studies")
    for name, study in studies.studies().items():
        assert callable(study) and study.__doc__, name
        for file in kept.glob(f"*-tiny-{name}.json"):
            assert "result" in json.loads(file.read_text("utf8"))
