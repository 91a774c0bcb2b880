"""Compressed files, tables, folders, the hub: the same records as plain."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from minimind_core import cli
from minimind_core.data import (
    Rows,
    copies,
    document_encoder,
    open_source,
    parse_data,
    plain_files,
    spec_files,
    tokenizer_texts,
)
from minimind_core.errors import DataError, OutputError
from minimind_core.tokenizer import train_tokenizer

STORIES = [{"text": f"Tom has {n} red boats, é."} for n in range(60)]
TALK = {"conversations": [
    {"role": "user", "content": "Where is Mia?"},
    {"role": "assistant", "content": "At the lake."},
]}  # fmt: skip
TOOLS = {"conversations": [
    {"role": "system", "content": "", "tools": '[{"name": "sum"}]'},
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": None,
     "tool_calls": '[{"name": "sum", "arguments": {}}]'},
    {"role": "tool", "content": "4"},
    {"role": "assistant", "content": "4.", "reasoning_content": "Easy."},
]}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([story["text"] for story in STORIES], 280)


def lines(records):
    return b"".join(copies.json_line(one) for one in records)


def write(path, records):
    """Write records in the format that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        table = pyarrow.Table.from_pylist(records)
        pyarrow.parquet.write_table(table, path, row_group_size=25)
        return path
    if ".txt" in path.suffixes:
        raw = "".join(f"{r['text']}\n<|endoftext|>\n" for r in records)
        raw = raw.encode()
    else:
        raw = lines(records)
    if path.suffix == ".gz":
        raw = gzip.compress(raw)
    if path.suffix == ".zst":
        raw = zstandard.compress(raw)
    path.write_bytes(raw)
    return path


def texts(data, kind="text"):
    """All records of a specification, in the order of its files."""
    files = [
        one
        for held_out in (False, True)
        for one in [open_source(data, kind, held_out=held_out)]
    ]
    whole = files[0].source
    return whole.records(range(whole.size))


FORMATS = ["a.jsonl", "a.jsonl.gz", "a.JSONL.zst", "a.txt", "a.txt.gz",
           "a.txt.zst", "a.parquet"]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_the_same_records(tmp_path, name):
    path = tmp_path / name
    write(tmp_path / name.lower(), STORIES).rename(path)
    expected = [story["text"] for story in STORIES]
    found = texts(path)
    assert [one.strip() for one in found] == expected
    assert parse_data(path).names() == [str(path)]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_a_bad_record_is_named_by_the_original(tmp_path, name):
    bad = [*STORIES[:2], {"text": ""}, *STORIES[2:4]]
    path = write(tmp_path / name, bad)
    unit = "row" if name.endswith("parquet") else "line"
    with pytest.raises(DataError) as caught:
        open_source(path, "text")
    assert str(caught.value).startswith(f"{path}, {unit} 3: 'text' must be")
    source = open_source(path, "text", on_bad_record="skip")
    assert source.left_out.count == 1
    assert source.place(2) == f"{path}, {unit} 4"


def test_the_content_tells_what_the_name_does_not(tmp_path):
    packed = write(tmp_path / "b.jsonl.gz", STORIES)
    packed.rename(tmp_path / "a.jsonl")
    assert len(texts(tmp_path / "a.jsonl")) == len(STORIES)


def test_several_members_and_frames_are_read_to_the_end(tmp_path):
    parts = [lines(STORIES[:30]), lines(STORIES[30:])]
    for name, pack in (("a.jsonl.gz", gzip.compress),
                       ("a.jsonl.zst", zstandard.compress)):  # fmt: skip
        (tmp_path / name).write_bytes(b"".join(map(pack, parts)))
        assert len(texts(tmp_path / name)) == len(STORIES)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("damage", ["cut", "changed", "start only"])
def test_a_damaged_file_is_an_error_and_leaves_nothing(
    tmp_path, cache, name, damage
):
    path = write(tmp_path / name, STORIES)
    raw = path.read_bytes()
    if damage == "cut":
        raw = raw[: len(raw) // 2]
    elif damage == "start only":
        raw = raw[:4]
    else:
        # The header, which follows the magic bytes, and what is after it.
        raw = raw[:4] + bytes(b ^ 0xFF for b in raw[4:])
    path.write_bytes(raw)
    with pytest.raises(DataError, match="fetch it again") as caught:
        open_source(path, "text")
    assert str(caught.value).startswith(f"{path}: cannot be")
    assert not [p for p in cache.iterdir() if p.suffix != ".lock"]


def test_a_copy_is_made_once_and_again_when_it_must_be(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl.gz", STORIES)
    (first,) = plain_files(path)
    made = []
    write_copy = copies._write
    monkeypatch.setattr(
        copies, "_write", lambda *a: (made.append(a[0]), write_copy(*a))
    )
    assert plain_files(path) == [first]
    assert not made
    # Damaged: one byte of a record is another, so that it is still JSON.
    raw = first.path.read_bytes()
    first.path.write_bytes(raw.replace(b"Tom has 7", b"Tim has 7"))
    assert plain_files(path) == [first]
    assert made == [str(path)]
    assert first.path.read_bytes() == raw
    # A changed original: another copy.
    write(path, STORIES[:9])
    (second,) = plain_files(path)
    assert second.path != first.path
    assert len(made) == 2
    assert len(texts(path)) == 9


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "file"))
    path = write(tmp_path / "a.jsonl.gz", STORIES)
    with pytest.raises(OutputError, match="cannot be written"):
        open_source(path, "text")


def test_what_is_unpacked_comes_in_small_pieces(tmp_path):
    raw = b"\0" * 2**26
    (tmp_path / "a.zst").write_bytes(zstandard.compress(raw))
    (tmp_path / "a.gz").write_bytes(gzip.compress(raw, 1))
    for name in ("a.zst", "a.gz"):
        with (tmp_path / name).open("rb") as file:
            sizes = [
                len(piece)
                for piece in copies._decompressed(file, name[1:], name)
            ]
        assert sum(sizes) == len(raw)
        assert max(sizes) <= 2**25
    assert max(sizes) == copies.PIECE  # of gzip


# --- tables ---


def test_a_table_of_conversations_loses_and_gains_nothing(tmp_path):
    path = write(tmp_path / "a.parquet", [TALK, TOOLS])
    (copy,) = plain_files(path)
    kept = [json.loads(line) for line in copy.path.open("rb")]
    assert kept[0] == TALK
    # A null says no more than a missing field.
    expected = json.loads(json.dumps(TOOLS).replace('"content": null, ', ""))
    assert kept[1] == expected
    assert texts(path, "conversations") == [m["conversations"] for m in kept]


def test_only_the_columns_of_a_record_are_copied(tmp_path):
    rows = [{"text": "One day.", "url": "x" * 99, "score": 0.5}] * 3
    (copy,) = plain_files(write(tmp_path / "a.parquet", rows))
    assert copy.path.read_bytes() == b'{"text": "One day."}\n' * 3
    path = write(tmp_path / "b.parquet", [{"story": "x", "id": 1}])
    with pytest.raises(DataError, match=r"columns \(story, id\).*rename one"):
        plain_files(path)


@pytest.mark.parametrize(
    ("package", "name"),
    [("zstandard", "a.jsonl.zst"), ("pyarrow", "a.parquet"),
     ("datasets", "hf:.")],
)  # fmt: skip
def test_without_a_package_it_says_what_to_install(
    tmp_path, monkeypatch, package, name
):
    monkeypatch.chdir(tmp_path)
    if not name.startswith("hf:"):
        write(tmp_path / name, STORIES)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(DataError, match=f"pip install {package}"):
        plain_files(name)


# --- folders ---


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path):
    home = tmp_path / "data"
    write(home / "b.jsonl.gz", STORIES[20:40])
    write(home / "a.parquet", STORIES[:20])
    write(home / "more" / "c.txt", STORIES[40:])
    write(home / ".git" / "d.jsonl", STORIES)
    (home / "README.md").write_text("# About these files\n")
    found = texts(home)
    assert [t.strip() for t in found] == [s["text"] for s in STORIES]
    spec = parse_data(home)
    assert spec.names() == [str(home)]
    assert [one.name for one in spec_files(spec)] == [
        str(home / name) for name in ("a.parquet", "b.jsonl.gz", "more/c.txt")
    ]
    write(home / "z.jsonl.xz", STORIES)
    assert len(texts(home)) == len(STORIES)  # of another format


def test_a_position_does_not_outlive_a_new_file(tmp_path, tokenizer):
    home = tmp_path / "data"
    write(home / "a.jsonl", STORIES)

    def rows():
        source = open_source(home, "text")
        return Rows(source, document_encoder(tokenizer), seq_len=64)

    stream = rows()
    stream.next_row()
    state = stream.state_dict()
    following = [stream.next_row() for _ in range(5)]
    again = rows()
    again.load_state_dict(state)
    assert [again.next_row() for _ in range(5)] == following
    write(home / "b.jsonl", STORIES)
    with pytest.raises(DataError, match="restore the data"):
        rows().load_state_dict(state)


def test_rows_do_not_depend_on_the_format(tmp_path, tokenizer):
    found = []
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"):
        source = open_source(write(tmp_path / name, STORIES), "text")
        stream = Rows(
            source, document_encoder(tokenizer), seq_len=64, packed=True
        )
        found.append([stream.next_row() for _ in range(40)])
    assert found[1:] == found[:1] * 3


# --- the hub ---


@pytest.fixture
def repository(tmp_path):
    """A folder of the layout of a data set of the hub."""
    home = tmp_path / "repository"
    write(home / "data/train-00000-of-00002.parquet", STORIES[:30])
    write(home / "data/train-00001-of-00002.parquet", STORIES[30:])
    write(home / "data/test-00000-of-00001.parquet", STORIES[:4])
    (home / "README.md").write_text("---\nlicense: mit\n---\n")
    return home


def test_the_splits_of_a_repository(repository, monkeypatch):
    expected = [story["text"] for story in STORIES]
    assert texts(f"hf:{repository}") == expected
    assert texts(f"hf:{repository}:train") == expected
    assert texts(f"hf:{repository}:test") == expected[:4]
    monkeypatch.chdir(repository.parent)
    for count in (7, 33, 99):
        name = f"hf:./repository:train[:{count}]"
        assert texts(name) == expected[:count]
        (said,) = parse_data(name).names()
        assert said == f"hf:{repository}:train[:{count}]"
        assert parse_data(said).names() == [said]
    with pytest.raises(DataError, match=r"no split 'dev'; there is .*test"):
        texts("hf:./repository:dev")


def test_the_files_of_minimind_are_read_one_by_one(tmp_path):
    home = tmp_path / "minimind_dataset"
    write(home / "pretrain_t2t.jsonl", STORIES)
    # The fields of a message are not those of the first block.
    write(home / "sft_t2t.jsonl.gz", [TALK, TOOLS])
    assert len(texts(f"hf:{home}/pretrain_t2t.jsonl")) == len(STORIES)
    (copy,) = plain_files(f"hf:{home}/sft_t2t.jsonl.gz")
    assert copy.path.read_bytes() == lines([TALK, TOOLS])


def test_files_without_a_last_line_break_stay_apart(tmp_path):
    for number in range(2):
        path = write(tmp_path / f"r/data/train-{number}.jsonl", STORIES[:2])
        path.write_bytes(path.read_bytes().rstrip())
    assert len(texts(f"hf:{tmp_path / 'r'}")) == 4


def test_other_formats_go_through_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    home = tmp_path / "r"
    home.mkdir()
    (home / "train.csv").write_text("text,n\nOne day.,1\nTwo days.,2\n")
    assert texts(f"hf:{home}") == ["One day.", "Two days."]


def test_a_hub_that_cannot_be_reached_says_what_to_do():
    # Tests run with HF_HUB_OFFLINE=1.
    with pytest.raises(DataError, match=r"TinyStories.*HF_ENDPOINT.*folder"):
        open_source("hf:roneneldan/TinyStories", "text")
    for name in ("hf:TinyStories", "hf:./none", "hf:", "hf:a//b"):
        with pytest.raises(DataError, match="no such folder; write hf:owner"):
            parse_data(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf:o/n", ("o/n", None, "train", None)),
        ("hf:o/n:test", ("o/n", None, "test", None)),
        ("hf:o/n:test[:50]", ("o/n", None, "test", 50)),
        ("hf:o/n/sub/a.jsonl", ("o/n", "sub/a.jsonl", "train", None)),
        ("hf:o/n/a.jsonl:dev", ("o/n", "a.jsonl", "dev", None)),
        ("hf:o\\n:dev", ("o/n", None, "dev", None)),
    ],
)
def test_the_name_of_a_data_set(name, expected):
    assert copies.parse_hub(name) == expected
    assert copies.parse_hub(copies.canonical(name)) == expected


def test_a_copy_ends_where_it_was_cut():
    def pieces():
        yield from (b"a\nb", b"b\nc\nd\n", b"e")
        raise AssertionError("read too far")

    assert b"".join(copies.first_lines(pieces(), 3)) == b"a\nbb\nc\n"
    assert list(copies.first_lines(pieces(), 0)) == []


# --- the commands ---


def test_the_commands_take_what_is_not_plain(tmp_path, repository, capsys):
    packed = write(tmp_path / "talks.jsonl.gz", [TALK] * 9)
    assert list(tokenizer_texts(f"hf:{repository}:test"))
    words = ["tokenizer", "--vocab-size", "280", "--data",
             f"hf:{repository}", "--chat", str(packed),
             "--out", str(tmp_path / "out")]  # fmt: skip
    assert cli.main(words) == 0
    assert "280 tokens" in capsys.readouterr().out
