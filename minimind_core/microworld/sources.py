"""The microworld as endless sources of stories and conversations.

    from minimind_core.microworld import MicroworldStories
    source = MicroworldStories("en", seed=0)
    source.records([0, 1])          # two stories
    source.floor([0, 1])            # the nats no model can get below

They have the methods of `minimind_core.data.Source`. On top comes what only
a world with a known grammar can offer: the floor under the loss, whether a
text is a valid story, and questions whose answers are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minimind_core.microworld.metrics import (
    HELD_OUT_SEED,
    held_out_questions,
    story_floor,
    valid_fraction,
)
from minimind_core.microworld.stories import write_story
from minimind_core.microworld.tasks import (
    QUESTION_KINDS,
    Conversation,
    conversation,
    skill_conversation,
)


class MicroworldStories:
    """The embedded corpus as an endless source of documents.

    Parameters
    ----------
    language : {"en", "zh"}
    seed : int
        Of the stream of stories.
    held_out : bool
        Another stream, which training with the same seed never sees.
    """

    size = None

    def __init__(
        self, language: str, seed: int, *, held_out: bool = False
    ) -> None:
        self.language = language
        self.seed = seed + HELD_OUT_SEED * held_out

    def records(self, indices: Sequence[int]) -> list[str]:
        """The stories with these indices."""
        return [
            write_story(self.seed, i, self.language).text for i in indices
        ]

    def floor(self, indices: Sequence[int]) -> float:
        """Nats that no model can get below on these stories, on average."""
        return story_floor(
            [write_story(self.seed, i, self.language) for i in indices]
        )

    def valid_fraction(self, texts: Sequence[str]) -> float:
        """Share of texts that this world could have written."""
        return valid_fraction(texts, self.language)


class MicroworldConversations:
    """Conversations about the stories, or in the style that LoRA teaches.

    Parameters
    ----------
    language : {"en", "zh"}
    seed : int
        Of the stream of conversations.
    skill : bool
        In the new style, as LoRA learns it.
    held_out : bool
        Another stream, which training with the same seed never sees.
    """

    size = None

    def __init__(
        self,
        language: str,
        seed: int,
        *,
        skill: bool = False,
        held_out: bool = False,
    ) -> None:
        self.language = language
        self.training_seed = seed
        self.seed = seed + HELD_OUT_SEED * held_out
        self.make = skill_conversation if skill else conversation

    def records(self, indices: Sequence[int]) -> list[list[dict[str, Any]]]:
        """The messages of the conversations with these indices."""
        return [
            self.make(self.seed, i, self.language).messages for i in indices
        ]

    def questions(
        self, each: int, *, skill: bool = False
    ) -> list[Conversation]:
        """Held-out questions of every kind, with their right answers.

        Parameters
        ----------
        each : int
            Questions of each kind.
        skill : bool
            Ask for the new style as well.
        """
        kinds = (*QUESTION_KINDS, "skill") if skill else QUESTION_KINDS
        return held_out_questions(
            self.language, seed=self.training_seed, each=each, kinds=kinds
        )
