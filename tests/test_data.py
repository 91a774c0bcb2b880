"""Sources, rows and batches: nothing lost, every position resumable."""

import itertools
import json

import pytest
import torch

from minimind_core.data import (
    DataSpec,
    Encoded,
    InMemory,
    Mixture,
    Row,
    Rows,
    Slice,
    as_stream,
    collate,
    conversation_encoder,
    count_labels,
    count_tokens,
    document_encoder,
    next_rows,
    open_source,
    pack,
    parse_data,
    tokenizer_texts,
)
from minimind_core.errors import DataError
from minimind_core.microworld import HELD_OUT_SEED, write_story
from minimind_core.model import IGNORE_INDEX
from minimind_core.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(
        itertools.islice(tokenizer_texts("microworld", count=300), 500), 600
    )


class Numbers:
    """Documents whose tokens say where they come from."""

    def __init__(self, size=None):
        self.size = size

    def records(self, indices):
        return [[i + 10] * (2 + i % 5) for i in indices]


def as_is(documents):
    return [Encoded(ids, ids) for ids in documents]


# --- specifications and files ---


def test_specs_round_trip(tmp_path):
    file = tmp_path / "a b.txt"
    file.write_text("text")
    for given in ("microworld", "microworld:zh", str(file), f"{file}#tenth"):
        spec = parse_data(given)
        assert parse_data(spec.names()) == spec
    assert parse_data("microworld") == DataSpec("en")
    assert parse_data([file, file]).paths == (file, file)


@pytest.mark.parametrize("wrong", ["microworld:fr", "nowhere.txt", []])
def test_unknown_data_is_refused(wrong):
    with pytest.raises(DataError):
        parse_data(wrong)


def write(path, *lines):
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "line 3: not valid JSON"),
        (b'{"txt": "a"}', r"line 3: expected a record with 'text'.*txt"),
        (b'{"conversations": []}', "line 3: .*minimind sft"),
        (b'{"text": ""}', "line 3: 'text' must be a non-empty"),
        (b'{"text": 5}', "line 3: 'text' must be a non-empty"),
        (b'{"text": "\xff"}', "line 3: not UTF-8 text .*0xff"),
        (b'["a"]', "line 3: expected a record"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "d.jsonl", b'{"text": "a"}', b"", line)
    with pytest.raises(DataError, match=rf"d\.jsonl, {message}"):
        open_source(path, "text")


@pytest.mark.parametrize("name", ["e.jsonl", "e.txt"])
@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match="empty"):
        open_source(path, "text")


def test_text_that_is_not_utf8_is_named_by_line(tmp_path):
    path = write(tmp_path / "t.txt", b"fine", b"caf\xe9")
    with pytest.raises(DataError, match=r"t\.txt, line 2: not UTF-8"):
        open_source(path, "text")


def test_plain_text_is_cut_and_nothing_is_lost(tmp_path):
    paragraphs = [f"{i} " + "wörd " * (i % 90 + 1) for i in range(200)]
    path = tmp_path / "t.txt"
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    train = open_source(path, "text")
    held = open_source(path, "text", held_out=True)
    assert train.size + held.size > 20
    whole = train.source
    texts = whole.records(range(whole.size))
    assert max(map(len, texts)) < 1600
    joined = "".join("".join(texts).split())
    assert joined == "".join("".join(paragraphs).split())
    assert not set(train.indices) & set(held.indices)


def test_separator_lines_cut_documents(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("one\nmore\n<|endoftext|>\ntwo\n<|endoftext|>\n\n")
    source = open_source(path, "text").source
    assert source.records(range(source.size)) == ["one\nmore", "two"]


def test_slices_share_everything_out():
    parts = [Slice(Numbers(45), held_out=h, every=10) for h in (True, False)]
    assert list(parts[0].indices) == [9, 19, 29, 39]
    assert sorted(parts[0].indices + parts[1].indices) == list(range(45))
    few = [Slice(Numbers(3), held_out=h) for h in (True, False)]
    assert [list(p.indices) for p in few] == [[2], [0, 1]]
    one = [Slice(Numbers(1), held_out=h) for h in (True, False)]
    assert [list(p.indices) for p in one] == [[0], [0]]


def test_two_stages_share_one_file_and_what_it_holds_out(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f'{{"text": "{i}"}}\n' for i in range(220)))

    def found(name, **options):
        source = open_source(name, "text", **options)
        return set(source.records(range(source.size)))

    tenth, rest = found(f"{path}#tenth"), found(f"{path}#rest")
    held = found(path, held_out=True)
    assert held == found(f"{path}#tenth", held_out=True)
    assert held == found(f"{path}#rest", held_out=True)
    assert not tenth & rest
    assert not (tenth | rest) & held
    assert len(tenth) == 20
    assert len(tenth | rest | held) == 220


def test_held_out_stories_are_another_stream():
    train = open_source("microworld", "text", seed=3)
    held = open_source("microworld", "text", seed=3, held_out=True)
    assert train.records([7]) == [write_story(3, 7).text]
    assert held.records([7]) == [write_story(3 + HELD_OUT_SEED, 7).text]


# --- rows ---


def test_one_document_a_row_and_long_ones_go_on():
    rows = Rows(Numbers(), as_is, seq_len=4)
    found = next_rows(rows, 12)
    # Documents of 2, 3, 4, 5 and 6 tokens; of the fourth one token is left
    # alone in its second row, where it could predict nothing.
    lengths = [len(row.input_ids) for row in found]
    assert lengths == [2, 3, 4, 4, 4, 2, 2, 3, 4, 4, 4, 2]
    assert all(row.labels[0] == IGNORE_INDEX for row in found)


def test_packing_keeps_every_token_once():
    pieces = [Encoded([i + 1] * n, [i + 1] * n)
              for i, n in enumerate([5, 7, 3, 9, 2, 6, 1, 8])]  # fmt: skip
    rows = pack(pieces, 10)
    tokens = sorted(t for row in rows for t in row.input_ids)
    assert tokens == sorted(t for piece in pieces for t in piece.input_ids)
    assert all(len(row.input_ids) <= 10 for row in rows)
    assert len(rows) == 5
    for row in rows:
        starts = [
            i
            for i, (a, b) in enumerate(
                zip([None, *row.document_ids], row.document_ids, strict=False)
            )
            if a != b
        ]
        assert all(row.labels[i] == IGNORE_INDEX for i in starts)
        assert count_labels([row]) == len(row.labels) - len(starts)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [None, 37])
def test_a_position_resumes_exactly(packed, size):
    def make():
        return Rows(Numbers(size), as_is, seq_len=8, packed=packed, seed=5)

    for taken in (0, 1, 64, 83, 130):
        stream = make()
        next_rows(stream, taken)
        state = json.loads(json.dumps(stream.state_dict()))
        # What was laid out is laid out again, and not written down.
        assert len(json.dumps(state)) < 150
        expected = next_rows(stream, 150)
        resumed = make()
        resumed.load_state_dict(state)
        assert next_rows(resumed, 150) == expected
        assert resumed.drawn == stream.drawn


def test_skipped_records_are_counted_once_when_resumed():
    def some(documents):
        return [None if d[0] % 2 else Encoded(d, d) for d in documents]

    stream = Rows(Numbers(), some, seq_len=8)
    next_rows(stream, 40)
    resumed = Rows(Numbers(), some, seq_len=8)
    resumed.load_state_dict(stream.state_dict())
    assert resumed.skipped == stream.skipped == 64


def test_a_position_in_other_data_is_refused():
    stream = Rows(Numbers(37), as_is, seq_len=8)
    next_rows(stream, 5)
    state = stream.state_dict()
    with pytest.raises(DataError, match="38 records, but there were 37"):
        Rows(Numbers(38), as_is, seq_len=8).load_state_dict(state)
    other = Rows(Numbers(37), lambda d: as_is([[*ids, 9] for ids in d]),
                 seq_len=8)  # fmt: skip
    with pytest.raises(DataError, match=r"records 0 to 63 .* not what they"):
        other.load_state_dict(state)


def test_a_finite_source_is_shuffled_anew_each_round():
    stream = Rows(Numbers(64), as_is, seq_len=8, seed=5)
    rounds = [
        [row.input_ids[0] for row in next_rows(stream, 64)] for _ in range(2)
    ]
    assert sorted(rounds[0]) == sorted(rounds[1]) == list(range(10, 74))
    assert rounds[0] != rounds[1]


def test_a_mixture_keeps_its_share_and_its_position():
    def make():
        first = Rows(Numbers(), as_is, seq_len=8)
        second = Rows(Numbers(5), lambda d: as_is([[7] * 4] * len(d)),
                      seq_len=8)  # fmt: skip
        return Mixture(first, second, 0.25, seed=1)

    stream = make()
    rows = next_rows(stream, 400)
    share = sum(row.input_ids[0] == 7 for row in rows) / 400
    assert share == pytest.approx(0.25, abs=0.065)  # three standard errors
    state = json.loads(json.dumps(stream.state_dict()))
    expected = next_rows(stream, 50)
    resumed = make()
    resumed.load_state_dict(state)
    assert next_rows(resumed, 50) == expected


def test_records_with_nothing_to_learn_are_counted_then_refused():
    def some(documents):
        return [None if d[0] % 2 else Encoded(d, d) for d in documents]

    stream = Rows(Numbers(), some, seq_len=8)
    next_rows(stream, 32)
    assert stream.skipped == 32
    nothing = Rows(Numbers(30), lambda d: [None] * len(d), seq_len=8)
    with pytest.raises(DataError, match="raise --seq-len"):
        nothing.next_row()


# --- what a program already holds ---


def test_records_in_memory(tokenizer):
    texts = ["One day Mia met Tom.", {"text": "Tom has a red ball."}]
    source = InMemory(texts)
    assert source.size == 2
    assert source.records([1, 0]) == ["Tom has a red ball.", texts[0]]
    stream = Rows(source, document_encoder(tokenizer), seq_len=64)
    seen = {tokenizer.decode(row.input_ids[1:-1])
            for row in next_rows(stream, 2)}  # fmt: skip
    assert seen == {"One day Mia met Tom.", "Tom has a red ball."}
    said = [{"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"}]  # fmt: skip
    talks = InMemory([said, {"conversations": said}], "conversations")
    assert talks.records([0, 1]) == [said, said]


@pytest.mark.parametrize(
    ("records", "kind", "message"),
    [
        (["a", ""], "text", "record 1: 'text' must be a non-empty"),
        (["a", 5], "text", "record 1: 'text' must be a non-empty"),
        ([{"conversations": []}], "text", "`minimind sft`"),
        (["a"], "conversations", "record 0: expected a non-empty list"),
        (["a"], "talk", "unknown kind 'talk'"),
    ],
)
def test_wrong_records_in_memory_are_named(records, kind, message):
    with pytest.raises(DataError, match=message):
        InMemory(records, kind)


ITEMS = [[5, 6, 7], [8, 9, 10, 11], [12, 13]]


class OnlyIndices(torch.utils.data.Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        # Not an IndexError at the end, which would end an iteration.
        assert i < 3
        return {"input_ids": torch.tensor(ITEMS[i])}


def padded(items):
    """A collate function, as for a DataLoader."""
    ids = [item["input_ids"] for item in items]
    pad = torch.nn.utils.rnn.pad_sequence
    masks = [torch.ones_like(one) for one in ids]
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad(masks, batch_first=True),
    }


@pytest.mark.parametrize(
    "items",
    [
        ITEMS,
        [torch.tensor(ids) for ids in ITEMS],
        [Encoded(ids, ids) for ids in ITEMS],
        pack(as_is(ITEMS), 0),
        OnlyIndices(),
        torch.utils.data.DataLoader(
            OnlyIndices(), batch_size=2, collate_fn=padded
        ),
    ],
    ids=["lists", "tensors", "encoded", "rows", "dataset", "loader"],
)
def test_any_iterable_is_a_stream(items):
    stream = as_stream(items)
    rows = next_rows(stream, 7)
    assert [row.input_ids for row in rows] == [*ITEMS, *ITEMS, ITEMS[0]]
    assert rows[0].labels == [IGNORE_INDEX, 6, 7]
    state = json.loads(json.dumps(stream.state_dict()))
    expected = next_rows(stream, 5)
    resumed = as_stream(items)
    resumed.load_state_dict(state)
    assert next_rows(resumed, 5) == expected
    assert as_stream(stream) is stream


def test_labels_and_padding_of_a_batch():
    batch = {
        "input_ids": torch.tensor([[0, 5, 6, 7], [8, 9, 10, 11]]),
        "labels": torch.tensor([[-100, -100, 6, 7], [-100, -100, -100, 11]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]),
    }
    one, two = next_rows(as_stream([batch]), 2)
    assert (one.input_ids, one.labels) == ([5, 6, 7], [IGNORE_INDEX, 6, 7])
    assert two.labels == [IGNORE_INDEX] * 3 + [11]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (iter(ITEMS), "ended after 3 items"),
        ([], "no items"),
        ([[1]], "none of 10001 items"),
        (["text"], "item 1 of the data: expected a row"),
        ([{"ids": [1, 2]}], "item 1 of the data: expected a row"),
        ([[1.5, 2.5]], r"integers, not 1\.5"),
        ([{"input_ids": [1, 2], "labels": [1]}], "the same shape"),
        (5, "a int is neither"),
    ],
)
def test_what_is_no_stream_is_told(items, message):
    with pytest.raises(DataError, match=message):
        next_rows(as_stream(items), 4)


def test_an_iterable_that_changes_is_noticed():
    batches = [{"input_ids": [[1, 2], [3, 4]]}]
    stream = as_stream(batches)
    stream.next_row()
    other = as_stream([{"input_ids": [[1, 2], [3, 5]]}])
    with pytest.raises(DataError, match="the same items in the same order"):
        other.load_state_dict(stream.state_dict())


# --- batches ---


@pytest.mark.parametrize(
    ("device", "calls"),
    [
        # Metal may read the memory of a tensor that is gone already.
        ("mps", [("mps", False)] * 2),
        ("cpu", [("cpu", False)] * 2),
        ("cuda", ["pinned", ("cuda", True)] * 2),
        (torch.device("cuda:1"), ["pinned", ("cuda:1", True)] * 2),
    ],
)
def test_only_pinned_memory_is_copied_in_the_background(
    monkeypatch, device, calls
):
    seen = []

    def pin(tensor):
        seen.append("pinned")
        return tensor

    def to(tensor, device, non_blocking=False):
        seen.append((str(device), non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    collate([Row([5, 6], [-100, 6], [0, 0])], 0, device)
    assert seen == calls




def test_where_documents_begin_is_told_without_asking_the_device():
    row = Row([1, 2, 3, 4], [-100, 2, -100, 4], [0, 0, 1, 1])
    batch = collate([row], 0, "meta")
    assert batch.pop("document_ids").tolist()[0][:4] == [0, 0, 1, 1]
    assert {tensor.device.type for tensor in batch.values()} == {"meta"}


def test_collate_pads_right_and_restarts_positions():
    rows = [
        Row([5, 6, 7], [-100, 6, 7], [0, 0, 0]),
        Row([1, 2, 3, 4, 5], [-100, 2, -100, 4, 5], [0, 0, 1, 1, 1]),
    ]
    batch = collate(rows, pad_token_id=0)
    assert batch["input_ids"].tolist() == [
        [5, 6, 7, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 0, 0, 0],
    ]  # fmt: skip
    assert batch["labels"][0, 3:].tolist() == [IGNORE_INDEX] * 5
    assert batch["document_ids"][1].tolist() == [0, 0, 1, 1, 1, -1, -1, -1]
    assert batch["position_ids"][1, :5].tolist() == [0, 1, 0, 1, 2]
    assert "document_ids" not in collate(rows[:1], 0)
    assert count_labels(rows) == 5
    assert count_tokens(rows) == 8
    assert all(t.dtype == torch.int64 for t in batch.values())


def test_documents_and_conversations_encode(tokenizer):
    (row,) = document_encoder(tokenizer)(["One day."])
    assert row.input_ids[0] == 1
    assert row.input_ids[-1] == 2
    talk = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Mia."},
    ]
    (row,) = conversation_encoder(tokenizer, 64)([talk])
    supervised = [t for t in row.labels if t != IGNORE_INDEX]
    assert tokenizer.decode(supervised) == "Mia.<|im_end|>"
    assert conversation_encoder(tokenizer, 4)([talk]) == [None]


def test_conversation_records_are_checked(tmp_path):
    said = [{"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"}]  # fmt: skip
    good = {"conversations": said}
    bad = {"conversations": [{"role": "user", "text": "a"}]}
    path = tmp_path / "c.jsonl"
    path.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    with pytest.raises(DataError, match=r"c\.jsonl, line 2"):
        open_source(path, "conversations")
    text = tmp_path / "c.txt"
    text.write_text("hello")
    with pytest.raises(DataError, match=r"\.jsonl"):
        open_source(text, "conversations")


def test_tokenizer_texts_hold_documents_and_conversations(tmp_path):
    texts = list(tokenizer_texts("microworld", count=40))
    assert texts[0] == write_story(0, 0).text
    assert any(t.startswith("assistant\n") for t in texts)
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert list(tokenizer_texts(path)) == ["one"]  # the other is held out
