"""Studies: computed once, kept under the code they came from."""

import json
from pathlib import Path

import pytest

from minimind_core.book import studies
from minimind_core.errors import ConfigError
from minimind_core.files import write_json


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
    with pytest.raises(RuntimeError) as caught:
        studies.get_study("fails")
    assert caught.value.__notes__ == ["in the study 'fails'"]
    assert not list((tmp_path / "studies").glob("*.json"))


def test_several_studies_come_by_name(counted):
    assert studies.get_studies("twice") == {"twice": ["tiny", 1]}
    assert studies.get_studies("twice", "twice") == {"twice": ["tiny", 1]}
    with pytest.raises(ConfigError, match="unknown study 'thrice'"):
        studies.get_studies("twice", "thrice", preset="small")
    assert counted == [("tiny", True)]


def test_studies_are_computed_in_other_processes(
    tmp_path, monkeypatch, capfd
):
    """In a cache of their own, where they find their results made."""
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    for name in ("faults", "binding"):
        file = studies._file_of(name, "tiny")
        file.parent.mkdir(exist_ok=True)
        write_json(file, {"result": f"of {name}"})
    studies._compute(["faults", "binding"], "tiny", True, jobs=2)
    told = sorted(line[6:] for line in capfd.readouterr().out.splitlines())
    assert [line[:4] for line in told] == ["1/2 ", "2/2 "]
    assert {line[4:].split(":")[0] for line in told} == {"faults", "binding"}
    both = studies.get_studies("faults", "binding")
    assert both == {"faults": "of faults", "binding": "of binding"}


def test_an_error_in_another_process_is_raised_here(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"unknown study '(one|two)'"):
        studies._compute(["one", "two"], "tiny", False, jobs=2)


def test_lines_of_two_at_a_time_say_whose_they_are(capsys):
    lines = studies._Lines("binding")
    lines.write("\rstep 1\rstep 2\nsee")
    lines.write("n\n")
    assert capsys.readouterr().out == "  binding: step 2\n  binding: seen\n"


def test_the_books_studies_return_what_json_can_hold():
    kept = Path(studies.cache_folder() / "studies")
    for name, study in studies.studies().items():
        assert callable(study) and study.__doc__, name
        for file in kept.glob(f"*-tiny-{name}.json"):
            assert "result" in json.loads(file.read_text("utf8"))
