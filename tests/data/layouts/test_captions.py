"""Captions are joined by id, whichever id a file is keyed by; what fits nothing, or two ways, is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.data.captions import COCO_PREFIX, Numbers, caption_sources, coco_captions

STIMULI = ["nsd-00003", "nsd-00041", "nsd-00500"]
COCO = {9: ["nsd-00003"], 41: ["nsd-00041"], 100_000: ["nsd-00500"]}
NUMBERS = [
    Numbers("73k id, from 0", {3: STIMULI[:1], 41: STIMULI[1:2], 500: STIMULI[2:]}, range(73_000), "nsd[-_:]?"),
    Numbers("cocoId", COCO, frozenset({9, 41, 77, 100_000, 200_000}), COCO_PREFIX),
]


def write(folder: Path, content: object) -> Path:
    file = folder / "c.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def annotations(*notes: tuple[int, str]) -> dict:
    return {
        "info": {"description": "COCO 2017"},
        "images": [{"id": image, "file_name": f"{image:012}.jpg"} for image, _ in notes],
        "annotations": [{"image_id": image, "id": i, "caption": text} for i, (image, text) in enumerate(notes)],
    }


def test_coco_captions_keep_their_order_and_leave_others_out(tmp_path):
    train, val = tmp_path / "train.json", tmp_path / "val.json"
    train.write_text(json.dumps(annotations((9, "One."), (5, "Nobody saw this."), (41, "Two"), (9, " Another\none "))))
    val.write_text(json.dumps(annotations((100_000, "Three."))))
    found = coco_captions([train, val], {**COCO, 9: ["nsd-00003", "twin"]})
    both = ["One.", "Another one"]
    assert found == {"nsd-00003": both, "twin": both, "nsd-00041": ["Two"], "nsd-00500": ["Three."]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"annotations": [{"image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]}]},
            "Is it instances_",
        ),
        ({"images": []}, "expected COCO's annotations"),
        ([1, 2], "expected COCO's annotations"),
        ('{"annotations": [{"image_id": 9, "capt', "truncated or of another kind"),
        (annotations((9, " ")), "expected captions that are text, none empty"),
        ("", "got an empty file"),
    ],
)
def test_other_annotations_are_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        coco_captions([write(tmp_path, content)], COCO)


@pytest.mark.parametrize(
    "content",
    [
        {"nsd-00003": "a", "nsd-00500": ["b", "c"]},
        {"3": "a", "500": ["b", "c"]},
        {"nsd_3": ["a"], "nsd_500": ["b", "c"]},
        {"9": "a", "100000": ["b", "c"], "200000": "unseen"},
        {"coco-9": "a", "coco-100000": ["b", "c"]},
        {"000000000009.jpg": "a", "train2017/000000100000.jpg": ["b", "c"]},
        [{"image_id": 9, "caption": "a"}, {"image_id": 100_000, "caption": "b"}, {"image_id": 100_000, "caption": "c"}],
        {"annotations": [{"stimulus_id": "nsd-00003", "caption": "a"}, {"id": "nsd-00500", "captions": ["b", "c"]}]},
    ],
)
def test_keys_may_be_any_id(tmp_path, content):
    found = caption_sources([f"vlm={write(tmp_path, content)}"], STIMULI, NUMBERS)
    assert found.captions == {"vlm": {"nsd-00003": ["a"], "nsd-00500": ["b", "c"]}}
    assert "cover 2 of 3 stimuli" in found.notices[0]


def test_what_is_not_in_the_study_is_counted(tmp_path):
    found = caption_sources([f"vlm={write(tmp_path, {'3': 'a', '4': 'b', '72999': 'c'})}"], STIMULI, NUMBERS)
    assert found.captions == {"vlm": {"nsd-00003": ["a"]}}
    assert found.notices == [
        "Captions 'vlm' (c.json, read by 73k id, from 0) cover 1 of 3 stimuli; 2 keys are of images that are not in "
        "this study."
    ]


def test_numbers_that_count_from_1_or_are_positions_are_refused(tmp_path):
    """Though some of them are those of other stimuli, by chance."""
    images = np.random.default_rng(0).choice(3000, 400, replace=False).tolist()
    ids = [f"nsd-{i:05}" for i in images]
    numbers = [Numbers("id, from 0", {i: [f"nsd-{i:05}"] for i in images}, range(3000), "nsd[-_:]?")]
    from_1 = write(tmp_path, {str(i + 1): "x" for i in images})
    with pytest.raises(UserError, match=r"got numbers of which \d\d are of its stimuli, and 400 if they count from 1"):
        caption_sources([f"vlm={from_1}"], ids, numbers)
    for first in (0, 1):
        positions = write(tmp_path, {str(i): "x" for i in range(first, first + 300)})
        with pytest.raises(UserError, match=rf"all from {first} to {first + 299}, .* look like positions in a list"):
            caption_sources([f"vlm={positions}"], ids, numbers)
    for fine in (images, images[:40], range(3000)):
        found = caption_sources([f"vlm={write(tmp_path, {str(i): f'picture {i}' for i in fine})}"], ids, numbers)
        assert all(texts == [f"picture {int(name[4:])}"] for name, texts in found.captions["vlm"].items())
        assert len(found.captions["vlm"]) == min(len(fine), 400)


def test_pictures_name_stimuli_with_and_without_suffix(tmp_path):
    file = write(tmp_path, {"cat": "a cat", "set/dog.png": "a dog"})
    found = caption_sources([f"own={file}"], ["stimuli/cat.jpg", "dog.png"])
    assert found.captions == {"own": {"stimuli/cat.jpg": ["a cat"], "dog.png": ["a dog"]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"cat": "x"},
            r"expected keys that name stimuli \(nsd-00003.*or a 73k id, from 0 \(3, 41.*got cat, of which none",
        ),
        ({"7": "x", "8": "y"}, "got 7, 8, of which none is in this study"),
        ({"41": "x"}, None),  # 73k id and cocoId of one and the same stimulus
        ({"9": "x", "41": "y"}, r"got numbers \(9, 41\) that fit as well as 73k id, from 0 and as cocoId"),
        ({"3": "x", "73000": "y"}, r"up to 72999, got 73000 and no 0\. The file counts from 1: subtract 1"),
        ({"3": "x", "003": "y"}, "got '3' and '003' for nsd-00003"),
        ({"3": ""}, "none empty, got '' for '3'"),
        ({"3": ["x", 5]}, "expected captions that are text, none empty, got 5"),
        ('{"3": "x", "3": "y"}', "got 'the key '3' twice'"),
        ('{"3": "x"', "truncated or of another kind"),
        ("5", "expected .* got a int"),
        ({}, "got nothing in it"),
        ([{"caption": "x"}], "expected records with a key"),
    ],
)
def test_further_captions_are_checked(tmp_path, content, message):
    entry = f"vlm={write(tmp_path, content)}"
    if message is None:
        assert caption_sources([entry], STIMULI, NUMBERS).captions == {"vlm": {"nsd-00041": ["x"]}}
        return
    with pytest.raises(UserError, match=message):
        caption_sources([entry], STIMULI, NUMBERS)


def test_sources_have_names_of_their_own(tmp_path):
    file = write(tmp_path, {"3": "x"})
    for entry in (str(file), f"={file}", f"a b={file}", "vlm="):
        with pytest.raises(UserError, match=r"expected NAME=FILE\.json"):
            caption_sources([entry], STIMULI, NUMBERS)
    for entries in ([f"vlm={file}", f"vlm={file}"], [f"coco={file}"]):
        with pytest.raises(UserError, match="expected a name that no other source has"):
            caption_sources(entries, STIMULI, NUMBERS, taken=["coco"])
    with pytest.raises(UserError, match="expected a file, got none there"):
        caption_sources([f"vlm={tmp_path / 'none.json'}"], STIMULI, NUMBERS)
