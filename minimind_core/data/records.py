"""One record of a data file, and whether it has the right form.

    from minimind_core.data import parse_record
    parse_record(b'{"text": "One day ..."}', "text", "stories.jsonl, line 1")

The formats are MiniMind's: ``{"text": ...}`` for documents and
``{"conversations": [{"role": ..., "content": ...}, ...]}`` for dialogues.
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

def is_jsonl(path: Path) -> bool:
    """Whether a file holds one JSON record a line, by its name."""
    return path.suffix.lower() in (".jsonl", ".json", ".ndjson")


def not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    """The error for a text that is not UTF-8, naming the first bad byte."""
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
        record = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise not_utf8(where, error) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno})"
        ) from None
    if not isinstance(record, dict):
        raise DataError(
            f"{where}: expected a record with {kind!r}, found no object"
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
    if kind not in ("text", "conversations"):
        raise DataError(
            f"unknown kind {kind!r}; there is text, conversations"
        )
    value = record
    if isinstance(record, Mapping):
        if kind not in record:
            other = {"text": "conversations", "conversations": "text"}[kind]
            hint = ""
            if other in record:
                stage = "sft" if other == "conversations" else "pretrain"
                hint = f"; records with {other!r} are for `minimind {stage}`"
            raise DataError(
                f"{where}: expected a record with {kind!r}, found "
                f"{sorted(record)}{hint}"
            )
        value = record[kind]
    if kind == "text":
        if not isinstance(value, str) or not value:
            raise DataError(f"{where}: 'text' must be a non-empty string")
        return value
    validate_messages(value, where)
    return value
