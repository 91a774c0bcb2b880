"""Studies: computed once, kept under the code they came from."""

import json
from functools import partial
from pathlib import Path

import pytest

from minimind_core.book import stages, studies
from minimind_core.book.jobs import Job, run_jobs
from minimind_core.book.sizes import Size
from minimind_core.book.stages import STAGES
from minimind_core.cache import cache_folder
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
    agreed = Size("small", confirmed=True)
    assert studies.get_study("twice", preset=agreed) == ["small", 2]
    assert counted == [("tiny", False), ("small", True)]


def test_other_code_makes_another_result(counted, tmp_path, monkeypatch):
    studies.get_study("twice")
    monkeypatch.setattr(stages, "local_digest", lambda: "other")
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


def test_missing_studies_are_computed_in_other_processes(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    shelf = stages.find_shelf()
    kept = studies._file_of("sampling", "tiny", shelf)
    kept.parent.mkdir()
    write_json(kept, {"result": "of sampling"})
    asked = []

    def run(jobs, workers, *, progress):
        asked.append(([*jobs], workers, progress))
        for name in jobs:
            write_json(
                studies._file_of(name, "tiny", shelf),
                {"result": f"of {name}"},
            )

    monkeypatch.setattr(studies, "run_jobs", run)
    names = ("faults", "sampling", "binding")
    for _ in range(2):  # the second time nothing is missing
        found = studies.get_studies(*names, jobs=2, progress=False)
        assert found == {name: f"of {name}" for name in names}
    assert asked == [(["faults", "binding"], 2, False)]


def test_an_error_in_another_process_is_raised_here(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path))
    jobs = {
        name: Job(partial(studies.get_study, name)) for name in ("one", "two")
    }
    with pytest.raises(ConfigError, match=r"unknown study '(one|two)'"):
        run_jobs(jobs, 2)


def test_every_study_names_the_stage_it_begins_with():
    there = {
        study.__module__.rpartition(".")[2]
        for study in studies.studies().values()
    }
    assert studies.BEGINS_WITH.keys() <= there
    assert {studies.stage_for(name) for name in studies.studies()} <= set(
        STAGES
    )
    assert studies.stage_for("lora_variants") == "hf"
    assert studies.stage_for("binding") == "tokenizer"


def test_the_books_studies_return_what_json_can_hold():
    kept = Path(cache_folder() / "studies")
    for name, study in studies.studies().items():
        assert callable(study) and study.__doc__, name
        for file in kept.glob(f"*-tiny-{name}.json"):
            assert "result" in json.loads(file.read_text("utf8"))
