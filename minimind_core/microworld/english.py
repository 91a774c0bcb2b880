"""The world in English: the words are in ``english.json``."""

from minimind_core.microworld.world import load_language

LANGUAGE = load_language("english")
WORDS = LANGUAGE.words
QUESTIONS = LANGUAGE.questions
GREETING, MANNER = LANGUAGE.greeting, LANGUAGE.manner
