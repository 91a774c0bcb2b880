"""The effect of LoRA's settings and variants, and forgetting.

Every run trains the exported chat model on the microworld's new style
(`skill_conversation`), with the same rows in the same order.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim import AdamW

from minimind_core.book import published
from minimind_core.book.stages import digest, find_shelf, get_stage, locked
from minimind_core.config import TrainConfig, get_preset
from minimind_core.data import (
    Mixture,
    Row,
    Rows,
    RowStream,
    conversation_encoder,
    open_source,
    parse_data,
)
from minimind_core.evaluation import (
    document_loss,
    exact_match,
    held_out_conversations,
)
from minimind_core.loading import load_adapter, load_hf_model, load_model
from minimind_core.lora import ALL_LINEAR, apply_lora
from minimind_core.microworld import (
    MAIN_KINDS,
    held_out_questions,
    write_story,
)
from minimind_core.precision import resolve
from minimind_core.recipes import train_lora
from minimind_core.run import is_finished, read_log
from minimind_core.train import Trainer

STEPS = 40
ROWS = 8
RATES = {"tiny": 5e-3}
"""Peak rate of the short runs, by preset."""
OTHER_RATE = 5e-4
LORA_PLUS = 4.0
"""Ratio of B's learning rate to A's in LoRA+."""
EACH = 50
"""Number of questions of each kind."""

# The final adapter of the chapter, and the models it is compared with.
REPLAY, REPLAY_STEPS, REPLAY_ROWS = 0.5, 240, 16
ALONE_STEPS = 100
"""Without replay, where every row is a greeting."""
RANK, ALPHA = 32, 128
OTHER_RANKS = (1, 8)
"""Ranks whose forgetting is measured too, with the same ratio of alpha."""
KEPT_RATES = {"tiny": (2e-3, 1.5e-3)}
"""Peak rates of an adapter and of a full fine-tuning, by preset."""
OTHER_KEPT_RATES = (2e-4, 5e-5)

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
SETTINGS = (
    # what is varied, rank, alpha, targets
    ("rank", 1, 2.0, ALL_LINEAR),
    ("rank", 4, 8.0, ALL_LINEAR),
    ("rank", 8, 16.0, ALL_LINEAR),
    ("rank", 32, 64.0, ALL_LINEAR),
    ("alpha", 8, 2.0, ALL_LINEAR),
    ("alpha", 8, 64.0, ALL_LINEAR),
    ("targets", 8, 16.0, ("q_proj", "v_proj")),
    ("targets", 8, 16.0, ("q_proj", "o_proj")),
    ("targets", 8, 16.0, ATTENTION),
    ("targets", 8, 16.0, MLP),
)
VARIANTS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "LoRA+": {},
}


class _Kept:
    """A stream of precomputed rows, shared by many runs."""

    skipped = 0

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows, self.place = rows, 0

    def next_row(self) -> Row:
        self.place += 1
        return self.rows[(self.place - 1) % len(self.rows)]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


class _Skill:
    """A base model with its training rows and test questions.

    Parameters
    ----------
    preset : str
    replay : float
        Share of ordinary conversations among the rows.
    steps, rows : int
        Steps of each run, and rows of each step.
    """

    def __init__(
        self, preset: str, *, replay: float = 0.0, steps: int, rows: int
    ) -> None:
        self.folder = get_stage("hf", preset=preset)
        self.base, self.tokenizer = load_model(self.folder)
        self.config = get_preset(preset).lora.replace(
            steps=steps, batch_size=rows, replay=replay, log_every=1,
            validate_every=0, sample_every=0, save_every=0,
        )  # fmt: skip
        seq_len = self.config.seq_len
        encode = conversation_encoder(self.tokenizer, seq_len)

        def stream(kind: str) -> RowStream:
            source = open_source(parse_data("microworld"), kind, seed=0)
            return Rows(source, encode, seq_len=seq_len, seed=0)

        taught = stream("skill")
        if replay:
            taught = Mixture(taught, stream("conversations"), replay, 0)
        self.rows = [taught.next_row() for _ in range(steps * rows)]
        self.check = held_out_conversations(
            self.tokenizer, parse_data("microworld"), seed=0,
            seq_len=seq_len, kind="skill", count=100,
        )  # fmt: skip

    def train(
        self, model: nn.Module, rate: float, *, ratio: float = 1.0
    ) -> dict[str, Any]:
        """Train a model and evaluate it."""
        config = self.config.replace(lr=rate)
        trainer = Trainer(
            model, _Kept(self.rows), config, progress=False,
            precision=resolve(config.device, config.dtype),
        )  # fmt: skip
        if ratio != 1.0:
            trainer.optimizer = faster_b(model, config, ratio)
        started = time.perf_counter()
        history = trainer.fit()
        seconds = time.perf_counter() - started
        learning = [p for p in model.parameters() if p.requires_grad]
        return {
            "parameters": sum(p.numel() for p in learning),
            "losses": [record["loss"] for record in history],
            "ms_per_step": 1000 * seconds / config.steps,
            "loss": self.check(model)["validation_loss"],
        }


def faster_b(model: nn.Module, config: TrainConfig, ratio: float) -> AdamW:
    """Return the optimizer of LoRA+, with a larger rate for B than for A.

    Parameters
    ----------
    model : nn.Module
        With adapters.
    config : TrainConfig
        Its learning rate is used for A.
    ratio : float
        Ratio of B's rate to A's.
    """
    parts: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts["lora_B" in name].append(parameter)
    rate = config.lr
    groups: list[dict[str, Any]] = [
        {"params": parts[False], "lr": rate, "initial_lr": rate},
        {"params": parts[True], "lr": rate * ratio,
         "initial_lr": rate * ratio},
    ]  # fmt: skip
    betas = (config.beta1, config.beta2)
    return AdamW(groups, betas=betas, weight_decay=0.0)


def questions_right(model: nn.Module, tokenizer: Any) -> dict[str, float]:
    """Measure the new skill and the old one on held-out questions.

    Returns
    -------
    dict of str to float
        ``new``: share of correct answers in the new style. ``old``: share of
        correct answers to ordinary questions, averaged over `MAIN_KINDS`.
    """
    kinds = (*MAIN_KINDS, "skill")
    talks = held_out_questions("en", each=EACH, kinds=kinds)
    marks = exact_match(model, tokenizer, talks)
    old = sum(marks[kind] for kind in MAIN_KINDS) / len(MAIN_KINDS)
    return {"new": marks["skill"], "old": old}


def story_loss(model: nn.Module, tokenizer: Any) -> float:
    """Return the loss on held-out stories, divided by the floor."""
    stories = [write_story(1_000_003, i) for i in range(100)]
    loss = document_loss(model, tokenizer, [s.text for s in stories])
    return loss.nats / -sum(s.logprob for s in stories)


def greeting_adapter(preset: str = "tiny", *, progress: bool = True) -> Path:
    """Return the folder of the greeting adapter, made on first use.

    Parameters
    ----------
    preset : str
        The size of its base.
    progress : bool
        Print progress while it is trained.

    Returns
    -------
    Path
        In peft's format. Do not write to it.
    """
    base = get_stage("hf", preset=preset, progress=progress)
    shelf = find_shelf(preset, progress=progress)
    cache = shelf.base / "studies"
    name = greeting_name(preset)
    folder = cache / f"{shelf.digest}-{name}"
    with locked(cache, folder.name):
        # An adapter from elsewhere fits no base but that from elsewhere.
        if not folder.exists() and published.was_fetched(base):
            shelf.fetch(f"studies/{name}", folder, progress)
        if not is_finished(folder):
            train_lora(
                base, folder, rank=RANK, alpha=ALPHA, replay=REPLAY,
                steps=REPLAY_STEPS, batch_size=REPLAY_ROWS,
                lr=_kept_rates(preset)[0],
                preset=preset, resume=True, progress=progress,
            )  # fmt: skip
        for old in cache.glob(f"*-{preset}-greeting"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
                published.origin_of(old).unlink(missing_ok=True)
    return folder


def greeting_name(preset: str) -> str:
    """Return the name of the greeting adapter, with a digest of its code."""
    return f"{digest([Path(__file__)], '')}-{preset}-greeting"


def _kept_rates(preset: str) -> tuple[float, float]:
    return KEPT_RATES.get(preset, OTHER_KEPT_RATES)


def _kept_run(folder: Path) -> dict[str, Any]:
    last = read_log(folder)[-1]
    weights = load_file(folder / "adapter_model.safetensors")
    return {
        "parameters": sum(w.numel() for w in weights.values()),
        "ms_per_step": 1000 * last["seconds"] / last["step"],
        "loss": last["validation_loss"],
    }


def _say(progress: bool, text: str) -> None:
    if progress:
        print(f"  {text}", flush=True)


def lora_settings(preset: str, progress: bool) -> list[dict[str, Any]]:
    """Train one adapter for each rank, alpha and set of layers.

    Returns
    -------
    list of dict
        ``varied``, ``rank``, ``alpha``, ``targets``, and the results:
        ``parameters``, ``losses``, ``loss`` (held out), ``ms_per_step``.
    """
    skill = _Skill(preset, steps=STEPS, rows=ROWS)
    rate = RATES.get(preset, OTHER_RATE)
    found = []
    for varied, rank, alpha, targets in SETTINGS:
        _say(progress, f"rank {rank}, alpha {alpha:g}, {len(targets)} kinds")
        torch.manual_seed(0)
        model = copy.deepcopy(skill.base)
        apply_lora(model, rank, alpha, targets)
        found.append({
            "varied": varied, "rank": rank, "alpha": alpha,
            "targets": list(targets), "rate": rate,
            **skill.train(model, rate),
        })  # fmt: skip
    return found


def lora_variants(preset: str, progress: bool) -> list[dict[str, Any]]:
    """Compare LoRA and its variants, through peft, from the same seed.

    Returns
    -------
    list of dict
        ``name``, ``rate`` (each is run at two) and what `lora_settings`
        measures.
    """
    import peft

    skill = _Skill(preset, steps=STEPS, rows=ROWS)
    found = []
    for faster in (1, 2):
        rate = RATES.get(preset, OTHER_RATE) * faster
        for name, options in VARIANTS.items():
            _say(progress, f"{name}, {rate:g}")
            torch.manual_seed(0)
            config = peft.LoraConfig(
                r=8, lora_alpha=16, target_modules=list(ALL_LINEAR),
                **options,
            )
            model = peft.get_peft_model(load_hf_model(skill.folder), config)
            ratio = LORA_PLUS if name == "LoRA+" else 1.0
            run = skill.train(model, rate, ratio=ratio)
            found.append({"name": name, "rate": rate, **run})
    return found


def lora_forgetting(preset: str, progress: bool) -> dict[str, Any]:
    """Measure how much of the old skill is forgotten.

    Returns
    -------
    dict
        ``runs``: for the base, for an adapter and for all weights, each
        without and with replay, and without replay for adapters of other
        ranks: ``name``, ``rank`` (of an adapter), ``parameters``,
        ``ms_per_step``, ``new``, ``old`` (see `questions_right`) and
        ``stories`` (see `story_loss`). ``singular``: for each matrix the
        singular values of what full fine-tuning, without replay, added to it.
    """
    runs: list[dict[str, Any]] = []
    rates = _kept_rates(preset)

    def note(name: str, model: nn.Module, run: dict[str, Any]) -> None:
        runs.append({
            "name": name, **run,
            **questions_right(model, skill.tokenizer),
            "stories": story_loss(model, skill.tokenizer),
        })  # fmt: skip

    skill = _Skill(preset, steps=ALONE_STEPS, rows=REPLAY_ROWS)
    note("before", skill.base, {"parameters": 0})
    for rank in (RANK, *OTHER_RANKS):
        name = "LoRA" if rank == RANK else f"LoRA, rank {rank}"
        _say(progress, name)
        torch.manual_seed(0)
        model = copy.deepcopy(skill.base)
        apply_lora(model, rank, rank * ALPHA / RANK)
        note(name, model, {"rank": rank, **skill.train(model, rates[0])})
    _say(progress, "full")
    model = copy.deepcopy(skill.base)
    note("full", model, skill.train(model, rates[1]))
    singular = _singular_values(skill.base, model)
    _say(progress, "LoRA, replay")
    folder = greeting_adapter(preset, progress=False)
    note("LoRA, replay", load_adapter(folder)[0], _kept_run(folder))
    _say(progress, "full, replay")
    skill = _Skill(
        preset, replay=REPLAY, steps=REPLAY_STEPS, rows=REPLAY_ROWS
    )
    model = copy.deepcopy(skill.base)
    note("full, replay", model, skill.train(model, rates[1]))
    return {"runs": runs, "singular": singular}


@torch.no_grad()
def _singular_values(
    before: nn.Module, after: nn.Module
) -> dict[str, list[float]]:
    old = dict(before.named_parameters())
    return {
        name.removesuffix(".weight"): torch.linalg.svdvals(
            (new.cpu() - old[name]).float()
        ).tolist()
        for name, new in after.named_parameters()
        if new.ndim == 2 and name.split(".")[-2] in ALL_LINEAR
    }


STUDIES = {
    "lora_forgetting": lora_forgetting,
    "lora_settings": lora_settings,
    "lora_variants": lora_variants,
}
