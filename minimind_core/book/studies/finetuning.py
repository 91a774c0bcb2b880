"""Short fine-tuning runs that differ in one setting each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minimind_core.book.stages import get_stage
from minimind_core.config import get_preset
from minimind_core.data import (
    Encoded,
    Encoder,
    Messages,
    Mixture,
    Row,
    Rows,
    RowStream,
    conversation_encoder,
    document_encoder,
    pack,
)
from minimind_core.evaluation import (
    exact_match,
    rows_loss,
    sample_documents,
)
from minimind_core.loading import load_model
from minimind_core.microworld import (
    HELD_OUT_SEED,
    Conversation,
    MicroworldConversations,
    MicroworldStories,
    conversation,
    write_story,
)
from minimind_core.model import IGNORE_INDEX
from minimind_core.train import Trainer

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerFast

STEPS = 100
ROWS = 16
CHECKS = 5
STORIES = 50
TALKS = 50
SAMPLES = 50
FEW, SOME = 32, 140
"""Numbers of conversations that the studies of overfitting memorise."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The data of one fine-tuning run.

    Parameters
    ----------
    replay : bool
        Add as many stories as conversations.
    mask : {"answers", "everything", "late"}
        Supervise the answers, all tokens, or the answers shifted by one
        token.
    few : int
        Repeat this many conversations; 0 never repeats one.
    """

    replay: bool = False
    mask: str = "answers"
    few: int = 0


class First:
    """A source of the first `size` conversations of the microworld."""

    def __init__(self, size: int) -> None:
        self.size, self.all = size, MicroworldConversations("en", 0)

    def records(self, indices: Sequence[int]) -> list[Messages]:
        """The conversations with these indices."""
        return self.all.records(indices)


def masked_encoder(
    tokenizer: PreTrainedTokenizerFast, seq_len: int, mask: str
) -> Encoder:
    """Return an encoder of conversations with the labels of a `Recipe`."""
    right = conversation_encoder(tokenizer, seq_len)

    def change(one: Encoded) -> Encoded:
        ids, labels = one
        if mask == "everything":
            return Encoded(ids, ids)
        chosen = [label != IGNORE_INDEX for label in labels]
        late = [False, *chosen[:-1]]
        return Encoded(ids, [
            token if supervised else IGNORE_INDEX
            for token, supervised in zip(ids, late, strict=True)
        ])  # fmt: skip

    def encode(batch: list[Messages]) -> list[Encoded | None]:
        return [one and change(one) for one in right(batch)]

    return right if mask == "answers" else encode


def finetunings(preset: str, progress: bool) -> dict[str, Any]:
    """Fine-tune the pretrained model briefly, in six ways.

    Each step uses the same number of conversations; with replay, it also
    uses as many stories.

    Returns
    -------
    dict of str to dict
        For each run the ``steps`` of its checks, and at each of them
        ``stories`` (loss on held-out stories over the floor), ``held_out``
        and ``trained`` (nats per supervised token, on conversations never
        seen and on the first `FEW`). ``last`` has these at the end, and
        also ``exact`` and ``exact_trained``, shares of correct answers, and
        the nats of ``all`` of a story, of its first token (``start``) and of
        its ``end``; the runs ``few`` and ``some`` have these at every
        check. ``valid`` is the share of valid stories at the end, ``loss``
        the training loss as pairs of step and nats, ``seconds`` the time in
        optimizer steps.
    """
    recipes = {
        "replay": Recipe(replay=True),
        "none": Recipe(),
        "few": Recipe(few=FEW),
        "some": Recipe(few=SOME),
        "everything": Recipe(mask="everything"),
        "late": Recipe(mask="late"),
    }
    found = {}
    for name, recipe in recipes.items():
        if progress:
            print(f"  {name}", flush=True)
        found[name] = _train(preset, recipe)
    return found


def _train(preset: str, recipe: Recipe) -> dict[str, Any]:
    model, tokenizer = load_model(get_stage("pretrain", preset=preset))
    base = get_preset(preset).sft
    config = base.replace(
        steps=STEPS,
        batch_size=ROWS * (2 if recipe.replay else 1),
        micro_batch_size=None,
        replay=0.0,
        log_every=5,
        validate_every=max(STEPS // CHECKS, 1),
        sample_every=0,
        save_every=0,
    )
    check = _Check(tokenizer, config.seq_len, whole=bool(recipe.few))
    before = check(model)
    trainer = Trainer(
        model, _stream(tokenizer, recipe, config.seq_len), config,
        validate=check, progress=False,
    )  # fmt: skip
    history = trainer.fit()
    checked = [{"step": 0, **before}]
    checked += [record for record in history if "stories" in record]
    check.whole = True
    last = check(model)
    samples = sample_documents(tokenizer, "microworld", count=SAMPLES)
    return {
        "steps": [record["step"] for record in checked],
        **{name: [record[name] for record in checked] for name in before},
        "loss": [[record["step"], record["loss"]] for record in history],
        "last": last,
        "valid": samples(model)["valid_fraction"],
        "seconds": trainer.seconds,
    }


def _stream(
    tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seq_len: int
) -> RowStream:
    endless = MicroworldConversations("en", 0)
    talks = Rows(
        First(recipe.few) if recipe.few else endless,
        masked_encoder(tokenizer, seq_len, recipe.mask), seq_len=seq_len,
    )  # fmt: skip
    if not recipe.replay:
        return talks
    stories = Rows(
        MicroworldStories("en", 0), document_encoder(tokenizer),
        seq_len=seq_len,
    )  # fmt: skip
    stories.drawn = 1_000_000  # far beyond those of pretraining
    return Mixture(talks, stories, 0.5, seed=0)


def _only(row: Row, place: int) -> Row:
    """A row with a single label."""
    labels = [IGNORE_INDEX] * len(row.labels)
    labels[place] = row.labels[place]
    return Row(row.input_ids, labels, row.document_ids)


class _Check:
    """The measurements during training; ``whole`` ones take longer."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, seq_len: int, whole: bool
    ) -> None:
        self.tokenizer, self.whole = tokenizer, whole
        stories = [write_story(HELD_OUT_SEED, i) for i in range(STORIES)]
        self.floor = -sum(story.logprob for story in stories)
        encoded = document_encoder(tokenizer)([s.text for s in stories])
        self.stories = pack([e for e in encoded if e is not None], 0)
        self.edges = {
            "start": [_only(row, 1) for row in self.stories],
            "end": [_only(row, len(row.labels) - 1) for row in self.stories],
        }
        self.held_out = [
            conversation(HELD_OUT_SEED, i) for i in range(TALKS)
        ]
        self.trained = [conversation(0, i) for i in range(FEW)]
        encode = conversation_encoder(tokenizer, seq_len)

        def rows(talks: list[Conversation]) -> Any:
            found = encode([talk.messages for talk in talks])
            return pack([e for e in found if e is not None], 0)

        self.held_out_rows = rows(self.held_out)
        self.trained_rows = rows(self.trained)

    def __call__(self, model: nn.Module) -> dict[str, Any]:
        stories, _ = rows_loss(model, self.stories)
        found = {"stories": stories / self.floor}
        for name, rows in (
            ("held_out", self.held_out_rows),
            ("trained", self.trained_rows),
        ):
            nats, tokens = rows_loss(model, rows)
            found[name] = nats / tokens
        if self.whole:
            found["exact"] = self._right(model, self.held_out)
            found["exact_trained"] = self._right(model, self.trained)
            found["all"] = stories / STORIES
            for name, rows in self.edges.items():
                found[name] = rows_loss(model, rows)[0] / STORIES
        return found

    def _right(self, model: nn.Module, talks: list[Conversation]) -> float:
        """Share of correct answers over all turns, regardless of kind."""
        each = exact_match(model, self.tokenizer, talks)
        count = {kind: 0 for kind in each}
        for talk in talks:
            for kind in talk.kinds:
                count[kind] += 1
        right = sum(each[kind] * count[kind] for kind in each)
        return right / sum(count.values())


STUDIES = {"finetunings": finetunings}
