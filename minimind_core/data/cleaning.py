"""Clean a data set, and say what was removed and why.

    from minimind_core.data.cleaning import clean
    from minimind_core.data.filters import Languages, NearDuplicates
    kept, report = clean(texts, [Languages("en"), NearDuplicates(0.8)])
    print(report)              # counts of each filter, with examples

    minimind clean in.jsonl --out out.jsonl --near-duplicates 0.8 \\
        --language en,zh --min-words 20 --repetition

Each record goes through the filters in the order given, and the first that
removes it is counted. So a record that two filters would remove counts for
the earlier one, and a duplicate of a record that was removed for its
language does not count as a duplicate. The filters are in
`minimind_core.data.filters`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from minimind_core.data.filters import Filter, as_filter
from minimind_core.data.records import (
    MESSAGES,
    check_record,
    is_jsonl,
    record_kind,
)
from minimind_core.data.sources import Source, left_out, place_of
from minimind_core.data.specs import (
    Data,
    open_records,
    parse_data,
    spec_files,
)
from minimind_core.errors import DataError, OutputError
from minimind_core.files import atomic_file, require_new

EXAMPLES = 3
"""How many of each filter's removed records the report shows."""
SHOWN = 60
"""How many characters of an example are shown."""
READ = 256
"""How many records of a file are read at a time."""

AnyFilter = Filter | Callable[[str], str | bool | None]
"""A filter, or a function that says of a text why to remove it."""


@dataclass(frozen=True)
class Example:
    """A record that was removed.

    Attributes
    ----------
    place : str
        Its file and line, or its number.
    why : str
    text : str
        Its beginning.
    """

    place: str
    why: str
    text: str


@dataclass
class CleaningReport:
    """What a cleaning has removed.

    Attributes
    ----------
    read, kept : int
        Records.
    characters, kept_characters : int
    removed : dict of str to int
        Filter -> records that it removed; those of earlier filters are not
        counted again.
    removed_characters : dict of str to int
    examples : dict of str to list of Example
        The first few records of each.
    unusable : int
        Records of a file that could not be read, and were skipped.
    """

    read: int = 0
    kept: int = 0
    characters: int = 0
    kept_characters: int = 0
    removed: dict[str, int] = field(default_factory=dict)
    removed_characters: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    unusable: int = 0

    def to_dict(self) -> dict[str, Any]:
        """All counts and examples, for JSON."""
        return {
            **vars(self),
            "examples": {
                name: [vars(one) for one in found]
                for name, found in self.examples.items()
            },
        }

    def __str__(self) -> str:
        rows = [("read", self.read, self.characters)]
        rows += [
            (name, count, self.removed_characters[name])
            for name, count in self.removed.items()
        ]
        rows.append(("kept", self.kept, self.kept_characters))
        width = max(len(name) for name, *_ in rows)
        lines = [f"{'':{width}}  {'records':>16}  {'characters':>20}"]
        for name, count, characters in rows:
            share = count / max(1, self.read)
            of_text = characters / max(1, self.characters)
            lines.append(
                f"{name:{width}}  {count:>9,} {share:>6.1%}  "
                f"{characters:>13,} {of_text:>6.1%}"
            )
        if self.unusable:
            lines.append(f"{self.unusable:,} more could not be read")
        for name, found in self.examples.items():
            if found:
                lines.append(f"{name}, for example:")
            for one in found:
                why = f" ({one.why})" if one.why else ""
                lines.append(f"  {one.place}{why}: {one.text!r}")
        return "\n".join(lines)


class Cleaning:
    """The records of a stream that pass all filters, one at a time.

    Only what the filters remember stays in memory. The records can be read
    once, and `report` is complete after the last.

    Parameters
    ----------
    records : iterable
        Texts, conversations (lists of messages), or mappings with ``text``,
        ``conversations`` or ``messages``, which keep their other fields.
    filters : sequence
        Each is one of `minimind_core.data.filters`, or a function that takes
        a text and returns true, or a reason, to remove it.
    examples : int
        How many removed records of each filter the report shows.
    place : callable, optional
        Number of a record -> where it is, for the report and for errors.

    Attributes
    ----------
    report : CleaningReport

    Raises
    ------
    ConfigError
        For something that is no filter, or a library that is missing.
    DataError
        For something that is no record, while they are read.
    """

    def __init__(
        self,
        records: Iterable[Any],
        filters: Sequence[AnyFilter],
        *,
        examples: int = EXAMPLES,
        place: Callable[[int], str] = "record {}".format,
    ) -> None:
        self._records, self._examples = records, examples
        self._place, self.report = place, CleaningReport()
        self._checks = []
        for one in map(as_filter, filters):
            name, number = one.name, 2
            while name in self.report.removed:
                name, number = f"{one.name} {number}", number + 1
            self.report.removed[name] = 0
            self.report.removed_characters[name] = 0
            self.report.examples[name] = []
            self._checks.append((name, one.start()))

    def __iter__(self) -> Iterator[Any]:
        report = self.report
        for number, record in enumerate(self._records):
            try:
                text = text_of(record)
            except DataError:
                # The place is looked up only now: in a file it takes time.
                text = text_of(record, self._place(number))
            report.read += 1
            report.characters += len(text)
            for name, check in self._checks:
                if (removal := check(text, number)) is None:
                    continue
                report.removed[name] += 1
                report.removed_characters[name] += len(text)
                if len(report.examples[name]) < self._examples:
                    why, like = removal
                    why = why if like is None else (
                        f"{why} {self._place(like)}")  # fmt: skip
                    report.examples[name].append(
                        Example(self._place(number), why, _beginning(text))
                    )
                break
            else:
                report.kept += 1
                report.kept_characters += len(text)
                yield record


def _beginning(text: str) -> str:
    short = " ".join(text[: 4 * SHOWN].split())
    return short if len(short) <= SHOWN else short[: SHOWN - 3] + "..."


def text_of(record: Any, where: str = "record") -> str:
    """Return the text of a record that the filters look at.

    Parameters
    ----------
    record : str, list of dict or mapping
        See `Cleaning`.
    where : str
        For errors.

    Returns
    -------
    str
        Of a conversation all that its messages say, calls of tools and their
        descriptions included, but not the roles.

    Raises
    ------
    DataError
        For something that is no record.
    """
    talk = not isinstance(record, str) and (
        not isinstance(record, Mapping)
        or any(name in record for name in ("conversations", MESSAGES))
    )
    kind = "conversations" if talk else "text"
    value = check_record(record, kind, where)
    if isinstance(value, str):
        return value
    return "\n".join(
        part if isinstance(part, str) else json.dumps(
            part, ensure_ascii=False, sort_keys=True)
        for message in value
        for name, part in message.items()
        if name != "role" and part
    )  # fmt: skip


class Cleaned(NamedTuple):
    """What `clean` returns.

    Attributes
    ----------
    kept : list
        The records that passed, as they were given.
    report : CleaningReport
    """

    kept: list[Any]
    report: CleaningReport


def clean(
    records: Iterable[Any],
    filters: Sequence[AnyFilter],
    *,
    examples: int = EXAMPLES,
) -> Cleaned:
    """Remove the records that a filter objects to.

    For more records than fit into the memory, read a `Cleaning` instead, or
    call `clean_file`.

    Parameters
    ----------
    records, filters, examples
        See `Cleaning`.

    Returns
    -------
    Cleaned
        The kept records, and the report.

    Raises
    ------
    ConfigError, DataError
        See `Cleaning`.

    Examples
    --------
    >>> texts = ["One day.", "One  day.", "Buy now!"]
    >>> kept, report = clean(
    ...     texts, [ExactDuplicates(), lambda text: "Buy" in text]
    ... )
    >>> kept
    ['One day.']
    """
    cleaning = Cleaning(records, filters, examples=examples)
    return Cleaned(list(cleaning), cleaning.report)


def clean_file(
    data: Data,
    out: str | Path,
    filters: Sequence[AnyFilter],
    *,
    kind: str | None = None,
    on_bad_record: str | None = None,
    examples: int = EXAMPLES,
    progress: bool = False,
) -> CleaningReport:
    """Clean data files and write what is kept as one ``.jsonl`` file.

    Parameters
    ----------
    data
        Files or records, see `parse_data`. All records are read, those that
        training would hold out included.
    out : path
        The new file; it appears complete or not at all. Each line has the
        text or the conversation of one record, and no other field.
    filters
        See `Cleaning`.
    kind : {"text", "conversations"}, optional
        Judged by the first record if not given.
    on_bad_record : {"stop", "skip"}, optional
        Whether a record that cannot be used is an error, the default, or is
        skipped and counted.
    examples : int
    progress : bool
        Show a bar on a terminal.

    Returns
    -------
    CleaningReport

    Raises
    ------
    DataError
        For a record that is wrong, naming its file and line, or if the
        filters remove all records.
    OutputError
        If `out` exists, cannot be written, or is no ``.jsonl``.
    """
    out = Path(out)
    if not is_jsonl(out):
        raise OutputError(f"{out}: name a .jsonl file, which is written")
    require_new(out)
    source, kind = _open(data, kind, on_bad_record)
    cleaning = Cleaning(
        _each(source, progress), filters, examples=examples,
        place=lambda number: place_of(source, number),
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out) as partial:
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            for record in cleaning:
                line = json.dumps({kind: record}, ensure_ascii=False)
                file.write(line + "\n")
        report = cleaning.report
        if (bad := left_out(source)) is not None:
            report.unusable = bad.count
        if not report.kept:
            raise DataError(
                f"{out}: not written, because the filters removed all "
                f"{report.read:,} records:\n{report}"
            )
    return report


def read_texts(
    data: Data, *, on_bad_record: str | None = None
) -> Iterator[str]:
    """Yield the texts of all records, for example of a held-out set.

    Parameters
    ----------
    data
        Files or records, see `parse_data`.
    on_bad_record : {"stop", "skip"}, optional
        See `clean_file`.

    Raises
    ------
    DataError
        For a record that is wrong, naming its file and line.
    """
    source, _ = _open(data, None, on_bad_record)
    yield from map(text_of, _each(source, False))


def _open(
    data: Data, kind: str | None, on_bad_record: str | None
) -> tuple[Source, str]:
    """Open all records of some data, and tell of which kind they are."""
    spec = parse_data(data)
    if on_bad_record is not None:
        spec = replace(spec, on_bad_record=on_bad_record)
    if spec.language is not None:
        raise DataError(
            f"{spec}: is endless, and has nothing to clean; name files"
        )
    if spec.part:
        raise DataError(f"{spec}: name the whole file, without #{spec.part}")
    if kind is None:
        kind = "text"
        if spec.paths:
            skip = spec.on_bad_record == "skip"
            kind = record_kind(spec_files(spec)[0].path, skip=skip)
        elif isinstance(spec.memory, list) and not (
            isinstance(spec.memory[0], Mapping) and "text" in spec.memory[0]
        ):
            kind = "conversations"
    source = open_records(spec, kind)
    if source.size is None:
        raise DataError(f"{spec}: is endless; give a part of it")
    return source, kind


def _each(source: Source, progress: bool) -> Iterator[Any]:
    from tqdm import tqdm

    assert source.size is not None
    # None: only on a terminal.
    with tqdm(
        total=source.size, unit="record", disable=None if progress else True
    ) as bar:
        for start in range(0, source.size, READ):
            chunk = range(start, min(start + READ, source.size))
            yield from source.records(chunk)
            bar.update(len(chunk))
