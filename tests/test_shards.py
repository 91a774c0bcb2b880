"""Data that is encoded once, and batches that are drawn ahead."""

from __future__ import annotations

import json
import shutil
import threading

import numpy as np
import pytest
import torch

from minimind_core.config import ModelConfig, TrainConfig
from minimind_core.data import (
    InMemory,
    Rows,
    Slice,
    collate,
    conversation_encoder,
    document_encoder,
    encode_ahead,
    next_rows,
    open_source,
    specs,
)
from minimind_core.data import ahead as ahead_module
from minimind_core.data import shards as shards_module
from minimind_core.data.packing import pack
from minimind_core.data.prefetch import BatchLoader
from minimind_core.data.shards import Tokenized, tokenize
from minimind_core.data.sources import Files
from minimind_core.errors import DataError, OutputError
from minimind_core.microworld import conversation, write_story
from minimind_core.model import MiniMind
from minimind_core.tokenizer import train_tokenizer
from minimind_core.train import Trainer

TEXTS = [write_story(0, i).text for i in range(150)]


@pytest.fixture(scope="module")
def tok():
    return train_tokenizer(TEXTS[:60], 400)


@pytest.fixture
def large(monkeypatch, tmp_path):
    """Every file is large, and the cache is empty."""
    monkeypatch.setattr(ahead_module, "LARGE", 1)
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    specs._open_files.cache_clear()
    yield tmp_path
    specs._open_files.cache_clear()


def stories(folder, texts=TEXTS):
    path = folder / "stories.jsonl"
    path.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in texts), "utf8"
    )
    return path


def talks(folder):
    path = folder / "talks.jsonl"
    records = [{"conversations": conversation(0, i).messages}
               for i in range(60)]  # fmt: skip
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf8")
    return path


def as_lists(rows):
    return [tuple(list(map(int, part)) for part in row) for row in rows]


# --- files of tokens ---


@pytest.mark.parametrize("shard", [100, 2**25])
def test_records_come_back_as_they_were(tok, tmp_path, monkeypatch, shard):
    monkeypatch.setattr(shards_module, "SHARD_TOKENS", shard)
    monkeypatch.setattr(shards_module, "BATCH", 7)
    encode = document_encoder(tok)
    found = tokenize(InMemory(TEXTS), encode, tmp_path / "tokens")
    files = len(list((tmp_path / "tokens").glob("*.tokens.npy")))
    assert (files > 20) if shard == 100 else (files == 1)
    exact = encode(TEXTS)
    assert found.size == len(TEXTS)
    assert found.tokens == sum(len(one.input_ids) for one in exact)
    again = Tokenized(tmp_path / "tokens")
    for source in (found, again):
        for ours, theirs in zip(source, exact, strict=True):
            assert ours.input_ids.tolist() == theirs.input_ids
            assert ours.labels.tolist() == theirs.labels
    assert [one.input_ids.tolist() for one in again.records([149, 0])] == [
        exact[149].input_ids, exact[0].input_ids,
    ]  # fmt: skip


def test_labels_and_records_without_any_come_back(tok, tmp_path):
    messages = [conversation(0, i).messages for i in range(40)]
    sizes = sorted(
        len(one.input_ids) for one in conversation_encoder(tok, 999)(messages)
    )
    # Some have no answer within this length.
    encode = conversation_encoder(tok, sizes[20])
    exact = encode(messages)
    assert None in exact and any(exact)
    source = InMemory(messages, "conversations")
    found = tokenize(source, encode, tmp_path / "tokens")
    for ours, theirs in zip(found, exact, strict=True):
        if theirs is None:
            assert ours is None
        else:
            assert ours.input_ids.tolist() == theirs.input_ids
            assert ours.labels.tolist() == theirs.labels


def test_ids_beyond_two_bytes(tmp_path):
    from minimind_core.data import Encoded

    ids = [1, 70_000, 150_000, 2]
    found = tokenize(
        InMemory(["a"]), lambda texts: [Encoded(ids, ids)], tmp_path / "t"
    )
    assert found.records([0])[0].input_ids.tolist() == ids


@pytest.mark.parametrize("name", ["tokens", "starts"])
def test_a_damaged_file_is_noticed(tok, tmp_path, name):
    folder = tmp_path / "tokens"
    tokenize(InMemory(TEXTS), document_encoder(tok), folder)
    path = folder / f"00000.{name}.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{name}.npy: damaged.*delete"):
        Tokenized(folder)
    path.unlink()
    with pytest.raises(DataError, match="delete"):
        Tokenized(folder)


@pytest.mark.parametrize("change", [
    {"format": 99}, {"shards": None}, {"shards": [{}]},
    {"shards": [{"files": {"tokens": {"file": "../x", "sha256": ""}},
                 "records": 1, "tokens": 1}]},
])  # fmt: skip
def test_a_damaged_index_is_noticed(tok, tmp_path, change):
    folder = tmp_path / "tokens"
    tokenize(InMemory(TEXTS[:3]), document_encoder(tok), folder)
    index = folder / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(DataError, match="delete"):
        Tokenized(folder)


def test_nothing_is_left_of_an_encoding_that_failed(tok, tmp_path):
    def refuses(texts):
        if any("Tom" in text for text in texts):
            raise DataError("no Tom, please")
        return document_encoder(tok)(texts)

    first = next(i for i, text in enumerate(TEXTS) if "Tom" in text)
    with pytest.raises(DataError, match=f"record {first}: no Tom"):
        tokenize(InMemory(TEXTS), refuses, tmp_path / "tokens")
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").write_text("x")
    with pytest.raises(OutputError):
        tokenize(InMemory(TEXTS), document_encoder(tok), tmp_path / "there")


def test_an_endless_source_cannot_be_encoded_ahead(tok, tmp_path):
    source = open_source("microworld", "text")
    with pytest.raises(DataError, match="endless"):
        tokenize(source, document_encoder(tok), tmp_path / "tokens")


# --- rows of them ---


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["text", "conversations"])
def test_rows_and_positions_equal_those_of_the_files(
    tok, large, packed, kind
):
    if kind == "text":
        path, encode = stories(large), document_encoder(tok)
    else:
        path, encode = talks(large), conversation_encoder(tok, 250)
    source = open_source(path, kind)
    plain = Rows(source, encode, seq_len=250, packed=packed, seed=3)
    ours, read = encode_ahead(source, encode, key={"n": 1})
    assert isinstance(ours, Slice) and isinstance(ours.source, Tokenized)
    fast = Rows(ours, read, seq_len=250, packed=packed, seed=3)
    for _ in range(6):
        rows, others = next_rows(plain, 17), next_rows(fast, 17)
        assert as_lists(rows) == as_lists(others)
        # The position of one is a position of the other.
        assert plain.state_dict() == fast.state_dict()
        batch, other = collate(rows, 0), collate(others, 0)
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[name], other[name]) for name in batch)
    again = Rows(ours, read, seq_len=250, packed=packed, seed=3)
    again.load_state_dict(plain.state_dict())
    assert as_lists(next_rows(again, 9)) == as_lists(next_rows(fast, 9))


def test_the_second_start_encodes_and_checks_nothing(
    tok, large, monkeypatch
):
    path = stories(large)
    encode = document_encoder(tok)
    encode_ahead(open_source(path, "text"), encode, key={})
    specs._open_files.cache_clear()

    def never(*args, **options):
        raise AssertionError("this was done before")

    monkeypatch.setattr(Files, "__init__", never)
    source = open_source(path, "text")
    ours, _ = encode_ahead(source, never, key={})
    assert ours.size == 143  # one in twenty is held out
    held = open_source(path, "text", held_out=True)
    assert held.records([0]) == [TEXTS[19]]
    assert "line 20" in held.place(0)


def test_another_tokenizer_or_a_changed_file_is_encoded_anew(tok, large):
    path = stories(large)
    seen = []

    def encode(texts):
        seen.extend(texts)
        return document_encoder(tok)(texts)

    def open_it(key):
        specs._open_files.cache_clear()
        encode_ahead(open_source(path, "text"), encode, key=key)
        count = len(seen)
        seen.clear()
        return count

    assert [open_it({"t": 1}), open_it({"t": 1}), open_it({"t": 2})] == [
        150, 0, 150,
    ]  # fmt: skip
    stories(large, TEXTS[:100])
    assert open_it({"t": 1}) == 100


def test_what_was_left_out_is_remembered(tok, large):
    path = stories(large)
    path.write_text(path.read_text("utf8") + "{broken\n", "utf8")
    for _ in range(2):
        specs._open_files.cache_clear()
        source = open_source(path, "text", on_bad_record="skip")
        ours, _ = encode_ahead(source, document_encoder(tok), key={})
        assert ours.left_out.count == 1
        assert "line 151" in ours.left_out.first[0]
    specs._open_files.cache_clear()
    with pytest.raises(DataError, match="line 151"):
        open_source(path, "text")


def test_a_damaged_memory_of_files_is_made_again(large):
    path = stories(large)
    first = open_source(path, "text").records([3])
    (kept,) = (large / "cache" / "files").iterdir()
    (kept / "starts.npy").write_bytes(b"nothing")
    specs._open_files.cache_clear()
    assert open_source(path, "text").records([3]) == first


def test_small_files_and_other_sources_stay_as_they_are(tok, tmp_path):
    encode = document_encoder(tok)
    for data in (stories(tmp_path), "microworld", [{"text": "One day."}]):
        source = open_source(data, "text")
        assert encode_ahead(source, encode, key={}) == (source, encode)


def test_a_full_cache_is_an_error_that_says_so(tok, large):
    path = stories(large)
    source = open_source(path, "text")
    shutil.rmtree(large / "cache")
    (large / "cache").write_text("a file in its way")
    with pytest.raises(OutputError, match="cache"):
        encode_ahead(source, document_encoder(tok), key={})


def test_a_run_on_them_has_the_same_weights(tok, large, monkeypatch):
    from minimind_core.recipes import pretrain
    from minimind_core.tokenizer import save_tokenizer

    save_tokenizer(tok, large / "tok")
    path = stories(large)
    settings = {
        "steps": 6, "batch_size": 4, "device": "cpu", "dtype": "float32",
        "model": {"hidden_size": 32, "vocab_size": len(tok)},
        "tokenizer": large / "tok", "data": path, "progress": False,
    }  # fmt: skip
    ahead = pretrain(large / "ahead", **settings)
    assert list((large / "cache" / "tokens").iterdir())
    monkeypatch.setattr(ahead_module, "LARGE", 2**40)
    specs._open_files.cache_clear()
    plain = pretrain(large / "plain", **settings)
    for one, other in zip(
        ahead.model.parameters(), plain.model.parameters(), strict=True
    ):
        assert torch.equal(one, other)


# --- arrays in rows ---


def test_arrays_and_lists_are_packed_alike():
    from minimind_core.data import Encoded

    generator = np.random.default_rng(0)
    lists = [
        Encoded(ids, ids)
        for ids in (
            generator.integers(3, 99, int(n)).tolist()
            for n in generator.integers(2, 30, 60)
        )
    ]
    arrays = [
        Encoded(np.array(one.input_ids, np.int32),
                np.array(one.labels, np.int32))
        for one in lists
    ]  # fmt: skip
    for length in (0, 40):
        assert as_lists(pack(arrays, length)) == as_lists(pack(lists, length))
    assert arrays[0].labels[0] != -100, "the pieces are not written to"


# --- drawn ahead ---


class Counted:
    """An endless stream of numbered rows, which may fail."""

    skipped = 0

    def __init__(self, fail_at=None):
        self.drawn, self.fail_at = 0, fail_at

    def next_row(self):
        if self.drawn == self.fail_at:
            raise DataError("the disk is gone")
        self.drawn += 1
        return (self.drawn,)

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


def loader(stream, ahead):
    return BatchLoader(
        stream, 4, lambda rows: ([[r[0] for r in rows]], 0, 0), ahead
    )


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_come_in_order_with_their_position(ahead):
    batches = loader(Counted(), ahead)
    assert batches.position() == {"drawn": 0}
    for number in range(10):
        assert batches.next().micro_batches == [
            list(range(4 * number + 1, 4 * number + 5))
        ]
        assert batches.position() == {"drawn": 4 * number + 4}
        if number % 3 == 0:
            batches.close()  # between two calls of fit, for example


def test_what_is_prepared_is_forgotten_when_the_stream_is_moved():
    stream = Counted()
    batches = loader(stream, 2)
    batches.next()
    batches.close()
    stream.load_state_dict({"drawn": 40})
    batches.forget()
    assert batches.next().micro_batches == [[41, 42, 43, 44]]
    batches.close()


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_comes_where_its_batch_would(ahead):
    batches = loader(Counted(fail_at=9), ahead)
    assert batches.next().micro_batches == [[1, 2, 3, 4]]
    batches.next()
    for _ in range(2):
        with pytest.raises(DataError, match="disk"):
            batches.next()
    assert batches.position() == {"drawn": 8}
    batches.close()
    assert not any(t.name == "batches" for t in threading.enumerate())


def test_a_run_that_draws_ahead_saves_and_resumes_the_same(
    tok, tmp_path, monkeypatch
):
    from minimind_core.checkpoint import checkpoints

    shape = ModelConfig(
        vocab_size=len(tok), hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip

    def run(name, ahead, steps=8, resume=None):
        torch.manual_seed(0)
        (tmp_path / name).mkdir(exist_ok=True)
        config = TrainConfig(
            steps=steps, batch_size=4, seq_len=64, save_every=5,
            packed=True, device="cpu", dtype="float32", schedule="constant",
            warmup_ratio=0.0,
        )  # fmt: skip
        rows = Rows(InMemory(TEXTS), document_encoder(tok), seq_len=64,
                    packed=True)  # fmt: skip
        trainer = Trainer(
            MiniMind(shape), rows, config, out=tmp_path / name,
            progress=False,
        )  # fmt: skip
        trainer._batches._ahead = ahead
        if resume:
            trainer.resume(resume)
        return [record["loss"] for record in trainer.fit()], trainer

    plain, one = run("plain", 0)
    drawn, two = run("ahead", 2)
    assert plain == drawn
    for a, b in zip(
        one.model.parameters(), two.model.parameters(), strict=True
    ):
        assert torch.equal(a, b)
    # It has drawn more than it used, and resumes after what it used.
    assert two.stream.drawn >= one.stream.drawn
    for name in ("plain", "ahead"):
        state = json.loads(
            (checkpoints(tmp_path / name)[-1] / "state.json").read_text()
        )
        if name == "plain":
            position = state["data"]
        assert state["data"] == position
    longer, _ = run("ahead", 2, 12, checkpoints(tmp_path / "ahead")[-1])
    whole, _ = run("whole", 0, 12)
    assert longer[-1] == whole[-1]
