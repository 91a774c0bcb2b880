"""The schemas of MiniMind, ShareGPT and OpenAI, read as they are."""

import json

import pytest

from minimind_core.chat import normalise
from minimind_core.data import open_source, parse_record
from minimind_core.errors import DataError

USER = {"role": "user", "content": "Where is Mia?"}
GOOD = {"role": "assistant", "content": "At the lake."}
WORSE = {"role": "assistant", "content": "No idea."}
SUM = {"name": "sum", "arguments": {"a": 2}}


def read(record, kind="conversations"):
    return parse_record(json.dumps(record).encode(), kind, "x, line 1")


def test_minimind_conversations_come_out_as_they_went_in():
    talk = [
        {"role": "system", "content": "", "tools": json.dumps([SUM])},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "",
         "tool_calls": json.dumps([SUM]), "reasoning_content": "Hm."},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "4."},
    ]  # fmt: skip
    assert read({"conversations": talk}) == talk


def test_sharegpt():
    record = {"conversations": [
        {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."},
    ]}  # fmt: skip
    expected = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
    ]
    assert read(record) == expected
    # The system prompt beside the list.
    first = {"role": "system", "content": "Be brief."}
    assert read({**record, "system": "Be brief."}) == [first, *expected]
    assert read({**record, "system": "", "tools": ""}) == expected


@pytest.mark.parametrize("call", [json.dumps(SUM), json.dumps([SUM])])
def test_sharegpt_with_calls(call):
    found = read({
        "conversations": [
            {"from": "human", "value": "2 + 2?"},
            {"from": "function_call", "value": call},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "4."},
        ],
        "tools": json.dumps([SUM]),
    })  # fmt: skip
    assert [one["role"] for one in found] == [
        "system", "user", "assistant", "tool", "assistant",
    ]  # fmt: skip
    plain, tools = normalise(found)
    assert tools == [SUM]
    assert plain[2]["tool_calls"] == [{"type": "function", "function": SUM}]


def test_openai_messages():
    call = {"id": "c1", "type": "function",
            "function": {"name": "sum", "arguments": '{"a": 2}'}}  # fmt: skip
    tool = {"type": "function", "function": {"name": "sum"}}
    found = read({
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "2 + "},
                {"type": "text", "text": "2?"},
            ]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
            {"role": "assistant", "content": "4.", "weight": 1},
        ],
        "tools": [tool],
        "parallel_tool_calls": False,
    })  # fmt: skip
    assert found[0] == {
        "role": "system", "content": "Be brief.", "tools": [tool],
    }  # fmt: skip
    assert found[1]["content"] == "2 + 2?"
    plain, tools = normalise(found)
    assert tools == [tool] and plain[2]["tool_calls"] == [call]


def test_what_is_no_text_is_refused():
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(DataError, match="message 1: content must be text"):
        read({"messages": [{"role": "user", "content": picture}, GOOD]})


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": [USER, GOOD], "rejected": [USER, WORSE]},
        {"prompt": USER["content"], "chosen": GOOD["content"],
         "rejected": WORSE["content"]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [WORSE]},
        {"prompt": USER["content"], "chosen": [USER, GOOD],
         "rejected": [USER, WORSE], "score_chosen": 0.5},
    ],
    ids=["MiniMind", "texts", "messages", "repeated prompt"],
)  # fmt: skip
def test_preference_pairs(record):
    assert read(record, "preference") == {
        "chosen": [USER, GOOD], "rejected": [USER, WORSE],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"chosen": [USER, GOOD]}, "a record with 'chosen' and 'rejected'"),
        ({"chosen": "a", "rejected": "b"}, "needs a 'prompt'"),
        ({"chosen": [GOOD], "rejected": [WORSE]}, "the same prompt"),
        ({"chosen": [USER, GOOD, USER], "rejected": [USER, WORSE]},
         "chosen: the last message must be the assistant's"),
        ({"chosen": [USER, GOOD], "rejected": [USER, {"role": "assistant"}]},
         "rejected, message 2: content must be text"),
        ({"chosen": [USER, GOOD], "rejected": [USER]},
         "rejected: no assistant message"),
        ({"chosen": [USER, GOOD], "rejected": [USER, {
            "role": "assistant", "content": "\ud83d"}]}, "lone surrogate"),
        ([1], "a JSON array"),
    ],
)  # fmt: skip
def test_pairs_that_are_none(record, said):
    with pytest.raises(DataError, match=r"^x, line 1") as caught:
        read(record, "preference")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [USER, {"role": "assistant", "content": ""}]},
        {"messages": [USER]},
        {"prompt": USER["content"]},
        {"prompt": [USER], "answer": "4"},
    ],
)
def test_prompts(record):
    assert read(record, "prompt") == [USER]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": "a"}, "expected a record with 'conversations'"),
        ({"prompt": ""}, "non-empty list of messages"),
        ({"messages": [USER, GOOD, GOOD]}, "must end with a message of the"),
    ],
)
def test_prompts_that_are_none(record, said):
    with pytest.raises(DataError) as caught:
        read(record, "prompt")
    assert said in str(caught.value)


def test_a_file_of_each_kind(tmp_path):
    records = {
        "preference": {"chosen": [USER, GOOD], "rejected": [USER, WORSE]},
        "prompt": {"conversations": [USER, GOOD]},
    }
    for kind, record in records.items():
        path = tmp_path / f"{kind}.jsonl"
        path.write_text(3 * (json.dumps(record) + "\n"))
        assert open_source(path, kind).records([0]) == [read(record, kind)]
        with pytest.raises(DataError, match="microworld has no records of"):
            open_source("microworld", kind)
    with pytest.raises(DataError, match=r"which only DPO takes.*jq -c"):
        open_source(tmp_path / "preference.jsonl", "conversations")
    (tmp_path / "a.txt").write_text("One day.\n")
    with pytest.raises(DataError, match=r"preference must be .jsonl.*chosen"):
        open_source(tmp_path / "a.txt", "preference")
    with pytest.raises(DataError, match="unknown kind 'talk'"):
        open_source(tmp_path / "a.txt", "talk")
