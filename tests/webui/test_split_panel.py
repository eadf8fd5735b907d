"""The Split panel in a real browser, on a really started app of two nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.conftest import EVIL_NAME, LAYERS, NODE_NAMES, RealApp, start_app, until
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.gguf_models import make_gguf
from tests.support.other_programs import LIBRARY, OllamaFolder
from tests.support.patience import PATIENCE, PATIENCE_MS
from tests.support.reading import faults
from tests.webui.conftest import open_page, reads_well
from tests.webui.test_draft import PROBLEM, draft_of
from webui.draft import Edited, shown_plan

MEASURED = 2 * PATIENCE_MS  # two nodes of one machine measure one after another

# A number typed into a field, and the counts and ranges before any answer of the head can be there.
TYPED = """([index, text]) => {
  const field = document.getElementById(`split-layers-${index}`);
  field.focus();
  field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  const all = (place) => [...document.querySelectorAll(place)];
  const ranges = all("#split-panel .layer-bar .segment-range").map((each) => each.textContent);
  return [all(".split-count").map((each) => Number(each.value)), ranges];
}"""


def recommend(page: Page) -> None:
    page.locator("#split-recommend").click()
    expect(page.locator("#split-apply")).to_be_enabled(timeout=MEASURED)


def field(page: Page, name: str) -> Locator:
    return page.locator(f"#split-{name} :is(input, textarea)")


def set_layers(page: Page, *counts: int) -> None:
    for index, count in enumerate(counts):
        page.locator(f"#split-layers-{index}").fill(str(count))


def ranges(page: Page, place: str) -> list[str]:
    return page.locator(f"{place} .layer-bar .segment-range").all_inner_texts()


def red(page: Page) -> str:
    """The sentences of what is wrong, which are red."""
    first = page.locator("#split-panel .wrong").first
    expect(first).to_be_visible()
    colour = first.evaluate("element => getComputedStyle(element).color")
    channels = [int(value) for value in re.findall(r"\d+", colour)]
    assert channels[0] > 180 > 80 > max(channels[1:3]), colour
    return page.locator("#split-panel .wrong").all_inner_texts()[0]


def choose_model(page: Page, name: str) -> None:
    choose(page, "#split-model", name)


def choose(page: Page, control: str, name: str) -> None:
    page.locator(f"{control} input").click()
    page.locator("#split-column [role=option]", has_text=name).click()


def test_after_the_first_answers_page_and_status_say_what_a_token_takes(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    for _ in range(2):
        real_app.post("/v1/completions", {"prompt": "Hello", "max_tokens": 30}).raise_for_status()
    until(lambda: real_app.status()["pace"], PATIENCE, "the pace was looked at")
    measured = re.compile(r"measured: [\d.]+ ms per token, [\d.]+ tokens/s for one person alone")
    expect(page.locator("#split-pace")).to_contain_text(measured)
    assert measured.search(real_app.command("status").stdout)
    assert real_app.status()["pace"]["measured_ms"] > 2 * LAYERS  # layers that sleep 2 ms


def test_a_split_is_recommended_with_reasons_and_names_are_text(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    recommend(page)
    assert ranges(page, "#split-panel")[-1].endswith(f":{LAYERS}")
    assert sorted(page.locator("#split-panel td .node-name").all_inner_texts()) == NODE_NAMES
    expect(page.locator("#split-speed")).to_contain_text("tokens/s for one user ·")
    expect(page.locator("#split-speed")).to_contain_text("tokens/s for 4 users at once")
    expect(page.locator("#split-why")).to_contain_text("the whole model fits on it")
    assert page.locator("#split-why").inner_text().count(EVIL_NAME) >= 2
    assert page.locator("#split-panel img").count() == 0
    assert page.title() == "Split – together"
    expect(page.locator("#split-reset")).to_be_disabled()
    reads_well(page)


def counts(page: Page) -> list[int]:
    return [int(field.input_value() or -1) for field in page.locator(".split-count").all()]


def test_an_edit_is_scored_as_it_is_made(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    recommend(page)
    before, recommended = page.locator("#split-speed").inner_text(), counts(page)
    giver = recommended.index(max(recommended))  # with two nodes of one machine it has them all
    page.locator(f"#split-more-{1 - giver}").click()
    edited = [count + (-1 if index == giver else 1) for index, count in enumerate(recommended)]
    assert counts(page) == edited
    expect(page.locator("#split-apply")).to_be_enabled()
    expect(page.locator("#split-wrong")).to_be_empty()
    expect(page.locator("#split-speed")).not_to_have_text(re.compile(f"^({re.escape(before)})?$"))
    assert ranges(page, "#split-panel")[0] == f"0:{edited[0]}"
    page.locator("#split-layers-0").fill(str(LAYERS + 5))
    said = f"the layers add up to {LAYERS + 5}, the model has {LAYERS}; take 5 from {EVIL_NAME}"
    expect(page.locator("#split-wrong")).to_contain_text(said)
    assert "the layers add up" in red(page)
    reads_well(page)
    expect(page.locator("#split-apply")).to_be_disabled()
    page.locator("#split-layers-0").fill("")
    expect(page.locator("#split-wrong")).to_contain_text("its number of layers is missing")
    expect(page.locator("#split-apply")).to_be_disabled()
    page.locator("#split-reset").click()
    expect(page.locator("#split-apply")).to_be_enabled()
    expect(page.locator("#split-speed")).to_have_text(before)
    assert counts(page) == recommended


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealApp]:
    """An app with one node more than others; the last test ends one that it adds."""
    with start_app(tmp_path_factory.mktemp("three")) as app:
        app.post("/control/nodes", {"action": "start"}).raise_for_status()
        yield app


def test_what_one_machine_takes_its_neighbours_give(page: Page, three_nodes: RealApp) -> None:
    toy = make_checksum_model(three_nodes.home / "models" / "twelve", layers=12, quiet_ids=(*QUIET, EOS))
    page.goto(f"{three_nodes.url}/split")
    expect(page.locator("#cluster-nodes tbody tr")).to_have_count(3)
    choose_model(page, toy.name)
    choose(page, "#split-strategy", "Equal layers")
    recommend(page)
    assert counts(page) == [4, 4, 4]
    assert page.evaluate(TYPED, [0, "7"]) == [[7, 1, 4], ["0:7", "7:8", "8:12"]]
    assert page.evaluate(TYPED, [0, "70"])[0] == [70, 0, 0]  # on the way to 10
    assert page.evaluate(TYPED, [0, "10"])[0] == [10, 0, 2]
    page.locator("#split-layers-2").press("ArrowUp")
    assert counts(page) == [9, 0, 3]
    page.locator("#split-layers-1").fill("2")
    assert counts(page) == [9, 2, 1]
    page.locator("#split-less-2").click()
    assert counts(page) == [9, 3, 0]
    page.locator("#split-less-1").click()
    assert counts(page) == [10, 2, 0]
    page.locator("#split-more-2").click()
    assert counts(page) == [10, 1, 1]
    page.locator("#split-layers-1").fill("12")
    assert counts(page) == [0, 12, 0]
    expect(page.locator("#split-apply")).to_be_enabled()
    memory = page.locator("#split-panel [data-label=Memory]")
    expect(memory.first).to_contain_text("nothing of ")
    page.locator("#split-less-1").click()
    assert counts(page) == [0, 11, 1]


@pytest.mark.full  # test_an_edited_split_is_applied has two machines
def test_a_split_of_three_is_applied_and_what_is_odd_is_said_once(page: Page, three_nodes: RealApp) -> None:
    toy = make_checksum_model(three_nodes.home / "models" / "twelve", layers=12, quiet_ids=(*QUIET, EOS))
    (toy / "generation_config.json").write_text(json.dumps({"eos_token_id": [EOS], "temperature": 9}))
    page.goto(f"{three_nodes.url}/split")
    expect(page.locator("#cluster-nodes tbody tr")).to_have_count(3)
    choose_model(page, toy.name)
    choose(page, "#split-strategy", "Equal layers")
    recommend(page)
    assert page.evaluate(TYPED, [1, "11"])[0] == [0, 11, 1]
    log, odd = (
        three_nodes.home.parent / "log",
        "together: generation_config.json of twelve has temperature = 9, which is ignored",
    )
    assert "generation_config" not in log.read_text()  # a model that is only planned is nobody's trouble yet
    page.locator("#split-apply").click()
    expect(page.locator("#split-said .good")).to_contain_text("twelve runs by this split", timeout=MEASURED)
    until(lambda: ranges(page, "#cluster-header") == ["0:11", "11:12"], PATIENCE, "the header shows the new split")
    assert log.read_text().count(odd) == 1


# An editor of its own, which tells its counts to nobody but the test.
DRAWN = """(plan) => {
  const root = document.body.appendChild(document.createElement("div"));
  window.told = [];
  window.together.split(root, { value: plan }, () => {}, (_, data) => window.told.push(data.counts.map(Number)));
}"""


def test_the_editor_passes_over_cuts_that_cannot_be(page: Page, real_app: RealApp) -> None:
    """As of a model whose last layers read what layer 4 keeps: with + and −, and where a typed number is left."""
    draft = draft_of(replace(PROBLEM, model=replace(PROBLEM.model, joined=(5, 6, 7, 9))))
    open_page(page, real_app)
    page.evaluate(DRAWN, shown_plan(Edited(draft, ("4", "8", "0"))))
    expect(page.locator(".faint", has_text="layers 4:8 and 8:10 stay together on one machine")).to_be_visible()
    page.locator("#split-more-0").click()
    assert counts(page) == [8, 4, 0]
    page.locator("#split-more-0").click()
    assert counts(page) == [10, 2, 0]
    page.locator("#split-less-0").click()
    page.locator("#split-less-0").click()
    assert counts(page) == [4, 8, 0]
    page.locator("#split-layers-1").fill("5")
    assert counts(page) == [7, 5, 0]
    page.locator("#split-layers-1").blur()
    assert counts(page) == [8, 4, 0]
    assert page.evaluate("window.told").pop() == [8, 4, 0]


def test_what_does_not_fit_is_said_with_what_would(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    field(page, "users").fill("1000000")
    page.locator("#split-recommend").click()
    expect(page.locator("#split-panel .wrong")).to_contain_text("the model does not fit", timeout=MEASURED)
    expect(page.locator("#split-panel .advice")).to_contain_text("instead of 1000000 users at once")
    reads_well(page)
    expect(page.locator("#split-apply")).to_have_count(0)


def test_a_wrong_wish_and_a_strange_model_are_sentences(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    choose(page, "#split-strategy", "By a ratio")
    page.locator("#split-ratio input, #split-ratio textarea").fill("three")
    page.locator("#split-recommend").click()
    expect(page.locator("#split-panel .wrong")).to_contain_text("'three' is not numbers", timeout=MEASURED)
    page.locator("#split-ratio input, #split-ratio textarea").fill("3:1")
    field(page, "context").fill("5000")
    page.locator("#split-recommend").click()
    expect(page.locator("#split-panel .wrong")).to_contain_text("choose at most 4096", timeout=MEASURED)
    reads_well(page)
    field(page, "context").fill("-1")
    page.locator("#split-recommend").click()
    expect(page.locator("#split-panel .wrong")).to_contain_text("context: '-1' is no whole number from 1 on; write one")
    field(page, "context").fill("")
    choose(page, "#split-form", "4 bit")
    page.locator("#split-recommend").click()
    expect(page.locator("#split-panel .wrong")).to_contain_text("toy has no matrix that fits 4 bit", timeout=MEASURED)
    choose(page, "#split-form", "As published")
    page.locator("#split-model input").fill(EVIL_NAME)
    page.locator("#split-model input").press("Enter")
    page.locator("#split-recommend").click()
    expect(page.locator("#split-panel .wrong")).to_contain_text("there is no model")
    assert "onerror=" in red(page)
    assert page.locator("#split-column img").count() == 0
    assert page.title() == "Split – together"


def test_models_can_be_chosen_and_empty_fields_show_what_is_taken(page: Page, real_app: RealApp) -> None:
    open_page(page, real_app)
    context, users = field(page, "context"), field(page, "users")
    expect(context).to_have_attribute("placeholder", "4096")  # the model's own
    expect(users).to_have_attribute("placeholder", "4")
    assert context.input_value() == users.input_value() == ""
    page.locator("#split-model input").fill("org/name")
    page.locator("#split-model input").press("Enter")
    expect(context).to_have_attribute("placeholder", "at most 8192")
    page.reload()
    expect(page.locator("#split-model input")).to_have_value("toy (in service)")
    page.locator("#split-model input").click()
    expect(page.locator("#split-column [role=option]", has_text="demo_model")).to_be_visible()


@pytest.mark.full  # tests/weights/test_choosing.py chooses them
def test_a_model_of_another_program_can_be_chosen(page: Page, lent_app: RealApp, tmp_path: Path) -> None:
    file = make_gguf(tmp_path / "made")
    OllamaFolder(lent_app.ollama).add(f"{LIBRARY}/llama3.2/3b", file.read_bytes())
    open_page(page, lent_app)
    page.locator("#split-model input").click()
    option = page.locator("#split-column [role=option]", has_text="llama3.2:3b")
    expect(option).to_contain_text("of Ollama")
    option.click()
    read = lent_app.home / "imports"
    until(lambda: list(read.glob("*/llama3.2-3b/gguf.json")), PATIENCE, "the file is read where it lies")
    page.reload()
    page.locator("#split-model input").click()
    listed = page.locator("#split-column [role=option]", has_text="llama3.2-3b (4 layers")
    expect(listed).to_contain_text("of Ollama")


def test_an_edited_split_is_applied(page: Page, lent_app: RealApp) -> None:
    question = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 10, "temperature": 0}
    before = lent_app.post("/v1/chat/completions", question).json()["choices"][0]["message"]
    open_page(page, lent_app)
    recommend(page)
    set_layers(page, 3, 1)
    expect(page.locator("#split-wrong")).to_be_empty()
    expect(page.locator("#split-apply")).to_be_enabled()
    page.locator("#split-apply").click()
    expect(page.locator("#split-said .good")).to_contain_text("toy runs by this split", timeout=MEASURED)
    until(lambda: ranges(page, "#cluster-header") == ["0:3", "3:4"], PATIENCE, "the header shows the new split")
    stages = [stage["layers"] for node in lent_app.status()["nodes"] for stage in node["stages"]]
    assert sorted((layers["start"], layers["stop"]) for layers in stages) == [(0, 3), (3, 4)]
    assert lent_app.post("/v1/chat/completions", question).json()["choices"][0]["message"] == before


@pytest.mark.full  # a lost machine is in tests/head/test_recovery.py
def test_the_table_follows_machines(page: Page, three_nodes: RealApp) -> None:
    make_checksum_model(three_nodes.home / "models" / "slow", layers=6, load_ms=1500, seed=3, quiet_ids=(*QUIET, EOS))
    page.goto(f"{three_nodes.url}/split")
    choose_model(page, "slow")
    recommend(page)
    page.locator("#split-apply").click()
    expect(page.locator("#split-loading")).to_contain_text(re.compile(r"layers \d:\d of 6 · \d0 %"))
    reads_well(page)
    expect(page.locator("#cluster-header .sentence")).to_contain_text("being loaded: loading")
    expect(page.locator("#split-said .good")).to_contain_text("slow runs by this split", timeout=MEASURED)
    expect(page.locator("#split-loading")).to_be_empty()
    expect(page.locator("#split-model input")).to_have_value("slow (in service)")
    reads_well(page)

    known = {process.pid for process in three_nodes.tree()}
    three_nodes.post("/control/nodes", {"action": "start"})
    expect(page.locator("#cluster-nodes tbody tr")).to_have_count(4)
    expect(page.locator("#split-stale")).to_contain_text("recommend again")
    new = [process for process in three_nodes.tree() if process.pid not in known and "node" in process.cmdline()]
    assert len(new) == 1
    psutil.Process(new[0].pid).kill()
    lost = page.locator("#cluster-nodes tbody tr", has_text=f"{EVIL_NAME}-4")
    expect(lost.locator(".pill")).to_have_text("FAILED")
    expect(lost.locator(".cause")).to_contain_text("lost: ")
    expect(lost.locator("[data-label=Memory], [data-label=Layers]")).to_have_text(["–", "–"])
    reads_well(page)
    assert faults(three_nodes.command("status").stdout, ("two spaces",)) == []
    expect(page.locator("#split-stale")).to_be_empty()  # the machines of the plan are all there are, again
