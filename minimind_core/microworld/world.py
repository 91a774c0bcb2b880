"""The world and its stories, without a word of any language.

A world of twelve people who each have a job and a place to go home to. A
story is one of eight plots; each brings a fact that has to be remembered
until the end: who has what, how many are left, where a thing was found.
"""

from __future__ import annotations

from minimind_core.microworld.tape import Options, Tape

PEOPLE = Options.ranked("introduced", (
    "mia", "tom", "anna", "ben", "lily", "sam",
    "rosa", "max", "nora", "leo", "ella", "hugo",
))  # fmt: skip
PLACES = Options.ranked("place", (
    "park", "lake", "forest", "market", "beach",
    "bridge", "hill", "river", "castle", "station",
))  # fmt: skip
WEATHER = Options.ranked("weather", (
    "sunny", "rainy", "windy", "snowy", "foggy",
))  # fmt: skip
TIMES = Options.ranked("time", ("morning", "afternoon", "evening", "night"))
GOING = Options.ranked("go", ("went", "walked", "ran"))
COLORS = Options.ranked("color", (
    "red", "blue", "green", "yellow", "black", "white", "pink", "brown",
))  # fmt: skip
THINGS = Options.ranked("thing", (
    "hat", "ball", "kite", "book", "lamp", "drum",
    "key", "cup", "coin", "rope", "bell", "map",
))  # fmt: skip
FRUIT = Options.ranked("fruit", ("apples", "pears", "plums", "lemons"))
DRINKS = Options.ranked("drink", ("tea", "coffee", "milk", "cocoa"))
SPOTS = Options.ranked("spot", ("bench", "tree", "wall", "door"))
GATHERED = Options.ranked("number", ("three", "four", "five"))
GIVEN = Options.ranked("number", ("one", "two"))
PRODUCTS = Options.ranked("product", ("soup", "cake", "boat", "table"))
REST = {
    ("three", "one"): "two", ("three", "two"): "one",
    ("four", "one"): "three", ("four", "two"): "two",
    ("five", "one"): "four", ("five", "two"): "three",
}  # fmt: skip
MATERIAL = {
    "soup": ("carrots", "beans"), "cake": ("flour", "eggs"),
    "boat": ("wood", "nails"), "table": ("planks", "glue"),
}  # fmt: skip
AID = {
    "hungry": ("bread", "cheese", "honey"),
    "cold": ("coat", "scarf", "blanket"),
    "sad": ("flower", "hug"),
    "tired": ("chair", "pillow"),
    "thirsty": ("water", "juice"),
}
FEELINGS = Options.ranked("feeling", tuple(AID))
MEETING = Options(
    "", ("meet_there", "meet_at", "meet_soon"), (1.0, 2.0, 1.0)
)
PLOTS = Options("", (
    "trade", "help", "lose", "count", "search", "shelter", "gift", "make",
), (3.0, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0))  # fmt: skip
ENDINGS = Options(
    "", ("end_back", "end_together", "end_bye"), (2.0, 1.0, 1.0)
)




def tell(tape: Tape) -> None:
    """Run one story on a tape, from the weather to the way home."""
    tape.say(
        "opening", weather=WEATHER, time=TIMES, hero=PEOPLE, go=GOING,
        place=PLACES,
    )  # fmt: skip
    weather = tape.state["weather"]
    skies = (f"{weather}1", f"{weather}2")
    tape.say("sky", sky=Options("sky", skies, (1.0, 1.0)))
    plot = tape.branch(
        "plot", PLOTS, color=COLORS, thing=THINGS, fruit=FRUIT,
        number=GATHERED, product=PRODUCTS, weather2=WEATHER.without(weather),
    )  # fmt: skip
    if plot == "lose":
        tape.say("lose_fell")
    strangers = PEOPLE.without(tape.state["hero"])
    tape.branch("meeting", MEETING, friend=strangers)
    _MIDDLE[plot](tape)
    hero, friend = tape.state["hero"], tape.state["friend"]
    back = Options("person", (hero, friend), (1.0, 1.0))
    tape.branch("ending", ENDINGS, back=back)


def _trade(tape: Tape) -> None:
    tape.say(
        "trade_other",
        color2=COLORS.without(tape.state["color"]),
        thing2=THINGS.without(tape.state["thing"]),
    )
    tape.say("trade_now")


def _help(tape: Tape) -> None:
    tape.say("help_why", feeling=FEELINGS)
    tape.say(
        "help_aid", aid=Options.ranked("aid", AID[tape.state["feeling"]])
    )


def _lose(tape: Tape) -> None:
    tape.say("lose_found", spot=SPOTS)


def _count(tape: Tape) -> None:
    tape.say("count_gave", given=GIVEN)
    tape.state["rest"] = REST[tape.state["number"], tape.state["given"]]
    tape.say("count_now")


def _search(tape: Tape) -> None:
    elsewhere = PLACES.without(tape.state["place"])
    tape.say("search_ask", spot=SPOTS, place2=elsewhere)
    tape.say("search_found")


def _shelter(tape: Tape) -> None:
    tape.say("shelter_home", drink=DRINKS, color=COLORS, thing=THINGS)


def _gift(tape: Tape) -> None:
    tape.say("gift_now", spot=SPOTS)


def _make(tape: Tape) -> None:
    parts = MATERIAL[tape.state["product"]]
    tape.say("make_hero", part=Options("part", parts, (1.0, 1.0)))
    tape.state["part2"] = parts[parts[0] == tape.state["part"]]
    tape.say("make_friend")
    others = PEOPLE.without(tape.state["hero"], tape.state["friend"])
    tape.say("make_together", other=others)


_MIDDLE = {
    "trade": _trade, "help": _help, "lose": _lose, "count": _count,
    "search": _search, "shelter": _shelter, "gift": _gift, "make": _make,
}  # fmt: skip
