"""Requests are read for what they say, and what they do not say is not guessed in silence."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.core.units import Units
from brainjanus.data.dataset import Dataset
from brainjanus.generate import GenerationConfig
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.request import Request, load_request, resolve, words
from brainjanus.train.codes import features_of

GRID = {"type": "volume", "shape": [2, 3, 2], "affine": np.eye(4).tolist()}


@pytest.fixture
def checkpoint(make_checkpoint):
    """Subjects a (10 voxels of a volume; V1 the first four, V2 the next three) and b (8 sites, no regions)."""
    rois = {"V1": np.arange(10) < 4, "V2": (np.arange(10) >= 4) & (np.arange(10) < 7), "none": np.zeros(10, bool)}
    spaces = {
        "a": BrainSpace("a", 10, geometry=GRID, index=np.arange(1, 11), rois=rois),
        "b": BrainSpace("b", 8),
    }
    units = {name: Units(np.full(s.num_sites, 5.0), np.full(s.num_sites, 2.0)) for name, s in spaces.items()}
    return replace(make_checkpoint(image_input="codes"), spaces=spaces, units=units)


@pytest.fixture
def ask(checkpoint, tmp_path):
    """Resolve a request whose files lie in tmp_path, by a model that was trained on nothing."""

    def resolved(to: str = "brain:b", **asked):
        return resolve(Request(tmp_path / "run", words(to), folder=tmp_path, **asked), checkpoint)

    return resolved


@pytest.fixture(scope="module")
def trained(tiny_run):
    return Checkpoint.load(tiny_run)


@pytest.fixture
def ask_run(tiny_run, trained, tmp_path):
    """Resolve a request by the run that was trained on the study."""

    def resolved(to: str = "text", **asked):
        return resolve(Request(tiny_run, words(to), folder=tmp_path, **asked), trained)

    return resolved


def picture(path: Path, colour: str = "red") -> str:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (50, 30), colour).save(path)
    return str(path)


# ------------------------------------------------------------------------------------------------- brains, by the study


def test_a_trial_is_a_row_of_the_table_counted_from_0(ask_run, study):
    found = ask_run(brain=("s2:trial:7",))
    np.testing.assert_array_equal(found.conditions["brain:s2"], study.responses("s2", np.array([7])))
    assert found.rows == ["s2-trial-7"]
    assert found.sources["brain:s2"][0]["stimuli"] == [study.trials("s2").stimulus_id[7]]


def test_a_stimulus_is_the_mean_over_its_repeats(ask_run, study):
    averages = study.averages("s1", "test")
    found = ask_run(brain=(f"s1:stimulus:{averages.stimulus_ids[3]}",))
    np.testing.assert_allclose(found.conditions["brain:s1"], averages.responses[3:4], rtol=1e-6)
    assert found.rows == [averages.stimulus_ids[3]]
    assert found.sources["brain:s1"][0]["repeats"] == 2


@pytest.mark.parametrize("what", ["test", "stimuli:test"])
def test_a_split_is_the_mean_response_to_each_of_its_stimuli(ask_run, study, what):
    averages = study.averages("s1", "test")
    found = ask_run(brain=(f"s1:{what}",))
    np.testing.assert_array_equal(found.conditions["brain:s1"], averages.responses)
    assert found.rows == averages.stimulus_ids


def test_several_of_one_subject_are_rows_and_of_several_are_conditions(ask_run):
    found = ask_run(brain=("s1:trial:0", "s2:trial:3", "s1:trial:2"))
    assert {name: len(rows) for name, rows in found.conditions.items()} == {"brain:s1": 2, "brain:s2": 2}
    assert np.array_equal(*found.conditions["brain:s2"])  # one row goes with all rows of the other


def test_whose_brain_is_told_where_it_is_left_to_the_default(ask_run):
    assert ask_run(brain=("s1:trial:1",)).remarks == []
    (remark,) = ask_run(brain=("trial:1",)).remarks
    assert remark == "--brain trial:1: taken as s1's, the first of 2 subjects; s2:trial:1 would be s2's"


def test_stimuli_of_the_dataset_are_shown_and_told(ask_run, study):
    ids = study.averages("s1", "test").stimulus_ids
    found = ask_run("brain:s1", image=("stimuli:test",), text=(f"stimulus:{ids[0]}",))
    np.testing.assert_array_equal(found.conditions["image"], features_of(study, "wavelet", ids))
    assert found.conditions["text"] == [study.captions(ids[0])[0]] * len(ids)
    assert found.rows == ids


def test_a_split_without_a_brain_is_that_of_the_only_target_or_of_all(ask_run, study):
    assert ask_run("brain:s2", image=("stimuli:train",)).rows == list(study.trials("s2").stimuli("train"))
    assert ask_run("brain", image=("stimuli:train",)).rows == list(study.split_ids("train"))


def test_a_split_of_two_brains_is_what_both_saw(ask_run, study):
    both = sorted({*study.trials("s1").stimuli("train")} & {*study.trials("s2").stimuli("train")})
    assert ask_run(brain=("s1:train", "s2:train")).rows == both


# ------------------------------------------------------------------------------------------ files, without a dataset


def test_raw_betas_of_a_file_need_no_dataset(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(Dataset, "open", lambda path: pytest.fail("the dataset was opened"))
    np.savez(tmp_path / "x.npz", other=np.zeros(2), betas=np.full((3, 10), 9.0))
    found = ask(brain=("a:x.npz:betas",))
    np.testing.assert_array_equal(found.conditions["brain:a"], np.full((3, 10), 2.0, np.float32))
    assert found.rows == ["0000", "0001", "0002"]
    assert len(found.sources["brain:a"][0]["sha256"]) == 64


def test_a_safetensors_file_that_says_so_is_zscored_already(ask, tmp_path):
    from safetensors.numpy import save_file

    given = {"responses": np.full((2, 10), 9.0, np.float32)}
    save_file(given, tmp_path / "raw.safetensors")
    save_file(given, tmp_path / "done.safetensors", metadata={"units": "zscored"})
    np.testing.assert_array_equal(ask(brain=("a:raw.safetensors",)).conditions["brain:a"], np.full((2, 10), 2.0))
    np.testing.assert_array_equal(ask(brain=("a:done.safetensors",)).conditions["brain:a"], given["responses"])
    save_file({"responses": np.full((2, 9), 1.0)}, tmp_path / "done.safetensors", metadata={"units": "zscored"})
    with pytest.raises(UserError, match=r"expected numbers \[rows, 10 sites of a\], .* got float64 \[2, 9\]"):
        ask(brain=("a:done.safetensors",))


def test_a_nifti_is_read_through_the_mask_of_the_subject(ask, tmp_path):
    import nibabel

    volume = np.arange(24.0, dtype=np.float32).reshape(2, 3, 2, 2)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "x.nii.gz")
    found = ask(brain=("a:x.nii.gz",)).conditions["brain:a"]
    np.testing.assert_allclose(found, (volume.reshape(12, 2)[1:11].T - 5) / 2)


def test_regions_are_given_and_the_rest_is_unknown(ask, tmp_path):
    raw = np.full((2, 10), np.nan, np.float32)
    raw[:, :7] = 9
    np.save(tmp_path / "x.npy", raw)
    found = ask("brain:rest", brain=("a:x.npy",), rois=("V1", "V2"))
    assert list(found.conditions) == ["part:a"]
    np.testing.assert_array_equal(found.conditions["part:a"], [[2.0] * 7 + [np.nan] * 3] * 2)
    assert found.given_sites.tolist() == [True] * 7 + [False] * 3
    assert [(t.name, t.rest) for t in found.targets] == [("brain:a", True)]


def test_pictures_are_squares_of_the_size_of_the_model_and_called_by_their_names(ask, tmp_path):
    picture(tmp_path / "red.png")
    picture(tmp_path / "side" / "blue.jpg", "blue")
    found = ask(image=("red.png", "side/blue.jpg"))
    assert found.conditions["image"].shape == (2, 8, 8, 3)
    assert found.rows == ["red.png", "blue.jpg"]


def test_picture_files_of_one_name_are_told_apart_by_their_paths(ask, tmp_path):
    names = [picture(tmp_path / side / "red.png") for side in ("left", "right")]
    assert ask(image=tuple(names)).rows == names


def test_arrays_of_pictures_or_features_are_rows(ask, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8, 3), np.uint8))
    assert ask(image=("x.npy",)).conditions["image"].shape == (3, 8, 8, 3)


def test_one_sentence_goes_with_all_pictures(ask, tmp_path):
    files = tuple(picture(tmp_path / f"{name}.png") for name in "xy")
    found = ask(text=("a cup",), image=files)
    assert found.conditions["text"] == ["a cup", "a cup"]
    assert found.rows == ["x.png", "y.png"]


def test_rows_are_called_as_those_of_the_first_condition_with_names(ask, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 10)))
    files = tuple(picture(tmp_path / f"{name}.png") for name in "xy")
    assert ask(image=files, brain=("a:x.npy",)).rows == ["x.png", "y.png"]
    np.save(tmp_path / "p.npy", np.zeros((2, 8, 8, 3), np.uint8))
    assert ask(image=("p.npy",), brain=("a:x.npy",)).rows == ["0000", "0001"]


def test_trials_name_the_rows_of_an_array_that_is_given_with_them(ask_run, tmp_path, trained):
    tokens = trained.model.interface.features["wavelet"]
    np.save(tmp_path / "x.npy", np.zeros((2, *tokens), np.float32))
    found = ask_run(image=("x.npy",), brain=("s1:trial:3", "s1:trial:4"))
    assert found.rows == ["s1-trial-3", "s1-trial-4"]


def test_nothing_given_is_one_row(ask):
    found = ask("image,text")
    assert (found.conditions, found.rows) == ({}, ["0000"])


@pytest.mark.parametrize(
    ("to", "names"),
    [
        ("image,text", ["image", "text"]),
        ("brain", ["brain:b"]),  # everybody's but the given one
        ("brain:b, image", ["brain:b", "image"]),
    ],
)
def test_targets(ask, tmp_path, to, names):
    np.save(tmp_path / "x.npy", np.zeros((1, 10)))
    assert [target.name for target in ask(to, brain=("a:x.npy",)).targets] == names


def test_candidates_of_the_dataset_are_pictures_and_words_whatever_the_model_reads(ask_run, study, trained):
    assert trained.model.config.image_input == "wavelet"
    found = ask_run("image", brain=("s1:trial:3",), candidates=("stimulus:s000", "stimulus:s065")).candidates
    np.testing.assert_array_equal(found.values, study.images(["s000", "s065"]))
    ids = study.averages("s1", "test").stimulus_ids
    found = ask_run("text", brain=("s1:trial:3",), candidates=("stimuli:test",)).candidates
    assert found.values == [study.captions(stimulus)[0] for stimulus in ids]


def test_candidates_of_the_dataset_are_words_where_text_is_read_as_features(checkpoint, study, tmp_path):
    known = replace(checkpoint, provenance={"fingerprint": study.fingerprint})
    known.model.config = replace(known.model.config, text_input="words")
    asked = Request(tmp_path, ("text",), dataset=study.path, candidates=("stimulus:s000",))
    assert resolve(asked, known).candidates.values == [study.captions("s000")[0]]


def test_candidates_of_a_split_are_what_the_target_saw(ask_run, study):
    mine = sorted(study.trials("s2").stimuli("train"))
    found = ask_run("brain:s2", brain=("s1:trial:3",), candidates=("train",)).candidates
    assert found.names == mine and not set(mine) <= set(study.trials("s1").stimuli("train"))


def test_candidates_are_read_as_the_target_is(ask, tmp_path):
    np.save(tmp_path / "b.npy", np.zeros((4, 8)))
    assert ask("text", candidates=("a cup", "one")).candidates.values == ["a cup", "one"]
    assert ask("image", candidates=(picture(tmp_path / "x.png"),)).candidates.values.shape == (1, 8, 8, 3)
    assert ask("brain:b", candidates=("b.npy",)).candidates.values.shape == (4, 8)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"brain": ("c:test",)}, r"--brain c:test: expected one of the subjects .* \(a, b\), got 'c'"),
        ({"brain": ("c:b.npy",)}, "subjects .* got 'c'"),
        ({"to": "brain:c"}, "subjects it was trained on .* got 'c'"),
        ({"to": "sound"}, r"--to: expected text, image, brain, brain:SUBJECT or brain:rest, got 'sound'"),
        ({"to": ""}, "--to: expected at least one target, got none"),
        ({"to": "text,text"}, "--to: expected each target once, got 'text' several times"),
        ({"to": "text", "text": ("a cup",)}, "--to text: expected a target that is not among the conditions"),
        ({"brain": ("b:b.npy",)}, "--to brain:b: expected a target that is not among the conditions"),
        ({"to": "brain", "brain": ("a:a.npy", "b:b.npy")}, "--to brain: expected a subject whose brain is not given"),
        ({"to": "brain:rest", "brain": ("a:a.npy",)}, "--to brain:rest: expected --rois, .* got none"),
        ({"rois": ("V1",)}, "--rois: expected a brain whose regions V1 are given, got none"),
        ({"brain": ("a:a.npy",), "rois": ("V9",)}, r"--rois: expected regions of a \(V1, V2, none\), got 'V9'"),
        ({"brain": ("a:a.npy",), "rois": ("none",)}, "some sites of a but not all, got 0 of 10 in none"),
        ({"to": "text", "brain": ("a:a.npy", "b:b.npy"), "rois": ("V1",)}, "--rois: expected one brain"),
        ({"brain": ("a:gone.npy",)}, "gone.npy: expected a file, got none there"),
        ({"brain": ("a:7",)}, r"--brain a:7: expected \[SUBJECT:\]WHAT, WHAT being trial:N"),
        (
            {"brain": ("a:b.npy",)},
            r"b.npy: expected numbers \[rows, 10 sites of a\], at least one row, got float64 \[2",
        ),
        ({"brain": ("a:nan.npy",)}, r"nan.npy: expected finite responses, got nan in row 1, site 2 \(1 in all\)"),
        ({"image": ("gone.png",)}, "--image gone.png: expected a picture file, got none at this path"),
        ({"image": ("test",)}, "For the stimuli of a split, write stimuli:test"),
        ({"image": ("words.png",)}, r"words.png: expected a picture, got 5 bytes that cannot be decoded"),
        ({"text": ("",)}, "--text: expected a sentence, got an empty one"),
        ({"text": (" ",)}, "--text: expected a sentence, got an empty one"),
        ({"text": ("train",)}, "--text train: expected a sentence or stimuli, got a word that may be either"),
        ({"text": ("a", "b", "c"), "brain": ("a:a.npy",)}, "as many rows of everything, .* got brain:a 2, text 3"),
        ({"image": ("red.png", "wide.npy")}, r"--image: expected rows of one form, got red.png, wide.npy"),
        ({"to": "text,image", "candidates": ("a",)}, "--candidates: expected one target that they are candidates for"),
        ({"candidates": ("a:a.npy",)}, "--candidates a:a.npy: expected responses of b, the target, got a's"),
        (
            {"to": "brain:rest", "brain": ("a:a.npy",), "rois": ("V1",), "candidates": ("a:a.npy",)},
            "--candidates: expected one whole target",
        ),
        ({"brain": ("a:test",)}, "expected JSON, got"),  # a run without config.json does not know its dataset
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(ask, tmp_path, asked, sentence):
    for name, sites in (("a", 10), ("b", 8)):
        np.save(tmp_path / f"{name}.npy", np.zeros((2, sites)))
    holed = np.zeros((2, 10))
    holed[1, 2] = np.nan
    np.save(tmp_path / "nan.npy", holed)
    np.save(tmp_path / "wide.npy", np.zeros((1, 9, 9, 3), np.uint8))
    (tmp_path / "words.png").write_text("hello")
    picture(tmp_path / "red.png")
    with pytest.raises(UserError, match=sentence):
        ask(**asked)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"brain": ("s1:trial:999",)}, r"--brain s1:trial:999: expected a trial of s1 from 0 to 87, got '999'"),
        ({"brain": ("s1:trial:-1",)}, "expected a trial of s1 from 0 to"),
        ({"brain": ("s1:stimulus:nobody",)}, "--brain s1:stimulus:nobody: expected a stimulus that s1 saw"),
        ({"brain": ("s2:stimulus:s000",)}, "expected a stimulus that s2 saw, got 's000'"),
        ({"to": "brain:s1", "image": ("stimulus:nobody",)}, "expected one of its 80 stimuli"),
        ({"to": "brain:s1", "image": ("stimuli:all",)}, "--image stimuli:all: expected one of train, val, test"),
        ({"to": "brain:s1", "image": ("stimuli:val",)}, "expected val stimuli that s1 saw, got none"),
        (
            {"to": "brain:s1", "image": ("stimulus:s000", "stimulus:s001"), "text": ("stimulus:s000", "stimulus:s002")},
            r"rows of the same stimulus to be paired, got s001 \(image\), s002 \(text\) in row 1",
        ),
        ({"dataset": Path("nowhere"), "brain": ("s1:test",)}, "nowhere: expected a dataset folder"),
    ],
)
def test_what_the_dataset_has_not_is_refused_in_a_sentence(ask_run, asked, sentence):
    with pytest.raises(UserError, match=sentence):
        ask_run(**asked)


def test_a_dataset_that_moved_is_named(tiny_run, trained, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"path": str(tmp_path / "gone")}))
    with pytest.raises(UserError, match=r"got no dataset there. Was it moved\? Give its folder: --dataset DIR\."):
        resolve(Request(run, ("text",), brain=("s1:test",)), trained)


def test_a_model_without_brains_refuses_them(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(type(checkpoint.tokenizers.brain), "subjects", ())
    with pytest.raises(UserError, match=r"--brain x\.npy: expected a model that knows a brain, got one of none"):
        resolve(Request(tmp_path, ("text",), brain=("x.npy",)), checkpoint)


def test_a_request_of_another_version_is_refused(tmp_path):
    (tmp_path / "r.json").write_text('{"format": "brainjanus-request", "version": 0}')
    with pytest.raises(UserError, match=r"r.json: expected format 'brainjanus-request', version 1, got .*'version': 0"):
        load_request(tmp_path / "r.json")


@pytest.mark.parametrize("absent", ["model", "sources"])
def test_a_request_that_does_not_say_what_answered_it_is_refused(tmp_path, absent):
    facts = {"format": "brainjanus-request", "version": 1, "asked": {}, "model": "0", "sources": {}}
    del facts[absent]
    (tmp_path / "r.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=rf"r.json: expected what answered the request .* got no {absent}\."):
        load_request(tmp_path / "r.json")


DRAWN = GenerationConfig(temperature=0.5, top_k=3)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"to": "text", "formats": ("npy",)}, "--format: expected a brain among the targets, got text"),
        ({"to": "brain:b", "formats": ("npy",), "candidates": ("x",)}, "--format: expected nothing to be drawn"),
        ({"to": "text", "candidates": ("x",), "config": DRAWN}, "--temperature, --top-k: expected nothing to be drawn"),
        ({"to": "text", "candidates": ("x",), "config": GenerationConfig(guidance=2.0)}, "--guidance: expected noth"),
        ({"to": "text", "candidates": ("x",), "config": GenerationConfig("sample", 3)}, "--estimate, --samples: exp"),
        (
            {"to": "image,brain:b", "config": DRAWN},
            "--temperature, --top-k: .* got image, brain:b as a mean in",
        ),
        ({"to": "brain", "config": GenerationConfig(top_p=0.5)}, "--top-p: expected samples to be drawn, got brain as"),
        (
            {"to": "image", "config": GenerationConfig("sample", trial_noise=True)},
            "--trial-noise: expected a brain among the targets, got image",
        ),
    ],
)
def test_options_that_would_not_be_heeded_are_refused(asked, sentence):
    with pytest.raises(UserError, match=sentence):
        Request(Path("run"), words(asked.pop("to")), **asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"to": "brain,text", "formats": ("npy",)},
        {"to": "image,text", "config": DRAWN},  # of the captions
        {"to": "image", "config": replace(DRAWN, num_samples=4)},
        {"to": "image", "config": replace(DRAWN, estimate="sample")},
        {"to": "brain:rest", "config": GenerationConfig("sample", trial_noise=True)},
        {"to": "text", "candidates": ("x",), "config": GenerationConfig(seed=3)},
    ],
)
def test_options_that_are_heeded_are_taken(asked):
    Request(Path("run"), words(asked.pop("to")), **asked)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": -1.0}, "temperature and guidance must be at least 0, got -1"),
        ({"num_samples": -1}, "num_samples and top_k must be at least 0, got -1"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\], got 0"),
    ],
)
def test_options_out_of_range_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        GenerationConfig(**options)


def test_words_are_parted_at_commas():
    assert words(" V1, V2 ,") == ("V1", "V2")
    assert words("") == ()
