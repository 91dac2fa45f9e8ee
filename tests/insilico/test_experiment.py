"""What experiments share: regions by name, statistics against scipy's, results that are there as a whole."""

import json

import numpy as np
import pytest
from scipy import stats

import brainjanus as bj
from brainjanus import cli
from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.insilico import experiment
from brainjanus.insilico.experiment import (
    all_regions,
    as_numbers,
    as_told,
    holm,
    interval,
    lines_of,
    named,
    opened,
    region,
    results_in,
    save_maps,
    sign_p,
    trust_of,
    truth_of,
)

VOLUME = {"type": "volume", "shape": [2, 2, 2], "affine": np.eye(4).tolist()}


@pytest.fixture
def space() -> BrainSpace:
    rois = {"V1": np.arange(8) < 3, "V2": np.arange(8) == 5, "none": np.zeros(8, bool), "all": np.ones(8, bool)}
    return BrainSpace("a", 8, rois=rois, geometry=VOLUME)


@pytest.fixture
def scalp() -> BrainSpace:
    return BrainSpace.of_sensors("a", ["Oz", "Pz"], np.arange(10) / 100)


def sites(found: np.ndarray) -> list[int]:
    return np.flatnonzero(found).tolist()


def test_regions_have_names(space):
    assert sites(region(space, "V1")) == [0, 1, 2]
    assert sites(region(space, "V1+V2")) == [0, 1, 2, 5]
    assert sites(region(space, "sites:1,4-6")) == [1, 4, 5, 6]
    assert sites(region(space, named([7, 2]))) == [2, 7]


def test_sensors_are_regions_by_name_and_by_time(scalp):
    assert sites(region(scalp, "Pz")) == list(range(10, 20))
    assert sites(region(scalp, "20-50ms")) == [2, 3, 4, 12, 13, 14]
    assert len(all_regions(scalp)) == experiment.BLOCKS
    assert sum(found.sum() for found in all_regions(scalp).values()) == 20


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("V9", r"region 'V9': expected one of a: V1, V2, none, all, or sites:0-9,12 of its 8 sites, got an unknown"),
        ("none", "expected at least one site of a, got none"),
        ("sites:3-9", "expected numbers of sites from 0 to 7 of a, as in sites:0-9,12, got '3-9'"),
        ("sites:x", "got 'x'"),
    ],
)
def test_an_unknown_region_is_one_sentence(space, name, sentence):
    with pytest.raises(UserError, match=sentence):
        region(space, name)


def test_all_regions_are_the_rois_that_leave_something_over(space):
    assert list(all_regions(space)) == ["V1", "V2"]


def test_without_rois_the_cortex_is_cut_into_stretches():
    parts = all_regions(BrainSpace("a", 20))
    assert len(parts) == experiment.BLOCKS and np.sum(list(parts.values()), axis=0).tolist() == [1] * 20


def test_sign_flips_are_those_of_scipy():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((9, 2)) + np.array([0.0, 0.7])
    exact = [
        stats.permutation_test(
            (column, np.zeros(9)), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples",
            alternative="greater", vectorized=True, n_resamples=np.inf,
        ).pvalue
        for column in values.T
    ]  # fmt: skip
    np.testing.assert_allclose(sign_p(values, rng), exact, atol=0.01)


def test_what_is_not_known_is_left_out():
    values = np.random.default_rng(0).standard_normal((30, 1)) + 1
    holes = np.concatenate([values, np.full((10, 1), np.nan)])
    rng = np.random.default_rng
    np.testing.assert_allclose(sign_p(holes, rng(1)), sign_p(values, rng(1)), atol=1e-3)
    low, high = interval(holes, rng(0))
    expected = stats.bootstrap((values[:, 0],), np.mean, method="percentile", rng=0).confidence_interval
    np.testing.assert_allclose([low[0], high[0]], expected, atol=0.08)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([[0.01, 0.04], [0.03, 0.5]]), [[0.04, 0.09], [0.09, 0.5]])


def test_numbers_are_what_json_holds():
    found = as_numbers({"a": np.array([1.0, np.nan]), "b": (np.int64(3), "x", None, True), "c": np.float32(0.1)})
    assert json.loads(json.dumps(found, allow_nan=False)) == {"a": [1.0, None], "b": [3, "x", None, True], "c": 0.1}


def test_maps_have_the_forms_of_their_space(space, tmp_path):
    import nibabel

    save_maps(tmp_path, "maps", space, {"one": np.arange(8.0), "two": np.zeros(8)})
    assert np.load(tmp_path / "a/maps.npy")[0].tolist() == list(range(8))
    assert json.loads((tmp_path / "a/maps.json").read_text()) == ["one", "two"]
    volume = nibabel.load(tmp_path / "a/maps.nii.gz").get_fdata()
    assert volume[..., 0].ravel().tolist() == list(range(8))


def test_results_are_there_as_a_whole_or_not_at_all(tmp_path):
    def broken():
        with results_in(tmp_path / "out") as folder:
            (folder / "figure.png").write_bytes(b"")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="expected a new folder for the results, got one that exists"):
        broken()


def test_sentences_of_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("a face\n\n a house \n")
    assert lines_of(tmp_path / "a.txt") == ["a face", "a house"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="expected one sentence a line, got an empty file"):
        lines_of(tmp_path / "empty.txt")
    with pytest.raises(UserError, match="No such file"):
        lines_of(tmp_path / "none.txt")


def test_an_experiment_knows_its_subjects(tiny_run):
    assert opened(tiny_run).subjects == ("s1", "s2")
    assert opened(tiny_run, None, ("s2",)).subjects == ("s2",)
    with pytest.raises(UserError, match=r"--subjects: expected some of s1, s2, got 's3'"):
        opened(tiny_run, None, ("s3",))
    with pytest.raises(UserError, match="expected stimuli of the split 'val', got none"):
        opened(tiny_run).stimuli("val")


def test_of_an_added_subject_there_are_expected_responses_alone(adapted_run, study):
    assert opened(adapted_run).subjects == ("n1",)  # n2 of the same dataset is unknown
    assert opened(adapted_run, study.path).subjects == ("s1", "s2")
    assert list(bj.localize(adapted_run, ["red"], ["blue"], settings=0).contrasts) == ["n1"]
    for ask in (bj.lesion, bj.neighbours):
        with pytest.raises(UserError, match=r"expected subjects that the model was trained on \(s1, s2\), got 'n1'"):
            ask(adapted_run)


def test_neighbours_of_a_subject_answer_with_one_that_the_model_knows(adapted_run, study, monkeypatch):
    from brainjanus.insilico import neighbours

    monkeypatch.setattr(neighbours, "SHUFFLES", 20)
    found = bj.neighbours(adapted_run, dataset=study.path, subjects=["s1"])
    assert {one["pair"][0] for one in found.modalities} == {"picture", "sentence"}


COMMANDS = {"localize": ["red"], "retinotopy": ["--field-deg", "8"], "prefer": ["V1"], "lesion": [], "neighbours": []}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--seed", "-1"], "--seed: expected a number of 0 or more, got -1."),
        (["--device", "foo"], "--device: expected cpu, or cuda where there is a GPU that torch can use"),
    ],
)
def test_wrong_seeds_and_devices_are_one_sentence(tiny_run, tmp_path, capsys, command, wrong, sentence):
    argv = [command, str(tiny_run), *COMMANDS[command], *wrong, "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.startswith("brainjanus: ") and told.count("\n") == 1


@pytest.mark.parametrize("command", ["localize", "retinotopy"])
def test_a_truth_that_cannot_be_is_told(tiny_run, tmp_path, capsys, command):
    argv = [command, str(tiny_run), *COMMANDS[command], "--truth", str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 2
    assert "--truth" in (told := capsys.readouterr().err) and "expected a run on a simulated cortex" in told


@pytest.fixture
def simulated(tiny_run, monkeypatch):
    """The tiny run, as if its dataset were simulated."""
    asked = opened(tiny_run)
    monkeypatch.setitem(asked.dataset.manifest["provenance"], "simulation", {})
    return asked


def test_the_truth_is_that_of_the_subject(simulated, tmp_path):
    from brainjanus.data.simulate import Truth
    from brainjanus.data.truth import save_truth

    assert truth_of(simulated, "s1") is None
    with pytest.raises(UserError, match="expected the truth of s1, got no such file"):
        truth_of(simulated, "s1", tmp_path)
    (tmp_path / "truth").mkdir()
    arrays = {name: np.zeros(40, np.float32) for name in Truth._fields if name != "stimulus_ids"}
    for subject in ("s1", "s2"):
        save_truth(tmp_path / f"truth/{subject}.safetensors", Truth(**arrays, stimulus_ids=["a"]))
    assert len(truth_of(simulated, "s1", tmp_path).x_deg) == 40
    with pytest.raises(UserError, match=r"expected the 28 sites of s2, got 40"):
        truth_of(simulated, "s2", tmp_path)


def test_how_much_of_an_expected_response_is_the_model(tiny_run, adapted_run):
    asked = opened(tiny_run)
    drafts = asked.checkpoint.drafts
    drafts.trust("s1").of("image").fill_(0.25)
    drafts.trust("s1").of("text").fill_(0.75)
    told = trust_of(asked, ["image", "text", "image"])
    assert told["s1"] == {"image": 0.25, "text": 0.75} and set(told) == {"definition", "s1", "s2"}
    assert list(trust_of(asked)) == ["definition"]
    assert set(trust_of(opened(adapted_run), ["text"])["n1"]["speakers"]) == {"s1", "s2"}


def test_the_trust_of_results_is_that_of_the_answer(tiny_run):
    """A mean over what the model expects and what is drafted has the weight that is written."""
    from brainjanus.generate import asked_of

    asked = opened(tiny_run)
    told = bj.localize(tiny_run, ["red"], ["blue"], settings=0).results["trust"]
    for subject in ("s1", "s2"):
        used = asked_of(asked.checkpoint, {"text": ["red"]}, f"brain:{subject}").trust
        assert told[subject] == {"text": pytest.approx(used, rel=1e-5)}


def test_what_is_not_known_is_a_dash():
    assert [as_told(None), as_told(float("nan")), as_told(0.126), as_told(2.0, "+.3f")] == ["–", "–", "0.13", "+2.000"]
