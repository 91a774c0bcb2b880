"""Files that several processes encode."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil
import pytest

from minimind_core.data import (
    conversation_encoder,
    document_encoder,
    open_source,
    parallel,
    specs,
)
from minimind_core.data.parallel import tokenize_files
from minimind_core.data.sources import Files
from minimind_core.errors import DataError, OutputError
from minimind_core.microworld import conversation, write_story
from minimind_core.tokenizer import train_tokenizer

TEXTS = [write_story(0, i).text for i in range(90)]
TALKS = [conversation(0, i).messages for i in range(60)]


@pytest.fixture(scope="module")
def tok():
    return train_tokenizer(TEXTS, 400)


def write(path, records):
    lines = [json.dumps(one) + "\n" for one in records]
    path.write_text("".join(lines), "utf8")
    return path


def as_lists(source):
    return [
        one and (one.input_ids.tolist(), one.labels.tolist())
        for one in source
    ]


def children():
    return [
        one for one in psutil.Process().children()
        if any(parallel.PROGRAM in word for word in one.cmdline())
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["text", "conversations"])
def test_the_records_do_not_depend_on_the_number_of_processes(
    tok, tmp_path, kind
):
    if kind == "text":
        records = [{"text": text} for text in TEXTS]
        encode = document_encoder(tok)
    else:
        records = [{"conversations": messages} for messages in TALKS]
        encode = conversation_encoder(tok, 150, skip=True)
    path = write(tmp_path / "data.jsonl", records)
    files = Files([path], kind)
    found = [
        tokenize_files(files, encode, tmp_path / str(n), processes=n)
        for n in (1, 3)
    ]
    one, three = map(as_lists, found)
    assert one == three and len(one) == len(records)
    assert any(record is not None for record in one)
    assert len(list((tmp_path / "3").glob("*.tokens.npy"))) == 3
    assert len(list((tmp_path / "1").glob("*.tokens.npy"))) == 1
    assert not children()


def test_a_record_that_is_refused_ends_all_processes(tok, tmp_path):
    talks = [{"conversations": messages} for messages in TALKS]
    tok = train_tokenizer(TEXTS, 400)
    tok.chat_template = tok.chat_template.replace(
        "{%", "{% if 'Zanzibar' in messages[0].content %}"
        "{{ raise_exception('no Zanzibar') }}{% endif %}{%", 1,
    )  # fmt: skip
    talks[40] = {"conversations": [
        {"role": "user", "content": "Where is Zanzibar?"},
        {"role": "assistant", "content": "Far away."},
    ]}  # fmt: skip
    path = write(tmp_path / "talks.jsonl", talks)
    encode = conversation_encoder(tok, 200)
    with pytest.raises(DataError, match=r"talks.jsonl, line 41: .*Zanzibar"):
        tokenize_files(
            Files([path], "conversations"), encode, tmp_path / "tokens",
            processes=2,
        )  # fmt: skip
    assert [one.name for one in tmp_path.iterdir()] == ["talks.jsonl"]
    assert not children()


def test_a_process_that_dies_is_an_error(tok, tmp_path, monkeypatch):
    path = write(tmp_path / "data.jsonl", [{"text": text} for text in TEXTS])
    files = Files([path], "text")
    monkeypatch.setattr(parallel, "PROGRAM", "minimind_core.not_there")
    with pytest.raises(RuntimeError, match=r"ended: .*not_there"):
        tokenize_files(
            files, document_encoder(tok), tmp_path / "tokens", processes=2
        )
    assert [one.name for one in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_process_that_cannot_write_says_so(tok, tmp_path, monkeypatch):
    path = write(tmp_path / "data.jsonl", [{"text": text} for text in TEXTS])
    files = Files([path], "text")
    encode = parallel._encode

    def elsewhere(job, files, encoder, out, *rest):
        return encode(job, files, encoder, out / "missing", *rest)

    monkeypatch.setattr(parallel, "_encode", elsewhere)
    with pytest.raises(OutputError, match="missing"):
        tokenize_files(
            files, document_encoder(tok), tmp_path / "tokens", processes=2
        )
    assert not (tmp_path / "tokens").exists()


def test_small_files_and_other_encoders_stay_in_this_process(
    tok, tmp_path, monkeypatch
):
    def never(*args, **options):
        raise AssertionError("no process is needed")

    monkeypatch.setattr(subprocess, "Popen", never)
    path = write(tmp_path / "data.jsonl", [{"text": text} for text in TEXTS])
    files, encode = Files([path], "text"), document_encoder(tok)
    first = tokenize_files(files, encode, tmp_path / "a")
    other = tokenize_files(
        files, lambda texts: encode(texts), tmp_path / "b", processes=4
    )
    assert as_lists(first) == as_lists(other)

    # A tokenizer that its own files do not bring back.
    monkeypatch.setattr(parallel, "tokenizer_digest", lambda tok: id(tok))
    tokenize_files(files, encode, tmp_path / "c", processes=4)


def test_large_files_get_a_process_for_each_core(tok, tmp_path, monkeypatch):
    path = write(tmp_path / "data.jsonl", [{"text": text} for text in TEXTS])
    asked = []
    monkeypatch.setattr(parallel, "PER_PROCESS", 1000)
    monkeypatch.setattr(parallel, "available_cores", lambda environment: 7)
    monkeypatch.setattr(
        parallel, "_encode",
        lambda job, files, encode, out, processes, report:
            asked.append(processes) or [],
    )  # fmt: skip
    tokenize_files(
        Files([path], "text"), document_encoder(tok), tmp_path / "tokens"
    )
    assert asked == [7]


def test_parts_hold_about_as_many_bytes():
    lengths = [10] * 50 + [100] * 5
    parts = parallel._parts(lengths, 2)
    assert parts[0][0] == 0 and parts[-1][1] == 55
    assert parts[0][1] == parts[1][0]
    sizes = [sum(lengths[a:b]) for a, b in parts]
    assert max(sizes) - min(sizes) <= 100
    # More processes than records: some have nothing to do.
    assert parallel._parts([5, 5], 4)[-1][1] == 2


def test_a_script_without_a_guard_is_not_run_again(tok, tmp_path):
    from minimind_core.tokenizer import save_tokenizer

    path = write(tmp_path / "data.jsonl", [{"text": text} for text in TEXTS])
    save_tokenizer(tok, tmp_path / "tok")
    script = tmp_path / "script.py"
    script.write_text(
        "print('started')\n"
        "from pathlib import Path\n"
        "from minimind_core.data import Files, document_encoder\n"
        "from minimind_core.data.parallel import tokenize_files\n"
        "from minimind_core.tokenizer import load_tokenizer\n"
        f"here = Path({str(tmp_path)!r})\n"
        "found = tokenize_files(\n"
        "    Files([here / 'data.jsonl'], 'text'),\n"
        "    document_encoder(load_tokenizer(here / 'tok')),\n"
        "    here / 'tokens', processes=2)\n"
        "print(found.size)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True,
        env=os.environ | {"MINIMIND_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.stdout.split() == ["started", "90"], done.stderr
    assert path.exists()


def test_a_run_announces_and_uses_them(tok, tmp_path, monkeypatch):
    """Through the door that the recipes use: `encode_ahead`."""
    from minimind_core.data import ahead, encode_ahead

    monkeypatch.setattr(ahead, "LARGE", 1)
    monkeypatch.setattr(parallel, "PER_PROCESS", 2000)
    monkeypatch.setattr(parallel, "available_cores", lambda environment: 2)
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    specs._open_files.cache_clear()
    path = write(
        tmp_path / "talks.jsonl",
        [{"conversations": messages} for messages in TALKS],
    )
    source = open_source(path, "conversations")
    encode = conversation_encoder(tok, 200)
    ours, _read = encode_ahead(source, encode, key={})
    exact = encode(source.records(range(20)))
    for one, other in zip(ours.records(range(20)), exact, strict=True):
        assert (one and list(one.input_ids)) == (other and other.input_ids)
    (folder,) = (tmp_path / "cache" / "tokens").iterdir()
    assert len(list(folder.glob("*.tokens.npy"))) == 2
    specs._open_files.cache_clear()
