"""The stimuli: what is drawn is where and what the scene says, and the captions say it too."""

from itertools import combinations

import numpy as np
import pytest

from brainjanus.data import scenes
from brainjanus.data.scenes import CATEGORIES, COLOURS, SETTINGS, Item, Scene, captions, compose, render

FUNCTION_WORDS = {"a", "an", "and", "at", "in", "near", "of", "on", "the", "to", "with"}


def many(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [compose(rng) for _ in range(count)]


def content(caption: str) -> set[str]:
    return set(caption.split()) - FUNCTION_WORDS


def test_every_category_and_setting_can_be_drawn():
    assert set(scenes.DRAWINGS) == set(CATEGORIES)
    assert set(scenes.BACKDROPS) == set(SETTINGS)
    assert len(CATEGORIES) >= 10
    assert {colour for _, colours in CATEGORIES.values() for colour in colours} == set(COLOURS)


def test_scenes_hold_one_to_three_different_objects_inside_the_picture():
    counts = set()
    for scene in many(400):
        counts.add(len(scene.items))
        assert len({item.category for item in scene.items}) == len(scene.items)
        for item in scene.items:
            assert item.extent / 2 <= min(item.x, item.y, 1 - item.x, 1 - item.y)
            assert item.colour not in SETTINGS[scene.setting][1]
    assert counts == {1, 2, 3}


def test_objects_hardly_hide_each_other():
    for scene in many(400):
        for a, b in combinations(scene.items, 2):
            apart = max(abs(a.x - b.x), abs(a.y - b.y))
            assert apart > 0.87 * (a.extent + b.extent) / 2


@pytest.mark.parametrize("scene", many(40, seed=1))
def test_captions_name_what_is_there(scene: Scene):
    for caption in captions(scene, np.random.default_rng(0)):
        said = content(caption)
        assert any(content(where) <= said for where in SETTINGS[scene.setting][0])
        for item in scene.items:
            assert said & set(CATEGORIES[item.category][0])
            assert item.colour in said
        if len(scene.items) == 1:
            assert said & set(scenes.SIZES[scene.items[0].size])
            assert said & {word for place in scenes.PLACES[scene.items[0].place] for word in place.split()}


def test_captions_are_short_plain_lower_case():
    rng = np.random.default_rng(0)
    for scene in many(500):
        said = captions(scene, rng)
        assert len(said) == 5
        for caption in said:
            assert caption.isascii() and caption == caption.lower() and len(caption.split()) <= 15


def test_relations_are_those_of_the_picture():
    left, right = (
        Item("dog", "black", "big", "left", 0.25, 0.6, 0.4),
        Item("cup", "red", "big", "right", 0.75, 0.6, 0.4),
    )
    for caption in captions(Scene("room", (left, right)), np.random.default_rng(0), count=50):
        first = "left of" if min(caption.find(w) % 99 for w in ("dog", "puppy")) < caption.find("red") else "right of"
        assert first in caption


def test_people_agree_as_much_as_they_should():
    """Content-word F1 of the first caption against the best of the other four."""
    rng = np.random.default_rng(0)
    scores = []
    for scene in many(800):
        first, *others = (content(caption) for caption in captions(scene, rng))
        scores.append(max(2 * len(first & other) / (len(first) + len(other)) for other in others))
    assert 0.80 < np.mean(scores) < 0.90


def test_a_picture_is_the_same_for_the_same_generator():
    scene = many(1)[0]
    first, again, other = (render(scene, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert (first == again).all() and (first != other).any()


@pytest.mark.parametrize("category", CATEGORIES)
def test_colour_changes_the_object_and_nothing_else(category: str):
    pictures = []
    for colour in ("red", "blue"):
        item = Item(category, colour, "big", "left", 0.3, 0.6, 0.4)
        pictures.append(render(Scene("beach", (item,)), np.random.default_rng(0)).astype(int))
    changed = np.abs(pictures[0] - pictures[1]).max(axis=2) > 0
    inside = np.zeros((64, 64), bool)
    inside[24:54, 5:34] = True
    assert changed[inside].mean() > 0.1
    assert not changed[~inside].any()
    red, blue = (picture[changed].mean(axis=0) for picture in pictures)
    assert red[0] > blue[0] + 40 and blue[2] > red[2] + 40
