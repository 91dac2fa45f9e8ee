"""Lesions: what depends on a region alone is lost with it and with no other; controls are as large, and elsewhere."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import brainjanus as bj
from brainjanus import cli
from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.scenes import CATEGORIES
from brainjanus.generate import score
from brainjanus.insilico import lesion as module
from brainjanus.insilico.experiment import opened
from brainjanus.insilico.lesion import Lesioner, Lesions, attributes_of, control_sites, log_p_of, pieces_of, summary
from brainjanus.tokenizers.text import TextTokenizer, TextTokenizerConfig

SETTINGS = {"subjects": ["s1"], "controls": 2, "captions": 1}


@pytest.fixture
def reading_v1(monkeypatch, study):
    """A model that reads every word from the first ten sites: the further these are from the truth, the worse."""

    def log_p(checkpoint, conditions, target, rows):
        ((name, responses),) = conditions.items()
        true = torch.from_numpy(study.averages(name.split(":")[1], "test").responses)
        off = (responses - true)[:, :10].nan_to_num(1.0).square().sum(dim=1).double().numpy()
        return np.repeat(-off[:, None], 10, axis=1)

    monkeypatch.setattr(module, "log_p_of", log_p)
    monkeypatch.setattr(module, "examples", lambda *_: [])


def test_only_the_region_that_is_read_is_missed(reading_v1, tiny_run):
    found = bj.lesion(tiny_run, ["V1", "sites:10-19"], **SETTINGS)
    assert found.regions == ["V1", "sites:10-19"] and found.attributes == ["left", "right"]
    assert (found.loss[0] > 0).all() and (found.p[0] < 0.05).mean() > 0.5
    np.testing.assert_array_equal(found.loss[1], 0)
    assert (found.excess[1] <= 0).all() and (found.p[1] > 0.5).all()
    np.testing.assert_allclose(found.excess, found.loss - found.control)
    np.testing.assert_allclose(found.maps["s1"]["words"][:10], found.excess[0].mean(), rtol=1e-5)
    assert np.isnan(found.maps["s1"]["words"][20:]).all()


def test_the_region_alone_tells_what_is_read_there(reading_v1, tiny_run):
    found = bj.lesion(tiny_run, ["V1", "sites:10-19"], only=True, **SETTINGS)
    assert (found.loss[0] > 0).all()
    np.testing.assert_array_equal(found.loss[1], 0)
    assert found.results["only"] is True


def test_lesioned_responses(tiny_run, study):
    asked, sites = opened(tiny_run), np.arange(40) < 10
    rows = torch.from_numpy(study.averages("s1", "test").responses)
    mean = study.averages("s1", "train").responses.mean(axis=0)
    name, gone = Lesioner(asked, "s1", "mean", False).without(rows, sites)
    assert name == "brain:s1"
    np.testing.assert_allclose(gone[:, :10], np.tile(mean[:10], (16, 1)), atol=1e-6)
    np.testing.assert_array_equal(gone[:, 10:], rows[:, 10:])
    name, gone = Lesioner(asked, "s1", "hidden", True).without(rows, sites)
    assert name == "part:s1"
    assert gone[:, 10:].isnan().all() and torch.equal(gone[:, :10], rows[:, :10])


def test_control_lesions_are_as_large_in_one_piece_and_apart():
    rng = np.random.default_rng(0)
    space = BrainSpace("a", 30, order=rng.permutation(30))
    sites = np.isin(np.arange(30), space.order[5:12])
    where = []
    for _ in range(20):
        found = control_sites(space, sites, rng)
        assert found.sum() == 7 and not (found & sites).any()
        free = [site for site in space.order if not sites[site]]
        at = np.sort([free.index(site) for site in np.flatnonzero(found)])
        assert (np.diff(at) == 1).sum() >= 5  # one piece, but for the two ends of the order
        where.append(at[0])
    assert len(set(where)) > 5
    large = np.arange(30) < 20
    assert control_sites(space, large, rng).sum() == 20


def test_the_pieces_of_a_word_spell_it():
    text = TextTokenizer.fit(["a red cup", "one blue cup"], TextTokenizerConfig(num_codes=262))
    caption = "A red cup, unreddened"
    found = pieces_of(text, caption, [frozenset(["red"]), frozenset(["cup", "a"]), frozenset(["green"])])
    codes = text.pieces([caption])[0]
    assert text.decode(torch.tensor([[codes[i] for i in found[0]]])) == ["red"]
    assert text.decode(torch.tensor([[codes[i] for i in found[1]]])) == ["A cup"]
    assert 2 not in found


def test_log_p_of_pieces_is_that_of_the_caption(tiny_run, study):
    run = bj.Run.open(tiny_run)
    rows = {"brain:s1": torch.from_numpy(study.averages("s1", "test").responses[:3])}
    captions = ["red left", "green right", "blue left"]
    each = log_p_of(run.checkpoint, rows, "text", captions)
    ends = [len(pieces) + 1 for pieces in run.checkpoint.tokenizers.text.pieces(captions)]
    sums = [row[:end].sum() for row, end in zip(each, ends, strict=True)]
    np.testing.assert_allclose(sums, score(run.checkpoint, rows, "text", captions), rtol=1e-4)


def test_attributes_that_are_given(tiny_run):
    asked = opened(tiny_run)
    texts = {one: asked.dataset.captions(one) for one in asked.stimuli("test")}
    found = attributes_of(asked, texts, ["left", "warm=red,white"])
    assert found == {"words": {"left": frozenset(["left"]), "warm": frozenset(["red", "white"])}}
    with pytest.raises(UserError, match=r"--attributes 'cat': expected words in captions of at least 5 .*, got 0"):
        attributes_of(asked, texts, ["cat"])


def test_an_attribute_that_nothing_is_known_of_is_told_as_a_dash():
    cell = {"region": "V1", "attribute": "cat", "loss": None, "floor": None, "excess": None, "p_holm": 1.0}
    other = cell | {"attribute": "dog", "loss": 1.0, "floor": 0.25, "excess": 0.75, "p_holm": 0.01}
    found = Lesions([], [], [], *np.zeros((4, 0, 0)), {}, {"only": False, "cells": [cell, other]})
    assert [line.split() for line in summary(found)] == [
        ["V1", "dog", "lost", "+1.000", "bits", "a", "mention,", "elsewhere", "+0.250", "(p", "0.01)"],
        ["V1", "cat", "lost", "–", "bits", "a", "mention,", "elsewhere", "–", "(p", "1)"],
    ]


def test_where_no_region_makes_a_difference_nothing_is_held_against_the_truth(tiny_run, monkeypatch):
    asked, rng = opened(tiny_run), np.random.default_rng(0)
    known = SimpleNamespace(category=rng.random((6, len(CATEGORIES))))
    monkeypatch.setattr(module, "truth_of", lambda asked, subject: known)
    names, masks = list(CATEGORIES)[:3], {"s1": {"A": np.arange(6) < 3, "B": np.arange(6) >= 3}}
    none = np.zeros((2, 3))
    found = Lesions(["A", "B"], names, ["category"] * 3, none, none, none, none, {}, {})
    assert module.against_truth(asked, found, masks) is None
    told = module.against_truth(asked, found._replace(excess=rng.random((2, 3))), masks)
    assert told["n"] == 6 and 0 < told["p"] <= 1


def test_the_command_writes_matrix_maps_and_examples(tiny_run, tmp_path, capsys):
    out = tmp_path / "lesions"
    argv = ["V1", "sites:30-39", "--kind", "hidden", "--pictures", "--controls", "1", "--subjects", "s1"]
    assert cli.main(["lesion", str(tiny_run), *argv, "--out", str(out)]) == 0
    assert "bits a mention, elsewhere" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    cells = {(one["region"], one["attribute"]): one for one in results["cells"]}
    assert {one for _, one in cells} == {"left", "right", "picture"} and len(cells) == 6
    one = cells["V1", "left"]
    assert one["excess"] == pytest.approx(one["loss"] - one["floor"], abs=1e-5) and one["n"] == 8
    assert one["interval"][0] <= one["excess"] <= one["interval"][1]
    assert cells["V1", "picture"]["n"] == 16
    assert {example["region"] for example in results["examples"]} == {"V1", "sites:30-39"}
    assert np.load(out / "s1/excess.npy").shape == (2, 40)
    assert (out / "figure.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["V4"], "region 'V4': expected one of s1: V1, or sites"),
        (["sites:0-39"], "region 'sites:0-39': expected some sites of s1 and not all of them, got all."),
        (["V1", "--attributes", "cat"], "--attributes 'cat': expected words in captions"),
        (["V1", "--controls", "0"], "lesion: expected the kind mean or hidden, and at least one caption"),
    ],
)
def test_mistakes_are_one_sentence(tiny_run, tmp_path, capsys, argv, sentence):
    assert cli.main(["lesion", str(tiny_run), *argv, "--subjects", "s1", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"brainjanus: {sentence}")
    assert not (tmp_path / "out").exists()
