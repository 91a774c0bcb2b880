"""One record of a data file, and whether it has the right form.

    from minimind_core.data import parse_record
    parse_record(b'{"text": "One day ..."}', "text", "stories.jsonl, line 1")

The formats are MiniMind's: ``{"text": ...}`` for documents and
``{"conversations": [{"role": ..., "content": ...}, ...]}`` for dialogues.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minimind_core.chat import validate_messages
from minimind_core.errors import DataError

Document = str
Messages = list[dict[str, Any]]

def is_jsonl(path: Path) -> bool:
    return path.suffix.lower() in (".jsonl", ".json", ".ndjson")


def not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
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
        raise not_utf8(where, error) from None
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
