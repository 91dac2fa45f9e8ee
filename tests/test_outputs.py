"""Requests become files: rows are named, files are whole, and what was asked can be asked again."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from brainjanus import cli, outputs
from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset
from brainjanus.generate import Generated, GenerationConfig
from brainjanus.outputs import (
    Answer,
    candidate_names,
    check_formats,
    check_names,
    draw_sheet,
    generate_files,
    is_usable,
    picture_name,
    write_brain,
    write_captions,
    write_pictures,
)
from brainjanus.request import Request, Target, load_request, words

VOLUME = {"type": "volume", "shape": [2, 2, 2], "affine": np.eye(4).tolist()}
SURFACE = {"type": "surface", "template": "fsaverage5", "left_vertices": 4}
SAMPLES = GenerationConfig(estimate="sample", num_samples=3, seed=5)


@pytest.fixture
def answer(tiny_run, tmp_path):
    """Answer a request by the run that was trained on the study, into tmp_path/out."""

    def made(to: str, **asked) -> Answer:
        return generate_files(Request(tiny_run, words(to), folder=tmp_path, **asked), tmp_path / "out")

    return made


@pytest.fixture
def asking() -> Request:
    return Request(Path("run"), ("brain:a",))


def files_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------------------ requests


def test_captions_of_the_test_stimuli(answer, study):
    made = answer("text", brain=("s1:test",))
    captions = json.loads((made.folder / "captions.json").read_text())
    assert list(captions) == study.averages("s1", "test").stimulus_ids
    assert made.told[0] == f"{next(iter(captions))}: {next(iter(captions.values()))}"


def test_pictures_of_named_stimuli(answer, study):
    ids = study.averages("s1", "test").stimulus_ids[:2]
    made = answer("image", brain=tuple(f"s1:stimulus:{name}" for name in ids))
    assert files_in(made.folder) == [*(f"pictures/{name}.png" for name in ids), "request.json"]
    assert made.told == [str(made.folder / "pictures" / f"{name}.png") for name in ids]
    with Image.open(made.told[0]) as picture:
        assert picture.size == (study.image_size,) * 2


def test_files_and_sentences_need_no_dataset(answer, study, tmp_path, monkeypatch):
    monkeypatch.setattr(Dataset, "open", lambda path: pytest.fail("the dataset was opened"))
    Image.new("RGB", (50, 30), "red").save(tmp_path / "red.png")
    made = answer("brain", image=("red.png",), text=("red left",))
    assert files_in(made.folder) == sorted(
        ["request.json", *(f"brain_{s}/{f}" for s in ("s1", "s2") for f in BRAIN_FILES)]
    )
    assert load_file(made.folder / "brain_s2/responses.safetensors")["responses"].shape == (1, 28)
    assert json.loads((made.folder / "brain_s1/rows.json").read_text()) == ["red.png"]


BRAIN_FILES = ("responses.png", "responses.safetensors", "rows.json")


def test_several_targets_have_folders_of_their_own(answer):
    made = answer("text,image", brain=("s1:trial:3",))
    assert files_in(made.folder) == ["image/pictures/s1-trial-3.png", "request.json", "text/captions.json"]


def test_the_rest_of_a_brain_has_no_values_where_it_was_given(answer, study):
    made = answer("brain:rest", brain=("s1:trial:3", "s1:trial:4"), rois=("V1",))
    values = load_file(made.folder / "responses.safetensors")["responses"]
    np.testing.assert_array_equal(np.isnan(values), [np.asarray(study.space("s1").rois["V1"])] * 2)
    assert made.told == [f"brain:s1 but the given sites: 2 x 30 sites, z-scored, in {made.folder}"]


def test_another_persons_brain(answer):
    made = answer("brain:s2", brain=("s1:trial:3",), formats=("npy",))
    assert files_in(made.folder) == ["request.json", "responses.npy", "rows.json"]
    assert np.load(made.folder / "responses.npy").shape == (1, 28)


def test_several_captions_of_each_row_and_the_same_for_the_same_seed(answer, tmp_path):
    made = answer("text", brain=("s1:trial:3", "s1:trial:4"), config=SAMPLES)
    captions = json.loads((made.folder / "captions.json").read_text())
    assert {name: len(group) for name, group in captions.items()} == {"s1-trial-3": 3, "s1-trial-4": 3}
    again = generate_files(load_request(made.folder / "request.json").request, tmp_path / "again")
    assert json.loads((again.folder / "captions.json").read_text()) == captions


def test_several_samples_of_a_mean_are_several_captions(answer):
    made = answer("text", brain=("s1:trial:3",), config=GenerationConfig(num_samples=2))
    assert len(json.loads((made.folder / "captions.json").read_text())["s1-trial-3"]) == 2


def test_a_mean_over_samples_has_standard_errors(answer):
    """Of what nothing linear is known, which would have no error of samples."""
    made = answer("brain:s2", config=GenerationConfig(num_samples=4), formats=("safetensors",))
    arrays = load_file(made.folder / "responses.safetensors")
    assert {name: array.shape for name, array in arrays.items()} == {"responses": (1, 28), "standard_error": (1, 28)}
    assert (arrays["standard_error"] > 0).any()


def test_responses_with_standard_errors_are_read_as_predictions(answer):
    from brainjanus.data.readers.predictions import read_response_predictions

    made = answer("brain:s2", text=("red left",), config=GenerationConfig(num_samples=2), formats=("safetensors",))
    names, values = read_response_predictions(str(made.folder / "responses.safetensors"))
    assert names == ["0000"]
    np.testing.assert_array_equal(values, load_file(made.folder / "responses.safetensors")["responses"])


# -------------------------------------------------------------------------------------------------------- asking again


def test_a_request_is_repeated_to_the_bit(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (50, 30), "red").save(tmp_path / "red.png")
    options = ["--estimate", "sample", "--samples", "2", "--temperature", "0.7", "--top-k", "5", "--seed", "3"]
    asked = ["--image", "red.png", "--to", "brain:s1,text", *options, "--guidance", "1.5", "--out", "one"]
    assert cli.main(["generate", str(tiny_run), *asked]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # paths of files are kept
    assert cli.main(["generate", "--request", str(tmp_path / "one/request.json"), "--out", str(tmp_path / "two")]) == 0
    assert files_in(tmp_path / "one") == files_in(tmp_path / "two")
    for name in files_in(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert capsys.readouterr().out.endswith("two\n")


def test_a_request_says_what_was_asked_and_what_answered(answer, tiny_run, tmp_path):
    made = answer("text", brain=("trial:3",), config=SAMPLES)
    facts = json.loads((made.folder / "request.json").read_text())
    assert facts["asked"]["config"] == {
        "estimate": "sample", "num_samples": 3, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance": 1.0,
        "seed": 5, "trial_noise": False,
    }  # fmt: skip
    assert facts["asked"]["run"] == str(tiny_run)
    assert facts["rows"] == ["s1-trial-3"]
    assert facts["sources"]["brain:s1"][0]["given"] == "trial:3"
    assert facts["remarks"] == made.remarks
    assert len(facts["model"]) == 64
    assert set(facts["versions"]) == {"brainjanus", "torch", "python"}


def test_another_model_or_changed_files_are_not_asked_again(answer, tmp_path):
    Image.new("RGB", (50, 30), "red").save(tmp_path / "red.png")
    repeated = load_request(answer("text", image=("red.png",)).folder / "request.json")
    with pytest.raises(UserError, match=r"expected the model that answered it \(0000.* Was it trained again\?"):
        generate_files(repeated.request, tmp_path / "again", repeated=repeated._replace(model="0" * 64))
    Image.new("RGB", (50, 30), "blue").save(tmp_path / "red.png")
    with pytest.raises(UserError, match=r"expected what it was answered from .*red.png.* Did the file change\?"):
        generate_files(repeated.request, tmp_path / "again", repeated=repeated)
    assert not (tmp_path / "again").exists()


def test_nothing_but_out_stands_beside_a_request(capsys):
    assert cli.main(["generate", "--request", "r.json", "--seed=4", "--to", "text"]) == 2
    assert "--request: expected nothing but --out and RUN beside it, got --seed, --to." in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ rankings


def test_candidates_are_ranked_by_log_p(answer, tiny_run, study):
    from brainjanus.generate import score
    from brainjanus.model.checkpoint import Checkpoint

    made = answer("text", brain=("s1:trial:3", "s1:trial:4"), candidates=("red left", "blue right", "green left"))
    responses = study.responses("s1", np.array([3, 4]))
    expected = score(Checkpoint.load(tiny_run), {"brain:s1": responses}, "text", ["blue right"] * 2)
    found = {(r.row, r.candidate): r for r in made.ranking}
    assert found["s1-trial-4", "blue right"].log_p == pytest.approx(float(expected[1]), abs=1e-3)
    for row in ("s1-trial-3", "s1-trial-4"):
        ranked = [r for r in made.ranking if r.row == row]
        assert [r.log_p for r in ranked] == sorted((r.log_p for r in ranked), reverse=True)
        assert sum(r.posterior for r in ranked) == pytest.approx(1)
        assert ranked[0].posterior / ranked[1].posterior == pytest.approx(np.exp(ranked[0].log_p - ranked[1].log_p))
    with open(made.folder / "scores.tsv", newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert [(r["row"], r["candidate"], float(r["log_p"])) for r in table] == [r[:3] for r in made.ranking]
    scores = json.loads((made.folder / "scores.json").read_text())
    assert list(scores) == ["s1-trial-3", "s1-trial-4"]
    assert scores["s1-trial-3"][0] == {
        "candidate": made.ranking[0].candidate, "log_p": made.ranking[0].log_p, "posterior": made.ranking[0].posterior
    }  # fmt: skip


def test_sentences_are_called_by_their_words_and_arrays_by_their_numbers():
    assert candidate_names(["a", "b"], [None, "s001"]) == ["a", "s001: b"]
    assert candidate_names(np.zeros((2, 3)), ["x.png", None]) == ["x.png", "0001"]


# --------------------------------------------------------------------------------------------------------------- files


def test_every_sample_of_a_volume_has_a_file_and_is_drawn(asking, tmp_path, monkeypatch):
    space = BrainSpace("a", 3, geometry=VOLUME, index=np.array([0, 3, 7]))
    samples = torch.arange(12.0).view(2, 2, 3)
    drawn = {}
    monkeypatch.setattr(outputs, "draw_maps", lambda space, maps, label: drawn.update(maps) or b"")
    asked = replace(asking, formats=("nifti", "png"))
    assert write_brain(tmp_path, Generated(samples[:, 0], None, samples), ["x", "y"], space, asked) == []
    files = ["responses.nii.gz", "responses.png", "rows.json", "samples-00.nii.gz", "samples-01.nii.gz"]
    assert files_in(tmp_path) == files
    second = nibabel.load(tmp_path / "samples-01.nii.gz").get_fdata()
    assert second[1, 1, 1].tolist() == samples[:, 1, 2].tolist()
    assert {name: values.tolist() for name, values in drawn.items()} == {
        f"{row}, {s}": samples[r, s].tolist() for r, row in enumerate("xy") for s in range(2)
    }


def test_every_sample_of_a_surface_has_files(asking, tmp_path):
    space = BrainSpace("a", 3, "vertices", geometry=SURFACE, index=np.array([1, 3, 6]))
    samples = torch.arange(6.0).view(1, 2, 3)
    write_brain(tmp_path, Generated(samples[:, 0], None, samples), ["x"], space, replace(asking, formats=("gifti",)))
    left = nibabel.load(tmp_path / "samples-01_hemi-L.func.gii")
    np.testing.assert_array_equal(left.darrays[0].data, [np.nan, 3, np.nan, 4])


def test_a_volume_is_written_as_nifti(asking, tmp_path):
    space = BrainSpace("a", 3, geometry=VOLUME, index=np.array([0, 3, 7]))
    generated = Generated(torch.arange(6.0).view(2, 3), torch.ones(2, 3), None)
    write_brain(tmp_path, generated, ["x", "y"], space, replace(asking, formats=("nifti",)))
    assert files_in(tmp_path) == ["responses.nii.gz", "rows.json", "standard_error.nii.gz"]
    volumes = nibabel.load(tmp_path / "responses.nii.gz").get_fdata()
    assert volumes.shape == (2, 2, 2, 2)
    assert volumes[1, 1, 1].tolist() == [2.0, 5.0]
    assert np.isnan(volumes[1, 0, 0]).all()


def test_a_surface_is_written_as_gifti(asking, tmp_path):
    space = BrainSpace("a", 3, "vertices", geometry=SURFACE, index=np.array([1, 3, 6]))
    generated = Generated(torch.arange(6.0).view(2, 3), None, None)
    write_brain(tmp_path, generated, ["x", "y"], space, replace(asking, formats=("gifti",)))
    assert files_in(tmp_path) == ["responses_hemi-L.func.gii", "responses_hemi-R.func.gii", "rows.json"]
    left, right = (nibabel.load(tmp_path / f"responses_hemi-{side}.func.gii") for side in "LR")
    nan = np.nan
    np.testing.assert_array_equal([a.data for a in left.darrays], [[nan, 0, nan, 1], [nan, 3, nan, 4]])
    np.testing.assert_array_equal([a.data for a in right.darrays], [[nan, nan, 2, nan], [nan, nan, 5, nan]])
    assert [a.meta["Name"] for a in left.darrays] == ["x", "y"]
    assert right.meta["AnatomicalStructurePrimary"] == "CortexRight"


def test_a_surface_without_nilearn_is_written_and_it_is_said_that_it_was_not_drawn(asking, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "find_spec", lambda name: None)
    space = BrainSpace("a", 3, "vertices", geometry=SURFACE, index=np.array([1, 3, 6]))
    (remark,) = write_brain(tmp_path, Generated(torch.zeros(1, 3), None, None), ["x"], space, asking)
    assert remark.startswith("responses.png was not drawn: it needs nilearn")
    assert "responses.png" not in files_in(tmp_path)
    assert "responses.safetensors" in files_in(tmp_path)


def test_png_of_a_surface_without_nilearn_is_refused_before_anything_is_generated(make_checkpoint, monkeypatch):
    monkeypatch.setattr(outputs, "find_spec", lambda name: None)
    space = BrainSpace("a", 3, "vertices", geometry=SURFACE, index=np.array([1, 3, 6]))
    checkpoint = replace(make_checkpoint(modalities=False), spaces={"a": space})
    with pytest.raises(UserError, match=r"--format png: .* it needs nilearn, .* pip install 'brainjanus\[cortex\]'"):
        check_formats(["png"], Target("brain", "brain:a"), checkpoint)
    check_formats(["gifti"], Target("brain", "brain:a"), checkpoint)


def test_an_answer_outlives_a_failing_drawing(asking, tmp_path, monkeypatch):
    def failing(*args, **kwargs):
        raise RuntimeError("no display")

    monkeypatch.setattr(outputs, "draw_maps", failing)
    (remark,) = write_brain(tmp_path, Generated(torch.zeros(1, 5), None, None), ["x"], BrainSpace("a", 5), asking)
    assert remark == "responses.png was not drawn: RuntimeError (no display)"
    assert files_in(tmp_path) == ["responses.safetensors", "rows.json"]


def test_what_was_generated_is_given_back_as_it_is(answer, tiny_run, tmp_path):
    from brainjanus.model.checkpoint import Checkpoint
    from brainjanus.request import resolve

    made = answer("brain:s2", text=("red left",), formats=("safetensors",))
    again = Request(tiny_run, ("text",), brain=("s2:out/responses.safetensors",), folder=tmp_path)
    found = resolve(again, Checkpoint.load(tiny_run))
    expected = load_file(made.folder / "responses.safetensors")["responses"]
    np.testing.assert_array_equal(found.conditions["brain:s2"], expected)
    assert found.sources["brain:s2"][0]["units"] == "zscored"


@pytest.mark.parametrize("device", ["cpu", "cpu:0", "cuda", "cuda:1", "cuda:2", "cpu:1", "meta", "mps", "gpu"])
def test_devices_that_answer_requests(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert is_usable(device) == (device in ("cpu", "cpu:0", "cuda", "cuda:1"))


def test_a_brain_is_drawn(asking, tmp_path):
    rows = [f"s{row}" for row in range(9)]
    assert write_brain(tmp_path, Generated(torch.randn(9, 5), None, None), rows, BrainSpace("a", 5), asking) == []
    with Image.open(tmp_path / "responses.png") as drawn:
        assert min(drawn.size) > 100


def test_samples_of_responses_stand_beside_the_first(asking, tmp_path):
    samples = torch.randn(2, 3, 5)
    asked = replace(asking, formats=("safetensors", "npy"))
    write_brain(tmp_path, Generated(samples[:, 0], None, samples), ["x", "y"], BrainSpace("a", 5), asked)
    np.testing.assert_array_equal(np.load(tmp_path / "samples.npy"), samples)
    np.testing.assert_array_equal(load_file(tmp_path / "responses.safetensors")["responses"], samples[:, 0])


@pytest.mark.parametrize(
    ("geometry", "form", "possible"),
    [
        (VOLUME, "gifti", "safetensors, npy, png, nifti"),
        (SURFACE, "nifti", "safetensors, npy, png, gifti"),
        ({"type": "none"}, "nifti", "safetensors, npy, png"),
    ],
)
def test_a_form_that_a_brain_does_not_have_is_refused(make_checkpoint, geometry, form, possible):
    checkpoint = replace(make_checkpoint(modalities=False), spaces={"a": BrainSpace("a", 3, geometry=geometry)})
    with pytest.raises(UserError, match=rf"--format {form}: .* brain of a has \({possible}\)"):
        check_formats([form], Target("brain", "brain:a"), checkpoint)


def test_several_samples_of_a_picture_have_numbers_and_a_sheet(tmp_path):
    samples = torch.rand(2, 3, 8, 8, 3)
    write_pictures(tmp_path, Generated(samples[:, 0], None, samples), ["a cup", "b.png"])
    assert files_in(tmp_path) == [
        *(f"pictures/{name}-0{sample}.png" for name in ("a_cup", "b") for sample in range(3)),
        "samples.png",
    ]
    with Image.open(tmp_path / "pictures/b-02.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), (samples[1, 2] * 255).round().byte())


def test_a_sheet_shows_every_sample_of_a_row_side_by_side():
    samples = np.zeros((2, 3, 4, 4, 3), np.uint8)
    samples[1, 2] = (10, 200, 30)
    sheet = np.asarray(draw_sheet(samples, ["x", "y"]))
    rows, columns = np.nonzero((sheet == (10, 200, 30)).all(axis=-1))
    assert len(rows) == outputs.TILE**2
    assert rows.min() > sheet.shape[0] / 2
    assert columns.min() > sheet.shape[1] * 0.6


def test_captions_are_words_by_row(tmp_path):
    write_captions(tmp_path, Generated(["é", "b"], None, None), ["x", "y"])
    assert (tmp_path / "captions.json").read_text(encoding="utf-8") == '{\n "x": "é",\n "y": "b"\n}'


def test_pictures_are_named_by_rows_without_the_suffix_of_a_picture():
    assert [picture_name(row) for row in ("a/b.PNG", "v1.5", "a cup")] == ["a_b", "v1.5", "a_cup"]


@pytest.mark.parametrize("rows", [["a b", "a_b"], ["cup.png", "cup.jpg"], ["cup", "Cup"], ["a", "a"]])
def test_rows_that_would_overwrite_each_other_are_refused(rows):
    with pytest.raises(UserError, match=f"got '{rows[0]}' and '{rows[1]}', which would overwrite"):
        check_names(rows, "image")


# -------------------------------------------------------------------------------------------- the command, mistakes


def test_the_command_finds_a_run_and_a_place_for_the_answer(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRAINJANUS_RUN", str(tiny_run))
    for name in ("brain-to-text", "brain-to-text-2"):
        assert cli.main(["generate", "--brain", "trial:3", "--to", "text"]) == 0
        out, err = capsys.readouterr()
        caption = json.loads((tmp_path / "generated" / name / "captions.json").read_text())["s1-trial-3"]
        assert out == f"s1-trial-3: {caption}\ngenerated/{name}\n"
        assert "brainjanus: --brain trial:3: taken as s1's, the first of 2 subjects" in err


def test_a_ranking_is_printed(tiny_run, tmp_path, capsys):
    asked = ["--brain", "s1:trial:3", "--to", "text", "--candidates", "red left", "blue right"]
    assert cli.main(["generate", str(tiny_run), *asked, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "log p(candidate | conditions), in nats" in printed
    assert all(words in printed for words in ("s1-trial-3", "red left", "blue right"))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (["--text", "red", "--to", "brain:s9"], "expected one of the subjects it was trained on (s1, s2), got 's9'"),
        (["--brain", "s1:trial:3", "--rois", "V9", "--to", "text"], "expected regions of s1 (V1), got 'V9'"),
        (["--image", "gone.png", "--to", "text"], "--image gone.png: expected a picture file, got none"),
        (["--text", "", "--to", "image"], "--text: expected a sentence, got an empty one"),
        (["--text", "red left " * 99, "--to", "image"], "expected at most"),
        (["--text", "red", "--to", "image", "--temperature", "-1"], "temperature and guidance must be at least 0"),
        (["--text", "red", "--to", "brain:s1", "--format", "gifti"], "--format gifti: expected a form that the brain"),
        (["--text", "red", "--to", "brain:s1", "--device", "tpu"], "--device: expected cpu, or cuda where there is a"),
        (["--text", "red", "--to", "brain:s1", "--device", "meta"], "--device: expected cpu, or cuda where there is a"),
        (["--image", "x" * 300 + ".png", "--to", "text"], "expected a picture file, got none at this path"),
        (["--image", "x" * 300 + ".npy", "--to", "text"], "expected a file, got none there"),
        (["--brain", "s1:" + "x" * 300 + ".npy", "--to", "text"], "expected a file, got none there"),
        (["--text", "red"], "--to: expected at least one target, got none"),
        (["--image", "stimuli:test", "--text", "a", "b", "--to", "brain:s1"], "got image 16, text 2"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(tiny_run, tmp_path, capsys, asked, sentence):
    assert cli.main(["generate", str(tiny_run), *asked, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("brainjanus: ") and sentence in err
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_may_not_be_read_is_refused(tiny_run, tmp_path, monkeypatch, capsys):
    picture = tmp_path / "x.png"
    Image.new("RGB", (4, 4)).save(picture)

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    asked = ["--image", str(picture), "--to", "text", "--out", str(tmp_path / "out")]
    assert cli.main(["generate", str(tiny_run), *asked]) == 2
    assert "expected a picture file that can be read, got 'Permission denied'" in capsys.readouterr().err


def test_a_name_of_the_answer_that_is_too_long_is_refused(tiny_run, tmp_path, capsys):
    assert cli.main(["generate", str(tiny_run), "--to", "text", "--out", str(tmp_path / ("x" * 300))]) == 2
    assert "expected a place that can be written to, got 'File name too long'" in capsys.readouterr().err


@pytest.mark.parametrize("again", [["--to", "text", "--to", "image"], ["--to", "text,image"]])
def test_targets_that_are_named_one_by_one_are_all_answered(tiny_run, tmp_path, again):
    asked = ["--brain", "s1:trial:3", *again, "--out", str(tmp_path / "out")]
    assert cli.main(["generate", str(tiny_run), *asked]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["image", "request.json", "text"]


def test_regions_that_are_named_one_by_one_are_all_given(tiny_run, tmp_path, monkeypatch):
    asked = []
    answer = Answer(tmp_path, [], [], [])
    monkeypatch.setattr(outputs, "generate_files", lambda request, out, repeated: asked.append(request) or answer)
    cli.main(["generate", str(tiny_run), "--brain", "test", "--rois", "V1", "--rois", "V2,V3", "--to", "brain:rest"])
    assert asked[0].rois == ("V1", "V2", "V3")


def test_a_run_that_is_no_run_is_refused(tiny_run, tmp_path, capsys):
    asked = ["--text", "red", "--to", "image", "--out", str(tmp_path / "out")]
    run = tmp_path / "run"
    run.mkdir()
    facts = json.loads((tiny_run / "model.json").read_text())
    for change, sentence in ((None, "expected a trained run with model.json, got none"), ({"version": 1}, "version 1")):
        if change is not None:
            (run / "model.json").write_text(json.dumps(facts | change))
            sentence = "got {'format': 'brainjanus-model', 'version': 1}"
        assert cli.main(["generate", str(run), *asked]) == 2
        assert sentence in capsys.readouterr().err
    (run / "model.json").write_text(json.dumps(facts))  # its weights are missing, as if cut short
    assert cli.main(["generate", str(run), *asked]) == 2
    assert "expected saved weights, got" in capsys.readouterr().err


def test_a_request_longer_than_the_context_is_refused(tiny_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    facts = json.loads((run / "model.json").read_text())
    facts["omni"]["decoder"]["max_position_embeddings"] = 8
    (run / "model.json").write_text(json.dumps(facts))
    asked = ["--text", "red left", "--brain", "s2:trial:3", "--to", "brain:s1", "--out", str(tmp_path / "out")]
    assert cli.main(["generate", str(run), *asked]) == 2
    assert "expected at most 8 positions, got" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_of_several_processes_the_first_alone_writes(answer, monkeypatch):
    monkeypatch.setattr(outputs, "is_first", lambda: False)
    made = answer("text", brain=("s1:trial:3",))
    assert made.told == [] and not made.folder.exists()


def test_an_existing_folder_is_not_touched(tiny_run, tmp_path, capsys):
    assert cli.main(["generate", str(tiny_run), "--to", "image", "--out", str(tmp_path)]) == 2
    assert "expected a new folder for what is generated, got one that exists" in capsys.readouterr().err


def test_no_run_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRAINJANUS_RUN", raising=False)
    assert cli.main(["generate", "--to", "image"]) == 2
    assert "expected a run, named before all options or by $BRAINJANUS_RUN" in capsys.readouterr().err


def test_the_run_of_the_demo_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRAINJANUS_RUN", raising=False)
    (tmp_path / "runs/demo/run").mkdir(parents=True)
    (tmp_path / "runs/demo/run/model.json").write_text("{}")
    assert cli.default_run(None) == Path("runs/demo/run")
    monkeypatch.setenv("BRAINJANUS_RUN", "other")
    assert cli.default_run(None) == Path("other")
    assert cli.default_run(Path("named")) == Path("named")


def test_ctrl_c_says_how_far_it_came_and_leaves_nothing(tiny_run, tmp_path, monkeypatch, capsys):
    real = outputs.estimate

    def stopped(checkpoint, conditions, target, config):
        if target == "text":
            raise KeyboardInterrupt
        return real(checkpoint, conditions, target, config)

    monkeypatch.setattr(outputs, "estimate", stopped)
    asked = ["--brain", "s1:trial:3", "--to", "image,text", "--out", str(tmp_path / "out")]
    assert cli.main(["generate", str(tiny_run), *asked]) == 130
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("brainjanus: stopped while generating text, 1 of 2 targets done; nothing was written")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "same"),
    [
        (["R", "--text", "a", "b", "--to", "x", "--text", "c"], ["R", "--text", "a", "b", "c", "--to", "x"]),
        (["--brain=a", "--brain", "b", "--seed", "1"], ["--brain", "a", "b", "--seed", "1"]),
        (["R", "--to", "x"], ["R", "--to", "x"]),
    ],
)
def test_an_option_that_is_given_again_adds_to_what_it_has(argv, same):
    assert cli.gathered(argv, ("--text", "--brain")) == same
