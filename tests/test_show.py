"""Tables and pictures of a notebook hold what was passed, in its place, and refuse the rest in a sentence."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import brainjanus as bj
from brainjanus.data.doctor import Finding
from brainjanus.evaluate.record import Record
from brainjanus.show import Table

RECORD = Record(
    "image->brain", "study", "mean", None, "mean", "voxel_r", 0.5, -0.0001, 0.4, 0.8, 9, 0, 0.01, 0.0, (0.4, 0.625)
)


def test_scores_stand_beside_what_they_are_compared_with():
    decoded = replace(
        RECORD, direction="brain->text", estimator="greedy", metric="content_f1", constant=None, ceiling=None
    )
    found = bj.table([RECORD, decoded])
    assert found.columns == ("direction", "metric", "floor", "constant", "linear", "value", "95 %", "ceiling")
    assert found.rows == [
        ("brain->text", "content_f1", "0.000", "", "0.400", "0.500", "0.400 to 0.625", ""),
        ("image->brain", "voxel_r", "0.000", "0.000", "0.400", "0.500", "0.400 to 0.625", "0.800"),
    ]


def test_the_mean_over_subjects_all_sites_and_the_main_estimates_are_shown():
    others = [
        replace(RECORD, subject="subj01", value=0.1),
        replace(RECORD, roi="V1", value=0.2),
        replace(RECORD, estimator="sample", value=0.3),
        replace(RECORD, metric="mse", value=0.6),
    ]
    assert [row[5] for row in bj.table([*others, RECORD]).rows] == ["0.500"]
    assert [row[5] for row in bj.table([others[0]]).rows] == ["0.100"]  # one scoring has no mean
    assert [row[5] for row in bj.table([others[2]]).rows] == ["0.300"]  # someone else's estimate


def test_findings_tell_what_to_do_where_something_is_wrong():
    wrong = Finding("red", "finite", "nan", "subj01", "There is NaN.", "Mask it.")
    fine = Finding("green", "design", "", None, "9 trials.", "Nothing.")
    assert bj.table([wrong, fine]).rows == [
        ("red", "finite", "There is NaN. Mask it."),
        ("green", "design", "9 trials."),
    ]


def test_columns_of_ones_own_are_aligned_and_escaped():
    found = bj.table({"region": ["V1", "a<b"], "r": [0.25, np.float32(-0.5)], "sites": [10, 2]})
    assert repr(found) == str(found) == "region  r       sites\nV1      0.250   10\na<b     -0.500  2"
    page = found._repr_html_()
    assert page.count("<tr>") == 3 and "a&lt;b" in page and "a<b" not in page
    assert 'text-align: left; white-space: nowrap">V1<' in page
    assert 'text-align: right; white-space: nowrap">0.250<' in page


def test_lights_have_their_colour():
    assert 'color: #c0392b">red<' in Table(("",), [("red",)])._repr_html_()


@pytest.mark.parametrize(
    ("results", "told"),
    [
        ([], "got nothing"),
        ([RECORD, "x"], "got Record, str"),
        ({"a": [1], "b": [1, 2]}, r"columns of the same length, got {'a': 1, 'b': 2}"),
    ],
)
def test_what_is_no_table_is_refused(results, told):
    with pytest.raises(bj.UserError, match=told):
        bj.table(results)


def test_pictures_stand_in_their_row_and_column():
    red, blue = np.zeros((2, 1, 8, 8, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    as_floats = torch.from_numpy(np.concatenate([blue, red])).float() / 255
    png = bj.draw_pictures({"seen": np.concatenate([red, blue]), "decoded": as_floats}, ["a red one", "a blue one"])
    picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    reds = np.argwhere((picture == (255, 0, 0)).all(axis=-1))
    blues = np.argwhere((picture == (0, 0, 255)).all(axis=-1))
    high, wide = picture.shape[:2]
    # red is above at the left and below at the right, blue the other way round
    for found, sign in ((reds, 1), (blues, -1)):
        left = found[found[:, 1] < found[:, 1].mean()]
        right = found[found[:, 1] > found[:, 1].mean()]
        assert sign * (right[:, 0].mean() - left[:, 0].mean()) > 0.3 * high
    assert len(reds) == len(blues) > 0.1 * high * wide


@pytest.mark.parametrize(
    ("rows", "titles", "told"),
    [
        ({"seen": np.zeros((2, 4, 4))}, [], r"'seen', uint8 or floats from 0 to 1, got float64 \[2, 4, 4\]"),
        ({"seen": np.zeros((2, 4, 4, 3)), "decoded": np.zeros((1, 4, 4, 3))}, [], "{'seen': 2, 'decoded': 1}"),
        ({"seen": np.zeros((2, 4, 4, 3))}, ["one"], "{'seen': 2, 'titles': 1}"),
        ({}, [], "got no row"),
    ],
)
def test_what_are_no_rows_of_pictures_is_refused(rows, titles, told):
    with pytest.raises(bj.UserError, match=told):
        bj.draw_pictures(rows, titles)
