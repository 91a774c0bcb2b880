"""A built book offers its trained models to those who run its notebooks.

At the end of a build, `minimind_core.book.publishing` writes what the cache
has into `_static/stages`. The build itself fetches nothing from another
book: its pages say that their models were trained where they were built.
"""

from __future__ import annotations

import os
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def uses_models(folder: Path) -> bool:
    """Whether a notebook in the book's folder uses a trained stage."""
    return any(
        "get_stage(" in path.read_text("utf8")
        for path in folder.glob("book/*.ipynb")
    )


def offer_models(app: Sphinx, exception: Exception | None) -> None:
    """Write the models and the index of what there is."""
    if exception or app.builder.name != "html":
        return
    if not uses_models(Path(app.srcdir)):
        return
    from minimind_core.book.published import FOLDER
    from minimind_core.book.publishing import publish

    target = Path(app.outdir) / FOLDER
    entries = publish(target)
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file())
    logger.info(
        f"{len(entries)} trained stages and studies are offered below "
        f"{FOLDER}, {size / 1e6:.1f} MB"
    )


def setup(app: Sphinx) -> None:
    """Connect to the build."""
    from minimind_core.book.published import VARIABLE

    os.environ[VARIABLE] = "off"  # in the kernels too
    app.connect("build-finished", offer_models)
