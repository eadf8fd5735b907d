"""Formulas in LaTeX as MathML. The library lets a formula write any element and attribute, so its tree is filtered."""

from __future__ import annotations

import re
from html import escape, unescape
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element

LONGEST = 4000  # letters of a formula: more is shown as it was written
DEEPEST = 60  # braces within braces

_ELEMENTS = frozenset(
    "math menclose merror mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow ms mspace msqrt "
    "mstyle msub msubsup msup mtable mtd mtext mtr munder munderover none".split()
)
_ATTRIBUTES = frozenset(
    "accent accentunder columnalign columnlines columnspacing depth display displaystyle fence form height largeop "
    "linebreak linethickness lspace mathsize mathvariant maxsize minsize movablelimits notation rowlines rowspacing "
    "rspace scriptlevel separator stretchy symmetric voffset width".split()
)
_VALUE = re.compile(r"[\w.%+\- ]{1,60}")
_UNKNOWN = re.compile(r"\\(begin|end)\{(?:aligned|alignedat|split|gathered|gather\*?|equation\*?)\}")  # to the library


def mathml(latex: str, *, block: bool) -> str:
    """The formula as MathML, or as it was written where the library does not read it."""
    if len(latex) <= LONGEST and _depth(latex) <= DEEPEST:
        try:
            known = _UNKNOWN.sub(r"\\\1{align*}", latex.strip())
            return _written(convert_to_element(known, display="block" if block else "inline"))
        except Exception:  # whatever the library fails with: it is made for formulas of one's own
            pass
    return f'<code class="formula">{escape(latex)}</code>'


def _depth(latex: str) -> int:
    deepest = depth = 0
    for letter in latex:
        depth += (letter == "{") - (letter == "}")
        deepest = max(deepest, depth)
    return deepest


def _written(element: Element) -> str:
    """Known elements and attributes; of others only what they hold. All text is text."""
    inside = "".join(_written(child) + _text(child.tail) for child in element)
    inside = _text(element.text) + inside
    if element.tag not in _ELEMENTS:
        return inside
    kept = {name: value for name, value in element.attrib.items() if name in _ATTRIBUTES and _VALUE.fullmatch(value)}
    attributes = "".join(f' {name}="{escape(value)}"' for name, value in kept.items())
    return f"<{element.tag}{attributes}>{inside}</{element.tag}>"


def _text(text: str | None) -> str:
    """The library writes letters as entities."""
    return escape(unescape(text)) if text else ""
