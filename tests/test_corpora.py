"""Published data: streamed, checked, and kept as the trainers take it."""

import json

import pytest

from minimind_core.data import open_source, parse_data
from minimind_core.data.corpora import main, save_records, stream_records
from minimind_core.errors import DataError, OutputError

PLAIN = {"conversations": [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
]}  # fmt: skip
RICH = {"conversations": [
    {"role": "system", "content": "Use tools.", "tools": "[]"},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello.", "reasoning_content": "Hm."},
]}  # fmt: skip


def write(path, records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(text, encoding="utf-8")
    return path


def test_stories_go_through_as_they_are(tmp_path):
    source = write(
        tmp_path / "in.jsonl", [{"text": f"Story {n}, é."} for n in range(9)]
    )
    out = tmp_path / "new" / "out.jsonl"
    assert save_records(stream_records(str(source)), out, limit=4) == 4
    kept = [json.loads(line) for line in out.read_text("utf8").splitlines()]
    assert kept == [{"text": f"Story {n}, é."} for n in range(4)]
    assert open_source(parse_data(out), "text").size == 3  # one held out


def test_no_more_is_read_than_is_wanted(tmp_path):
    def endless():
        for number in range(3):
            yield {"text": f"Story {number}."}
        raise AssertionError("read too far")

    assert save_records(endless(), tmp_path / "out.jsonl", limit=3) == 3


def test_ragged_conversations_come_out_as_they_went_in(tmp_path):
    # The first of them lack the fields that a later one has.
    source = write(tmp_path / "in.jsonl", [PLAIN, PLAIN, RICH])
    out = tmp_path / "out.jsonl"
    records = stream_records(str(source), kind="conversations")
    assert save_records(records, out, kind="conversations") == 3
    kept = [json.loads(line) for line in out.read_text("utf8").splitlines()]
    assert kept == [PLAIN, PLAIN, RICH]


def test_fields_that_appear_in_a_later_block_are_read(tmp_path):
    """Left to guess, `datasets` takes a message's fields from the first."""
    long = {"conversations": [
        {"role": "user", "content": "Hi " * 400},
        {"role": "assistant", "content": "Hello."},
    ]}  # fmt: skip
    # More than one block, which is 10 MB in datasets 5.2.
    source = write(tmp_path / "in.jsonl", [long] * 20_000 + [RICH])
    guessing = stream_records(str(source))
    with pytest.raises(DataError, match="cannot be read"):
        for _ in guessing:
            pass
    records = list(stream_records(str(source), kind="conversations"))
    assert len(records) == 20_001
    assert records[-1]["conversations"][0]["tools"] == "[]"


def test_a_wrong_record_is_named_and_nothing_is_left(tmp_path):
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"record 2: .*'text'"):
        save_records([{"text": "Once."}, {"story": "Twice."}], out)
    assert not list(tmp_path.iterdir())


def test_no_record_at_all_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no record"):
        save_records([], tmp_path / "out.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    out = write(tmp_path / "out.jsonl", [PLAIN])
    with pytest.raises(OutputError, match="already exists"):
        save_records([{"text": "Once."}], out)
    with pytest.raises(DataError, match="unknown kind"):
        save_records([], tmp_path / "other.jsonl", kind="pictures")


def test_a_hub_that_cannot_be_reached_says_what_to_do():
    # Tests run with HF_HUB_OFFLINE=1.
    with pytest.raises(DataError, match=r"TinyStories.*HF_ENDPOINT"):
        next(stream_records("roneneldan/TinyStories"))


def test_without_datasets_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        next(stream_records("roneneldan/TinyStories"))


def test_the_command_line(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [PLAIN, RICH])
    out = tmp_path / "out.jsonl"
    options = [str(source), "--kind", "conversations", "--out", str(out)]
    assert main(options) == 0
    assert "wrote 2 records" in capsys.readouterr().out
    assert main([str(source), "--out", str(tmp_path / "text.jsonl")]) == 2
    assert "minimind sft" in capsys.readouterr().err
