"""The size of a chapter's model, and consent to what it costs.

    from minimind_core.book.sizes import choose_size
    size = choose_size("tiny")              # prints what larger sizes cost
    size = choose_size("t4", confirm=True)  # and agrees to that cost
    get_stage("pretrain", preset=size)

The chapters show the smallest preset, which a processor trains in minutes.
The same code trains the larger ones for up to days. So `get_stage` and
`get_study` start nothing at a larger size that may take longer than ten
minutes on this machine until the reader has agreed to it. They raise an error
that states the cost; they do not ask, because a question would stop a
notebook that is run from its first cell to its last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from minimind_core.config import PRESETS, get_preset
from minimind_core.cost import (
    LONG,
    TRAINED,
    Device,
    compare_costs,
    describe_cost,
    device_called,
    hours_on,
)
from minimind_core.errors import ConfigError
from minimind_core.precision import detect_device

DEFAULT = "tiny"
"""What the pages show. Its training never needs consent."""


class Size(str):
    """The name of a preset, and whether its cost was agreed to.

    Wherever a function takes a preset's name it takes a size, so that
    consent is given once in a notebook.

    Attributes
    ----------
    confirmed : bool
    """

    confirmed: bool

    def __new__(cls, name: str, confirmed: bool = False) -> Size:
        """Make it of a name that `get_preset` knows."""
        made = super().__new__(cls, get_preset(name).name)
        made.confirmed = confirmed or is_confirmed(name)
        return made


def is_confirmed(preset: object) -> bool:
    """Whether a preset's name is a `Size` whose cost was agreed to."""
    return isinstance(preset, Size) and preset.confirmed


def choose_size(
    name: str = DEFAULT, *, confirm: bool = False, until: str = "lora"
) -> Size:
    """Choose the size of a notebook's models, and print what others cost.

    Parameters
    ----------
    name : {"tiny", "t4", "small", "base"}
    confirm : bool
        Agree to trainings of more than ten minutes.
    until : {"pretrain", "sft", "lora"}
        The last stage that the notebook trains.

    Returns
    -------
    Size

    Raises
    ------
    ConfigError
        For an unknown preset.
    """
    size = Size(name, confirm)
    stages = TRAINED[: TRAINED.index(until) + 1]
    larger = [one for one in PRESETS if one != DEFAULT]
    print(f"Estimated cost of larger sizes, up to {until}:")
    print(compare_costs(larger, stages))
    print("What may take longer than ten minutes needs confirm=True.")
    return size


def _this_device() -> tuple[Device, str]:
    """The figures to count with on this machine, and its name."""
    facts = detect_device()
    return device_called(facts.type, facts.name)


def require_consent(size: str, stages: Iterable[str]) -> None:
    """Raise an error if training these stages may take too long.

    Parameters
    ----------
    size : str
        A preset's name.
    stages : iterable of str
        The stages that are about to be made.

    Raises
    ------
    ConfigError
        With the cost, unless the size is the default, its cost was agreed
        to, or ten minutes are enough.
    """
    wanted = [stage for stage in TRAINED if stage in set(stages)]
    if size == DEFAULT or is_confirmed(size) or not wanted:
        return
    preset = get_preset(size)
    runs = [getattr(preset, stage) for stage in wanted]
    device, name = _this_device()
    span = hours_on(device, preset, *runs)
    if span.high <= LONG:
        return
    raise ConfigError(
        f"not started: on {name}, training {_listed(wanted)} at the size "
        f"{preset.name!r} would take an estimated {span}. "
        f"{describe_cost(preset, *runs)}\n"
        f"To start it, agree to this with confirm=True, as in "
        f"choose_size({preset.name!r}, confirm=True)"
    )


def require_consent_to_study(name: str, size: str) -> None:
    """Raise an error for a study at a larger size that was not agreed to.

    Parameters
    ----------
    name : str
        Of the study.
    size : str

    Raises
    ------
    ConfigError
    """
    if size == DEFAULT or is_confirmed(size):
        return
    preset = get_preset(size)
    device, where = _this_device()
    plan = preset.pretrain
    span = hours_on(device, preset, plan)
    low, high = (3600 * hours / plan.steps for hours in span)
    raise ConfigError(
        f"not started: the study {name!r} trains several models of the size "
        f"{preset.name!r}, for up to some hundred steps each. On {where}, a "
        f"step of its pretraining takes an estimated {low:,.1f} to "
        f"{high:,.1f} seconds. To start it, agree to this with confirm=True, "
        f"as in choose_size({preset.name!r}, confirm=True)"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]
