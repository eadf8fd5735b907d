"""Markdown as HTML for the page.

Nothing in a text becomes an element, an attribute or an address of its own choice: HTML and pictures are off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from together.chats.formulas import LONGEST as LONGEST_FORMULA
from together.chats.formulas import mathml

LONGEST_CODE = 20_000  # letters of code that get colours
_SCHEMES = ("http://", "https://", "mailto:")
_LANGUAGE = re.compile(r"[\w+#.\-]{1,30}")
_FORMATTER: HtmlFormatter[str] = HtmlFormatter(nowrap=True, classprefix="c-")


def to_html(text: str) -> str | None:
    """None for a text that a library fails on: it is shown as it was written.

    The libraries take a time that grows with the square of a text's length where it is written to be slow.
    """
    try:
        return str(_MARKDOWN.render(text))
    except Exception:  # whatever a library fails with: the text is there without it
        return None


def _link(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noopener noreferrer nofollow")
    return str(self.renderToken(tokens, index, options, env))


def _cell(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    """The page's policy allows no style of an element."""
    align = str(tokens[index].attrs.pop("style", "")).removeprefix("text-align:")
    if align:
        tokens[index].attrSet("class", f"at-{align}")
    return str(self.renderToken(tokens, index, options, env))


def _fence(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    language = next(iter(token.info.split()), "")
    language = language if _LANGUAGE.fullmatch(language) else ""
    return (
        f'<pre class="code" data-language="{escape(language)}"><code>{_coloured(token.content, language)}</code></pre>'
    )


def _coloured(code: str, language: str) -> str:
    if language and len(code) <= LONGEST_CODE:
        try:
            return highlight(code, get_lexer_by_name(language, stripnl=False, ensurenl=False), _FORMATTER)
        except ClassNotFound:
            pass
    return escape(code)


def _inline(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return mathml(tokens[index].content, block=tokens[index].type == "math_inline_double")


def _block(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return f'<div class="formula-block">{mathml(tokens[index].content, block=True)}</div>'


def _next(state: StateInline | StateBlock, mark: str, start: int) -> int:
    """Where `mark` stands next; -1 where it does not within a formula's length. Looks at no letter twice."""
    known = state.env.setdefault("marks", {})
    source, found = known.get(mark, ("", -1))
    if source is not state.src or 0 <= found < start:
        found = state.src.find(mark, start)
        known[mark] = (state.src, found)
    return found if found <= start + LONGEST_FORMULA else -1


def _bracket_inline(state: StateInline, silent: bool) -> bool:
    r"""`\(…\)`, and `\[…\]` within a paragraph."""
    opens = state.src[state.pos : state.pos + 2]
    closes = {r"\(": r"\)", r"\[": r"\]"}.get(opens)
    end = -1 if closes is None else _next(state, closes, state.pos + 2)
    if end < 0:
        return False
    if not silent:
        token = state.push("math_inline" if opens == r"\(" else "math_inline_double", "math", 0)
        token.content = state.src[state.pos + 2 : end]
    state.pos = end + 2
    return True


def _bracket_block(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    r"""`\[` at the start of a line, up to the line that `\]` ends: the lines between may look like lists."""
    begin = state.bMarks[first] + state.tShift[first]
    stop = _next(state, r"\]", begin + 2) if state.src.startswith(r"\[", begin) else -1
    if stop < 0:
        return False
    last = next((line for line in range(first, end) if state.eMarks[line] >= stop), None)
    if last is None or state.src[stop + 2 : state.eMarks[last]].strip() or "\n\n" in state.src[begin:stop]:
        return False
    if not silent:
        token = state.push("math_block", "math", 0)
        token.block, token.map = True, [first, last + 1]
        token.content = state.src[begin + 2 : stop]
    state.line = last + 1
    return True


def _markdown() -> MarkdownIt:
    made = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    made.disable(["image", "html_block", "html_inline"])
    dollarmath_plugin(made, allow_labels=False, allow_space=False, allow_digits=False, double_inline=True)
    made.inline.ruler.before("escape", "bracket_inline", _bracket_inline)
    made.block.ruler.before(
        "fence", "bracket_block", _bracket_block, {"alt": ["paragraph", "reference", "blockquote", "list"]}
    )
    made.validateLink = lambda url: url.lower().startswith(_SCHEMES)  # type: ignore[method-assign]
    rules = {"link_open": _link, "th_open": _cell, "td_open": _cell, "fence": _fence, "code_block": _fence}
    rules |= {"math_inline": _inline, "math_inline_double": _inline, "math_block": _block}
    for name, rule in rules.items():
        made.add_render_rule(name, rule)
    return made


_MARKDOWN = _markdown()
