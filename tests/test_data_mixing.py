"""Sources are mixed in the ratio of their weights, and none is cut short."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from minimind_core import cli, evaluation, settings
from minimind_core.data import (
    InMemory,
    Rows,
    Weighted,
    ahead,
    document_encoder,
    encode_ahead,
    next_rows,
    open_source,
    parse_data,
    specs,
    split_name,
    tokenizer_texts,
)
from minimind_core.errors import DataError
from minimind_core.tokenizer import train_tokenizer


def write(path, name, count):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(
        json.dumps({"text": f"{name}{n}"}) + "\n" for n in range(count)
    ))  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", "a", 200)
    write(tmp_path / "b.jsonl", "b", 41)
    write(tmp_path / "c/1.jsonl", "c", 10)
    write(tmp_path / "c/2.jsonl", "d", 15)
    return tmp_path


def everything(source):
    return source.records(range(source.size))


def shares(records):
    count = Counter(text[0] for text in records)
    return {name: n / len(records) for name, n in count.items()}


def test_the_shares_are_the_weights(home):
    data = ["a.jsonl=0.5", "b.jsonl=0.3", "c=0.2"]
    found = everything(open_source(data, "text"))
    part = shares(found)
    assert part["a"] == pytest.approx(0.5, abs=0.002)
    assert part["b"] == pytest.approx(0.3, abs=0.002)
    assert part["c"] + part["d"] == pytest.approx(0.2, abs=0.002)
    # Within a source each record is as frequent as the others.
    for name in "ab":
        times = Counter(t for t in found if t[0] == name)
        assert max(times.values()) - min(times.values()) <= 1
    # Every record that is not held out comes, and only their ratio matters.
    plain = everything(open_source(["a.jsonl", "b.jsonl", "c"], "text"))
    assert set(found) == set(plain)
    assert len(set(plain)) == len(plain) < len(found)
    data = ["a.jsonl=5", "b.jsonl=3", "c=2e0"]
    assert everything(open_source(data, "text")) == found


def test_the_same_records_are_held_out_with_weights_and_without(home):
    names, weights = ["a.jsonl", "b.jsonl"], (0.25, 0.75)
    mixed = [f"{n}={w}" for n, w in zip(names, weights, strict=True)]
    held = everything(open_source(mixed, "text", held_out=True))
    plain = everything(open_source(names, "text", held_out=True))
    assert sorted(held) == sorted(plain)
    assert not set(held) & set(everything(open_source(mixed, "text")))
    # The first of them are in the ratio of the weights.
    first = [text[0] for text in held[:2]]
    assert first.count("b") >= 1
    assert plain[0][0] == plain[1][0] == "a"


def test_a_tenth_of_a_mixture(home):
    marked = ["a.jsonl#tenth=0.5", "b.jsonl#tenth=0.5"]
    tenth = everything(open_source(marked, "text"))
    rest = everything(open_source(
        ["a.jsonl#rest=0.5", "b.jsonl#rest=0.5"], "text"
    ))  # fmt: skip
    assert not set(tenth) & set(rest)
    assert shares(tenth)["a"] == pytest.approx(0.5, abs=0.03)
    assert parse_data(marked).names() == marked


def test_places_and_order():
    source = InMemory([f"r{n}" for n in range(6)])
    mixed = Weighted(source, [4, 2], [1, 1])
    assert mixed.size == 8
    assert everything(mixed) == [
        "r0", "r1", "r2", "r3", "r4", "r5", "r4", "r5",
    ]  # fmt: skip
    assert mixed.records([7, 0]) == ["r5", "r0"]
    assert mixed.place(6) == "record 4"
    with pytest.raises(DataError, match="too far apart"):
        Weighted(source, [4, 2], [1e-9, 1])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (["a.jsonl=0.5", "b.jsonl"], "b.jsonl: has no weight, but other"),
        (["a.jsonl=0", "b.jsonl=1"], "'0' is no weight"),
        (["a.jsonl=-1", "b.jsonl=1"], "'-1' is no weight"),
        (["a.jsonl=nan", "b.jsonl=1"], "'nan' is no weight"),
        (["a.jsonl=1.2.3", "b.jsonl=1"], "'1.2.3' is no weight"),
        (["none.jsonl=1", "b.jsonl=1"], "none.jsonl: no such file"),
        (["a.jsonl=lots", "b.jsonl=1"], "a.jsonl=lots: no such file"),
        (["microworld=0.5", "a.jsonl=0.5"], "cannot be mixed"),
        (["a.jsonl", "microworld:zh"], "cannot be mixed"),
    ],
)
def test_weights_that_mean_nothing(home, data, said):
    with pytest.raises(DataError) as caught:
        parse_data(data)
    assert said in str(caught.value)


def test_a_source_without_a_record_to_train_on(home):
    write(home / "one.jsonl", "o", 1)
    write(home / "z.jsonl", "z", 19)
    data = ["z.jsonl=1", "one.jsonl=1"]  # its record is the twentieth
    with pytest.raises(DataError, match=r"^one\.jsonl: has a weight, but"):
        open_source(data, "text")


def test_a_name_with_an_equals_sign_is_a_name(home):
    write(home / "x=1", "x", 3)
    assert split_name("x=1") == ("x=1", "", None)
    assert split_name("x=1=0.5") == ("x=1", "", 0.5)
    assert parse_data("x=1").names() == ["x=1"]
    assert parse_data("a.jsonl=0.5").names() == ["a.jsonl"]  # alone


def test_a_tokenizer_reads_each_record_once(home):
    found = list(tokenizer_texts(["a.jsonl=0.1", "b.jsonl=0.9"]))
    assert len(set(found)) == len(found) == 241 - 241 // 20


def test_what_is_encoded_ahead_is_mixed_in_the_same_order(home, monkeypatch):
    raw = (home / "b.jsonl").read_bytes()
    (home / "b.jsonl.gz").write_bytes(gzip.compress(raw))
    data = ["a.jsonl=0.25", "b.jsonl.gz=0.5", "c=0.25"]
    encode = document_encoder(train_tokenizer(tokenizer_texts(data), 280))

    def rows(*arguments):
        return Rows(*arguments, seq_len=32, packed=True, seed=3)

    expected = next_rows(rows(open_source(data, "text"), encode), 90)
    monkeypatch.setattr(ahead, "LARGE", 1)
    for _ in range(2):  # written, and then found
        specs._open_files.cache_clear()
        source = open_source(data, "text")
        place = next(
            source.place(i) for i in range(source.size)
            if source.records([i]) == ["b7"]
        )  # fmt: skip
        assert place == "b.jsonl.gz, line 8"
        encoded = encode_ahead(source, encode, key={"tokenizer": "x"})
        assert encoded[1] is not encode
        found = next_rows(rows(*encoded), 90)
        assert [[list(map(int, part)) for part in row] for row in found] == [
            [list(part) for part in row] for row in expected
        ]
    with pytest.raises(DataError, match="records, not"):
        source.of(InMemory(["a", "b"]))
    specs._open_files.cache_clear()


def test_what_a_run_records_is_the_mixture(home):
    data = ["a.jsonl=0.25", "c=0.75"]
    words = ["pretrain", "--data", *data, "--out", "runs/a", "--steps", "1",
             "--batch-size", "2", "--seq-len", "64", "--device", "cpu",
             "--dtype", "float32"]  # fmt: skip
    assert cli.main(words) == 0
    written = json.loads((home / "runs/a/minimind.json").read_text())
    assert written["data"] == ["../../a.jsonl=0.25", "../../c=0.75"]
    again = settings.read_settings(home / "runs/a/minimind.json", "pretrain")
    spec = parse_data(again["data"])
    assert spec.weights == (0.25, 0.75)
    assert spec.paths == (home / "a.jsonl", home / "c")
    # An evaluation finds what was held out, with the weights and without.
    for names in (None, ["a.jsonl", "c"]):
        found = evaluation.evaluate("runs/a", data=names, device="cpu")
        assert found["part"] == "held-out"
        assert found["records"] == 225 // 20
    with pytest.raises(DataError, match="was trained on"):
        evaluation.evaluate("runs/a", data="a.jsonl", device="cpu")
    assert cli.main(["pretrain", "--out", "runs/a", "--resume",
                     "--steps", "2"]) == 0  # fmt: skip
    assert Path("runs/a/model.safetensors").exists()
