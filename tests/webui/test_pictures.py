"""Pictures on the page: attached by our own route, shown in the turn, asked about by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.api.test_chat import PATH
from tests.conftest import RealApp, run_up
from tests.support.patience import PATIENCE
from tests.support.vision import photo, right_answer, write_seeing
from tests.webui.conftest import answers, ask, measurements, set_number
from together.errors import BadRequest
from together.requests import Attached, Message
from together.text.pictures import MOST_FILE
from together.types import Sampling
from webui.conversation import Knobs, names_in, picture, turn


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeing(tmp_path_factory.mktemp("seeing") / "model")


@pytest.fixture(scope="module")
def seeing_app(tmp_path_factory: pytest.TempPathFactory, seeing: Path) -> Iterator[RealApp]:
    more = ("--model", str(seeing), "--backend", "torch", "--dtype", "fp32", "--exact", "--layers", "0:2,2:4")
    with run_up(tmp_path_factory.mktemp("app"), *more) as app:
        yield app


@pytest.mark.full  # tests/head/test_pictures.py has what is answered
def test_a_picture_is_attached_and_asked_about(page: Page, seeing_app: RealApp, seeing: Path) -> None:
    page.goto(seeing_app.url)
    place = page.locator("[data-together=attach]")
    place.locator("input").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": photo(64, 40)})
    expect(place.locator(".chip img")).to_have_count(1)
    place.locator("input").set_input_files({"name": "b.png", "mimeType": "image/png", "buffer": b"no picture"})
    expect(place).to_contain_text("it is none of PNG, JPEG, WEBP; send another one")
    set_number(page, "#temperature", 0)
    with page.expect_request(lambda request: "/queue/join" in request.url) as sent:
        ask(page, "what?", 6)
    body = sent.value.post_data or ""
    assert re.search(r"[\w-]{22}", body)
    assert "base64" not in body
    assert measurements(page).startswith("6 tokens")
    shown = page.locator("#chat .user img")
    expect(shown).to_have_count(1)
    assert shown.evaluate("image => image.naturalWidth") == 64
    expect(place.locator(".chip")).to_have_count(0)
    question = Message("user", "what?", pictures=(Attached(0, photo(64, 40)),))
    assert answers(page)[0].strip() in right_answer(seeing, question, tokens=6)


DROP = """bytes => {
  const given = new DataTransfer();
  given.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
  document.querySelector("main").dispatchEvent(new DragEvent("drop", { dataTransfer: given, bubbles: true }));
}"""


@pytest.mark.full  # tests/webui/test_chat_page.py has files without a model that sees
def test_a_picture_is_dropped_into_a_kept_conversation(page: Page, seeing_app: RealApp, seeing: Path) -> None:
    page.goto(f"{seeing_app.url}/chat")
    expect(page.locator(".served")).to_have_text("model")
    page.locator("#show-settings").click()
    page.locator("#drawer").get_by_label("Temperature").fill("0")
    page.locator("#drawer").get_by_label("Max tokens").fill("6")
    page.keyboard.press("Escape")
    page.evaluate(DROP, list(photo(64, 40)))
    expect(page.locator(".chip")).to_contain_text("a.pngpicture")
    page.locator("#question").fill("what?")
    page.locator("#question").press("Enter")
    expect(page.locator(".figures")).to_contain_text("6 tokens")
    shown = page.locator(".turn.user img")
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    question = Message("user", "what?", pictures=(Attached(0, photo(64, 40)),))
    assert page.locator(".turn.assistant .text").inner_text().strip() in right_answer(seeing, question, tokens=6)
    page.request.delete(f"{seeing_app.url}/conversations")


def test_a_question_that_fails_gets_its_pictures_back(page: Page, real_app: RealApp) -> None:
    """As often as it is sent; this model sees none."""
    page.goto(real_app.url)
    place = page.locator("[data-together=attach]")
    expect(page.locator("table.nodes .node-name").first).to_be_visible()
    expect(place).to_be_hidden()  # a model that sees nothing offers no place for pictures
    place.locator("input").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": photo(64, 40)})
    expect(place.locator(".chip img")).to_have_count(1)
    for _ in range(2):
        ask(page, "what?", 6)
        expect(page.locator("#notice")).to_contain_text("send text alone")
        expect(page.locator("#question textarea")).to_have_value("what?")
        expect(place.locator(".chip img")).to_have_count(1)


def test_the_route_takes_pictures_from_our_own_page_alone(real_app: RealApp) -> None:
    with httpx.Client(base_url=real_app.url, timeout=PATIENCE, trust_env=False) as client:
        kept = client.post("/attachments", content=photo(64, 40, kind="JPEG"))
        assert kept.status_code == 201
        name = kept.json()["name"]
        shown = client.get(f"/attachments/{name}")
        assert (shown.content, shown.headers["content-type"]) == (photo(64, 40, kind="JPEG"), "image/jpeg")
        assert shown.headers["x-content-type-options"] == "nosniff"
        assert client.get(f"/attachments/{name}", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "same-site"}):
            assert client.post("/attachments", content=photo(64, 40), headers=headers).status_code == 403
        assert client.post("/attachments", content=b"<svg/>").status_code == 400
        assert client.post("/attachments", content=bytes(MOST_FILE + 1)).status_code == 413
        assert client.get("/attachments/" + "x" * 22).status_code == 404
        assert client.get("/attachments").status_code == 405
        refused = client.post("/gradio_api/upload", files={"files": photo(64, 40)})
        assert refused.status_code == 404
        body = {
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": shown.url.path}}]}]
        }
        assert client.post(PATH, json=body).status_code == 400


def test_only_names_travel_in_a_turn() -> None:
    asked = turn("user", "what?", picture("a" * 22), "![picture](http://evil.example/a.png)")
    request = Knobs().request([asked, turn("assistant", "A cat.", picture("b" * 22))], Sampling(), str.encode)
    assert [each.pictures for each in request.messages] == [(Attached(0, b"a" * 22),), ()]
    assert [each.content for each in request.messages] == ["what?", "A cat."]


@pytest.mark.parametrize("attached", ["../../etc/passwd", "a b/c", " ".join(["a"] * 17), "a" * 65])
def test_what_is_no_name_is_refused(attached: str) -> None:
    with pytest.raises(BadRequest, match="at most 16 pictures, each by its name"):
        names_in(attached)
