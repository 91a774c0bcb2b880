"""What can be measured exactly, because the microworld is known.

    from minimind_core.microworld.metrics import held_out_questions
    held_out_questions("en", each=10, kinds=("weather",))

Nothing here needs a model: the functions take texts and give numbers, so
that whatever wrote the texts can be measured with them.
"""

from __future__ import annotations

from collections.abc import Sequence

from minimind_core.microworld.stories import Story, is_valid
from minimind_core.microworld.tasks import (
    QUESTION_KINDS,
    Conversation,
    conversation,
    skill_conversation,
)

HELD_OUT_SEED = 1_000_000
"""Added to a seed: a stream of the microworld that training never sees."""
QUESTIONS = 100
"""How many questions of each kind are asked by default."""


def story_floor(stories: Sequence[Story]) -> float:
    """Nats that no model can get below on these stories, on average.

    Returns
    -------
    float
        The summed negative log-probability with which the world wrote them.
    """
    return -sum(story.logprob for story in stories)


def valid_fraction(texts: Sequence[str], language: str = "en") -> float:
    """Share of texts that the microworld could have written."""
    return sum(is_valid(text, language) for text in texts) / len(texts)


def held_out_questions(
    language: str,
    *,
    seed: int = 0,
    each: int = QUESTIONS,
    kinds: Sequence[str] = QUESTION_KINDS,
) -> list[Conversation]:
    """Questions of every kind about stories that training has not seen.

    Parameters
    ----------
    language : {"en", "zh"}
    seed : int
        Of the training run whose held-out data they are.
    each : int
        Questions of each kind.
    kinds : sequence of str
        From `QUESTION_KINDS`; ``skill`` asks for the style that LoRA
        teaches.

    Returns
    -------
    list of Conversation
    """
    found = []
    for kind in kinds:
        for index in range(each):
            if kind == "skill":
                talk = skill_conversation(
                    seed + HELD_OUT_SEED, index, language
                )
            else:
                # Without an offset each kind would ask about the same
                # stories.
                place = index + 100_000 * QUESTION_KINDS.index(kind)
                talk = conversation(
                    seed + HELD_OUT_SEED, place, language, kinds=(kind,)
                )
            found.append(talk)
    return found
