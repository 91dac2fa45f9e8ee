"""The pieces that pages are made of: what is escaped, what is left out, and where a bar and its ticks stand."""

import re

import numpy as np
import pytest

from brainjanus.evaluate.examples import CodebookUsage
from brainjanus.evaluate.page import bar, bar_key, codebooks, facts, glossary, page, training


def test_a_page_has_the_sections_that_hold_something_and_a_link_to_each():
    made = page("a < b", "EEG & more", [("one", "R > 0", "<p>x</p>"), ("two", "Empty", "")], "p { color: red; }")
    assert re.findall(r'<section id="(\w+)"><h2>(.*?)</h2><p>x</p>', made) == [("one", "R &gt; 0")]
    assert re.findall(r'<a href="#(\w+)">', made) == ["one"]
    assert "<title>a &lt; b</title>" in made and "EEG &amp; more" in made and "p { color: red; }</style>" in made
    assert "$" not in made


def test_words_are_escaped_and_facts_are_html():
    assert glossary({"a<b": "x & y"}) == '<dl class="glossary"><dt>a&lt;b</dt><dd>x &amp; y</dd></dl>'
    assert facts({"n": "<b>3</b>"}) == '<dl class="facts"><dt>n</dt><dd><b>3</b></dd></dl>'


@pytest.mark.parametrize(("value", "low", "left", "width"), [(0.5, 0.0, 0.0, 100.0), (-1.0, -1.0, 0.0, 100.0)])
def test_a_bar_begins_at_zero_and_ticks_stand_at_their_values(value, low, left, width):
    drawn = bar(value, "said", floor=0.0, linear=1.0, ceiling=None, low=low)
    assert f'<rect class="value" x="{left}" y="3" width="{width}"' in drawn and 'aria-label="said"' in drawn
    ticks = re.findall(r'<line class="(\w+)" x1="([\d.]+)"', drawn)
    assert ticks == [("floor", str(100.0 if low else 0.0)), ("linear", "200.0")]
    assert bar_key("a", "b", "c", "d").index("k-value") < bar_key("a", "b", "c", "d").index("k-ceiling")


def test_bars_beyond_their_range_end_there():
    assert 'width="200.0"' in bar(5.0, "", floor=None, linear=None, ceiling=None)
    assert 'width="0.5"' in bar(0.0, "", floor=None, linear=None, ceiling=None, top=0.0)


def test_losses_are_drawn_by_stage_and_what_is_no_number_is_left_out():
    lines = [
        {"stage": "a->b", "step": s, "loss": 2.0 / (s + 1), "loss/mse": float("nan"), "other": 1} for s in range(5)
    ]
    drawn = training(lines)
    assert drawn.count("<polyline") == 1 and "a → b" in drawn and "total 0.4" in drawn
    assert training([]) == ""


def test_codebooks_say_how_much_of_them_is_used():
    drawn = codebooks([CodebookUsage("s1", np.array([3, 0, 3, 0]))])
    assert "50% of 4 codes used, worth 2 used evenly" in drawn
