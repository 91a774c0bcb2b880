"""What was measured on graphics cards, for the pages to print.

    from minimind_core.book.measured import gpu_results
    gpu_results()[0]["card"]            # "NVIDIA H200"

``make gpu-check`` writes one file for each card into ``benchmarks/results``.
They belong to the repository, and not to the installed package, so there are
none where only the package is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minimind_core.files import read_json

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def gpu_results(folder: str | Path = RESULTS) -> list[dict[str, Any]]:
    """Return the results of each card, the newest first.

    Parameters
    ----------
    folder : path
        Where ``make gpu-check`` has written them.

    Returns
    -------
    list of dict
        As ``benchmarks/gpu.py`` writes them: ``card``, ``date``, ``torch``,
        ``half`` (the half-precision format), ``matmul_peak`` (FLOPs per
        second of a large product in it), and one entry for each part. Empty
        if there are none.
    """
    found = []
    for path in sorted(Path(folder).glob("*.json")):
        values = read_json(path)
        if isinstance(values, dict) and "card" in values:
            found.append(values)
    return sorted(found, key=lambda one: str(one["date"]), reverse=True)


def speed_rows(
    results: dict[str, Any], names: list[str]
) -> list[list[str]]:  # fmt: skip
    """Return rows of a table of training speeds.

    Parameters
    ----------
    results : dict
        Of one card.
    names : list of str
        Ways of running, as ``benchmarks/gpu.py`` calls them. One that was
        left out there is left out here.

    Returns
    -------
    list of list of str
        The name, rows at a time, tokens per second, utilization, and peak
        memory in GB.
    """
    found = []
    for name in names:
        one = results.get("speed", {}).get(name)
        if one:
            found.append([
                name, str(one["rows"]), f"{one['tokens_per_second']:,.0f}",
                f"{one['utilization']:.0%}", f"{one['memory'] / 1e9:.1f}",
            ])  # fmt: skip
    return found
