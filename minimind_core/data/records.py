"""Parse and check the records of data files.

    from minimind_core.data import parse_record
    parse_record(b'{"text": "One day ..."}', "text", "stories.jsonl, line 1")

A file is ``.jsonl``, one JSON object a line. There are four kinds of records:

========================== ================================================
``text``                   a document, ``{"text": ...}``
``conversations``          a dialogue, ``{"conversations": [{"role": ...,
                           "content": ...}, ...]}``
``preference``             two answers to a prompt, ``{"chosen": [...],
                           "rejected": [...]}``, for DPO
``prompt``                 a dialogue whose last answer is still to be
                           given, for reinforcement learning
========================== ================================================

These are the schemas of MiniMind's data. Those of ShareGPT and OpenAI are
read as well (`schemas`). Other formats are refused with an error that says
how to convert them.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minimind_core.chat import normalise, validate_messages
from minimind_core.data.schemas import (
    CONVERSATIONS,
    conversation_name,
    to_messages,
    to_preference,
    to_prompt,
)
from minimind_core.errors import DataError

Document = str
Messages = list[dict[str, Any]]

MESSAGES = CONVERSATIONS[1]
"""Another name for ``conversations``, which OpenAI's and trl's data use."""
KINDS = ("text", "conversations", "preference", "prompt")
"""The kinds of records."""
LONGEST_LINE = 2**20
"""Longest line of a data file, in bytes. A whole novel has about as many; a
longer line is more often a file that lost its line breaks, or an archive,
and as one record it would hold up every step that it is in."""
DEEPEST = 100
"""How deep lists and objects in a conversation may be nested."""

_STAGES = {"text": "pretrain", "conversations": "sft"}
_NEEDED = {
    "text": ("text",), "conversations": ("conversations",),
    "preference": ("chosen", "rejected"), "prompt": ("conversations",),
}  # fmt: skip
"""The names that an error asks for, by kind."""


def is_jsonl(path: Path) -> bool:
    """Whether a file name means one JSON record per line."""
    return path.suffix.lower() in (".jsonl", ".json", ".ndjson")


def not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    """Return the error for non-UTF-8 text, with the first bad byte."""
    byte = error.object[error.start]
    utf16 = error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
    origin = "-f utf-16 " if utf16 else ""
    return DataError(
        f"{where}: not UTF-8 text (byte 0x{byte:02x}); convert the file, "
        f"for example with iconv {origin}-t utf-8"
    )


def too_long(where: str) -> DataError:
    """Return the error for a line of more than `LONGEST_LINE` bytes."""
    return DataError(
        f"{where}: longer than {LONGEST_LINE:,} bytes; write it as several "
        "records (plain text, for example, with fold -s)"
    )


def read_lines(path: Path) -> Iterator[tuple[int, int, int, bytes | None]]:
    """Yield the lines of a file, without ever holding a very long one.

    Yields
    ------
    number, start, size : int
        Of the line, from 1; where it begins and how long it is, in bytes.
    raw : bytes or None
        Its content; None if it is longer than `LONGEST_LINE`.
    """
    number = start = 0
    with path.open("rb") as file:
        while raw := file.readline(LONGEST_LINE + 1):
            number += 1
            size, whole = len(raw), len(raw) <= LONGEST_LINE
            while raw and not whole and not raw.endswith(b"\n"):
                raw = file.readline(LONGEST_LINE)
                size += len(raw)
            yield number, start, size, raw if whole else None
            start += size


def record_kind(path: Path, *, skip: bool = False) -> str:
    """Return the kind of a file's records, judged by the first one.

    Parameters
    ----------
    path : Path
    skip : bool
        Judge by the first that is of either kind, because those before it
        are left out.

    Returns
    -------
    {"text", "conversations"}
        ``text`` also if it is neither, because reading it as text raises
        an error that explains it.
    """
    if is_jsonl(path):
        for *_, raw in read_lines(path):
            if raw is not None and not raw.strip():
                continue
            try:
                record = json.loads((raw or b"").decode("utf-8-sig"))
            except (ValueError, RecursionError):
                record = None
            keys = record.keys() if isinstance(record, dict) else set()
            if set(CONVERSATIONS) & keys:
                return "conversations"
            if "text" in keys or not skip:
                break
    return "text"


def parse_record(raw: bytes, kind: str, where: str) -> Any:
    """Parse one line of a ``.jsonl`` file.

    Parameters
    ----------
    raw : bytes
        A byte order mark at the beginning, which some editors write, is
        skipped.
    kind : {"text", "conversations", "preference", "prompt"}
        ``{"text": "..."}``, or ``{"conversations": [{"role": "user",
        "content": "..."}, ...]}``, for which ``messages`` is another name;
        for the others see the module.
    where : str
        File and line, for errors.

    Returns
    -------
    str, list of dict or dict
        See `check_record`.

    Raises
    ------
    DataError
        Saying what is wrong with the record and how to fix it.
    """
    try:
        record = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise not_utf8(where, error) from None
    except json.JSONDecodeError as error:
        if raw.decode("utf-8-sig").strip()[:1] == "[":
            raise _an_array(where) from None
        raise DataError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno})"
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{where}: not readable JSON ({error})") from None
    except RecursionError:
        raise DataError(
            f"{where}: JSON nested too deeply; a record is an object with "
            f"{kind!r} in it"
        ) from None
    if isinstance(record, list):
        raise _an_array(where)
    if not isinstance(record, dict):
        raise DataError(
            f"{where}: expected a record with {kind!r}, found "
            f"{type(record).__name__}"
        )
    return check_record(record, kind, where)


def check_record(record: Any, kind: str, where: str) -> Any:
    """Check a record and return its content.

    Parameters
    ----------
    record : str, list of dict or mapping
        A document or a conversation, either bare or as an object with the
        keys of a ``.jsonl`` line.
    kind : {"text", "conversations", "preference", "prompt"}
    where : str
        For errors.

    Returns
    -------
    str, list of dict or dict
        A text; the messages of a conversation or of a prompt; or
        ``{"chosen": messages, "rejected": messages}``.

    Raises
    ------
    DataError
    """
    if kind not in KINDS:
        raise DataError(
            f"unknown kind {kind!r}; expected {' or '.join(KINDS)}"
        )
    if isinstance(record, Mapping) and not _is_of_kind(record, kind):
        needed = " and ".join(map(repr, _NEEDED[kind]))
        raise DataError(
            f"{where}: expected a record with {needed}, found "
            f"{reprlib.repr(sorted(map(str, record)))}"
            f"{_hint(record, kind)}"
        )
    if kind == "text":
        value = record["text"] if isinstance(record, Mapping) else record
        if not isinstance(value, str) or not value:
            raise DataError(f"{where}: 'text' must be a non-empty string")
        _check_unicode(value, where)
        return value
    # First of the record as it is, because what is nested without end could
    # not even be validated; then of the tools, which may be JSON in a string.
    _check_texts(_used(record), where)
    if kind == "conversations":
        value = _checked(to_messages(record, where), where)
        if not any(_says_something(message) for message in value):
            raise DataError(
                f"{where}: all answers are empty, as in the prompts of "
                "MiniMind's RLAIF data, which have nothing to fine-tune on"
            )
        return value
    if kind == "prompt":
        value = to_prompt(record, where)
        value = _checked(value, where, answered=False)
        if value[-1]["role"] not in ("user", "tool"):
            raise DataError(
                f"{where}: a prompt must end with a message of the user or "
                f"of a tool, not of the {value[-1]['role']}"
            )
        return value
    if not isinstance(record, Mapping):
        raise DataError(
            f"{where}: expected a record with 'chosen' and 'rejected', found "
            f"{type(record).__name__}"
        )
    pair = to_preference(record, where)
    for name, value in pair.items():
        _checked(value, f"{where}, {name}")
        if value[-1]["role"] != "assistant":
            raise DataError(
                f"{where}, {name}: the last message must be the assistant's"
            )
    return pair


def _is_of_kind(record: Mapping[str, Any], kind: str) -> bool:
    if kind == "text":
        return "text" in record
    if kind == "preference":
        return {"chosen", "rejected"} <= record.keys()
    if conversation_name(record) is not None:
        return True
    return kind == "prompt" and "prompt" in record


def _used(record: Any) -> Any:
    """The parts of a record that are read; the others may hold anything."""
    if not isinstance(record, Mapping):
        return record
    names = (
        conversation_name(record), "system", "tools", "prompt", "chosen",
        "rejected",
    )  # fmt: skip
    return [record[name] for name in names if name in record]


def _says_something(message: Mapping[str, Any]) -> bool:
    names = ("content", "reasoning_content", "tool_calls")
    return message["role"] == "assistant" and any(map(message.get, names))


def _checked(messages: Any, where: str, *, answered: bool = True) -> Any:
    """Validate messages, and return them."""
    validate_messages(messages, where, answered=answered)
    if any(m.get("tools") or m.get("tool_calls") for m in messages):
        _check_texts(normalise(messages), where)
    return messages


def _check_texts(value: Any, where: str) -> None:
    for text in _texts(value, where):
        _check_unicode(text, where)


def _check_unicode(text: str, where: str) -> None:
    """Refuse half of a surrogate pair, which no tokenizer can encode.

    JSON can spell one (``\\ud83d`` alone), for example where a program cut
    an emoji in two.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise DataError(
            f"{where}: \\u{code:04x} is half of a character (a lone "
            f"surrogate), at position {error.start} of {text[:20]!r}...; "
            "remove it, or write the character whole"
        ) from None


def _texts(value: Any, where: str) -> Iterator[str]:
    """Yield all strings of nested lists and mappings, keys included."""
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping | list | tuple):
            if depth == DEEPEST:
                raise DataError(
                    f"{where}: lists and objects are nested more than "
                    f"{DEEPEST} deep; store such content as text"
                )
            inner = [*one.keys(), *one.values()] if isinstance(
                one, Mapping) else one  # fmt: skip
            waiting += [(item, depth + 1) for item in inner]


def _an_array(where: str) -> DataError:
    return DataError(
        f"{where}: expected a record, found a JSON array; write one record "
        "a line, for example with: jq -c '.[]' old.json > new.jsonl"
    )


def _hint(record: Mapping[str, Any], kind: str) -> str:
    """Advice on a record of another format."""
    keys = record.keys()
    other = "text" if kind == "conversations" else "conversations"
    named = conversation_name(record) if other == "conversations" else other
    if named in keys and kind in _STAGES:
        return f"; records with {named!r} are for `minimind {_STAGES[other]}`"
    if {"chosen", "rejected"} <= keys:
        return (
            "; these are preference pairs, which only DPO takes. To "
            "fine-tune on the better answers, write them as "
            '{"conversations": [...]}, for example with: '
            "jq -c '{conversations: .chosen}' old.jsonl > new.jsonl"
        )
    for asked, answered in (
        ("prompt", "completion"),
        ("prompt", "response"),
        ("instruction", "output"),
        ("question", "answer"),
    ):
        if {asked, answered} <= keys:
            return (
                f'; write {asked!r} and {answered!r} as {{"conversations": '
                '[{"role": "user", "content": ...}, '
                '{"role": "assistant", "content": ...}]}'
            )
    return ""
