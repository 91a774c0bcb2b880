"""An endless corpus whose limit is known.

    from minimind_core.microworld import entropy, read_story, write_story
    story = write_story(seed=0, index=7)
    story.text, story.logprob                 # exact, in nats
    read_story(story.text).state["hero"]      # who it is about
    entropy("en").nats                        # what no model can get below

A seeded program writes short stories about a small world, in English and
in Chinese. It needs no file, never runs out, and because each of its random
choices is known, so is the probability of every story and the entropy of
the whole: the floor under every loss curve of the book.
"""

from minimind_core.microworld.metrics import (
    HELD_OUT_SEED,
    held_out_questions,
    story_floor,
    valid_fraction,
)
from minimind_core.microworld.sources import (
    MicroworldConversations,
    MicroworldStories,
)
from minimind_core.microworld.stories import (
    LANGUAGES,
    Entropy,
    Story,
    entropy,
    is_valid,
    read_story,
    write_stories,
    write_story,
)
from minimind_core.microworld.tape import Choice, NotInLanguage
from minimind_core.microworld.tasks import (
    MAIN_KINDS,
    QUESTION_KINDS,
    Conversation,
    Preference,
    conversation,
    preference,
    skill_conversation,
)

__all__ = [
    "HELD_OUT_SEED", "LANGUAGES", "MAIN_KINDS", "QUESTION_KINDS", "Choice",
    "Conversation", "Entropy", "MicroworldConversations",
    "MicroworldStories", "NotInLanguage", "Preference", "Story",
    "conversation", "entropy", "held_out_questions", "is_valid",
    "preference", "read_story", "skill_conversation", "story_floor",
    "valid_fraction", "write_stories", "write_story",
]  # fmt: skip
