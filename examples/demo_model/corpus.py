"""The corpus of the demo model: an endless, seeded stream of conversations, and the questions of its evaluation.

It does not know about tokens or the network; it deals in plain messages.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import facts
import phrasings
import questions
import unknowns
from program import ABOUT_ME, HOW_TO, REFUSAL, Topic
from questions import Wordings
from terms import TERMS


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; the role is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question as a person types it, and the one right answer."""

    kind: str
    text: str
    answer: str


Conversation = tuple[Message, ...]
Maker = Callable[[random.Random, bool], Question]

_COUNTRIES = facts.countries()
_TERMS = facts.table(TERMS)
_DEFINITIONS = facts.table(facts.DEFINITIONS)
_STORIES = facts.table(facts.STORIES)
_STRANGE_UNITS = (
    "furlongs",
    "parsecs",
    "leagues",
    "fathoms",
    "dollars",
    "euros",
    "volts",
    "watts",
    "acres",
    "pints",
    "gallons",
    "ounces",
    "stones",
    "light years",
    "knots",
    "joules",
    "calories",
    "pascals",
    "hectares",
    "barrels",
    "yen",
)


def plain(text: str) -> str:
    """The text without case, marks and spacing, to compare wordings."""
    return re.sub(r"[^\w+*/×÷-]+", " ", text.casefold()).strip()


# Alternatives of two questions can meet by chance; training skips what the evaluation asks.
_HELD_OUT = frozenset(plain(text) for topic in (*HOW_TO, *ABOUT_ME) for text in topic.held)


def _ask(rng: random.Random, held: bool, kind: str, wordings: Wordings, answer: str, **slots: str) -> Question:
    while True:
        text = phrasings.expand(rng.choice(wordings.of(held)), rng).format(**slots)
        text = phrasings.rough(text, held, rng)
        if held or plain(text) not in _HELD_OUT:
            return Question(kind, text, answer)


def _alias(name: str, rng: random.Random) -> str:
    """Another name of a place, or the name with its article left out."""
    known = facts.ALIASES.get(name, ())
    if known and rng.random() < 0.5:
        return rng.choice(known)
    return name.removeprefix("the ") if rng.random() < 0.3 else name


def _capital(rng: random.Random, held: bool) -> Question:
    country = rng.choice(_COUNTRIES)
    answer = f"The capital of {country.name} is {country.capital}."
    return _ask(rng, held, "capital", questions.CAPITAL, answer, x=_alias(country.name, rng))


def _country_of(rng: random.Random, held: bool) -> Question:
    country = rng.choice([country for country in _COUNTRIES if country.name != country.capital])
    answer = f"{country.capital} is the capital of {country.name}."
    return _ask(rng, held, "country of a capital", questions.COUNTRY_OF, answer, x=_alias(country.capital, rng))


def _continent(rng: random.Random, held: bool) -> Question:
    country = rng.choice(_COUNTRIES)
    name = country.name[0].upper() + country.name[1:]
    wordings = rng.choice((questions.CONTINENT, questions.COUNTRY))
    return _ask(
        rng, held, "continent", wordings, f"{name} is a country in {country.continent}.", x=_alias(country.name, rng)
    )


def _plural(term: str) -> str:
    if term.endswith(("s", "x", "ch", "sh")):
        return term + "es"
    return term[:-1] + "ies" if term.endswith("y") and term[-2] not in "aeiou" else term + "s"


def _slots(entry: str) -> dict[str, str]:
    """The forms of a term: `x` bare, `ax` with its article, `xs` in the plural where it has one."""
    bare = entry.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    return {"ax": entry, "x": bare, "xs": _plural(bare) if entry.startswith(("a ", "an ")) else bare}


def _definition(rng: random.Random, held: bool) -> Question:
    entry, answer = rng.choice(_DEFINITIONS)
    return _ask(rng, held, "definition", questions.DEFINE, answer, **_slots(entry))


def _term(rng: random.Random, held: bool) -> Question:
    entry, answer = rng.choice(_TERMS)
    wordings = rng.choice((questions.DEFINE, questions.IN_TOGETHER))
    return _ask(rng, held, "words of together", wordings, answer, **_slots(entry))


def _topic(kind: str, topics: tuple[Topic, ...]) -> Maker:
    def make(rng: random.Random, held: bool) -> Question:
        topic = rng.choice(topics)
        return _ask(rng, held, kind, Wordings(topic.train, topic.held), topic.answer)

    return make


def _arithmetic(rng: random.Random, held: bool) -> Question:
    sign = rng.choice("++++----xx/")
    first, second = rng.randint(0, 12), rng.randint(0, 12)
    if sign == "+":
        return _sum(rng, held, questions.ADD, f"{first} + {second} = {first + second}.", first, second)
    if sign == "-":
        first, second = (max(first, second), min(first, second)) if rng.random() < 0.8 else (first, second)
        return _sum(rng, held, questions.SUBTRACT, f"{first} - {second} = {first - second}.", first, second)
    first, second = rng.randint(0, 10), rng.randint(0, 10)
    if sign == "x":
        return _sum(rng, held, questions.MULTIPLY, f"{first} x {second} = {first * second}.", first, second)
    first, second = max(first, 1), max(second, 1)
    return _sum(rng, held, questions.DIVIDE, f"{first * second} / {second} = {first}.", first * second, second)


def _sum(rng: random.Random, held: bool, wordings: Wordings, answer: str, first: int, second: int) -> Question:
    return _ask(rng, held, "arithmetic", wordings, answer, a=str(first), b=str(second))


def _number(value: float) -> str:
    return f"{round(value, 2):g}" if value < 100000 else str(int(value))


def _unit_name(names: tuple[str, ...], count: str) -> str:
    return names[0] if count == "1" else names[1]


def _conversion(rng: random.Random, held: bool) -> Question:
    if rng.random() < 0.15:
        return _temperature(rng, held)
    unit = rng.choice(facts.UNITS)
    count = rng.randint(1, 10)
    big, small = str(count), _number(count * unit.factor)
    pairs = [(big, unit.big), (small, unit.small)]
    (n, source), (m, target) = pairs if rng.random() < 0.65 else pairs[::-1]
    answer = f"{n} {_unit_name(source, n)} is {m} {_unit_name(target, m)}."
    unit_word = rng.choice(source[2:] or source) if rng.random() < 0.4 else _unit_name(source, n)
    return _ask(rng, held, "conversion", questions.CONVERT, answer, n=n, unit=unit_word, to=rng.choice(target[1:]))


def _temperature(rng: random.Random, held: bool) -> Question:
    celsius = rng.choice(facts.CELSIUS)
    c, f = (str(celsius), str(celsius * 9 // 5 + 32))
    answer, n = (f"{c} degrees Celsius is {f} degrees Fahrenheit.", c)
    unit, to = rng.choice(
        (
            ("degrees Celsius", "Fahrenheit"),
            ("Celsius", "Fahrenheit"),
            ("C", "F"),
            ("°C", "°F"),
            ("celsius", "degrees fahrenheit"),
        )
    )
    if rng.random() < 0.5:
        answer, n, unit, to = f"{f} degrees Fahrenheit is {c} degrees Celsius.", f, to, unit
    return _ask(rng, held, "conversion", questions.CONVERT, answer, n=n, unit=unit, to=to)


def _count(rng: random.Random, held: bool) -> Question:
    if rng.random() < 0.3:
        top = rng.randint(3, 20)
        answer = ", ".join(str(number) for number in range(top, 0, -1)) + "."
        return _ask(rng, held, "counting", questions.COUNT_DOWN, answer, n=str(top))
    top = rng.choice((100, 100, 100, 100, 50, 50, 30, 40, 60, *range(3, 21)))
    answer = ", ".join(str(number) for number in range(1, top + 1)) + "."
    word = {100: "one hundred", 50: "fifty", 20: "twenty", 10: "ten", 5: "five"}.get(top, str(top))
    return _ask(rng, held, "counting", questions.COUNT, answer, n=word if rng.random() < 0.2 else str(top))


def _list(rng: random.Random, held: bool) -> Question:
    names, answer = rng.choice(facts.LISTS)
    return _ask(rng, held, "list", questions.LIST, answer, x=rng.choice(names))


def _story(rng: random.Random, held: bool) -> Question:
    name, answer = rng.choice(_STORIES)
    return _ask(rng, held, "few sentences", questions.STORY, answer, x=name)


def _unknown_question(rng: random.Random, held: bool) -> Question:
    return Question("does not know", phrasings.rough(unknowns.question(rng, held), held, rng), REFUSAL)


def _unknown_word(rng: random.Random, held: bool) -> Question:
    """A known kind of question about a place or a word that is not in the corpus."""
    kind, wordings, names = rng.choice(_UNKNOWN_FRAMES)
    name = unknowns.gibberish(rng) if rng.random() < 0.3 else rng.choice(names(held))
    article = "an " if name[0].lower() in "aeio" else "a "
    slots = _slots(article + name if names is unknowns.things and rng.random() < 0.8 else name)
    return _ask(rng, held, kind, wordings, REFUSAL, **slots)


_UNKNOWN_FRAMES: tuple[tuple[str, Wordings, Callable[[bool], tuple[str, ...]]], ...] = (
    ("unknown place", questions.CAPITAL, unknowns.places),
    ("unknown place", questions.COUNTRY_OF, unknowns.places),
    ("unknown place", questions.CONTINENT, unknowns.places),
    ("unknown place", questions.COUNTRY, unknowns.places),
    ("unknown word", questions.DEFINE, unknowns.things),
    ("unknown word", questions.DEFINE, unknowns.things),
    ("unknown word", questions.DEFINE, unknowns.things),
    ("unknown word", questions.IN_TOGETHER, unknowns.things),
    ("unknown word", questions.STORY, unknowns.things),
    ("unknown word", questions.LIST, unknowns.things),
    ("unknown person", questions.DEFINE, unknowns.people),
    ("unknown person", questions.COUNTRY, unknowns.people),
)


def _large(rng: random.Random) -> int:
    return rng.choice((rng.randint(21, 99), rng.randint(21, 99), rng.randint(100, 999), rng.randint(1000, 99999)))


def _unknown_number(rng: random.Random, held: bool) -> Question:
    """A sum, product or conversion outside the small tables."""
    wordings = rng.choice((questions.ADD, questions.SUBTRACT, questions.MULTIPLY, questions.DIVIDE, questions.CONVERT))
    if wordings is questions.CONVERT:
        unit, to = rng.sample(_STRANGE_UNITS, 2)
        known = rng.choice(facts.UNITS)
        number = rng.randint(11, 999)
        names = known.small[1:]
        unit, to = rng.choice(((unit, rng.choice(known.small)), (unit, to), (known.big[1], rng.choice(names))))
        return _ask(rng, held, "large number", wordings, REFUSAL, n=str(number), unit=unit, to=to)
    pair = [_large(rng), rng.choice((_large(rng), rng.randint(2, 20)))]
    rng.shuffle(pair)
    if wordings is questions.DIVIDE:
        pair = [_large(rng) * 2 + 101, rng.choice((14, 15, 16, 17, 18, 19, _large(rng)))]
    return _ask(rng, held, "large number", wordings, REFUSAL, a=str(pair[0]), b=str(pair[1]))


MAKERS: tuple[tuple[Maker, int], ...] = (
    (_capital, 11),
    (_country_of, 8),
    (_continent, 6),
    (_arithmetic, 18),
    (_conversion, 8),
    (_definition, 14),
    (_term, 5),
    (_topic("how to", HOW_TO), 9),
    (_topic("about me", ABOUT_ME), 9),
    (_count, 4),
    (_list, 2),
    (_story, 2),
    (_unknown_question, 17),
    (_unknown_word, 10),
    (_unknown_number, 3),
)


def question(rng: random.Random, held: bool = False) -> Question:
    """A question of any kind, as often as its kind is weighted."""
    makers, weights = zip(*MAKERS, strict=True)
    maker: Maker = rng.choices(makers, weights)[0]
    return maker(rng, held)


def _follow_up(rng: random.Random, held: bool) -> list[Question]:
    """Two questions of which the second makes sense only after the first."""
    country = rng.choice(_COUNTRIES)
    answer = f"The capital of {country.name} is {country.capital}."
    text = rng.choice(questions.AND.of(held)).format(x=_alias(country.name, rng))
    return [_capital(rng, held), Question("follow-up", text.lower() if rng.random() < 0.4 else text, answer)]


def _questions(rng: random.Random, held: bool) -> list[Question]:
    turns = rng.choices((1, 2, 3, 4, 8), (50, 25, 15, 8, 2))[0]
    asked = [question(rng, held) for _ in range(turns)]
    return asked + _follow_up(rng, held) if rng.random() < 0.04 else asked


def _system(rng: random.Random, held: bool) -> list[Message]:
    return [Message("system", rng.choice(phrasings.SYSTEM.of(held)))] if rng.random() < 0.3 else []


def conversations(seed: int, held: bool = False) -> Iterator[Conversation]:
    """An endless stream of conversations, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        messages = _system(rng, held)
        for asked in _questions(rng, held):
            messages += [Message("user", asked.text), Message("assistant", asked.answer)]
        yield tuple(messages)


@dataclass(frozen=True, slots=True)
class Case:
    """One case of the evaluation: the messages before the answer, the kind of the last question, its right answer."""

    kind: str
    prompt: Conversation
    answer: str


def _case(rng: random.Random, asked: Question) -> Case:
    messages = _system(rng, held=True)
    for earlier in [question(rng, held=True) for _ in range(rng.choice((0, 0, 0, 1, 2)))]:
        messages += [Message("user", earlier.text), Message("assistant", earlier.answer)]
    return Case(asked.kind, (*messages, Message("user", asked.text)), asked.answer)


def _followed(rng: random.Random) -> Case:
    first, second = _follow_up(rng, held=True)
    before = (Message("user", first.text), Message("assistant", first.answer))
    return Case(second.kind, (*before, Message("user", second.text)), second.answer)


def cases(seed: int, per_kind: int) -> tuple[Case, ...]:
    """`per_kind` held-out cases from every maker, and the handwritten questions."""
    rng = random.Random(seed)
    made = [_case(rng, maker(rng, True)) for maker, _ in MAKERS for _ in range(per_kind)]
    made += [_followed(rng) for _ in range(per_kind)]
    written = [Case("handwritten unknown", (Message("user", text),), REFUSAL) for text in unknowns.HANDWRITTEN]
    known = [Case("handwritten known", (Message("user", text),), answer) for text, answer in questions.HANDWRITTEN]
    return (*made, *written, *known)
