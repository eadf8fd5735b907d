"""How a person in a hurry types: words before and after, other beginnings, case, spaces, mistakes.

It does not know what is asked; `questions.py` does.
"""

from __future__ import annotations

import random
import re

from questions import Wordings

BEFORE = Wordings(
    (
        "please ",
        "please tell me: ",
        "can you tell me, ",
        "hey, ",
        "hi, ",
        "tell me, ",
        "ok, ",
        "so, ",
        "I have a question: ",
        "quick question: ",
        "question: ",
        "I want to know: ",
        "hello, ",
        "well, ",
        "and ",
        "excuse me, ",
        "sorry, ",
        "now: ",
        "um, ",
    ),
    (
        "could you please tell me: ",
        "good day! ",
        "just wondering: ",
        "one more thing: ",
        "next question: ",
        "dear model, ",
    ),
)
AFTER = Wordings(
    (
        ", please",
        " please",
        " please?",
        ", thanks",
        " thank you",
        "??",
        " ?",
        "!",
        "...",
        " :)",
        " pls",
        ", do you know?",
        " now",
        "[, / ][can you say/can you tell me/would you/if possible/if you can/if you like/I forgot]",
        "[, /. ][I am curious/I need it/I want to know/tell me/answer quickly/be brief/keep it short]",
        " [again/today/exactly/then/for me]",
        "[. /! ][Thanks/Thank you/Please/Answer/Quick/Cheers].",
    ),
    (", please tell me", " many thanks", " ???", ", if you know"),
)
SYSTEM = Wordings(
    (
        "You are a helpful assistant.",
        "You are a friendly assistant. Answer briefly.",
        "Answer in one sentence.",
        "Be kind.",
        "You are a tiny demonstration model.",
        "You are an assistant for the program together.",
        "Be concise.",
        "Help the user.",
        "You are a helpful, honest and harmless assistant.",
        "Always answer politely.",
        "You are an AI.",
        "Answer in English.",
        "You are a geography teacher.",
        "You are a pirate. Talk like one.",
        "Do not use markdown.",
        "You are a poet.",
        "You are an expert programmer.",
        "Think step by step.",
        "The user is a child. Use simple words.",
        "Keep answers short.",
    ),
    (
        "You are a knowledgeable assistant.",
        "Answer the question of the user.",
        "Please be brief and friendly.",
        "You are a mathematics teacher.",
        "You are a chatbot on a small web page. Be helpful.",
    ),
)


_LOOSE = {
    "how do I ": "[how do I/how could I/how should I/how do we/how to/what do I do to/tell me how to/"
    "I want to know how to/is there a way to/"
    "do you know how to/I want to/what must I do to/show me how to/I need to/which way do I] ",
    "how can I ": "[how can I/how would I/how may I/how can we/can I/is it possible to/explain how to] ",
    "what is the ": "[what is the/what's the/tell me the/give me the/do you know the/I want to know the/whats the/"
    "say the] ",
    "who is ": "[who is/who's/tell me who is/do you know who is/I want to know who is/whos] ",
    "are you ": "[are you/are you really/so are you/tell me, are you/you are/aren't you] ",
    "do you ": "[do you/can you/will you/could you/don't you] ",
    "which ": "[which/what/tell me which/say which/do you know which] ",
    "is ": "[is/isn't/tell me, is/so is/do you know, is] ",
    "why ": "[why/why exactly/tell me why/do you know why/explain why] ",
    "write ": "[write/please write/can you write/write me/compose/could you write/I want you to write] ",
}


def loosen(template: str) -> str:
    """The template with several ways to begin, where its beginning is a usual one."""
    for start, ways in _LOOSE.items():
        if template.startswith(start):
            return ways + template.removeprefix(start)
    return template


def expand(template: str, rng: random.Random) -> str:
    """One of the texts that a template with alternatives, as in `[a/b] c`, stands for."""
    return _ALTERNATIVES.sub(lambda match: rng.choice(match[1].split("/")), template)


_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")


def _swapped(text: str, rng: random.Random) -> str:
    """A typing mistake: two neighbouring letters exchanged in one of the first two words."""
    end = min(len(text), 12)
    at = rng.randrange(1, max(2, end - 1))
    return text[:at] + text[at + 1 : at + 2] + text[at : at + 1] + text[at + 2 :] if len(text) > 12 else text


def _spaced(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    at = rng.randrange(len(words))
    return " ".join([*words[:at], "", *words[at:]])


def rough(text: str, held: bool, rng: random.Random) -> str:
    """The text as a person in a hurry types it: case, spaces, missing marks, a word before or after."""
    text = text[0].upper() + text[1:] if rng.random() < 0.3 else text
    if rng.random() < 0.18:
        text = expand(rng.choice(BEFORE.of(held)), rng) + text
    text = text.rstrip("?.") if rng.random() < 0.25 else text
    if rng.random() < 0.12:
        text = text.rstrip("?.") + expand(rng.choice(AFTER.of(held)), rng)
    if rng.random() < 0.02:
        text = _swapped(text, rng)
    text = _spaced(text, rng) if rng.random() < 0.04 else text
    case = rng.random()
    return text.lower() if case < 0.35 else text.upper() if case < 0.38 else text
