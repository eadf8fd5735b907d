"""What no text for a person may hold: read here as a person would stumble over it. Knows no test."""

from __future__ import annotations

import re

# The one place where another notation of layers is explained: what `--layers` also takes.
INPUT_FORMS = re.compile(r"(a=)?0-11,(b=)?12-15")
RULES = {
    "a doubled word": r"\b(?!(?:that|had|it)\b)([^\W\d_]+)\b:? \1\b",
    "a value that was never there": r"\b(None|null|undefined|NaN|nan|inf|Infinity)\b|\[object Object\]|<\w+ object",
    "a number of nothing": r"(?<![\d.,])0(\.0+)? ?(bytes|kB|MB|GB|tokens/s)\b",
    "another notation of layers": r"\d+–\d+|\blayers? \d+ ?(-|to|through|and|bis) ?\d+|\d+\.\.\d+",
    "people": r"(?i)\bpeople\b",
    "a log's prefix": r"(?m)^\W*(DEBUG|INFO|WARNING|ERROR|CRITICAL)(:| [\w.]+:)|\btogether(\.\w+)+:|Traceback",
    "a library's own words": r"StatusCode|AioRpcError|Socket closed|Stream removed|\berrno\b|\w+Error\(",
    "an id instead of a name": r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{12,}\b",
    "two spaces": r"\S {2,}\S",
    "doubled punctuation": r"(?<!\.)\.\.(?!\.)|[,;:] ?[,;:]|\.[,;]|\( | [,;.](?!\.|\w)|\?\?",
    "a command as nobody types it": r"(?<!import )\btogether (up|node|chat|status|stop|plan|load|unload|models|pull)\b",
    "a field that was not filled": r"\{[a-z_]+[^}]*\}",
}


def faults(text: str, apart: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with a text, a line each; `apart` are rules that do not hold for it."""
    shown = INPUT_FORMS.sub("…", text)
    found = []
    for name, rule in RULES.items():
        match = None if name in apart else re.search(rule, shown)
        if match is not None:
            place = shown[max(match.start() - 40, 0) : match.end() + 40].replace("\n", " ")
            found.append(f"{name}, {match.group()!r}, in: {place}")
    return found


WORDS = 6  # from so many on, what stands twice is a sentence and no name


def repeated(lines: list[str]) -> list[str]:
    """Sentences that stand twice among the lines of one page or output, alone or within another."""
    long = [" ".join(line.split()).lower() for line in lines if len(line.split()) >= WORDS]
    return [line for index, line in enumerate(long) if any(line in other for other in long[:index] + long[index + 1 :])]
