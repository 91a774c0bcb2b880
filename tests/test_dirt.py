"""Dirty stories: each kind is what its label says, and nothing else is."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_core.book.studies import dirt as study
from minimind_core.errors import ConfigError
from minimind_core.microworld import (
    HELD_OUT_SEED,
    LANGUAGES,
    NotInLanguage,
    is_valid,
    read_story,
    write_story,
)
from minimind_core.microworld.dirt import (
    BOILERPLATE,
    DIRT,
    RETOLD,
    DirtyStories,
    score,
)

ALL = dict.fromkeys(DIRT, 1 / len(DIRT))
seeds = st.integers(0, 2**32)
indices = st.integers(1, 10**6)
languages = st.sampled_from(LANGUAGES)


def dirty(kind, language, seed, index):
    """The record at an index, which has this kind of dirt."""
    source = DirtyStories(language, seed, {kind: 1.0}, held_out=100)
    (found,) = source.labelled([index])
    assert found.dirt == kind
    return found


def pieces(text, language):
    return sorted(text if language == "zh" else text.split())


@settings(max_examples=60, deadline=None)
@given(languages, seeds, indices, st.sampled_from(DIRT))
def test_a_label_tells_whether_the_world_could_have_written_it(
    language, seed, index, kind
):
    found = dirty(kind, language, seed, index)
    valid = kind in ("duplicate", "near duplicate", "held out")
    assert is_valid(found.text, language) is valid
    again = DirtyStories(language, seed, {kind: 1.0}, held_out=100)
    assert again.labelled([0, index, 7])[1] == found
    assert again.records([index]) == [found.text]


@settings(max_examples=60, deadline=None)
@given(languages, seeds, indices)
def test_a_near_duplicate_differs_in_one_detail_or_two(language, seed, index):
    found = dirty("near duplicate", language, seed, index)
    told = read_story(found.text, language).state
    first = write_story(seed, found.origin, language).state
    same = ("hero", "friend", "plot", "color", "thing", "number")
    assert all(told.get(role) == first.get(role) for role in same)
    changed = {r for r in RETOLD if told.get(r) != first.get(r)}
    assert 1 <= len(changed) <= 2
    assert found.text != write_story(seed, found.origin, language).text


@settings(max_examples=60, deadline=None)
@given(languages, seeds, indices)
def test_a_contradiction_is_one_word_that_the_story_said_otherwise(
    language, seed, index
):
    found = dirty("contradiction", language, seed, index).text
    story = write_story(seed, index, language).text
    with pytest.raises(NotInLanguage) as error:
        read_story(found, language)
    assert error.value.reason
    # It begins and ends like the story, and differs between.
    at = next(i for i, (a, b) in enumerate(zip(found, story, strict=False))
              if a != b)  # fmt: skip
    back = next(i for i, (a, b) in enumerate(
        zip(found[::-1], story[::-1], strict=False)) if a != b)  # fmt: skip
    assert 0 < max(len(found), len(story)) - at - back < 30
    if language == "en":
        changed = set(re.findall("[a-z]+", found)) ^ set(
            re.findall("[a-z]+", story)
        )
        assert not changed & {"he", "she", "him", "her", "his"}


@settings(max_examples=40, deadline=None)
@given(languages, seeds, indices)
def test_each_change_is_what_its_name_says(language, seed, index):
    story = write_story(seed, index, language).text

    def made(kind):
        return dirty(kind, language, seed, index).text

    other = next(one for one in LANGUAGES if one != language)
    assert made("other language") == write_story(seed, index, other).text
    assert pieces(made("shuffled"), language) == pieces(story, language)
    first, inside, *rest = made("boilerplate").split("\n")
    assert inside == story
    assert len({first, *rest} & set(BOILERPLATE[language])) == 3
    lines = made("repeated line").split("\n")
    assert len(set(lines)) == 1 and 5 <= len(lines) <= 9
    assert story.startswith(lines[0])
    short = made("fragment")
    assert story.startswith(short) and len(short) < 60
    if language == "en":
        words = list(zip(made("typos").split(), story.split(), strict=True))
        wrong = [(a, b) for a, b in words if a != b]
        assert 1 <= len(wrong) <= len(words) // 6
        assert all(abs(len(a) - len(b)) <= 1 for a, b in wrong)
    assert (
        made("held out")
        == write_story(seed + HELD_OUT_SEED, index % 100, language).text
    )


@settings(max_examples=30, deadline=None)
@given(seeds, st.lists(st.integers(0, 300), max_size=5))
def test_copies_are_of_clean_records_that_came_before(seed, at):
    source = DirtyStories("en", seed, {"duplicate": 0.5, "typos": 0.4})
    for i, one in zip(at, source.labelled(at), strict=True):
        if one.dirt != "duplicate":
            assert one.origin == i
            continue
        (first,) = source.labelled([one.origin])
        assert one.origin < min(i, source.pool)
        assert (first.dirt, first.text) == ("", one.text)


def test_shares_are_those_that_were_asked_for():
    source = DirtyStories("en", 3, {"typos": 0.3, "shuffled": 0.1})
    counts = Counter(one.dirt for one in source.labelled(range(2000)))
    assert counts.keys() == {"", "typos", "shuffled"}
    for kind, share in (("typos", 0.3), ("shuffled", 0.1), ("", 0.6)):
        assert abs(counts[kind] / 2000 - share) < 0.04
    # Clean ones are the stories of that seed.
    for i, one in enumerate(source.labelled(range(50))):
        clean = write_story(3, i).text
        assert (one.text == clean) is (one.dirt == "")


def test_they_are_a_source_for_training():
    source = DirtyStories("en", 0, ALL)
    assert source.size is None
    assert len(source.records(range(5))) == 5
    assert source.records([]) == []


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"mud": 0.1}, "unknown dirt 'mud'"),
        ({"typos": 1.5}, "share cannot be"),
        ({"typos": 0.6, "shuffled": 0.6}, "more than 1"),
    ],
)
def test_shares_that_cannot_be(shares, said):
    with pytest.raises(ConfigError, match=said):
        DirtyStories("en", 0, shares)
    with pytest.raises(ValueError, match="speaks"):
        DirtyStories("fr")


def test_a_score_counts():
    labels = ["", "a", "a", "b", "", "a"]
    found = score(labels, [0, 1, 2, 3], ["a"])
    assert found.precision == 2 / 4 and found.recall == 2 / 3
    assert found[2:] == (4, 3, 2)
    assert score(labels, [], ["a"]).precision is None
    assert score(labels, [0], ["c"]).recall is None


# --- the studies -----------------------------------------------------------


@pytest.fixture
def small(monkeypatch, small_tiny):
    for name, value in (
        ("RECORDS", 600), ("HELD_OUT", 5), ("TOKENS", 3000), ("WIDTH", 16),
        ("SEEDS", (0, 1)), ("THRESHOLDS", (0.3, 0.6, 0.9)),
    ):  # fmt: skip
        monkeypatch.setattr(study, name, value)


def test_filters_find_what_they_are_for_and_leave_clean_stories(small):
    found = study.dirt_filters("tiny", False)
    assert sum(found["records"].values()) == 600
    by_name = {one["name"]: one for one in found["filters"]}
    for one in by_name.values():
        assert one["found"][""] < 0.02
        assert one["found"]["contradiction"] == 0
    assert by_name["exact duplicates"]["found"]["duplicate"] == 1
    assert by_name["near duplicates"]["found"]["near duplicate"] > 0.6
    for name, kind in (
        ("language", "other language"), ("length", "fragment"),
        ("repetition", "repeated line"), ("contamination", "held out"),
    ):  # fmt: skip
        assert by_name[name]["recall"] == by_name[name]["precision"] == 1
        assert by_name[name]["found"][kind] == 1
    low, _, high = found["thresholds"]
    assert low["recall"] > high["recall"]
    assert low["precision"] < high["precision"]


def test_every_run_has_the_same_tokens(small, capsys):
    found = study.dirt_prices("tiny", True)
    names = [run["name"] for run in found["runs"]]
    assert names == [*names[: len(names) // 2]] * 2
    assert len(set(names)) == len(study.SHARES) + 1
    runs = {(run["name"], run["seed"]): run for run in found["runs"]}
    assert runs["clean", 0]["over"] > 0 and found["floor"] > 0
    assert runs["clean", 0]["clean_tokens"] == 1
    assert runs["other language", 0]["clean_tokens"] < 0.45
    mixed, cleaned = (
        runs[name, 0]["clean_tokens"]
        for name in ("a mixture", "the mixture, cleaned")
    )
    assert cleaned > mixed + 0.2
    whole = runs["clean", 0]["steps"]
    assert abs(runs["half as much, clean", 0]["steps"] - whole / 2) <= 1
    # Trained on the same stories from the same weights, up to the dirt.
    assert runs["clean", 0]["over"] != runs["clean", 1]["over"]
    assert runs["noise", 0]["over"] != runs["clean", 0]["over"]
    assert "the mixture, cleaned, seed 1" in capsys.readouterr().out
