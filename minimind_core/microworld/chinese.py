"""The world in Chinese: the same events, in the words of ``chinese.json``."""

from minimind_core.microworld.world import load_language

LANGUAGE = load_language("chinese")
WORDS = LANGUAGE.words
QUESTIONS = LANGUAGE.questions
GREETING, MANNER = LANGUAGE.greeting, LANGUAGE.manner
