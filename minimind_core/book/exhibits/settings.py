"""Settings gone wrong: a config that ignores unknown names.

    from minimind_core.book.exhibits.settings import LooseConfig
    LooseConfig(num_layers=99).num_hidden_layers     # 8
"""

from __future__ import annotations

from typing import Any

from minimind_core.book.exhibits.catalogue import (
    Exhibit,
    Kind,
    Measured,
    Notice,
)
from minimind_core.config import ModelConfig
from minimind_core.errors import ConfigError


class LooseConfig:
    """A config that silently drops unknown settings.

    Parameters
    ----------
    hidden_size, num_hidden_layers : int
    **kwargs
        Anything. Only known names are used.
    """

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 8,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.vocab_size = kwargs.get("vocab_size", 6400)
        self.rope_theta = kwargs.get("rope_theta", 1e6)


# --- measured -----------------------------------------------------------


def measure_typo() -> Measured:
    """Ask for ninety-nine layers under a misspelled name."""
    typo = {"num_layers": 99}
    bug = LooseConfig(**typo).num_hidden_layers
    try:
        ModelConfig.from_dict(dict(typo))
        fix = "accepted"
    except ConfigError:
        fix = "an error that names it"
    return Measured(
        "What the misspelled setting `num_layers=99` gives.",
        f"a model of {bug} layers", fix,
        bug == 8 and fix != "accepted",
    )  # fmt: skip


EXHIBITS = (
    Exhibit(
        key="typos-accepted",
        title="A setting with a typo in it changes nothing",
        commit="d65ef2c",
        date="2026-08-21",
        place="model/model_minimind.py:12-18",
        quote="def __init__(self, hidden_size=768, num_hidden_layers=8, "
        "use_moe=False, **kwargs):\n"
        "    ...\n"
        '    self.vocab_size = kwargs.get("vocab_size", 6400)',
        came="2024-08-28 8be4269",
        kind=Kind.WRONG,
        noticed=Notice.NOTHING,
        cost="The trained model is not the one that was requested, and an "
        "experiment on a misspelled setting finds that it has no effect.",
        fix="Give each setting a field, and make unknown names an error.",
        measure=measure_typo,
        test="tests/test_config.py::test_unknown_key_is_an_error",
        page="museum",
    ),
)
