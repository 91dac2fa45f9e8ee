"""What a region prefers: a planted preference is found, and what was never measured is not passed off as measured."""

import json

import numpy as np
import pytest
from PIL import Image

import brainjanus as bj
from brainjanus import cli
from brainjanus.core.errors import UserError
from brainjanus.insilico import prefer as module
from brainjanus.insilico.experiment import opened
from brainjanus.insilico.prefer import Probe, preferred_words, probe_of, synthetic


@pytest.fixture
def knowing(monkeypatch, study):
    """A model that expects of test pictures what was measured, and of anything else nothing."""

    def answered(asked, conditions):
        (rows,) = conditions.values()
        found = {}
        for subject in asked.subjects:
            averages = study.averages(subject, "test")
            known = len(rows) == len(averages.stimulus_ids) and not isinstance(rows, list)
            found[subject] = averages.responses if known else np.zeros((len(rows), averages.responses.shape[1]))
        return found

    monkeypatch.setattr(module, "answered", answered)


def test_a_region_prefers_what_drives_it(knowing, tiny_run, study):
    found = bj.prefer(tiny_run, "V1", subjects=["s1"], top=4, samples=0)
    answers = study.averages("s1", "test").responses[:, :10].mean(axis=1)
    order = np.argsort(-answers, kind="stable")
    assert [one.name for one in found.stimuli] == [study.averages("s1", "test").stimulus_ids[i] for i in order]
    np.testing.assert_allclose([one.measured for one in found.stimuli], answers[order], rtol=1e-5)
    assert found.results["prediction"]["r"] == pytest.approx(1)
    assert found.results["prediction"]["p"] < 0.01
    words = {one["word"]: one for one in found.results["words"]}
    shown = [set(one.caption.split()) for one in found.stimuli]
    for word, one in words.items():
        assert one["precision"] == np.mean([word in said for said in shown[:4]])
        assert one["base_rate"] == np.mean([word in said for said in shown])


def test_more_than_other_regions(tiny_run):
    asked = opened(tiny_run, None, ("s1",))
    weights = probe_of(asked, "sites:0-19", less_others=False).weights["s1"]
    assert weights[:20].tolist() == [0.05] * 20 and not weights[20:].any()
    both = probe_of(asked, "sites:20-29", less_others=True).weights["s1"]
    assert both[:10].sum() == pytest.approx(-1) and both[20:30].sum() == pytest.approx(1)
    with pytest.raises(UserError, match="--less-others: expected other ROIs of s1 than 'V1', got none"):
        probe_of(asked, "V1", less_others=True)


def test_subjects_that_did_not_see_a_stimulus_are_left_out():
    probe = Probe({"a": np.array([1.0, 0.0]), "b": np.array([0.5, 0.5])})
    seen, unseen = np.array([[1.0, 9.0], [3.0, 9.0]]), np.array([[5.0, 1.0], [np.nan, np.nan]])
    assert probe.read({"a": seen, "b": unseen}).tolist() == [2.0, 3.0]


def test_the_synthetic_brain_is_the_regression_on_the_answer():
    rng = np.random.default_rng(0)
    responses = rng.standard_normal((50, 6)).astype(np.float32)
    weights = np.array([0.5, 0.5, 0, 0, 0, 0])
    answer = responses @ weights
    slope, offset = np.polyfit(answer, responses, 1)
    expected = offset + slope * (answer.mean() + 2 * answer.std())
    np.testing.assert_allclose(synthetic(responses, weights, 2.0), expected, atol=1e-5)


def test_words_of_the_preferred_are_counted_against_all():
    captions = [["a face", "a head"] if i < 10 else ["a house"] if i < 20 else ["a tree"] for i in range(30)]
    order = np.arange(30)
    words = preferred_words(captions, order, order[::-1], 5)
    assert words[0]["word"] == "face"  # head names the same stimuli
    assert words[0] | {"p": 0, "p_holm": 0} == {
        "word": "face", "precision": 1.0, "measured": 0.0, "base_rate": 1 / 3, "p": 0, "p_holm": 0,
    }  # fmt: skip
    assert words[0]["p"] == pytest.approx(np.prod([(10 - i) / (30 - i) for i in range(5)]))
    assert words[0]["p_holm"] == pytest.approx(3 * words[0]["p"])


def test_the_command_writes_pictures_maps_and_figures(tiny_run, tmp_path, capsys):
    out = tmp_path / "v1"
    argv = [
        str(tiny_run),
        "V1",
        "--out",
        str(out),
        "--samples",
        "4",
        "--top",
        "3",
        "--prompts",
        "red left",
        "blue right",
    ]
    assert cli.main(["prefer", *argv]) == 0
    assert "V1: predicted and measured answers to 16 stimuli: r" in capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert [len(results[part]) for part in ("stimuli", "prompts")] == [16, 2]
    assert {one["measured"] for one in results["prompts"]} == {None}
    assert results["protocol"]["split"] == "test" and results["truth"] is None
    facts = results["generated"]["facts"]
    assert facts["image"]["n"] == 4 and facts["image"]["predicted"]["best"] >= facts["image"]["predicted"]["median"]
    predicted = [one["predicted"] for one in results["generated"]["image"]]
    assert predicted == sorted(predicted, reverse=True)
    assert len(list((out / "generated").glob("*.png"))) == 4
    assert np.load(out / "s1/maps.npy").shape == (2, 40)
    assert np.flatnonzero(np.load(out / "s2/maps.npy")[0]).tolist() == list(range(10))
    with Image.open(out / "figure.png") as figure:
        assert figure.size[0] > 500


@pytest.mark.parametrize(("split", "told"), [("test", "never trained on"), ("train", "trained on")])
def test_the_figure_says_what_was_trained_on(tiny_run, tmp_path, monkeypatch, split, told):
    from matplotlib.figure import Figure

    said, text = [], Figure.text
    monkeypatch.setattr(Figure, "text", lambda self, x, y, s, **more: said.append(s) or text(self, x, y, s, **more))
    bj.prefer(tiny_run, "V1", subjects=["s1"], top=2, samples=0, split=split, out=tmp_path / "out")
    assert f"most preferred, {told}" in said


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["FFA"], "region 'FFA': expected one of s1: V1, or sites:0-9,12 of its 40 sites, got an unknown one."),
        (["V1", "--top", "9"], "--top: expected at most half of the 16 stimuli of the split 'test', got 9."),
        (["V1", "--top", "0"], "prefer: expected --top of at least 1,"),
        (["V1", "--subjects", "s9"], "--subjects: expected some of s1, s2, got 's9'."),
        (["V1", "--prompts-file", "nowhere.txt"], "nowhere.txt: expected a text with one sentence a line, got"),
    ],
)
def test_mistakes_are_one_sentence(tiny_run, tmp_path, capsys, argv, sentence):
    assert cli.main(["prefer", str(tiny_run), *argv, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith(f"brainjanus: {sentence}")
    assert not (tmp_path / "out").exists()
