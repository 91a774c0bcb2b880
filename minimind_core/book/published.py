"""Trained stages and studies from the published book.

A built book offers the models that its pages were made with, so that a
chapter on another machine need not train them first. Nothing is fetched
unless an address is set, in the variable `VARIABLE`:

    MINIMIND_STAGES=https://you.github.io/minimind-core   # fetch from there
    MINIMIND_STAGES=off                                   # train, as without

Below the address, ``_static/stages/<digest>/index.json`` lists what was made
by the code with that digest: each file with its size and its SHA-256, and the
versions of the libraries, the dtype and the processor of the training. So an
index that is there fits the code here, but not necessarily its libraries. The
files lie beside the index and are named by their SHA-256.

What is not exactly as the index says is refused, with a message, and then it
is trained here. A hash protects against damaged files, and not against an
address that you should not trust: whoever writes the index writes the hashes.
Only safetensors and text are accepted, which hold no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from minimind_core.version import __version__

VARIABLE = "MINIMIND_STAGES"
"""The environment variable with the address of a published book, or off."""

FOLDER = "_static/stages"
"""Where a built book offers them, below its own address."""

FORMAT = 1
TIMEOUT = 15.0  # seconds without a byte
LONGEST = 180.0  # seconds for one entry
LARGEST_INDEX = 2**20
LARGEST_ENTRY = 2**26
MOST_FILES = 64
KINDS = {".jinja", ".json", ".jsonl", ".md", ".safetensors"}
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
ORIGIN = ".origin.json"
"""Ends the name of a file beside an entry that says where it came from."""


class Refused(Exception):
    """Something cannot be fetched, or is not what the index says."""


class Item(NamedTuple):
    """One file of an entry."""

    sha256: str
    size: int


class Entry(NamedTuple):
    """A stage or a study, as an index lists it."""

    made: dict[str, str]
    files: dict[str, Item]


def address() -> str:
    """Return the address to fetch from; empty if nothing is to be fetched."""
    chosen = os.environ.get(VARIABLE, "").strip()
    return "" if chosen.lower() == "off" else chosen.rstrip("/")


def fetch(
    name: str, target: Path, digest: str, *, progress: bool = True
) -> bool:
    """Fetch one entry, if an address is set and has it.

    The entry appears complete or not at all. Beside it, a file whose name
    ends with `ORIGIN` says where it came from. Hold a lock on `target`.

    Parameters
    ----------
    name : str
        Name of the entry in the index.
    target : path
        Must not exist: a folder, or for a single file its name in full.
    digest : str
        Of the code that the entry must have been made by.
    progress : bool
        Print where it came from. What is refused is said in any case.

    Returns
    -------
    bool
        Whether `target` is there now.
    """
    site = address()
    if not site:
        return False
    short = re.split("[/-]", name)[-1]  # without size, data and digest
    try:
        entries = _index(site, digest)
        if entries is None:
            return False
        if name not in entries:
            raise Refused("the index does not list it")
        entry = entries[name]
        _bring(f"{site}/{FOLDER}/{digest}", entry, target)
    except Refused as error:
        _complain(f"{short} is made here, not fetched from {site}: {error}")
        return False
    except OSError as error:  # of the disk; those of the network are Refused
        _complain(f"{short} cannot be kept here: {error}")
        return False
    if progress:
        size = sum(item.size for item in entry.files.values())
        print(f"{short}: {_told(entry, size, site)}", flush=True)
    return True


def was_fetched(target: Path) -> bool:
    """Whether `fetch` has brought this entry."""
    return origin_of(target).exists()


def origin_of(target: Path) -> Path:
    """Return the file that says where an entry came from."""
    return target.with_name(target.name + ORIGIN)


def forget() -> None:
    """Ask for the index anew, even if it could not be had before."""
    _index.cache_clear()


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _told(entry: Entry, size: int, site: str) -> str:
    import torch  # not above: the set-up of a notebook comes before it

    made = entry.made
    text = f"fetched from {site} ({max(0.01, size / 1e6):.2f} MB), made"
    if "date" in made:
        text += f" on {made['date']}"
    if "torch" in made:
        text += f" with torch {made['torch']} (here {torch.__version__})"
    if "dtype" in made:
        text += f" in {made['dtype']}"
    if "processor" in made:
        text += f" on {made['processor']}"
    return text


@lru_cache(maxsize=4)
def _index(site: str, digest: str) -> dict[str, Entry] | None:
    """The entries of an index; None if it cannot be had, which it says."""
    try:
        _check_address(site)
        data = _download(
            f"{site}/{FOLDER}/{digest}/index.json",
            LARGEST_INDEX,
            time.monotonic() + LONGEST,
        )
        return _parse(data, digest)
    except Refused as error:
        _complain(
            f"no trained models from {site}: {error}. What is missing is "
            "made here."
        )
        return None


def _check_address(site: str) -> None:
    parts = urllib.parse.urlsplit(site)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Refused(f"{VARIABLE} must be an address, https://..., or off")
    if parts.query or parts.fragment:
        raise Refused(f"{VARIABLE} must be an address without ? and #")


def _parse(data: bytes, digest: str) -> dict[str, Entry]:
    """The entries of an index whose every value has been looked at."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise Refused("its index is not JSON") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise Refused("its index has another format")
    if found.get("code") != digest:
        raise Refused("its index is of other code")
    try:
        return {
            str(name): Entry(
                {str(k): _plain(v) for k, v in entry["made"].items()},
                {
                    _path(path): _item(item)
                    for path, item in entry["files"].items()
                },
            )
            for name, entry in found["entries"].items()
        }
    except (AttributeError, KeyError, TypeError):
        raise Refused("its index is not whole") from None


def _plain(value: Any) -> str:
    """A text from elsewhere that is safe to print."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:80])


def _path(path: str) -> str:
    """A path below a folder, of a kind of file that holds no code."""
    parts = path.split("/")
    if not all(PART.fullmatch(p) and not p.endswith(".") for p in parts):
        raise Refused(f"its index names the path {_plain(path)!r}")
    if PurePosixPath(path).suffix not in KINDS:
        raise Refused(f"its index names the file {_plain(path)!r}")
    return path


def _item(item: Mapping[str, Any]) -> Item:
    sha256, size = item["sha256"], item["bytes"]
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise Refused("its index has a SHA-256 that is none")
    if type(size) is not int or size < 0:
        raise Refused("its index has a size that is none")
    return Item(sha256, size)


def _bring(folder: str, entry: Entry, target: Path) -> None:
    """Download an entry beside `target`, check it, and move it there."""
    if not 0 < len(entry.files) <= MOST_FILES:
        raise Refused(f"it has {len(entry.files)} files")
    total = sum(item.size for item in entry.files.values())
    if total > LARGEST_ENTRY:
        raise Refused(f"it has {total:,} bytes, more than {LARGEST_ENTRY:,}")
    single = target.suffix == ".json"
    if single and len(entry.files) != 1:
        raise Refused(f"it has {len(entry.files)} files instead of one")
    deadline = time.monotonic() + LONGEST
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        whole = partial / "whole"
        whole.mkdir()
        for path, item in entry.files.items():
            data = _download(f"{folder}/{item.sha256}", item.size, deadline)
            if len(data) != item.size:
                raise Refused(
                    f"{path} has {len(data):,} bytes instead of "
                    f"{item.size:,}"
                )
            if hashlib.sha256(data).hexdigest() != item.sha256:
                raise Refused(f"{path} is damaged: its SHA-256 differs")
            file = whole / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        origin = partial / "origin.json"
        said = {"from": folder, "made": entry.made}
        origin.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
        (whole / next(iter(entry.files)) if single else whole).rename(target)
        origin.replace(origin_of(target))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow a redirect to https, or within the host that was asked."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        before = urllib.parse.urlsplit(req.full_url)
        after = urllib.parse.urlsplit(newurl)
        same = (before.scheme, before.netloc) == (after.scheme, after.netloc)
        if not same and after.scheme != "https":
            raise Refused(f"it redirects to {_plain(newurl)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, most: int, deadline: float) -> bytes:
    """The bytes at an address; one more than `most` if there are more."""
    request = urllib.request.Request(
        url, headers={"User-Agent": f"minimind-core/{__version__}"}
    )
    opener = urllib.request.build_opener(_Redirects)
    found = bytearray()
    try:
        with opener.open(request, timeout=TIMEOUT) as answer:
            while len(found) <= most:
                if time.monotonic() > deadline:
                    raise Refused(f"it took more than {LONGEST:.0f} s")
                some = answer.read1(min(2**16, most + 1 - len(found)))
                if not some:
                    break
                found += some
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404 and url.endswith("/index.json"):
            raise Refused("it has none of this version of the code") from None
        raise Refused(f"it answers {error.code}") from None
    except urllib.error.URLError as error:
        raise Refused(f"it cannot be reached ({error.reason})") from None
    except (OSError, HTTPException, ValueError) as error:
        said = str(error) or type(error).__name__
        raise Refused(f"the connection failed ({said})") from None
    return bytes(found)
