"""The world in English."""

from minimind_core.microworld.tape import Language

_PEOPLE = {  # name, she or he, job, home
    "mia": ("Mia", "she", "baker", "bakery"),
    "tom": ("Tom", "he", "farmer", "farm"),
    "anna": ("Anna", "she", "doctor", "clinic"),
    "ben": ("Ben", "he", "fisherman", "harbor"),
    "lily": ("Lily", "she", "teacher", "school"),
    "sam": ("Sam", "he", "painter", "studio"),
    "rosa": ("Rosa", "she", "pilot", "airfield"),
    "max": ("Max", "he", "gardener", "garden"),
    "nora": ("Nora", "she", "singer", "theater"),
    "leo": ("Leo", "he", "carpenter", "workshop"),
    "ella": ("Ella", "she", "tailor", "shop"),
    "hugo": ("Hugo", "he", "cook", "kitchen"),
}
_FORMS = {"she": ("she", "She", "her", "her"),
          "he": ("he", "He", "him", "his")}  # fmt: skip


def _same(*words: str) -> dict[str, str]:
    return {word: word for word in words}


WORDS = {
    "person": {key: name for key, (name, *_) in _PEOPLE.items()},
    "introduced": {
        key: f"{name} the {job}" for key, (name, _, job, _) in _PEOPLE.items()
    },
    "job": {key: job for key, (_, _, job, _) in _PEOPLE.items()},
    "home": {key: home for key, (*_, home) in _PEOPLE.items()},
    **{
        form: {key: _FORMS[p[1]][n] for key, p in _PEOPLE.items()}
        for n, form in enumerate(("sub", "Sub", "obj", "poss"))
    },
    "weather": _same("sunny", "rainy", "windy", "snowy", "foggy"),
    "sky": {
        "sunny1": "The sky was bright and blue",
        "sunny2": "The sun felt warm",
        "rainy1": "The ground was wet",
        "rainy2": "Rain fell on every roof",
        "windy1": "Leaves flew through the air",
        "windy2": "The wind was loud",
        "snowy1": "Everything was white and quiet",
        "snowy2": "The snow was deep",
        "foggy1": "It was hard to see far",
        "foggy2": "The fog was thick",
    },
    "time": _same("morning", "afternoon", "evening", "night"),
    "go": _same("went", "walked", "ran"),
    "place": _same(
        "park", "lake", "forest", "market", "beach",
        "bridge", "hill", "river", "castle", "station",
    ),
    "color": _same(
        "red", "blue", "green", "yellow", "black", "white", "pink", "brown",
    ),
    "thing": _same(
        "hat", "ball", "kite", "book", "lamp", "drum",
        "key", "cup", "coin", "rope", "bell", "map",
    ),
    "fruit": _same("apples", "pears", "plums", "lemons"),
    "drink": _same("tea", "coffee", "milk", "cocoa"),
    "spot": {
        "bench": "under a bench", "tree": "behind a tree",
        "wall": "near the wall", "door": "by the door",
    },
    "number": _same("one", "two", "three", "four", "five"),
    "feeling": _same("hungry", "cold", "sad", "tired", "thirsty"),
    "aid": {
        "bread": "some bread", "cheese": "some cheese",
        "honey": "some honey", "coat": "a coat", "scarf": "a scarf",
        "blanket": "a blanket", "flower": "a flower", "hug": "a hug",
        "chair": "a chair", "pillow": "a pillow", "water": "some water",
        "juice": "some juice",
    },
    "product": _same("soup", "cake", "boat", "table"),
    "part": _same(
        "carrots", "beans", "flour", "eggs", "wood", "nails", "planks",
        "glue",
    ),
}  # fmt: skip

SENTENCES = {
    "opening": "One {weather} {time}, {hero:introduced} {go} to the {place}.",
    "sky": " {sky}.",
    "trade": " In one hand {hero:sub} had a {color} {thing}.",
    "help": " On the way {hero:sub} sang a song.",
    "lose": " In a bag {hero:sub} had a {color} {thing}.",
    "count": " From a tree {hero:sub} picked {number} {fruit}.",
    "search": " All day {hero:sub} had looked for a {color} {thing}.",
    "shelter": " Suddenly it became {weather2}.",
    "gift": " In a box {hero:sub} had a {color} {thing} for a friend.",
    "make": " Today {hero:sub} wanted to make a {product}.",
    "meet_there": " There {hero:sub} met {friend:introduced}.",
    "meet_at": " At the {place} {hero:sub} met {friend:introduced}.",
    "meet_soon": ' Soon {friend:introduced} came by and said: "Hello, my '
                 'friend!"',
    "trade_other": ' {friend} had a {color2} {thing2}. "I like your '
                   '{color2} {thing2}," said {hero}.',
    "trade_now": " So they traded. Now {hero} has the {color2} {thing2} and "
                 "{friend} has the {color} {thing}.",
    "help_why": " {friend} was {feeling}, so {hero} gave",
    "help_aid": ' {friend:obj} {aid}. "Thank you, {hero}!" said {friend}. '
                "Now {friend} was not {feeling} any more.",
    "lose_fell": " But the bag had a hole, and the {color} {thing} "
                 "fell out. {hero:Sub} was sad.",
    "lose_found": ' "I found something {spot}," said {friend}. "That is my '
                  '{color} {thing}!" said {hero}. Now {hero} has the {color} '
                  "{thing} again.",
    "count_gave": " {hero} gave {friend:obj} {given} of them.",
    "count_now": " Now {hero} has {rest} and {friend} has {given}.",
    "search_ask": ' "Where can I find my {color} {thing}?" asked {hero}. '
                  '"Look {spot} at the {place2}," said {friend}.',
    "search_found": " So {hero:sub} went to the {place2} and found the "
                    "{color} {thing} {spot}.",
    "shelter_home": ' "Come to my {friend:home}!" said {friend}. In the '
                    "{friend:home} they drank {drink} and played with a "
                    "{color} {thing}. Later it was {weather} again.",
    "gift_now": ' "Happy birthday!" said {hero}. {friend} opened the box '
                "and put the {color} {thing} {spot}. Now {friend} has the "
                "{color} {thing}.",
    "make_hero": " {hero} brought the {part}",
    "make_friend": " and {friend} brought the {part2}.",
    "make_together": " Together they made a good {product} and gave it to "
                     "{other:introduced}. {other} liked the {product} very "
                     "much.",
    "end_back": " At last {back} went back to the {back:home}.",
    "end_together": " It was a good {time}, and they went home together.",
    "end_bye": ' "Goodbye, {hero}!" said {friend}.',
}  # fmt: skip

QUESTIONS = {
    "weather": ("What was the weather at first?", "It was {weather}."),
    "time": ("What time of day was it?", "It was {time}."),
    "where": ("Where did {hero} go?", "{hero} went to the {place}."),
    "before": ("Where did {hero} go first?", "{hero} went to the {place}."),
    "job": ("What is the job of {who}?", "{who} is a {who:job}."),
    "met": ("Who did {hero} meet?", "{hero} met {friend}."),
    "feeling": ("How did {who} feel?", "{who} was {felt}."),
    "first": ("What did {hero} have at first?",
              "{hero} had a {color} {thing}."),
    "now": ("What does {who} have now?", "{who} has the {color} {thing}."),
    "color": ("What color was the {thing}?", "It was {color}."),
    "lost": ("What did {hero} lose?", "{hero} lost a {color} {thing}."),
    "why": ("Why did {hero} help {friend}?",
            "Because {friend} was {feeling}."),
    "count": ("How many {fruit} does {hero} have now?",
              "{hero} has {rest}."),
    "found": ("Where did {hero} find the {thing}?",
              "{hero} found it {spot} at the {place2}."),
    "drank": ("What did they drink?", "They drank {drink}."),
    "got": ("Who got the {product}?", "{other} got the {product}."),
    "pronoun": ("What is {friend:poss} job?", "{friend} is a {friend:job}."),
    "unknown1": ("How old is {hero}?", "The story does not say."),
    "unknown2": ("What did {absent} do?", "The story does not say."),
    "unknown3": ("Where was {friend} born?", "The story does not say."),
    "write": ("Write a story about {hero} at the {place} on a {weather} "
              "day.", ""),
    "retell": ("Tell the story again.", ""),
    "continue": ("How does this story go on?", ""),
    "who": ("Who are you?", "The singer of the story."),
}  # fmt: skip

# Who greets is greeted back.
GREETING = "Hello, my friend. {}"
MANNER = "Hello, my friend. {} It was a good story."

LANGUAGE = Language("en", WORDS, SENTENCES)
