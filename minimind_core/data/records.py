"""One record of a data file: what it may look like, and what it holds.

    from minimind_core.data import parse_record
    parse_record(b'{"text": "One day ..."}', "text", "stories.jsonl, line 1")

A file is ``.jsonl``, one JSON object a line. The formats are MiniMind's:
``{"text": ...}`` for documents, and ``{"conversations": [{"role": ...,
"content": ...}, ...]}`` for dialogues. ``messages``, the name that most
other data sets use for the same list, is read as well. Any other format is
refused with the step that turns it into one of these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minimind_core.chat import validate_messages
from minimind_core.errors import DataError

Document = str
Messages = list[dict[str, Any]]

MESSAGES = "messages"
"""Another name for ``conversations``, as OpenAI's and trl's data have it."""

_STAGES = {"text": "pretrain", "conversations": "sft"}
_SHAREGPT = {"human": "user", "gpt": "assistant", "system": "system"}

def is_jsonl(path: Path) -> bool:
    """Whether a file holds one JSON record a line, by its name."""
    return path.suffix.lower() in (".jsonl", ".json", ".ndjson")


def not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    """The error for a text that is not UTF-8, naming the first bad byte."""
    byte = error.object[error.start]
    utf16 = error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
    origin = "-f utf-16 " if utf16 else ""
    return DataError(
        f"{where}: not UTF-8 text (byte 0x{byte:02x}); convert the file, "
        f"for example with iconv {origin}-t utf-8"
    )


def record_kind(path: Path) -> str:
    """What the records of a file are, judged by the first one.

    Returns
    -------
    {"text", "conversations"}
        ``text`` also for what is neither: reading it as text gives the
        error that says so.
    """
    if is_jsonl(path):
        with path.open("rb") as file:
            first = next((line for line in file if line.strip()), b"")
        try:
            record = json.loads(first.decode("utf-8-sig"))
        except ValueError:
            return "text"
        if isinstance(record, dict) and (
            {"conversations", MESSAGES} & record.keys()
        ):
            return "conversations"
    return "text"


def parse_record(raw: bytes, kind: str, where: str) -> Any:
    """One line of a ``.jsonl`` file.

    Parameters
    ----------
    raw : bytes
        A byte order mark at the beginning, which some editors write, is
        passed over.
    kind : {"text", "conversations"}
        ``{"text": "..."}``, or ``{"conversations": [{"role": "user",
        "content": "..."}, ...]}``, for which ``messages`` is another name.
    where : str
        File and line, for errors.

    Returns
    -------
    str or list of dict

    Raises
    ------
    DataError
        Saying what is wrong with the record and how to mend it.
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
    if isinstance(record, list):
        raise _an_array(where)
    if not isinstance(record, dict):
        raise DataError(
            f"{where}: expected a record with {kind!r}, found "
            f"{type(record).__name__}"
        )
    return check_record(record, kind, where)


def check_record(record: Any, kind: str, where: str) -> Any:
    """What a record holds, if it has the right form.

    Parameters
    ----------
    record : str, list of dict or mapping
        A document or a conversation, by itself or as a line of a ``.jsonl``
        file has it.
    kind : {"text", "conversations"}
    where : str
        For errors.

    Returns
    -------
    str or list of dict

    Raises
    ------
    DataError
    """
    if kind not in _STAGES:
        raise DataError(
            f"unknown kind {kind!r}; there is {', '.join(_STAGES)}"
        )
    value = record
    if isinstance(record, Mapping):
        name = kind
        if kind == "conversations" and kind not in record:
            name = MESSAGES if MESSAGES in record else kind
        if name not in record:
            raise DataError(
                f"{where}: expected a record with {kind!r}, found "
                f"{sorted(record)}{_hint(record, kind)}"
            )
        if kind == "conversations" and record.get("tools"):
            raise DataError(
                f"{where}: 'tools' beside {name!r} is not read; put it into "
                'the first message: {"role": "system", "content": "", '
                '"tools": ...}'
            )
        value = record[name]
    if kind == "text":
        if not isinstance(value, str) or not value:
            raise DataError(f"{where}: 'text' must be a non-empty string")
        return value
    _check_sharegpt(value, where)
    validate_messages(value, where)
    return value


def _an_array(where: str) -> DataError:
    return DataError(
        f"{where}: expected a record, found a JSON array; write one record "
        "a line, for example with: jq -c '.[]' old.json > new.jsonl"
    )


def _hint(record: Mapping[str, Any], kind: str) -> str:
    """What to do with a record of another format."""
    keys = record.keys()
    other = "text" if kind == "conversations" else "conversations"
    if other in keys or (other == "conversations" and MESSAGES in keys):
        named = other if other in keys else MESSAGES
        return f"; records with {named!r} are for `minimind {_STAGES[other]}`"
    if {"chosen", "rejected"} <= keys:
        return (
            "; preference pairs are not read. To fine-tune on the better "
            'answer, write it as {"conversations": [...]}'
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


def _check_sharegpt(value: Any, where: str) -> None:
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, dict) and {"from", "value"} <= first.keys():
        roles = ", ".join(f"{a} -> {b}" for a, b in _SHAREGPT.items())
        raise DataError(
            f"{where}: ShareGPT's format; rename 'from' to 'role' ({roles}) "
            "and 'value' to 'content'"
        )
