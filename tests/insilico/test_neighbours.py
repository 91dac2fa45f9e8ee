"""Neighbours: measures against their definitions, vectors against the model's own logits, floors where nothing is."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

import brainjanus as bj
from brainjanus import cli
from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.generate import asked_of
from brainjanus.insilico import neighbours as module
from brainjanus.insilico.experiment import Experiment
from brainjanus.insilico.neighbours import (
    ANSWERING,
    READING,
    brain_vectors,
    concepts_of,
    image_vectors,
    judged,
    layers_of,
    nearest_places,
    patterns_of,
    similarity,
    telling_codes,
    together,
    used_codes,
    word_vectors,
)
from brainjanus.model.sequence import Block


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Unbiased, as Song et al. 2012 write it."""
    n = len(k)
    k, m = (x - np.diag(np.diag(x)) for x in (k, m))
    cross = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * k.sum(0) @ m.sum(1) / (n - 2)
    return ((k * m).sum() + cross) / (n * (n - 3))


def test_similarity_is_what_the_papers_say(rng):
    a = rng.standard_normal((30, 8))
    b = a @ rng.standard_normal((8, 8)) + 0.5 * rng.standard_normal((30, 8))
    found = similarity(a, b, rng)
    x, y = (one - one.mean(axis=0) for one in (a, b))
    expected = hsic(x @ x.T, y @ y.T) / np.sqrt(hsic(x @ x.T, x @ x.T) * hsic(y @ y.T, y @ y.T))
    assert found["CKA"][0] == pytest.approx(expected)
    assert found["RSA"][0] == pytest.approx(spearmanr(pdist(x, "cosine"), pdist(y, "cosine")).statistic)
    near = 1 - np.array([[np.dot(u, v) / np.linalg.norm(u) / np.linalg.norm(v) for v in y] for u in x])
    wins = [[near[i, j] > near[i, i] for j in range(30) if j != i] for i in range(30)]
    wins += [[near[j, i] > near[i, i] for j in range(30) if j != i] for i in range(30)]
    assert found["identification"][0] == pytest.approx(np.mean(wins))


def test_the_same_is_one_and_what_has_nothing_in_common_is_its_floor(rng):
    a, b = rng.standard_normal((2, 60, 5))
    same, other = similarity(a, 3 * a + 1, rng), similarity(a, b, rng)
    for name, chance in (("identification", 0.5), ("RSA", 0.0), ("CKA", 0.0)):
        assert same[name][0] == pytest.approx(1)
        assert other[name][1].mean() == pytest.approx(chance, abs=0.03)
        assert other[name][1].min() < other[name][0] < other[name][1].max()


def test_states_are_those_of_the_decoder(make_checkpoint):
    checkpoint = make_checkpoint()
    request = asked_of(checkpoint, {"text": ["a red cup", "one"]}, "brain:a")
    reading, answering = layers_of(checkpoint, request)
    model, seen = checkpoint.model, []
    hook = model.decoder.layers[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    hidden = torch.ones(2, request.target.length, dtype=torch.bool)
    model(request.conditions, request.target, hidden)
    hook.remove()
    assert len(reading) == len(answering) == 1 + len(model.decoder.layers)
    length = int(request.conditions[0].seen[1].sum())
    np.testing.assert_allclose(reading[-1][1], seen[0][1, 2 : 2 + length].mean(dim=0), rtol=1e-5)  # begin, opening
    np.testing.assert_allclose(answering[-1], seen[0][:, -request.target.length :].flatten(1), rtol=1e-5)


def test_predicting_vectors_are_what_logits_are_made_of(make_checkpoint):
    checkpoint = make_checkpoint()
    model, tokenizer = checkpoint.model, checkpoint.tokenizers.brain
    length = tokenizer.num_codes("a")
    states = torch.randn(1, length, model.config.decoder.hidden_size)
    target = Block("brain", codes=torch.zeros(1, length, dtype=torch.long), subject="a")
    logits = model.logits(states, target, slice(0, length))[0]
    places, codes = np.repeat(np.arange(length), 6), np.tile(np.arange(6), length)
    entering, leaving = brain_vectors(checkpoint, "a", places, codes)
    np.testing.assert_allclose(
        (states[0, places].numpy() * leaving).sum(axis=1), logits[places, codes].numpy(), rtol=1e-4, atol=1e-4
    )
    embedded = model.embed_vectors(Block("brain", codes=torch.full((1, length), 2), subject="a"), slice(0, length))
    np.testing.assert_allclose(entering[codes == 2], embedded[0], rtol=1e-4, atol=1e-5)

    picture = Block("image", codes=torch.zeros(1, 4, dtype=torch.long))
    logits = model.logits(states[:, :1], picture, slice(0, 1))[0, 0]
    np.testing.assert_allclose(
        image_vectors(checkpoint, "predicting") @ states[0, 0].numpy(), logits, rtol=1e-4, atol=1e-4
    )
    pieces = checkpoint.tokenizers.text.pieces(["cup"])[0]
    spoken = model.logits(states[:, :1], Block("text", codes=torch.zeros(1, 1, dtype=torch.long)), slice(0, 1))[0, 0]
    own = word_vectors(checkpoint, ["cup"], "predicting")[0] @ states[0, 0].numpy()
    assert own == pytest.approx(float(spoken[pieces].mean()), rel=1e-4)


def test_what_goes_together(rng):
    first, second = rng.random((40, 3)) < 0.4, rng.random((40, 2)) < 0.5
    expected = np.corrcoef(first.astype(float), second.astype(float), rowvar=False)[:3, 3:]
    np.testing.assert_allclose(together(first, second), expected)
    truth = rng.standard_normal((20, 30))
    assert judged("a", "word", "x", truth + 5, truth, rng)["r"] == pytest.approx(1)
    nothing = judged("a", "word", "x", rng.standard_normal((20, 30)), truth, rng)
    assert abs(nothing["r"]) < 0.15 and nothing["p"] > 0.01


def test_codes_that_are_used_neither_too_seldom_nor_always():
    codes = np.array([[0, 1]] * 6 + [[2, 1]] * 5 + [[3, 1]] * 4)
    places, which = used_codes(codes, 4)
    assert list(zip(places, which, strict=True)) == [(0, 0), (0, 2)]


def test_the_nearest_words_of_a_code_are_those_that_let_it_be_expected():
    codes = np.array([[0], [1]] * 6)
    expected = np.array([[[0.9, 0.1]], [[0.2, 0.8]], [[0.4, 0.6]]])
    rows = telling_codes(expected, ["face", "house", "tree"], codes)
    assert [(one["code"], next(iter(one["times"]))) for one in rows] == [(0, "face"), (1, "house")]
    assert rows[0]["times"]["face"] == pytest.approx(0.9 / 0.5)


def test_planted_concepts_are_found_and_others_are_not(rng):
    groups = {f"w{i}": np.arange(120) % 6 == i for i in range(6)}
    directions = rng.standard_normal((6, 10))
    labels = np.arange(120) % 6
    states = {
        READING: {},
        ANSWERING: {
            name: [None, directions[labels] + 0.5 * rng.standard_normal((120, 10))] for name in ("picture", "sentence")
        },
    }
    found = concepts_of(states, groups, rng)
    assert found["top_1"] == 1 and found["p"] < 0.01 and found["readout"] == ANSWERING
    states[ANSWERING]["sentence"][1] = rng.standard_normal((120, 10))
    assert concepts_of(states, groups, rng)["top_1"] < 0.7


def test_words_near_a_response_are_those_that_let_it_be_expected(rng):
    expected = rng.dirichlet(np.ones(3), size=(2, 10))
    codes = rng.integers(0, 3, (20, 10))
    groups = {"face": rng.random(20) < 0.5, "house": rng.random(20) < 0.5}
    found = patterns_of([str(i) for i in range(20)], groups, {"s": expected}, {"s": codes}, ["3"])[0]
    likely = [[sum(np.log(p[k, row[k]]) for k in range(10)) for p in expected] for row in codes]
    face, house = np.array(likely).T
    assert found["words"]["face"] == pytest.approx(roc_auc_score(groups["face"], face))
    assert found["words"]["house"] == pytest.approx(roc_auc_score(groups["house"], house))
    more = face[3] - face.mean() > house[3] - house.mean()
    assert found["nearest"]["3"] == (["face", "house"] if more else ["house", "face"])


def test_places_of_the_same_anatomy_are_matched():
    """Two subjects with the same 12 sites, which the second has in another order: a place is three of them."""
    rng = np.random.default_rng(0)
    points, places, sites = rng.standard_normal((12, 3)) * 30, np.array([2, 0, 3, 1]), rng.permutation(12)
    patches = {"a": np.arange(12) // 3, "b": np.argsort(places)[np.arange(12) // 3][sites]}
    spaces = {"a": BrainSpace("a", 12, coordinates_mm=points), "b": BrainSpace("b", 12, coordinates_mm=points[sites])}
    brain = SimpleNamespace(
        token_axes=lambda _subject: None,
        num_patches=lambda _subject: 4,
        site_patch=lambda subject: torch.from_numpy(patches[subject]),
        config=SimpleNamespace(quantizer=SimpleNamespace(stages=1)),
    )
    checkpoint = SimpleNamespace(tokenizers=SimpleNamespace(brain=brain))
    asked = Experiment(Path(), checkpoint, SimpleNamespace(space=spaces.__getitem__), ("a", "b"))
    assert nearest_places(asked, "b", "a").tolist() == places.tolist()
    assert nearest_places(asked, "a", "b").tolist() == np.argsort(places).tolist()


def test_the_command_writes_figures_and_maps(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHUFFLES", 20)
    out = tmp_path / "space"
    assert cli.main(["neighbours", str(tiny_run), "--out", str(out), "--patterns", "s064"]) == 0
    results = json.loads((out / "results.json").read_text())
    pairs = {tuple(one["pair"]) for one in results["modalities"] if one["readout"] == READING}
    assert len(pairs) == 6 and ("picture", "sentence") in pairs
    answered = {tuple(one["pair"]) for one in results["modalities"] if one["readout"] == ANSWERING}
    assert answered == {("picture", "sentence"), ("picture", "brain:s2"), ("sentence", "brain:s2")}
    assert all({"floor", "p", "n"} <= one.keys() for one in results["modalities"])
    assert set(results["words"]) == {"left", "right"}
    assert set(results["patterns"][0]["nearest"]) == {"s064"}
    assert (out / "figure.png").stat().st_size > 5000


def test_a_model_that_was_rounded_is_refused(tiny_run, monkeypatch):
    monkeypatch.setattr(module, "SHUFFLES", 20)
    monkeypatch.setattr("brainjanus.core.linear.LARGE", 1)
    rounded = bj.Run.open(tiny_run)
    with pytest.raises(UserError, match="expected a run with its weights as they were saved, got one that was rounded"):
        bj.neighbours(rounded)
    assert bj.neighbours(tiny_run, top=1).modalities


def test_one_subject_alone(tiny_run, monkeypatch):
    monkeypatch.setattr(module, "SHUFFLES", 20)
    found = bj.neighbours(tiny_run, subjects=["s2"], words=["right", "left"])
    assert {tuple(one["pair"]) for one in found.modalities if one["readout"] == ANSWERING} >= {("picture", "sentence")}
    assert found.results["subjects"] == [] and set(found.results["words"]) == {"right", "left"}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--words", "cat"], "--words 'cat': expected a content word in captions of at least 5 of the 16 test stimuli"),
        (["--patterns", "s000"], "--patterns: expected test stimuli that all subjects saw (s064, s065, s066, ...)"),
        (["--top", "0"], "--top: expected at least 1, got 0."),
        (["--subjects", "s7"], "--subjects: expected some of s1, s2, got 's7'."),
    ],
)
def test_mistakes_are_one_sentence(tiny_run, tmp_path, capsys, argv, sentence):
    assert cli.main(["neighbours", str(tiny_run), *argv, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"brainjanus: {sentence}")
    assert not (tmp_path / "out").exists()
