"""A record that cannot be used stops a command, or is left out, counted."""

import json

import pytest

from minimind_core import cli, recipes
from minimind_core.data import (
    Files,
    InMemory,
    Rows,
    conversation_encoder,
    left_out,
    open_source,
    records,
)
from minimind_core.errors import ConfigError, DataError
from minimind_core.run import read_log, read_metadata
from minimind_core.tokenizer import train_tokenizer

TALK = {
    "conversations": [
        {"role": "user", "content": "Where is Mia?"},
        {"role": "assistant", "content": "At the lake."},
    ]
}


def nested(depth):
    return "[" * depth + "]" * depth


# Each is bad for both kinds of records. What is said of it.
BAD = [
    ('{"text": "cut', "not valid JSON"),
    ('{"txt": "One day."}', "expected a record with"),
    ("[]", "a JSON array"),
    ("5", "found int"),
    (f'{{"text": {nested(100_000)}}}', "nested too deeply"),
    ('{"text": "\\ud83d", "conversations": [{"role": "user", "content": '
     '"\\ud83d"}, {"role": "assistant", "content": "a"}]}',
     "lone surrogate"),
    ('{"text": "", "conversations": []}', "non-empty"),
    ("9" * 5000, "not readable JSON"),
    ('{"text": "' + "a" * records.LONGEST_LINE + '"}',
     "longer than 1,048,576 bytes"),
]  # fmt: skip


def write(path, good, count=3):
    """A file with a bad record before each of `count` good ones."""
    bad = [one for one, _ in BAD]
    lines = [json.dumps(good)] * count + bad
    path.write_text("\n".join(lines) + "\n", "utf8")
    return len(bad)


def run(*words):
    return cli.main([str(word) for word in words])


@pytest.mark.parametrize("kind", ["text", "conversations"])
@pytest.mark.parametrize(("line", "said"), BAD, ids=[s for _, s in BAD])
def test_each_kind_of_bad_record(here, kind, line, said):
    path = here / "a.jsonl"
    good = {"text": "One day."} if kind == "text" else TALK
    path.write_text(json.dumps(good) + "\n\n" + line + "\n", "utf8")
    with pytest.raises(DataError, match=r"a\.jsonl, line 3.*" + said):
        open_source(path, kind)
    source = open_source(path, kind, on_bad_record="skip")
    assert left_out(source).count == 1
    assert said in left_out(source).describe()
    assert Files([path], kind, skip=True).size == 1


def test_lines_of_text_that_cannot_be_read(here):
    long = b"x" * (records.LONGEST_LINE + 1)
    parts = b"one", b"na\xefve", b"two", long, b"three", b""
    (here / "a.txt").write_bytes(b"\n".join(parts))
    with pytest.raises(DataError, match=r"a\.txt, line 2: not UTF-8"):
        Files([here / "a.txt"], "text")
    found = Files([here / "a.txt"], "text", skip=True)
    assert found.records([0, 1, 2]) == ["one", "two", "three"]
    assert [found.place(i) for i in range(3)] == [
        f"{here / 'a.txt'}, line {n}" for n in (1, 3, 5)
    ]
    assert found.left_out.count == 2
    assert "line 4: longer than 1,048,576" in found.left_out.describe()


def test_a_line_as_long_as_allowed_is_read(here):
    start = b'{"text": "'
    fill = records.LONGEST_LINE - len(start) - len(b'"}\n')
    (here / "a.jsonl").write_bytes(start + b"a" * fill + b'"}\n')
    assert Files([here / "a.jsonl"], "text").size == 1


def test_records_in_memory():
    given = [{"text": "a"}, {"text": ""}, {"text": "b"}]
    with pytest.raises(DataError, match="record 1"):
        InMemory(given)
    source = InMemory(given, skip=True)
    assert source.records([0, 1]) == ["a", "b"]
    assert source.place(1) == "record 2"
    assert source.left_out.count == 1
    with pytest.raises(DataError, match="none of the 2 records can be used"):
        InMemory([{}, 5], skip=True)
    with pytest.raises(DataError, match="on_bad_record must be stop or skip"):
        open_source(given, "text", on_bad_record="ignore")


def test_the_first_few_are_told():
    source = InMemory([5] * 9 + ["a"], skip=True)
    said = source.left_out.describe().splitlines()
    assert said[0] == "left out 9 records that cannot be used:"
    assert len(said) == 7
    assert said[-1] == "  and 4 more"


# --- through the commands ---


def test_a_tokenizer(here, capsys):
    count = write(here / "a.jsonl", {"text": "One day Mia met Tom."})
    write(here / "b.jsonl", TALK)
    words = ["tokenizer", "--vocab-size", "280", "--out", "out",
             "--data", "a.jsonl", "--chat", "b.jsonl"]  # fmt: skip
    assert run(*words) == 2
    assert "a.jsonl, line 4: not valid JSON" in capsys.readouterr().err
    assert not (here / "out").exists()
    assert run(*words, "--on-bad-record", "stop") == 2
    assert run(*words, "--on-bad-record", "skip") == 0
    said = capsys.readouterr().out
    assert said.count(f"left out {count} records") == 2
    assert "a.jsonl, line 4: not valid JSON" in said
    assert "b.jsonl, line 4: not valid JSON" in said
    words[4] = "other"
    assert run(*words, "--on-bad-record", "ignore") == 2
    assert "on_bad_record must be" in capsys.readouterr().err


def test_nothing_left_is_an_error(here, capsys):
    (here / "a.jsonl").write_text("{\n[]\n")
    assert run("tokenizer", "--data", "a.jsonl", "--out", "out",
               "--on-bad-record", "skip") == 2  # fmt: skip
    said = capsys.readouterr().err
    assert "a.jsonl: none of its 2 records can be used" in said
    assert "line 1: not valid JSON" in said
    assert not (here / "out").exists()


SMALL = ("--batch-size", "2", "--seq-len", "64", "--device", "cpu",
         "--dtype", "float32")  # fmt: skip


def test_pretraining_counts_and_repeats(here, capsys, small_runs):
    count = write(here / "a.jsonl", {"text": "One day Mia met Tom."}, 5)
    words = ["pretrain", "--tokenizer", small_runs / "tokenizer", "--data",
             "a.jsonl", *SMALL]  # fmt: skip
    assert run(*words, "--steps", 1, "--out", "no") == 2
    assert not (here / "no").exists()
    assert run(*words, "--steps", 1, "--out", "run",
               "--on-bad-record", "skip") == 0  # fmt: skip
    said = capsys.readouterr().out
    assert f"left out {count} records that cannot be used" in said
    assert "a.jsonl, line 6: not valid JSON" in said
    assert [r["skipped_records"] for r in read_log("run")] == [count]
    told = read_metadata("run")
    assert told["bad_records"] == count
    assert told["train"]["on_bad_record"] == "skip"
    # What is recorded repeats the run, and resumes it.
    assert run("pretrain", "--config", "run/minimind.json", "--out",
               "again") == 0  # fmt: skip
    assert read_log("again")[0]["loss"] == read_log("run")[0]["loss"]
    assert run("pretrain", "--out", "run", "--resume", "--steps", 2) == 0
    assert [r["skipped_records"] for r in read_log("run")] == [count] * 2
    # The run is measured on what it was trained on, so likewise.
    capsys.readouterr()
    assert run("eval", "run", "--device", "cpu") == 0
    assert f"left out {count} records" in capsys.readouterr().out
    assert run("eval", "run", "--device", "cpu", "--on-bad-record",
               "stop") == 2  # fmt: skip


@pytest.mark.parametrize(
    ("command", "base"), [("sft", "pretrain"), ("lora", "hf")]
)
def test_finetuning_and_lora(here, capsys, small_runs, command, base):
    count = write(here / "a.jsonl", TALK)
    words = [command, small_runs / base, "--data", "a.jsonl", "--steps", 1,
             "--replay", 0, "--out", "run", *SMALL]  # fmt: skip
    assert run(*words) == 2
    assert "a.jsonl, line 4: not valid JSON" in capsys.readouterr().err
    assert run(*words, "--on-bad-record", "skip") == 0
    assert f"left out {count} records" in capsys.readouterr().out
    assert read_log("run")[-1]["skipped_records"] == count
    assert run("eval", "run", "--device", "cpu") == 0


def test_a_journey(here, small_runs, monkeypatch):
    """Each stage of it gets the choice."""
    write(here / "a.jsonl", {"text": "One day Mia met Tom."})
    given = []

    def stage(*args, on_bad_record=None, **rest):
        given.append((rest["data"].on_bad_record, on_bad_record))

    for name in ("pretrain", "sft", "train_lora"):
        monkeypatch.setattr(recipes, name, stage)
    for name in ("export_hf", "merge_lora"):
        monkeypatch.setattr(recipes, name, lambda *args: None)
    words = ["journey", "--text", "a.jsonl", "--out", "out"]
    assert run(*words) == 2
    assert not (here / "out").exists()
    assert run(*words, "--on-bad-record", "skip") == 0
    assert given == [("skip", "skip")] * 3


def test_old_data_is_replayed_as_it_was_read(here, small_runs, monkeypatch):
    write(here / "a.jsonl", {"text": "One day Mia met Tom."})
    plan = recipes.TrainConfig(replay=0.5)
    base = {"data": [str(here / "a.jsonl")]}
    with pytest.raises(DataError, match=r"line 4.*--replay 0"):
        recipes._replayed("base", base, plan)
    for before, now in (("skip", "stop"), ("stop", "skip")):
        told = {**base, "train": {"on_bad_record": before}}
        now_plan = plan.replace(on_bad_record=now)
        source = recipes._replayed("base", told, now_plan)
        assert left_out(source).count == len(BAD)


def test_the_setting_is_checked():
    with pytest.raises(ConfigError, match="on_bad_record must be 'stop' or"):
        recipes.TrainConfig(on_bad_record="ignore")


# --- records that a template refuses ---


REFUSED = {
    "conversations": [
        {"role": "user", "content": "1 + 1?"},
        # Without "arguments", which the template writes.
        {"role": "assistant", "content": "", "tool_calls": [{"name": "sum"}]},
    ]
}


@pytest.fixture(scope="module")
def tok():
    return train_tokenizer(["One day."], 280)


def test_a_refused_conversation_is_named(here, tok):
    path = here / "a.jsonl"
    lines = [json.dumps(TALK)] * 3 + [json.dumps(REFUSED)]
    path.write_text("\n".join(lines))
    rows = Rows(Files([path], "conversations"),
                conversation_encoder(tok, 128), seq_len=128)  # fmt: skip
    with pytest.raises(DataError, match=r"a\.jsonl, line 4: .*refuses"):
        rows.next_row()
    source = Files([path], "conversations", skip=True)
    rows = Rows(source, conversation_encoder(tok, 128), seq_len=128)
    rows.next_row()
    assert rows.skipped == Rows.CHUNK // 4
    encode = conversation_encoder(tok, 128, skip=True)
    found = encode(source.records(range(4)))
    assert [one is None for one in found] == [False, False, False, True]


def test_nothing_but_refused_conversations(here, tok):
    source = InMemory([REFUSED], "conversations", skip=True)
    rows = Rows(source, conversation_encoder(tok, 128), seq_len=128)
    with pytest.raises(DataError, match=r"records can be used.*refuses"):
        rows.next_row()


def test_a_file_that_changes_in_use(here):
    path = here / "a.jsonl"
    path.write_text('{"text": "One day."}\n')
    source = Files([path], "text")
    path.write_text('{"text": "One da')
    with pytest.raises(DataError, match=r"changed while it was in use"):
        source.records([0])
    path.unlink()
    with pytest.raises(DataError, match=r"No such file.*--resume"):
        source.records([0])


@pytest.mark.parametrize(
    ("skip", "kind"), [(False, "text"), (True, "conversations")]
)
def test_the_kind_is_judged_by_a_good_record(here, skip, kind):
    (here / "a.jsonl").write_text("{\n5\n" + json.dumps(TALK))
    assert records.record_kind(here / "a.jsonl", skip=skip) == kind
