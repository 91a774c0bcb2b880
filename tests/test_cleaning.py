"""Cleaning: what each filter removes, and what the report says of it."""

import builtins
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind_core.cli import main
from minimind_core.data import InMemory, open_records, parse_data
from minimind_core.data.cleaning import (
    Cleaning,
    clean,
    clean_file,
    read_texts,
    text_of,
)
from minimind_core.data.filters import (
    GOPHER,
    Contamination,
    ExactDuplicates,
    Languages,
    Length,
    NearDuplicates,
    Repetition,
    ngrams,
    repetition,
    words,
)
from minimind_core.errors import ConfigError, DataError, OutputError
from minimind_core.microworld import write_story

STORY = write_story(0, 0).text
TALK = [
    {"role": "user", "content": "Where is Mia?"},
    {"role": "assistant", "content": "At the lake."},
]


def write(path, records):
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def texts(*found):
    return [{"text": one} for one in found]


def run(*arguments):
    return main(["clean", *map(str, arguments)])


# --- words and n-grams -----------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Mia's 3 hats, twice!", ("mia", "s", "3", "hats", "twice")),
        ("米娅有GPU吗？", ("米", "娅", "有", "gpu", "吗")),
        ("Straße _x_", ("strasse", "x")),
        ("... 🙂", ()),
    ],
)
def test_words(text, found):
    assert words(text) == found


def test_ngrams_of_chinese_have_twice_as_many_characters():
    assert ngrams(("a", "b", "c"), 2) == ["a b", "b c"]
    assert ngrams(tuple("米娅去了湖"), 2) == ["米 娅 去 了", "娅 去 了 湖"]
    assert ngrams(("a", "b"), 5) == ["a b"]


# --- the filters, one by one -----------------------------------------------


def test_exact_duplicates_differ_in_nothing_but_space_and_encoding():
    given_texts = ["A cafe\u0301.", "A  caf\u00e9.\n", "a caf\u00e9."]
    kept, report = clean(given_texts, [ExactDuplicates()])
    assert kept == [given_texts[0], given_texts[2]]
    (example,) = report.examples["exact duplicates"]
    assert (example.place, example.why) == ("record 1", "same as record 0")


def test_near_duplicates_are_measured_by_their_ngrams():
    changed = STORY.replace("afternoon", "morning", 1)
    kept, report = clean(
        [STORY, write_story(0, 1).text, changed], [NearDuplicates(0.6)]
    )
    assert len(kept) == 2 and changed not in kept
    (example,) = report.examples["near duplicates"]
    shared, estimate = jaccard(STORY, changed), float(example.why[:4])
    assert example.why.endswith("like record 0")
    assert shared > 0.7 and abs(shared - estimate) < 0.15
    # It is not near enough for a higher threshold.
    assert len(clean([STORY, changed], [NearDuplicates(0.95)]).kept) == 2


def jaccard(a, b, n=5):
    a, b = (set(ngrams(words(one), n)) for one in (a, b))
    return len(a & b) / len(a | b)


def test_near_duplicates_find_nearly_all_that_a_full_comparison_finds():
    rng = random.Random(0)
    given_texts = [write_story(0, i).text for i in range(60)]
    for i in range(60):  # with zero to five words changed
        parts = given_texts[i].split()
        for _ in range(i % 6):
            parts[rng.randrange(len(parts))] = "new"
        given_texts.append(" ".join(parts))
    cleaning = Cleaning(given_texts, [NearDuplicates(0.7, permutations=512)])
    kept = set(cleaning)
    for i, text in enumerate(given_texts):
        before = [jaccard(text, one) for one in given_texts[:i]]
        if before and max(before) > 0.8:
            assert text not in kept or text in given_texts[:i]
        elif not before or max(before) < 0.6:
            assert text in kept


def test_texts_without_words_are_no_near_duplicates():
    assert clean(["...", "🙂"], [NearDuplicates()]).kept == ["...", "🙂"]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.95])
def test_every_threshold_finds_the_same_text_again(threshold):
    given_texts = [STORY, STORY.upper(), "Nothing of this is in it."]
    kept, _ = clean(given_texts, [NearDuplicates(threshold)])
    assert kept == [STORY, given_texts[2]]


def test_length_counts_words():
    given_texts = ["one", "one two", "one two three", "一二三"]
    kept, report = clean(given_texts, [Length(2, 2)])
    assert kept == ["one two"]
    whys = [one.why for one in report.examples["length"]]
    assert whys == ["1 words", "3 words", "3 words"]


def test_language_keeps_those_named_and_what_nobody_can_tell():
    chinese, french = (
        write_story(0, 0, "zh").text,
        ("Le matin, le boulanger va au marché et il rencontre son amie."),
    )
    given_texts = [STORY, chinese, french, "OK"]
    assert clean(given_texts, [Languages("en")]).kept == [STORY, "OK"]
    kept, report = clean(given_texts, [Languages("en", "zh")])
    assert kept == [STORY, chinese, "OK"]
    assert report.examples["language"][0].why.startswith("fr (")


@pytest.mark.parametrize(
    ("text", "measure", "share"),
    [
        ("a b\na b\nc d\ne f", "lines", 1 / 4),
        ("aa\naa\naa\nb", "line characters", 4 / 7),
        ("a\nb\n\na\nb\n\nc", "paragraphs", 1 / 3),
        ("a b a b c", "top 2-gram", 4 / 5),
        ("a b c d e f", "top 2-gram", 0.0),
        # Six words twice, and two that occur once.
        ("a b c d e f x a b c d e f y", "5-grams", 12 / 14),
        ("a b c d e f x a b c d e f y", "7-grams", 0.0),
    ],
)
def test_repetition_is_measured(text, measure, share):
    assert repetition(text)[measure] == pytest.approx(share)


def test_repetition_removes_what_is_over_a_limit():
    loop = "He went to the lake. " * 5
    kept, report = clean([STORY, loop], [Repetition()])
    assert kept == [STORY] and report.removed["repetition"] == 1
    assert clean([loop], [Repetition({"lines": 0.5})]).kept == [loop]


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab米 \n.", max_size=60))
def test_shares_are_shares(text):
    found = repetition(text)
    assert found.keys() == GOPHER.keys()
    assert all(0 <= share <= 1 for share in found.values())


def test_contamination_finds_a_held_out_text_within_a_longer_one():
    held_out = [write_story(5, i).text for i in range(3)]
    page = f"My page. {held_out[1].upper()} Goodbye."
    half = " ".join(held_out[2].split()[:35])
    given_texts = [STORY, page, half, "Yes."]
    kept, report = clean(given_texts, [Contamination(held_out, share=0.3)])
    assert kept == [STORY, "Yes."]
    whys = [one.why for one in report.examples["contamination"]]
    assert whys[0] == "100% of held-out text 1"
    assert whys[1].endswith("of held-out text 2")
    strict = Contamination(held_out, share=0.99)
    assert clean(given_texts, [strict]).kept == [STORY, half, "Yes."]
    # A short one is found only where it is the whole record.
    short = Contamination(["yes", "..."], n=5)
    assert clean(["Yes, I say.", "YES", "?"], [short]).kept == [
        "Yes, I say.",
        "?",
    ]


# --- several of them, and the report ---------------------------------------


def shouting(text):
    return f"{text.count('!')} marks" if text.endswith("!") else ""


def test_the_first_filter_that_removes_a_record_counts_it():
    given_texts = ["Buy!", "Buy!", STORY, STORY, "short"]
    kept, report = clean(
        given_texts, [shouting, ExactDuplicates(), Length(2), Length(3)]
    )
    assert kept == [STORY]
    assert report.removed == {
        "shouting": 2, "exact duplicates": 1, "length": 1, "length 2": 0,
    }  # fmt: skip
    assert (report.read, report.kept) == (5, 1)
    assert report.characters == sum(map(len, given_texts))
    assert report.kept_characters == len(STORY)
    said = str(report)
    assert "exact duplicates          1  20.0%" in said
    assert "record 0 (1 marks): 'Buy!'" in said
    assert json.loads(json.dumps(report.to_dict()))["examples"]["shouting"]


def test_a_rule_may_just_say_yes_or_no():
    kept, report = clean(["a", "b"], [lambda text: text == "a"], examples=1)
    assert kept == ["b"]
    assert "record 0: 'a'" in str(report)


def test_a_filter_remembers_nothing_from_one_data_set_to_the_next():
    chosen = [ExactDuplicates(), NearDuplicates()]
    for _ in range(2):
        assert clean([STORY, STORY], chosen).kept == [STORY]


def test_records_are_read_one_at_a_time_and_returned_as_they_are():
    drawn = []

    def endless():
        for i in range(10**9):
            drawn.append(i)
            yield {"text": f"Story {i // 2}.", "id": i}

    cleaning = iter(Cleaning(endless(), [ExactDuplicates()]))
    assert [next(cleaning)["id"] for _ in range(3)] == [0, 2, 4]
    assert drawn == [0, 1, 2, 3, 4]


def test_conversations_are_what_their_messages_say():
    tool = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    assert text_of(TALK) == "Where is Mia?\nAt the lake."
    assert text_of({"messages": [*TALK[:1], tool]}).endswith('"name": "f"}]')
    other = [TALK[0], {"role": "assistant", "content": "At home."}]
    kept, _ = clean(
        [TALK, {"conversations": TALK}, other], [ExactDuplicates()]
    )
    assert kept == [TALK, other]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab ", min_size=1, max_size=4), max_size=30))
def test_what_is_kept_is_in_order_and_adds_up(given_texts):
    chosen = [Length(1, 2), ExactDuplicates(), NearDuplicates(0.5)]
    kept, report = clean(given_texts, chosen)
    left = iter(given_texts)
    assert all(one in left for one in kept)  # a subsequence
    assert report.read == report.kept + sum(report.removed.values())
    assert clean(given_texts, chosen) == (kept, report)
    assert clean(kept, chosen).kept == kept


# --- what can go wrong -----------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: NearDuplicates(1.5), "threshold must be from 0.1 to 0.95"),
        (lambda: Length(5, 4), "no text has such a length"),
        (lambda: Languages(), "name the languages"),
        (lambda: clean([], [Languages("english")]), "unknown language"),
        (lambda: Repetition({"rows": 1}), "unknown measure 'rows'"),
        (lambda: Contamination([], share=2), "share must be"),
        (lambda: clean([], [5]), "5 is no filter"),
        (lambda: clean([], [Length]), "Length is no filter"),
    ],
)
def test_settings_that_cannot_be(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


def test_a_missing_library_names_the_extra(monkeypatch):
    import minimind_core.data.filters as module

    module._identifier.cache_clear()
    real = module.importlib.import_module

    def absent(name, *rest):
        if name.partition(".")[0] in ("datasketch", "py3langid"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(module.importlib, "import_module", absent)
    for one, name in (
        (NearDuplicates(), "datasketch"), (Languages("en"), "py3langid"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as error:
            clean(["a"], [one])
        assert f"package {name}" in str(error.value)
        assert "pip install 'minimind-core[data]'" in str(error.value)


def test_something_that_is_no_record_is_named():
    with pytest.raises(DataError, match=r"record 1: .*found"):
        clean(["a", {"title": "b"}], [ExactDuplicates()])
    with pytest.raises(DataError, match="record 0"):
        clean([""], [ExactDuplicates()])


def test_files_are_cleaned_into_one(tmp_path):
    one = write(tmp_path / "one.jsonl", texts(STORY, "é à", STORY))
    two = tmp_path / "two.txt"
    two.write_text(f"{STORY}\n", encoding="utf-8")
    out = tmp_path / "new" / "out.jsonl"
    report = clean_file([one, two], out, [ExactDuplicates()])
    lines = out.read_bytes().decode().splitlines()
    assert [json.loads(line) for line in lines] == texts(STORY, "é à")
    assert [one.place for one in report.examples["exact duplicates"]] == [
        f"{one}, line 3",
        f"{two}, line 1",
    ]
    assert f"same as {one}, line 1" in str(report)
    assert open_records(parse_data(out), "text").size == 2
    assert list(read_texts([out])) == [STORY, "é à"]


def test_records_in_memory_are_cleaned_into_a_file(tmp_path):
    for name, data in (
        ("a", [{"messages": TALK}] * 2), ("b", InMemory([STORY, STORY])),
    ):  # fmt: skip
        out = tmp_path / f"{name}.jsonl"
        assert clean_file(data, out, [ExactDuplicates()]).kept == 1
    line = (tmp_path / "a.jsonl").read_text("utf-8")
    assert json.loads(line) == {"conversations": TALK}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b'{"text": "a"}\n{"text": \n', "line 2: not valid JSON"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: not UTF-8"),
        (b'{"story": "a"}\n', "line 1: expected a record"),
        (b'{"text": "a"}\n{"text": "a"}\n', "removed all 2 records"),
    ],
)
def test_a_bad_file_leaves_nothing_behind(tmp_path, capsys, content, said):
    path = tmp_path / "in.jsonl"
    path.write_bytes(content)
    out = tmp_path / "out.jsonl"
    report = tmp_path / "report.json"
    assert run(path, "--out", out, "--exact-duplicates", "--min-words", 2,
               "--report", report) == 2  # fmt: skip
    errors = capsys.readouterr().err
    assert said in errors and "Traceback" not in errors
    assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_bad_record_is_skipped_and_counted(tmp_path, capsys):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "a b"}\n{"text": "\xff"}\n{}\n')
    out = tmp_path / "out.jsonl"
    assert run(path, "--out", out, "--min-words", 1, "--on-bad-record",
               "skip") == 0  # fmt: skip
    assert "2 more could not be read" in capsys.readouterr().out
    assert out.read_text("utf-8") == '{"text": "a b"}\n'


def test_an_error_on_the_way_leaves_what_was_there(tmp_path, monkeypatch):
    path = write(tmp_path / "in.jsonl", texts("a", "b"))
    out = tmp_path / "out.jsonl"

    def fails(text):
        if text == "b":
            raise RuntimeError("a defect of the rule")

    with pytest.raises(RuntimeError, match="defect"):
        clean_file(path, out, [fails])
    assert [one.name for one in tmp_path.iterdir()] == ["in.jsonl"]
    with pytest.raises(OutputError, match=r"name a \.jsonl file"):
        clean_file(path, tmp_path / "out.txt", [Length(1)])
    out.write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        clean_file(path, out, [Length(1)])
    assert out.read_text() == "mine"


def test_what_has_no_end_is_refused(tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="endless"):
        clean_file("microworld", out, [Length(1)])
    path = write(tmp_path / "in.jsonl", texts("a"))
    with pytest.raises(DataError, match="without #tenth"):
        clean_file(f"{path}#tenth", out, [Length(1)])


def test_the_command(tmp_path, capsys):
    held_out = write_story(7, 7).text
    given_texts = [
        STORY, STORY, STORY.replace("afternoon", "morning", 1),
        write_story(0, 0, "zh").text, "Too short.", "Again and again. " * 9,
        f"Here it comes: {held_out}", write_story(0, 1).text,
    ]  # fmt: skip
    path = write(tmp_path / "in.jsonl", texts(*given_texts))
    test = write(tmp_path / "test.jsonl", texts(held_out))
    out, report = tmp_path / "out.jsonl", tmp_path / "report.json"
    assert run(
        path, "--out", out, "--near-duplicates", 0.6, "--language", "en",
        "--min-words", 5, "--max-words", 200, "--repetition",
        "--exact-duplicates", "--held-out", test, "--held-out-share", 0.5,
        "--report", report,
    ) == 0  # fmt: skip
    assert [json.loads(line)["text"] for line in out.open("rb")] == [
        STORY,
        given_texts[-1],
    ]
    counts = json.loads(report.read_text("utf-8"))
    assert counts["removed"] == dict.fromkeys(
        ("length", "language", "repetition", "exact duplicates",
         "near duplicates", "contamination"), 1)  # fmt: skip
    said = capsys.readouterr().out
    assert "in.jsonl, line 3" in said and "wrote" in said
    assert f"next: minimind pretrain --data {out}" in said


def test_the_command_wants_a_filter(tmp_path, capsys):
    path = write(tmp_path / "in.jsonl", texts("a"))
    assert run(path, "--out", tmp_path / "out.jsonl") == 2
    assert "name a filter" in capsys.readouterr().err


def test_nothing_heavy_is_imported_before_it_is_needed(monkeypatch):
    real = builtins.__import__

    def watched(name, *rest, **more):
        assert name.partition(".")[0] not in ("datasketch", "py3langid")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", watched)
    assert clean(["a", "a"], [ExactDuplicates(), Repetition()]).kept == ["a"]
