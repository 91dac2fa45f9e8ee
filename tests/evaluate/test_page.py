"""The pieces that pages are made of: what is escaped, what is left out, and where a bar and its ticks stand."""

import re

import numpy as np
import pytest

from brainjanus.evaluate.examples import CodebookUsage
from brainjanus.evaluate.page import bar, bar_key, codebooks, facts, glossary, page, smooth, training


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


def test_held_out_losses_are_dashed_beside_those_of_training():
    lines = [{"stage": "omni", "step": s, "loss": 2.0, "lr": 1.0, "tokens_per_sec": 9.0} for s in (10, 20)]
    drawn = training([*lines, {"stage": "omni", "step": 20, "loss": 1.0, "split": "val"}])
    trained, held_out = re.findall(r'<polyline class="([\w ]+)" points="([^"]*)"', drawn)
    assert (trained[0], held_out[0]) == ("c0", "c0 held")
    assert len(trained[1].split()) == 2 and len(held_out[1].split()) == 1
    assert held_out[1].split(",")[0] == trained[1].split()[1].split(",")[0], "one axis of steps"
    assert float(held_out[1].split(",")[1]) > float(trained[1].split()[1].split(",")[1]), "lower is better"
    assert (
        "total 2 · held out (dashed) 1" in drawn
        and "tokens" not in drawn
        and ".held { stroke-dasharray" in page("", "", [("x", "x", drawn)])
    )


def test_each_direction_has_a_small_chart_with_an_axis_of_its_own():
    values = {"brain->text": (0.4, 0.5), "image->brain": (4.9, 5.1)}
    lines = [{"stage": "omni", "step": s, "loss": 1.0, "mse/image->brain": 7.0} for s in (1, 2)]
    lines += [
        {"stage": "omni", "step": s + 1, **{f"nats/{name}": of[s] for name, of in values.items()}, "split": split}
        for split in ("train", "val")
        for s in (0, 1)
    ]
    drawn = training(lines)
    small = drawn[drawn.index('<div class="small">') :]
    charts = small.split("<figure")[1:]
    assert [re.search(r"<b>(.*?)</b>", chart)[1] for chart in charts] == ["brain → text", "image → brain"]
    for chart, (low, high) in zip(charts, values.values(), strict=True):
        ticks = [float(text) for text in re.findall(r'text-anchor="end">([\d.]+)</text>', chart)]
        assert min(ticks[:3]) == low and max(ticks[:3]) == pytest.approx(high, abs=0.02)
        assert chart.count("<polyline") == 2 and f"training {high:.3g} · held out (dashed) {high:.3g}" in chart
    assert "7" not in re.sub(r"[\d.]+,[\d.]+", "", "".join(re.findall(r"<b>.*?</b>|legend.*?</p>", drawn)))


def test_curves_are_running_means_that_end_where_the_losses_do():
    few = [(float(s), float(s % 2)) for s in range(49)]
    assert smooth(few) == few and smooth([]) == []
    line = [(float(s), 3.0 * s) for s in range(500)]
    np.testing.assert_allclose(smooth(line), line)
    noisy = np.array(smooth([(float(s), float(s % 2)) for s in range(500)]))
    assert (noisy[:, 0] == np.arange(500)).all()
    assert noisy[10:-10, 1].std() < 0.05 and noisy[200, 1] == pytest.approx(sum(s % 2 for s in range(190, 211)) / 21)


def test_codebooks_say_how_much_of_them_is_used():
    drawn = codebooks([CodebookUsage("s1", np.array([3, 0, 3, 0]))])
    assert "50% of 4 codes used, worth 2 used evenly" in drawn
