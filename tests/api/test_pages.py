"""How the app's pages are served: under a strict policy, kept by their content, and to nobody without a key."""

from __future__ import annotations

import re

import httpx

from tests.conftest import RealApp
from tests.support.sizes import ROOT


def test_the_page_and_its_files(real_app: RealApp) -> None:
    page = real_app.get("/")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert [real_app.get(path).text for path in ("/machines", "/settings", "/chat/0123456789")] == [page.text] * 3
    assert httpx.head(real_app.url).status_code == 200
    files = re.findall(r'(?:href|src)="(/chat/files/[^"]+)"', page.text)
    assert len(files) >= 4
    for path in files:
        file = real_app.get(path).raise_for_status()
        assert "immutable" in file.headers["cache-control"]
        assert file.headers["x-content-type-options"] == "nosniff"
        assert file.headers["content-type"].startswith(("text/css", "text/javascript", "image/svg+xml"))
    wrong = files[0].replace("/chat/files/", "/chat/files/0")
    assert [real_app.get(path).status_code for path in (wrong, files[0] + "x", "/chat/files/a/..%2fpage.py")] == [
        404
    ] * 3


def test_browsers_get_a_page_where_programs_get_the_api_s_list(real_app: RealApp) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = httpx.get(f"{real_app.url}/models", headers=browser)
    assert page.text == real_app.get("/").text
    assert "Accept" in page.headers["vary"]
    assert real_app.get("/models").json()["data"][0]["id"] == "toy"
    assert httpx.get(f"{real_app.url}/v1/models", headers=browser).json()["object"] == "list"
    assert httpx.post(f"{real_app.url}/models", headers=browser).status_code == 405


def test_scripts_have_no_markup_of_their_own() -> None:
    """`rendered` is the one place where markup comes in; a second one would need a look at what goes there."""
    scripts = {path.name: path.read_text("utf-8") for path in (ROOT / "webui" / "chat").glob("*.js")}
    marks = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function")
    found = [(name, mark) for name, text in scripts.items() for mark in marks if mark in text]
    assert found == [("dom.js", "innerHTML")]
    assert [name for name, text in scripts.items() if re.search(r"https?://(?!www\.w3\.org|127\.0\.0\.1)", text)] == []
