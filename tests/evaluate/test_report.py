import re
from html.parser import HTMLParser

import numpy as np
import pytest

from brainjanus.evaluate.examples import CaptionExample, CodebookUsage, ImageExample, MapExample
from brainjanus.evaluate.record import DIRECTIONS, Record
from brainjanus.evaluate.report import write_report

PICTURE = np.zeros((4, 4, 3), np.uint8)
PNG = b"\x89PNG not really"
MAIN = dict(zip(DIRECTIONS, ("content_f1", "two_way", "voxel_r", "voxel_r"), strict=True))
RECORDS = [
    Record(direction, "tiny", subject, roi, "mean", metric, 0.61, 0.1, 0.5, ceiling, n=30, seed=7, p=0.001)
    for direction, metric in MAIN.items()
    for subject in ("s1", "s2")
    for roi, ceiling in ((None, 0.8), *((("V1", 0.7),) if metric == "voxel_r" else ()))
]
LOSSES = [
    {"stage": "omni", "step": step, "lr": 1e-3, "loss": 5 / (step + 1), "loss/image->brain": float("nan")}
    for step in range(5)
]

VOID = ("meta", "img", "br", "rect", "line", "polyline", "polygon", "circle")  # no content: nothing to close


class Page(HTMLParser):
    """What a browser would load, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ("src", "srcset", "data", "xlink:href")]
        self.loads += [value for name, value in attributes if name == "href" and tag != "a"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag


@pytest.fixture(scope="module")
def page(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(
        path,
        dataset=tiny,
        records=RECORDS,
        examples=[
            ImageExample("im1", PICTURE, {"mean": PICTURE, "linear": PICTURE}, "PixCorr 0.50"),
            CaptionExample("im2", PICTURE, ["a red dog", "one <dog>"], "the RED <cat>", "dog tree"),
        ],
        maps=[MapExample("s1, stimulus im1 (image->brain)", PNG)],
        losses=LOSSES,
        codebooks=[CodebookUsage("brain", np.array([5, 1, 0, 0]))],
        config={"width": 256, "note": "</pre><script>"},
        title="A <title> & more",
    )
    return path.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_loads_nothing(page):
    found = Page(page)
    assert found.open == []
    assert len(found.loads) == 5
    assert all(source.startswith("data:image/png;base64,") for source in found.loads)
    assert "<script" not in page
    assert not re.search(r"url\(|@import|https?://", page)


def test_each_section_is_there_in_order(page):
    sections = re.findall(r'<section id="(\w+)">', page)
    assert " ".join(sections) == "run directions pictures captions maps regions training glossary config"
    assert re.findall(r'<a href="#(\w+)">', page) == sections


def test_what_was_run_is_said(page):
    for fact in (
        "fMRI (simulated)",
        "no brain was measured",
        "s1: 40 voxels",
        "150 train, 30 test",
        "Seed 7",
        "torch 2",
    ):
        assert fact in page


def test_every_figure_of_a_direction_stands_in_the_table(page):
    table = page[page.index('id="directions"') : page.index('id="pictures"')]
    for direction in DIRECTIONS:
        assert f"<h3>{direction.replace('->', ' → ')}</h3>" in table
    means, *each = table.split("<details>")
    assert means.count('<tr class="mean">') == 1
    assert len(each) == 4
    assert table.count('<tr class="mean">') == 8  # once more above the subjects
    assert table.count('<tr class="one">') == 8
    row = table[table.index('<tr class="mean">') :]
    for figure in ("<b>0.610</b>", "0.100", "0.500", "1.22", "0.800", "60"):
        assert figure in row


def test_matching_words_are_marked_and_text_is_escaped(page):
    assert "the <mark>RED</mark> &lt;cat&gt;" in page
    assert "<mark>dog</mark> tree" in page
    assert "A &lt;title&gt; &amp; more" in page
    assert "&lt;/pre&gt;&lt;script&gt;" in page


def test_recordings_that_are_not_fmri_are_called_so(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "modality", "macaque V4 spike counts")
    write_report(tmp_path / "report.html", dataset=tiny, records=RECORDS)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "not fMRI" in page
    assert page.count("macaque V4 spike counts") == 2


def test_what_is_missing_leaves_no_empty_section(tiny, tmp_path):
    write_report(tmp_path / "report.html", dataset=tiny, records=RECORDS[:1])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="directions"' in page
    for section in ("pictures", "captions", "maps", "regions", "training"):
        assert f'id="{section}"' not in page
