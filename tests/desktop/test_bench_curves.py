"""`bench curves` and `bench plot`: from real rings to a picture, and what the picture says."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import ROOT, environment_for
from tests.support.lightest import LIGHTEST
from tests.support.patience import PATIENCE
from together.desktop.bench.curves import Curves, Places, Point, read_curves
from together.desktop.bench.plot import drawing, ticks
from together.errors import BadSetting

POINTS = (Point(1, 10.0, 100.0), Point(4, 20.0, 50.0))
CURVES = Curves("a<b", "4 bit", "torch on cpu", "a machine", "May 2026", 16, 3, 0.25, POINTS, POINTS, POINTS[:1])
SVG = "{http://www.w3.org/2000/svg}"


def bench(home: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "together", "bench", *arguments]
    subprocess.run(command, cwd=ROOT, env=environment_for(home), capture_output=True, timeout=2 * PATIENCE, check=True)


@pytest.mark.full  # it measures
def test_speeds_are_measured_and_drawn(tmp_path: Path) -> None:
    file, image = tmp_path / "curves.json", tmp_path / "curves.svg"
    bench(
        tmp_path, "curves", str(file), "--shape", "tiny", "--dtype", "fp32", "--context", "32,64",
        "--users", "1,2", "--stages", "1,2", "--prompt", "16", "--new", "4",
        "--rounds", "1", "--backend", LIGHTEST,
    )  # fmt: skip
    found = read_curves(file)
    places = [[point.at for point in points] for points in (found.context, found.users, found.stages)]
    assert places == [[32, 64], [1, 2], [1, 2]]
    assert all(min(p.decode_tok_s, p.prefill_tok_s) > 0 for p in (*found.context, *found.users, *found.stages))
    assert 0 <= found.others <= 1
    bench(tmp_path, "plot", str(file), str(image))
    assert len(ElementTree.parse(image).findall(f"{SVG}circle")) == 12


def test_a_drawing_has_every_figure_at_its_height() -> None:
    """The highest point of each panel lies as high as its speed, from 0 at the bottom; places are names, escaped."""
    image = ElementTree.fromstring(drawing(CURVES))
    decode = image.findall(f"{SVG}circle")[:2]
    low, high = (float(circle.attrib["cy"]) for circle in decode)
    lines = [float(line.attrib["y1"]) for line in image.findall(f"{SVG}line")]
    bottom, top = max(line for line in lines if line < 220), min(lines)
    assert bottom - low == pytest.approx((bottom - top) / 2, abs=0.2)
    assert high == pytest.approx(top, abs=0.2)
    texts = [text.text for text in image.findall(f"{SVG}text")]
    assert texts.count("decode, tokens/s") == texts.count("prefill, tokens/s") == 3
    assert texts[-2:] == list(CURVES.caption)
    assert texts[-2] == "a<b, 4 bit, random weights, torch on cpu; a machine"
    assert "25%" in str(texts[-1])


@pytest.mark.parametrize(
    ("most", "marks"),
    [
        (10, [0, 2, 4, 6, 8, 10]),
        (11, [0, 5, 10, 15]),
        (0.7, [0, 0.2, 0.4, 0.6, 0.8]),
        (0, [0]),
        (300, [0, 100, 200, 300]),
    ],
)
def test_marks_reach_above_what_is_shown(most: float, marks: list[float]) -> None:
    assert ticks(most) == marks


@pytest.mark.parametrize("text", ["", "0,1", "1,x", "1.5", "-1", "1,,2"])
def test_places_are_numbers(text: str) -> None:
    assert Places.parse("4, 2,2", "1", "1,2") == Places((2, 4), (1,), (1, 2))
    with pytest.raises(BadSetting, match="--users takes numbers from 1 on"):
        Places.parse("1", text, "1")


def test_only_its_own_files_are_drawn(tmp_path: Path) -> None:
    file = tmp_path / "curves.json"
    with pytest.raises(BadSetting, match=r"curves\.json is no file of bench curves"):
        read_curves(file)
    file.write_text(json.dumps(asdict(CURVES)))
    assert read_curves(file) == CURVES
    file.write_text(json.dumps(asdict(replace(CURVES, users=())) | {"users": 3}))
    with pytest.raises(BadSetting, match="is no file of bench curves"):
        read_curves(file)
