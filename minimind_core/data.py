"""From text or conversations to batches, with a position that can be saved.

    source = open_source("microworld", "text")
    stream = Rows(source, document_encoder(tokenizer), seq_len=128)
    batch = collate(next_rows(stream, 32), pad_token_id=0)
    stream.state_dict()                     # {"drawn": 64, ...}

Three steps, each of which can be looked at alone: a *source* gives documents
by index (the microworld endlessly, a file until it starts over), an
*encoder* turns them into token ids and labels, and `Rows` lays those into
rows. A `.txt` or `.jsonl` file is checked to its last line before anything
is trained, and only its line offsets are kept in memory.
"""

from __future__ import annotations

import array
import functools
import itertools
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from minimind_core.chat import (
    encode_conversations,
    validate_messages,
)
from minimind_core.errors import DataError
from minimind_core.microworld import (
    LANGUAGES,
    conversation,
    skill_conversation,
    write_story,
)
from minimind_core.model import IGNORE_INDEX
from minimind_core.tokenizer import encode_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MICROWORLD = "microworld"
SEPARATOR = "<|endoftext|>"
PIECE = 1000
"""Longest document, in characters, that plain text is cut into."""
HELD_OUT_SEED = 1_000_000
"""Added to a seed: a stream of the microworld that training never sees."""
HELD_OUT_EVERY = 20
"""One record of a file in this many is kept for validation."""

Document = str
Messages = list[dict[str, Any]]


# --- where the data comes from ---------------------------------------------


@dataclass(frozen=True)
class DataSpec:
    """What ``--data`` says.

    Attributes
    ----------
    language : str or None
        Of the microworld; None for files.
    paths : tuple of Path
        Files; empty for the microworld.
    part : {"", "tenth", "rest"}
        Every tenth record to train on of a file, or all the others, written
        ``FILE#tenth`` and ``FILE#rest``: one file for two stages. What is
        held out is the same for both.
    """

    language: str | None
    paths: tuple[Path, ...] = ()
    part: str = ""

    def names(self) -> list[str]:
        """As `parse_data` takes it back."""
        if self.language is None:
            mark = f"#{self.part}" if self.part else ""
            return [f"{path}{mark}" for path in self.paths]
        plain = self.language == LANGUAGES[0]
        return [MICROWORLD if plain else f"{MICROWORLD}:{self.language}"]

    def __str__(self) -> str:
        return " ".join(self.names())


Data = str | Path | Sequence[str | Path] | DataSpec
"""Whatever `parse_data` understands."""


def parse_data(data: Data) -> DataSpec:
    """Understand ``microworld``, ``microworld:zh`` or paths.

    Raises
    ------
    DataError
        For an unknown language or a path that is no file.
    """
    if isinstance(data, DataSpec):
        return data
    if isinstance(data, str | Path):
        data = [data]
    if not data:
        raise DataError(f"no data: name files, or {MICROWORLD}")
    name, _, language = str(data[0]).partition(":")
    if len(data) == 1 and name == MICROWORLD:
        language = language or LANGUAGES[0]
        if language not in LANGUAGES:
            raise DataError(
                f"{data[0]}: the microworld speaks {', '.join(LANGUAGES)}, "
                f"not {language!r}"
            )
        return DataSpec(language)
    part = str(data[0]).rpartition("#")[2]
    part = part if part in ("tenth", "rest") else ""
    paths = tuple(Path(str(p).removesuffix(f"#{part}")) for p in data)
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"{path}: no such file; --data takes {MICROWORLD}, "
                f"{MICROWORLD}:zh, or .txt and .jsonl files"
            )
    return DataSpec(None, paths, part)


class Source(Protocol):
    """Records by index; `size` is None if there is no end."""

    @property
    def size(self) -> int | None:
        """How many there are."""

    def records(self, indices: Sequence[int]) -> list[Any]:
        """The records with these indices."""


class MicroworldStories:
    """The embedded corpus as an endless source of documents."""

    size = None

    def __init__(self, language: str, seed: int) -> None:
        self.language, self.seed = language, seed

    def records(self, indices: Sequence[int]) -> list[Document]:
        """The stories with these indices."""
        return [
            write_story(self.seed, i, self.language).text for i in indices
        ]


class MicroworldConversations:
    """Conversations about the embedded corpus, or in the new skill."""

    size = None

    def __init__(
        self, language: str, seed: int, *, skill: bool = False
    ) -> None:
        self.language, self.seed = language, seed
        self.make = skill_conversation if skill else conversation

    def records(self, indices: Sequence[int]) -> list[Messages]:
        """The messages of the conversations with these indices."""
        return [
            self.make(self.seed, i, self.language).messages for i in indices
        ]


class Files:
    """Records of text files, read from the disk when asked for.

    Parameters
    ----------
    paths : sequence of Path
        ``.jsonl`` with one record a line, or plain text.
    kind : {"text", "conversations"}
        What the records must be.

    Raises
    ------
    DataError
        Naming the file and the line of the first record that is wrong.
    """

    def __init__(self, paths: Sequence[Path], kind: str) -> None:
        self.paths, self.kind = tuple(paths), kind
        self.files = array.array("I")
        self.starts = array.array("Q")
        self.lengths = array.array("Q")
        for number, path in enumerate(self.paths):
            pieces = self._lines if _is_jsonl(path) else self._pieces
            if not _is_jsonl(path) and kind == "conversations":
                raise DataError(
                    f"{path}: conversations come as .jsonl, one "
                    '{"conversations": [...]} a line'
                )
            before = len(self.starts)
            for start, length in pieces(path):
                self.files.append(number)
                self.starts.append(start)
                self.lengths.append(length)
            if len(self.starts) == before:
                raise DataError(f"{path}: empty, nothing to learn from")
        self.size = len(self.starts)

    def _lines(self, path: Path) -> Iterable[tuple[int, int]]:
        start = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}, line {number}"
                    parse_record(line, self.kind, where)
                    yield start, len(line)
                start += len(line)

    def _pieces(self, path: Path) -> Iterable[tuple[int, int]]:
        """Cut plain text at separator lines, else at blank lines."""
        start = size = characters = 0
        written = False
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise _not_utf8(f"{path}, line {number}", error) from None
                ends = text.strip() == SEPARATOR
                size += len(line)
                characters += len(text)
                written |= bool(text.strip()) and not ends
                # A paragraph's end, once there is enough; a line's, when
                # there are no paragraphs.
                blank = not text.strip() and characters > PIECE // 2
                if ends or blank or characters >= PIECE:
                    if written:
                        yield start, size - len(line) * ends
                    start, size, characters = start + size, 0, 0
                    written = False
        if written:
            yield start, size

    def records(self, indices: Sequence[int]) -> list[Any]:
        """The records with these indices, in this order."""
        found = []
        for i in indices:
            path = self.paths[self.files[i]]
            with path.open("rb") as file:
                file.seek(self.starts[i])
                raw = file.read(self.lengths[i])
            if _is_jsonl(path):
                found.append(parse_record(raw, self.kind, str(path)))
            else:
                found.append(raw.decode("utf-8").strip("\n"))
        return found


def _is_jsonl(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".json", ".ndjson")


def _not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    return DataError(
        f"{where}: not UTF-8 text (byte 0x{byte:02x}); convert the file, "
        "for example with iconv -t utf-8"
    )


def parse_record(raw: bytes, kind: str, where: str) -> Any:
    """One line of a ``.jsonl`` file in MiniMind's schemas.

    Parameters
    ----------
    raw : bytes
    kind : {"text", "conversations"}
        ``{"text": "..."}`` or ``{"conversations": [{"role": "user",
        "content": "..."}, ...]}``.
    where : str
        File and line, for errors.

    Returns
    -------
    str or list of dict

    Raises
    ------
    DataError
    """
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno})"
        ) from None
    if not isinstance(record, dict) or kind not in record:
        keys = sorted(record) if isinstance(record, dict) else "no object"
        other = {"text": "conversations", "conversations": "text"}[kind]
        hint = ""
        if isinstance(record, dict) and other in record:
            stage = "sft" if other == "conversations" else "pretrain"
            hint = f"; records with {other!r} are for `minimind {stage}`"
        raise DataError(
            f"{where}: expected a record with {kind!r}, found {keys}{hint}"
        )
    value = record[kind]
    if kind == "text":
        if not isinstance(value, str) or not value:
            raise DataError(f"{where}: 'text' must be a non-empty string")
        return value
    validate_messages(value, where)
    return value


class Slice:
    """Part of a finite source: what is trained on, or what is held out.

    Parameters
    ----------
    source : Source
        With an end.
    held_out : bool
        Every `every`-th record if true, all the others if not. A source
        with fewer records holds out its last one.
    every : int
    """

    def __init__(
        self, source: Source, *, held_out: bool, every: int = HELD_OUT_EVERY
    ) -> None:
        assert source.size is not None
        chosen = set(range(every - 1, source.size, every))
        chosen = chosen or {source.size - 1}
        if source.size == 1:
            # Nothing can be spared: validate on what is trained on.
            chosen = {0} if held_out else set()
        self.source = source
        self.indices = [
            i for i in range(source.size) if (i in chosen) == held_out
        ]
        self.size = len(self.indices)

    def records(self, indices: Sequence[int]) -> list[Any]:
        """The records at these places of the part."""
        return self.source.records([self.indices[i] for i in indices])


# --- from records to token ids ---------------------------------------------


class Encoded(NamedTuple):
    """A document or conversation as the model sees it."""

    input_ids: list[int]
    labels: list[int]


Encoder = Callable[[list[Any]], list[Encoded | None]]
"""Records to token ids; None for a record with nothing to learn."""


def document_encoder(tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """Documents to ids: begin, text, end, and each token a label."""

    def encode(texts: list[str]) -> list[Encoded | None]:
        rows = encode_documents(tokenizer, texts)
        return [Encoded(ids, ids) for ids in rows]

    return encode


def conversation_encoder(
    tokenizer: PreTrainedTokenizerFast, seq_len: int
) -> Encoder:
    """Conversations to ids, with labels on what the assistant says."""

    def encode(batch: list[Messages]) -> list[Encoded | None]:
        found = encode_conversations(tokenizer, batch, max_length=seq_len)
        return [one and Encoded(one.input_ids, one.labels) for one in found]

    return encode


# --- from token ids to batches ---------------------------------------------


class Row(NamedTuple):
    """One line of a batch, not yet padded."""

    input_ids: list[int]
    labels: list[int]
    document_ids: list[int]


class RowStream(Protocol):
    """An endless stream of rows whose position can be saved."""

    @property
    def skipped(self) -> int:
        """Records so far that had nothing to learn."""

    def next_row(self) -> Row:
        """The next row."""

    def state_dict(self) -> dict[str, Any]:
        """The position."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position."""


class Rows:
    """Documents laid into rows of at most `seq_len` tokens.

    A document that is longer goes on in the next row: nothing is cut off.

    Parameters
    ----------
    source : Source
        A finite one is shuffled anew each time it starts over.
    encode : Encoder
    seq_len : int
    packed : bool
        Fill each row with several documents (first fit, over a few open
        rows); else one document a row.
    seed : int
        Of the shuffling.

    Attributes
    ----------
    skipped : int
        Records so far that had nothing to learn.
    """

    CHUNK = 64
    OPEN_ROWS = 16

    def __init__(
        self,
        source: Source,
        encode: Encoder,
        *,
        seq_len: int,
        packed: bool = False,
        seed: int = 0,
    ) -> None:
        if source.size == 0:
            raise DataError("no records are left to train on")
        self.source, self.encode = source, encode
        self.seq_len, self.packed, self.seed = seq_len, packed, seed
        self.drawn = self.skipped = 0
        self.ready: list[Row] = []
        self._order: tuple[int, list[int]] = (-1, [])

    def _index(self, count: int) -> int:
        """Which record comes `count`-th."""
        size = self.source.size
        if size is None:
            return count
        epoch, place = divmod(count, size)
        if self._order[0] != epoch:
            order = list(range(size))
            random.Random(f"{self.seed}:{epoch}").shuffle(order)
            self._order = (epoch, order)
        return self._order[1][place]

    def _refill(self) -> None:
        chunk = range(self.drawn, self.drawn + self.CHUNK)
        encoded = self.encode(
            self.source.records([self._index(count) for count in chunk])
        )
        self.drawn += self.CHUNK
        self.skipped += sum(one is None for one in encoded)
        pieces = [
            Encoded(
                one.input_ids[at : at + self.seq_len],
                one.labels[at : at + self.seq_len],
            )
            for one in encoded
            if one is not None
            for at in range(0, len(one.input_ids), self.seq_len)
        ]
        # One token alone predicts nothing.
        pieces = [piece for piece in pieces if len(piece.input_ids) > 1]
        self.ready += pack(pieces, self.seq_len if self.packed else 0)

    def next_row(self) -> Row:
        """The next row.

        Raises
        ------
        DataError
            If a whole round of records holds nothing to learn.
        """
        start = self.drawn
        while not self.ready:
            self._refill()
            limit = max(self.source.size or 0, 16 * self.CHUNK)
            if not self.ready and self.drawn - start > limit:
                raise DataError(
                    f"none of {self.drawn - start} records has anything to "
                    f"learn within {self.seq_len} tokens: raise --seq-len"
                )
        return self.ready.pop(0)

    def state_dict(self) -> dict[str, Any]:
        """The position: records drawn and rows already laid out."""
        return {
            "drawn": self.drawn,
            "skipped": self.skipped,
            "ready": [list(row) for row in self.ready],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved position."""
        self.drawn, self.skipped = state["drawn"], state["skipped"]
        self.ready = [Row(*row) for row in state["ready"]]


def pack(pieces: Sequence[Encoded], seq_len: int) -> list[Row]:
    """Lay documents into rows, first fit.

    Parameters
    ----------
    pieces : sequence of Encoded
    seq_len : int
        Room in a row; 0 puts each piece in a row of its own.

    Returns
    -------
    list of Row
        The first label of each document is ignored: nothing before it in
        the row can predict it.
    """
    rows: list[Row] = []
    for piece in pieces:
        size = len(piece.input_ids)
        row = next(
            (
                row
                for row in rows[-Rows.OPEN_ROWS :]
                if len(row.input_ids) + size <= seq_len
            ),
            None,
        )
        if row is None:
            row = Row([], [], [])
            rows.append(row)
        number = row.document_ids[-1] + 1 if row.document_ids else 0
        row.input_ids.extend(piece.input_ids)
        row.labels.extend([IGNORE_INDEX, *piece.labels[1:]])
        row.document_ids.extend([number] * size)
    return rows


class Mixture:
    """Two streams as one, so that training on the second keeps the first.

    Parameters
    ----------
    main, replay : RowStream
    share : float
        Of the rows that come from `replay`.
    seed : int
    """

    def __init__(
        self, main: RowStream, replay: RowStream, share: float, seed: int
    ) -> None:
        self.main, self.replay = main, replay
        self.share, self.seed, self.count = share, seed, 0

    @property
    def skipped(self) -> int:
        """Records of both that had nothing to learn."""
        return self.main.skipped + self.replay.skipped

    def next_row(self) -> Row:
        """The next row of one of the two."""
        draw = random.Random(f"{self.seed}:mix:{self.count}").random()
        self.count += 1
        stream = self.replay if draw < self.share else self.main
        return stream.next_row()

    def state_dict(self) -> dict[str, Any]:
        """Both positions."""
        return {
            "count": self.count,
            "main": self.main.state_dict(),
            "replay": self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from both."""
        self.count = state["count"]
        self.main.load_state_dict(state["main"])
        self.replay.load_state_dict(state["replay"])


def next_rows(stream: RowStream, count: int) -> list[Row]:
    """The next rows of a stream, as one batch."""
    return [stream.next_row() for _ in range(count)]


def count_labels(rows: Iterable[Row]) -> int:
    """How many tokens a batch is trained on."""
    return sum(
        label != IGNORE_INDEX for row in rows for label in row.labels[1:]
    )


def collate(
    rows: Sequence[Row],
    pad_token_id: int,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Rows as tensors, padded on the right to the longest of them.

    Parameters
    ----------
    rows : sequence of Row
    pad_token_id : int
    device

    Returns
    -------
    dict of str to Tensor, shape (batch, time)
        ``input_ids`` and ``labels``; for packed rows also ``document_ids``
        and ``position_ids``, which start over with each document. The time
        is a multiple of 8, which matrix units like.
    """
    time = max(len(row.input_ids) for row in rows)
    time = -(-time // 8) * 8

    def fill(lists: Iterable[list[int]], value: int) -> Tensor:
        padded = [one + [value] * (time - len(one)) for one in lists]
        return torch.tensor(padded).to(device, non_blocking=True)

    batch = {
        "input_ids": fill((r.input_ids for r in rows), pad_token_id),
        "labels": fill((r.labels for r in rows), IGNORE_INDEX),
    }
    if any(row.document_ids[-1] for row in rows):
        batch["document_ids"] = fill((r.document_ids for r in rows), -1)
        batch["position_ids"] = fill(
            (_positions(r.document_ids) for r in rows), 0
        )
    return batch


def _positions(document_ids: list[int]) -> list[int]:
    return [
        place
        for _, group in itertools.groupby(document_ids)
        for place in range(len(list(group)))
    ]


# --- the usual ways to put them together -----------------------------------


def open_source(
    data: Data,
    kind: str,
    *,
    seed: int = 0,
    held_out: bool = False,
) -> Source:
    """The records of a data specification.

    Parameters
    ----------
    data
        See `parse_data`.
    kind : {"text", "conversations", "skill"}
        ``skill`` is the microworld's new manner of speaking; from files it
        is conversations.
    seed : int
        Of the microworld's stream.
    held_out : bool
        The records that training never sees: another seed, or one record
        of a file in `HELD_OUT_EVERY`.
    """
    spec = parse_data(data)
    if spec.language is not None:
        if held_out:
            seed += HELD_OUT_SEED
        if kind == "text":
            return MicroworldStories(spec.language, seed)
        return MicroworldConversations(
            spec.language, seed, skill=kind == "skill"
        )
    stamps = tuple(path.stat().st_mtime_ns for path in spec.paths)
    wanted = "text" if kind == "text" else "conversations"
    files = _open_files(spec.paths, wanted, stamps)
    source = Slice(files, held_out=held_out)
    if spec.part and not held_out:
        # After the split, so that what is held out is so from every part.
        source = Slice(source, held_out=spec.part == "tenth", every=10)
    return source


@functools.lru_cache(maxsize=4)
def _open_files(
    paths: tuple[Path, ...], kind: str, stamps: tuple[int, ...]
) -> Files:
    """Training and validation share one reading of a large file."""
    return Files(paths, kind)


def tokenizer_texts(
    data: Data, chat: Data | None = None, count: int = 3000
) -> Iterable[str]:
    """What a tokenizer for this data is trained on.

    Parameters
    ----------
    data, chat
        Documents and conversations, see `parse_data`. For the microworld
        `chat` is the microworld as well, if not given.
    count : int
        Documents, and as many conversations, to read at most of an endless
        source; files are read to the end.

    Yields
    ------
    str
    """
    spec = parse_data(data)
    if chat is None and spec.language is not None:
        chat = spec
    source = open_source(spec, "text")
    yield from _each(source, count)
    kinds = ("conversations", "skill")
    if chat is None:
        return
    chat = parse_data(chat)
    for kind in kinds if chat.language else kinds[:1]:
        for messages in _each(open_source(chat, kind), count // 2):
            for message in messages:
                yield f"{message['role']}\n{message['content']}"


def _each(source: Source, count: int) -> Iterable[Any]:
    size = count if source.size is None else source.size
    for start in range(0, size, 256):
        yield from source.records(range(start, min(start + 256, size)))
