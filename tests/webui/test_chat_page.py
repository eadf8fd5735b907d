"""The page of kept conversations in a real browser, beside a ring of two stages. The toy's answers never end."""

from __future__ import annotations

import re
import subprocess
import sys

import httpx
import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.conftest import RealApp, until
from tests.support.axe import serious_faults
from tests.support.kept_chats import GROWING, imported
from tests.support.patience import PATIENCE
from tests.support.pdfs import pdf
from tests.support.reading import faults
from tests.support.sizes import ROOT
from tests.webui.conftest import FITS, answers, ask, open_chat, set_chat

EVIL = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


def running(app: RealApp) -> int:
    return int(app.serving()["running"])


def test_a_first_chat_survives_a_reload_and_a_second_browser_stops_it(
    chat: Page, context: BrowserContext, real_app: RealApp
) -> None:
    assert [fault for text in chat.locator("body").all_inner_texts() for fault in faults(text)] == []
    ask(chat, "what is a <b>node</b>?")
    expect(chat.locator("#question")).to_have_value("")
    expect(chat).to_have_url(re.compile(r"/chat/[0-9a-f]{24}$"))
    expect(chat.locator(".chat-title")).to_have_text("what is a <b>node</b>?")
    expect(chat.locator(".chat-item .title")).to_have_text(["what is a <b>node</b>?"])
    until(lambda: len(answers(chat).inner_text()) > 40, PATIENCE, "the answer grows")
    chat.reload()
    expect(answers(chat)).to_have_attribute("data-state", "writing")
    before = len(answers(chat).inner_text())
    until(lambda: len(answers(chat).inner_text()) > before + 20, PATIENCE, "the answer goes on")
    second = context.new_page()
    second.goto(chat.url)
    second.locator("#stop").click()
    until(lambda: running(real_app) == 0, PATIENCE, "the engine to be free")
    expect(chat.locator(".ending")).to_contain_text("Stopped.")
    expect(chat.locator("#send")).to_be_visible()
    expect(answers(second)).to_have_attribute("data-state", "stopped")
    second.close()


def test_versions_of_answers_and_questions(chat: Page) -> None:
    set_chat(chat, Max_tokens=6)
    ask(chat, "one")
    expect(chat.locator(".figures")).to_contain_text(re.compile(r"^6 tokens · .* tokens/s · first after .* → "))
    expect(chat.locator(".ending")).to_contain_text("6 tokens")
    expect(chat.locator(".context")).to_contain_text("of 4,096 tokens")
    chat.get_by_role("button", name="Answer again").click()
    expect(chat.locator(".turn.assistant .versions")).to_have_text("2/2")
    chat.get_by_role("button", name="The version before").click()
    expect(chat.locator(".turn.assistant .versions")).to_have_text("1/2")
    chat.locator("#question").press("ArrowUp")
    chat.locator(".edit").fill("two")
    chat.locator(".edit").press("Enter")
    expect(chat.locator(".turn.user .versions")).to_have_text("2/2")
    expect(chat.locator(".turn.user .plain")).to_have_text("two")
    expect(chat.locator(".turn.assistant .versions")).to_have_count(0)
    chat.locator(".turn.user").get_by_role("button", name="The version before").click()
    expect(chat.locator(".turn.user .plain")).to_have_text("one")


def test_settings_are_kept_as_a_preset(chat: Page, kept: httpx.Client) -> None:
    chat.locator("#show-settings").click()
    drawer = chat.locator("#drawer")
    temperature = drawer.get_by_label("Temperature")
    expect(temperature).to_have_attribute("placeholder", "0.7")
    temperature.fill("0.25")
    drawer.get_by_label("System prompt").fill("be short")
    drawer.get_by_role("button", name="Keep").click()
    chat.get_by_label("Name of the preset").fill("short / <b>")
    chat.get_by_role("dialog").get_by_role("button", name="Keep").click()
    expect(drawer.locator("#preset")).to_have_value("short / <b>")
    (preset,) = kept.get("/presets").json()
    assert (preset["settings"]["temperature"], preset["settings"]["system"]) == (0.25, "be short")
    drawer.get_by_role("button", name="Restore").click()
    expect(temperature).to_have_value("")
    drawer.locator("#preset").select_option("")
    drawer.locator("#preset").select_option("short / <b>")
    expect(temperature).to_have_value("0.25")
    drawer.get_by_role("button", name="Delete").click()
    chat.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(drawer.locator("#preset option")).to_have_count(1)
    assert kept.get("/presets").json() == []


def test_settings_of_all_chats(chat: Page, kept: httpx.Client) -> None:
    imported(kept, "old", "text")
    chat.get_by_role("link", name="Settings").click()
    expect(chat).to_have_url(re.compile("/settings$"))
    chat.get_by_label("Dark").check()
    expect(chat.locator("html")).to_have_attribute("data-theme", "dark")
    chat.get_by_label("As the system").check()
    with chat.expect_response("**/presets/*"):
        chat.locator(".preferences").get_by_label("Max tokens").fill("7")
    chat.locator("#new-chat").click()
    ask(chat, "hello")
    expect(chat.locator(".figures")).to_contain_text("7 tokens")
    chat.go_back()
    chat.go_back()
    expect(chat).to_have_url(re.compile("/settings$"))
    chat.get_by_role("button", name="Delete everything").click()
    chat.get_by_role("dialog").get_by_role("button", name="Delete everything").click()
    expect(chat.locator(".chat-item")).to_have_count(0)
    assert kept.get("/conversations").json()["conversations"] == []


def test_what_can_be_done_with_a_conversation(chat: Page, kept: httpx.Client) -> None:
    name = imported(kept, "old", "The **text**.", "北京有哪些好吃的?")
    imported(kept, "other", "no")
    item = chat.locator(f"[data-chat='{name}']")
    item.hover()
    for deed in ("Rename", "Pin", "Duplicate"):
        item.get_by_role("button").click()
        chat.get_by_role("menuitem", name=deed).click()
        if deed == "Rename":
            chat.get_by_label("Title").fill(EVIL)
            chat.get_by_role("dialog").get_by_role("button", name="Rename").click()
            expect(item.locator(".title")).to_have_text(EVIL)
        if deed == "Pin":
            expect(chat.locator(".chats h2").first).to_have_text("Pinned")
    expect(chat.locator(".chat-item")).to_have_count(3)
    expect(chat.locator(".chat-title")).to_have_text(EVIL)
    chat.keyboard.press("Control+k")
    chat.keyboard.type("北京")
    expect(chat.locator(".chat-item small")).to_have_count(2)
    chat.keyboard.type(" zebra")
    expect(chat.locator(".chats")).to_have_text("No conversation has these words.")
    chat.keyboard.press("Escape")
    with chat.expect_download() as download:
        item.get_by_role("button").click()
        chat.get_by_role("menuitem", name="Export as Markdown").click()
    assert "The **text**." in download.value.path().read_text("utf-8")
    item.get_by_role("button").click()
    chat.get_by_role("menuitem", name="Delete").click()
    chat.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(chat.locator(".chat-item")).to_have_count(2)


def test_nothing_that_is_said_is_markup(chat: Page, kept: httpx.Client) -> None:
    made = kept.post("/conversations", json={}).json()["summary"]["id"]
    file = kept.post(f"/conversations/{made}/files", params={"name": f"{EVIL}.txt"}, content="x").json()
    answer = f"{EVIL}\n\n$$\\text{{{EVIL}}}$$\n\n[link](javascript:alert(1)) **bold**\n\n```html\n{EVIL}\n```"
    name = imported(kept, EVIL, answer, EVIL)
    chat.goto(f"{kept.base_url}/chat/{name}")
    expect(answers(chat).locator("strong")).to_have_text("bold")
    assert answers(chat).inner_text().count("<script>") >= 2
    assert chat.locator(".turns :is(img, script, a)").count() == 0
    expect(answers(chat).locator("math")).to_have_count(1)
    expect(answers(chat).get_by_role("button", name="Copy", exact=True)).to_have_count(1)
    chat.evaluate(
        "([id, file]) => localStorage.setItem(`together.draft.${id}`, JSON.stringify({text: '', files: [file]}))",
        [made, file],
    )
    chat.goto(f"{kept.base_url}/chat/{made}")
    expect(chat.locator(".chip")).to_contain_text("<script>")
    assert "hacked" not in chat.title()


def test_a_growing_answer_shows_each_block_once(chat: Page) -> None:
    seen, emphasised, kept, titles = chat.evaluate(GROWING)
    assert seen == [["*a*"], ["*a* b"], ["a b", "c"], ["a b", "c d", "<i>"]]
    assert (emphasised, kept, titles) == (1, True, ["Thinking…", "Thought for …"])


def test_a_file_goes_with_a_question_and_a_draft_stays(chat: Page, kept: httpx.Client) -> None:
    set_chat(chat, Max_tokens=5)
    with chat.expect_file_chooser() as chooser:
        chat.locator("#attach").click()
    chooser.value.set_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"the code is 42"})
    expect(chat.locator(".chip")).to_contain_text(re.compile(r"notes\.txt\d+ tokens"))
    chat.locator("#question").fill("what is")
    chat.reload()
    expect(chat.locator(".chip")).to_contain_text("notes.txt")
    expect(chat.locator("#question")).to_have_value("what is")
    ask(chat, "what is the code?")
    expect(chat.locator(".turn.user .file")).to_contain_text("notes.txt")
    expect(chat.locator(".figures")).to_contain_text("5 tokens")
    (listed,) = kept.get("/conversations").json()["conversations"]
    question, answer = kept.get(f"/conversations/{listed['id']}").json()["turns"]
    assert len(question["said"]["files"]) == 1
    assert answer["said"]["figures"]["prompt_tokens"] > len("the code is 42")  # a token is a byte
    picker = chat.locator("#attach").locator("xpath=following-sibling::input")
    picker.set_input_files({"name": "report.pdf", "mimeType": "application/pdf", "buffer": pdf("the end")})
    expect(chat.locator(".chip")).to_contain_text("report.pdf7 tokens")
    picker.set_input_files({"name": "cat.png", "mimeType": "image/png", "buffer": b"no"})
    expect(chat.locator(".toast")).to_contain_text("toy sees no pictures")


def test_the_keyboard_is_enough(chat: Page, kept: httpx.Client, real_app: RealApp) -> None:
    imported(kept, "found by keys", "text")
    expect(chat.locator("#question")).to_be_focused()
    chat.keyboard.type("first line")
    chat.keyboard.press("Shift+Enter")
    chat.keyboard.type("second")
    chat.keyboard.press("Enter")
    expect(chat.locator(".turn.user .plain")).to_have_text("first line\nsecond")
    until(lambda: running(real_app) == 1, PATIENCE, "the answer is made")
    chat.keyboard.press("Escape")
    until(lambda: running(real_app) == 0, PATIENCE, "the engine to be free")
    expect(chat.locator("#send")).to_be_visible()
    chat.keyboard.press("ArrowUp")
    expect(chat.locator(".edit")).to_be_focused()
    chat.keyboard.press("Escape")
    expect(chat.locator(".edit")).to_have_count(0)
    chat.keyboard.press("Control+k")
    chat.keyboard.type("keys")
    expect(chat.locator(".chat-item")).to_have_count(1)
    chat.keyboard.press("ArrowDown")
    chat.keyboard.press("Enter")
    expect(chat.locator(".chat-title")).to_have_text("found by keys")
    chat.keyboard.press("Control+Shift+O")
    expect(chat.locator(".empty")).to_be_visible()
    seen = set()
    for _ in range(30):
        chat.keyboard.press("Tab")
        seen.add(chat.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"search", "question", "show-settings", "attach", "send", "example"} <= {
        name.split()[-1] for name in seen if name
    }


def test_a_phone_has_no_sideways_scroll(chat: Page, kept: httpx.Client) -> None:
    wide = (
        "| a | b |\n|---|---|\n| "
        + "word " * 60
        + "| x |\n\n`"
        + "y" * 300
        + "`\n\n```\n"
        + "z" * 300
        + "\n```\n\n$"
        + "a+" * 90
        + "a$"
    )
    name = imported(kept, "w" * 90, wide, "q" * 300)
    chat.set_viewport_size({"width": 360, "height": 740})
    chat.goto(f"{kept.base_url}/chat/{name}")
    expect(answers(chat).locator("table")).to_be_visible()
    assert chat.evaluate(FITS)
    expect(chat.locator("#sidebar")).not_to_be_in_viewport()
    chat.locator("#show-list").click()
    expect(chat.locator(".chat-item")).to_be_in_viewport()
    assert chat.evaluate(FITS)
    chat.keyboard.press("Escape")
    chat.locator("#show-settings").click()
    expect(chat.locator("#drawer")).to_be_in_viewport()
    assert chat.evaluate(FITS)
    chat.goto(f"{kept.base_url}/settings")
    expect(chat.get_by_role("region", name="Settings", exact=True)).to_be_visible()
    assert chat.evaluate(FITS)
    chat.set_viewport_size({"width": 1280, "height": 860})


def test_a_page_says_that_its_app_is_away_and_comes_back(page: Page, kept: httpx.Client) -> None:
    name = imported(kept, "old", "text")
    page.route("**/conversations/**", lambda route: route.abort())
    page.goto(f"{kept.base_url}/chat/{name}")
    expect(page.locator(".lost")).to_be_visible()
    page.unroute("**/conversations/**")
    expect(answers(page)).to_contain_text("text")
    expect(page.locator(".lost")).to_be_hidden()


def test_many_tabs_are_live(chat: Page, kept: httpx.Client, context: BrowserContext) -> None:
    """A browser has six connections to a host; here it takes every tab for one that is seen."""
    name = imported(kept, "old", "text")
    tabs = [context.new_page() for _ in range(4)]
    for tab in tabs:
        tab.goto(f"{kept.base_url}/chat/{name}")
        expect(answers(tab)).to_contain_text("text")
    kept.patch(f"/conversations/{name}", json={"title": "new"}).raise_for_status()
    for tab in tabs:
        expect(tab.locator(".chat-title")).to_have_text("new")
        tab.close()


@pytest.mark.full  # labels and contrast in every view; the default looks at what can be done with them
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_axe_finds_nothing_serious(chat: Page, kept: httpx.Client, colours: str) -> None:
    text = "# Title\n\n| a |\n|---|\n| 1 |\n\n```python\ndef f(): return 'x' + 1  # y\n```\n\n$x$ [link](https://a.b)"
    name = imported(kept, "long", text)
    imported(kept, "other", "text")
    chat.evaluate("colours => localStorage.setItem('together.theme', colours)", colours)
    found = {}
    for place in ("", f"chat/{name}", "machines", "models", "settings"):
        chat.goto(f"{kept.base_url}/{place}")
        expect(chat.locator(".chat-item")).to_have_count(2)
        expect(chat.locator(".empty, .turn, .machine, .preferences").locator("visible=true").first).to_be_visible()
        found[place] = serious_faults(chat)
    chat.goto(f"{kept.base_url}/chat/{name}")
    chat.locator("#show-settings").click()
    expect(chat.locator("#drawer #preset option")).to_have_count(1)
    found["drawer"] = serious_faults(chat)
    chat.locator("[data-chat]").first.get_by_role("button").click()
    found["menu"] = serious_faults(chat)
    chat.get_by_role("menuitem", name="Delete").click()
    found["dialog"] = serious_faults(chat)
    chat.keyboard.press("Escape")
    chat.set_viewport_size({"width": 360, "height": 740})
    chat.goto(f"{kept.base_url}/chat/{name}")
    found["phone"] = serious_faults(chat)
    chat.evaluate("localStorage.clear()")
    chat.set_viewport_size({"width": 1280, "height": 860})
    assert {place: faults for place, faults in found.items() if faults} == {}


@pytest.mark.full  # above is what the page says when its app is away, in tests/api what becomes of the answer
def test_a_page_comes_back_after_its_app_was_killed(page: Page, own_app: RealApp) -> None:
    open_chat(page, own_app)
    ask(page, "hello")
    until(lambda: len(answers(page).inner_text()) > 60, PATIENCE, "the answer grows")
    own_app.process.kill()
    expect(page.locator(".lost")).to_be_visible()
    model = str(own_app.home.parent / "toy")
    port = own_app.url.rpartition(":")[2]
    arguments = ("--model", model, "--backend", "checksum", "--port", port)
    command = [sys.executable, "-m", "together", "up", "--no-browser", "--local-nodes", "2", *arguments]
    with subprocess.Popen(command, cwd=ROOT, env=own_app.environment, stdout=subprocess.DEVNULL) as again:
        try:
            expect(page.locator(".lost")).to_be_hidden()
            expect(page.locator(".ending")).to_contain_text("The app ended while this was written.")
            expect(page.locator(".notice")).to_be_hidden()
            page.get_by_role("button", name="Try again").click()
            expect(page.locator("#stop")).to_be_visible()
        finally:
            again.terminate()
