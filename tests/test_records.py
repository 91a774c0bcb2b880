"""Records of other formats are read, or told how to become ours."""

import json

import pytest

from minimind_core.data import (
    check_record,
    open_source,
    parse_record,
    record_kind,
)
from minimind_core.errors import DataError

TALK = [
    {"role": "user", "content": "Where is Mia?"},
    {"role": "assistant", "content": "At the lake."},
]


def line(record):
    return json.dumps(record).encode()


def test_messages_are_conversations():
    for name in ("conversations", "messages"):
        assert parse_record(line({name: TALK}), "conversations", "x") == TALK
    # Ours first, where a record has both.
    both = {"conversations": TALK, "messages": TALK[:1]}
    assert parse_record(line(both), "conversations", "x") == TALK


@pytest.mark.parametrize(
    ("record", "kind", "said"),
    [
        ([{"text": "a"}], "text", "jq -c"),
        (5, "text", "found int"),
        ({"messages": TALK}, "text", "'messages' are for `minimind sft`"),
        ({"text": "a"}, "conversations", "are for `minimind pretrain`"),
        ({"prompt": TALK, "chosen": TALK, "rejected": TALK},
         "conversations", "preference pairs, which only DPO takes"),
        ({"prompt": "a", "completion": "b"}, "conversations",
         "write 'prompt' and 'completion' as"),
        ({"instruction": "a", "input": "", "output": "b"}, "conversations",
         "write 'instruction' and 'output' as"),
        ({"conversations": [{"from": "alien", "value": "a"},
                            {"from": "gpt", "value": "b"}]},
         "conversations", "message 1: 'from' must be one of human, user"),
        ({"messages": [TALK[0], {**TALK[1], "weight": 0}]}, "conversations",
         "message 2: has weight 0"),
        ({"messages": [TALK[0], {"role": "assistant", "content": ""}]},
         "conversations", "all answers are empty"),
        ({"messages": TALK[:1]}, "conversations", "no assistant message"),
    ],
)  # fmt: skip
def test_other_formats_are_told_the_way(record, kind, said):
    with pytest.raises(DataError, match=r"^f, line 1") as error:
        parse_record(line(record), kind, "f, line 1")
    assert said in str(error.value)


def test_an_array_over_several_lines_is_seen_at_its_first():
    with pytest.raises(DataError, match="jq -c"):
        parse_record(b"[\n", "text", "x")


def test_a_byte_order_mark_is_passed_over(tmp_path):
    mark = b"\xef\xbb\xbf"
    assert parse_record(mark + line({"text": "a"}), "text", "x") == "a"
    (tmp_path / "a.jsonl").write_bytes(mark + line({"text": "one"}) + b"\n")
    (tmp_path / "b.txt").write_bytes(mark + b"two\n")
    for name, text in (("a.jsonl", "one"), ("b.txt", "two")):
        source = open_source(tmp_path / name, "text", held_out=True)
        assert source.records([0]) == [text]


def test_utf_16_is_named():
    with pytest.raises(DataError, match="iconv -f utf-16 -t utf-8"):
        parse_record('{"text": "a"}'.encode("utf-16"), "text", "x")


def test_records_that_a_program_holds():
    assert check_record("a", "text", "record 0") == "a"
    assert check_record({"messages": TALK}, "conversations", "x") == TALK
    assert check_record(TALK, "conversations", "x") == TALK
    with pytest.raises(DataError, match="unknown kind 'talk'"):
        check_record(TALK, "talk", "x")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.jsonl", b'\n{"text": "a"}\n', "text"),
        ("a.jsonl", b'{"messages": []}\n', "conversations"),
        ("a.json", b'\xef\xbb\xbf{"conversations": []}\n', "conversations"),
        ("a.jsonl", b"nonsense\n", "text"),
        ("a.jsonl", b"", "text"),
        ("a.txt", b'{"conversations": []}\n', "text"),
    ],
)
def test_the_first_record_tells_the_kind(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    assert record_kind(tmp_path / name) == kind


HALF = "a cut \ud83d emoji"


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        ({"text": HALF}, "text"),
        ({"messages": [{"role": "user", "content": HALF}, TALK[1]]},
         "conversations"),
        ({"messages": [
            {"role": "system", "content": "", "tools": [{"name": HALF}]},
            *TALK,
        ]}, "conversations"),
    ],
    ids=["text", "content", "tools"],
)  # fmt: skip
def test_half_a_surrogate_pair_is_named(record, kind):
    # As JSON spells it, and as a program may hold it.
    for read in (
        lambda: parse_record(line(record), kind, "x.jsonl, line 3"),
        lambda: check_record(record, kind, "x.jsonl, line 3"),
    ):
        with pytest.raises(DataError) as caught:
            read()
        said = str(caught.value)
        assert said.startswith(r"x.jsonl, line 3: \ud83d is half of a char")
        said.encode()  # or the message itself could not be printed
    whole = json.loads(json.dumps(record).replace("ud83d", "ud83d\\ude00"))
    check_record(whole, kind, "x")


def test_json_without_end_is_refused(tmp_path):
    deep = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(DataError, match="line 2: JSON nested too deeply"):
        parse_record(deep, "text", "x.jsonl, line 2")
    (tmp_path / "deep.jsonl").write_bytes(deep + b"\n")
    assert record_kind(tmp_path / "deep.jsonl") == "text"
