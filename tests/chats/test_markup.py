"""What Markdown becomes on the page, that nothing in it is markup of its own, and where an answer is cut."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from together.chats.blocks import BlockSplitter
from together.chats.context import has_switch
from together.chats.formulas import mathml
from together.chats.markup import to_html
from together.chats.records import ChatSummary, Conversation, Grown, Said, Turn
from together.chats.rendered import LONGEST, AnswerRenderer, AnswerWatch

TEXT = """# A title

One | two
--: | ---
`a` | $x^2$

```python
def f():

    return 1
```

1. first

   still first
2. second

\\[
a
- b
\\]

The end \\(y\\) for $5 and $6"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "<p>a<br />\nb</p>\n"),
        ("| a |\n|--:|\n| 1 |", '<th class="at-right">a</th>'),
        ("```py\nx = '<'\n```", 'data-language="py"><code><span class="c-n">x</span>'),
        ("```\n<b>\n```", '<pre class="code" data-language=""><code>&lt;b&gt;\n</code></pre>'),
        ("```no-such\n<b>\n```", 'data-language="no-such"><code>&lt;b&gt;\n'),
        ("\\(x\\) costs $5 and $6", "<mi>x</mi></mrow></math> costs $5 and $6"),
        ("so \\[ x \\] and\n\\[\na\n- b\n\\]", '<math display="block"><mrow><mi>x</mi>'),
        ("$$\\begin{aligned}a&=b\\\\c&=d\\end{aligned}$$", "<mtable"),
        ("[a](https://b.c)", 'href="https://b.c" target="_blank" rel="noopener noreferrer nofollow"'),
    ],
)
def test_what_becomes_of_it(text: str, shown: str) -> None:
    assert shown in str(to_html(text))


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found |= {tag, *(f"{name}=" for name, _ in attributes)}
        for name, value in attributes:
            assert name != "href" or str(value).lower().startswith(("http://", "https://", "mailto:"))


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script> <img src=x onerror=alert(1)>",
        "<!-- <div> -->\n<div style='a'>\n\n![a](http://b/c.png)",
        "[a](javascript:alert(1)) [b](data:text/html,x) <javascript:alert(1)> [c](JaVaScRiPt:x)",
        "$$\\text{<script>alert(1)</script>}\\href{javascript:alert(1)}{x}\\style{a:url(//b)}{c}\\class{d}{e}$$",
        '$\\text{&lt;img onerror=x&gt;}$ $\\color{red" onclick="x}{y}$',
        '```"onclick="x\na\n```\n\n```<b>\nc\n```',
        "| <b> |\n|:--|\n| <i> |",
    ],
)
def test_nothing_in_it_is_markup(text: str) -> None:
    elements = _Elements()
    elements.feed(str(to_html(text)))
    assert elements.found.isdisjoint({"script", "img", "b", "i", "style=", "class=d"})
    assert not {name for name in elements.found if name.startswith("on")}


@pytest.mark.parametrize("latex", ["{" * 500, "x" * 5000, "\\begin{array}"])
def test_a_formula_that_cannot_be_read_stays_as_it_is(latex: str) -> None:
    assert mathml(latex, block=False) == f'<code class="formula">{latex}</code>'


@given(st.lists(st.sampled_from([*TEXT, "\n\n", "```", "$$", "\\["]), max_size=200), st.integers(1, 9))
def test_blocks_are_the_text_however_it_comes(parts: list[str], step: int) -> None:
    text = "".join(parts)
    whole, growing = BlockSplitter(), BlockSplitter()
    blocks = whole.add(text)
    assert "".join(blocks) + whole.tail == text
    assert [block for i in range(0, len(text), step) for block in growing.add(text[i : i + step])] == blocks


def test_blocks_end_where_something_begins() -> None:
    splitter = BlockSplitter()
    blocks = splitter.add(TEXT)
    assert [block.split("\n")[0] for block in blocks] == ["# A title", "One | two", "```python", "1. first", "\\["]
    assert splitter.tail.startswith("The end")


def chat(state: str, text: str) -> Conversation:
    answer = Turn("b", "a", "assistant", "writing" if state == "writing" else "done", 0.0, Said(text))
    return Conversation(
        ChatSummary("c", "", False, 0, 0), turns=(Turn("a", "", "user", "done", 0.0, Said("?")), answer)
    )


async def test_a_watcher_gets_each_block_once() -> None:
    watch = AnswerWatch(AnswerRenderer())
    first = (await watch.whole(chat("writing", "*a*\n\nb")))["b"]
    assert ([block.html for block in first.blocks], first.tail) == (["<p><em>a</em></p>\n"], "b")
    assert await watch.grown(Grown("b", " c\n")) is None
    then = await watch.grown(Grown("b", "\nd"))
    assert then is not None
    assert ([block.html for block in then.blocks], then.tail) == (["<p>b c</p>\n"], "d")
    (end,) = (await watch.whole(chat("done", "*a*\n\nb c\n\nd")))["b"].blocks
    assert end.html == "<p><em>a</em></p>\n<p>b c</p>\n<p>d</p>\n"


async def test_long_answers_are_rendered_in_parts_and_one_long_block_not_at_all() -> None:
    renderer = AnswerRenderer(room=LONGEST)
    text = f"*a*\n\n{'b' * (LONGEST + 1)}"
    first, second = (await AnswerWatch(renderer).whole(chat("done", text)))["b"].blocks
    assert (first.html, second.html, len(second.text)) == ("<p><em>a</em></p>\n", None, LONGEST + 1)
    assert await renderer.html("c") == "<p>c</p>\n"


def test_templates_with_a_switch_for_thinking() -> None:
    assert has_switch(["{% if enable_thinking is defined and enable_thinking is false %}"])
    assert has_switch(["{%- if thinking %}", ""])
    assert not has_switch(["{{ message.thinking }}", "{% if message['thinking'] %}", "{% if thinking_mode %}"])
