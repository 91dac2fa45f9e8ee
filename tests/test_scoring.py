"""Predictions of any software, scored from files, as a user does it."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from brainjanus.cli import main
from brainjanus.core.errors import UserError
from brainjanus.evaluate.extras import Extras
from brainjanus.evaluate.record import KEYS, load_scores
from brainjanus.evaluate.score import ScoreOptions
from brainjanus.scoring import compare_files, score_files

QUICK = ScoreOptions(permutations=50, resamples=50, extras=Extras(java=False))
REFERENCES = {str(i): [f"a {word} on the grass", f"one {word} outside"] for i, word in enumerate(["dog", "cat", "cow"])}
CAPTIONS = {"0": "a dog on the grass", "1": "two cats", "2": "a cow outside"}


def record_of(records, metric):
    return next(r for r in records if r.metric == metric and r.roi is None)


def captions(folder, predicted=None, references=None):
    (folder / "p.json").write_text(json.dumps(CAPTIONS if predicted is None else predicted))
    (folder / "r.json").write_text(json.dumps(REFERENCES if references is None else references))
    return folder / "p.json", folder / "r.json"


def test_captions_against_a_file(tmp_path):
    predicted, references = captions(tmp_path)
    scored = score_files("brain-to-text", predicted, tmp_path / "out", references=references, options=QUICK)
    records = load_scores(tmp_path / "out" / "scores.json")
    assert [r.metric for r in records] == [r.metric for r in scored.records]
    f1 = record_of(records, "content_f1")
    assert f1.n == 3
    assert f1.ceiling is not None
    assert f1.baseline is None  # there is nothing to train it on
    assert record_of(records, "cider").constant is not None
    assert json.loads((tmp_path / "out" / "scores.json").read_text())[0].keys() == set(KEYS)
    assert "Content-word F1" in (tmp_path / "out" / "report.html").read_text()


def test_the_order_of_the_file_does_not_matter(tmp_path):
    one = score_files(
        "brain-to-text", *captions(tmp_path)[:1], tmp_path / "a", references=tmp_path / "r.json", options=QUICK
    )
    back = dict(reversed(CAPTIONS.items())), dict(reversed(REFERENCES.items()))
    captions(tmp_path, *back)
    other = score_files(
        "brain-to-text", tmp_path / "p.json", tmp_path / "b", references=tmp_path / "r.json", options=QUICK
    )
    assert one.records == other.records


def test_everything_is_keyed_by_id(tmp_path):
    predicted, references = captions(tmp_path, {k: v for k, v in CAPTIONS.items() if k != "1"} | {"7": "a horse"})
    with pytest.raises(UserError, match=r"got none for '1' \(1 in all\) and '7', which is not there \(1 in all\)"):
        score_files("brain-to-text", predicted, tmp_path / "out", references=references)
    assert not (tmp_path / "out").exists()
    scored = score_files(
        "brain-to-text", predicted, tmp_path / "out", references=references, partial=True, options=QUICK
    )
    assert record_of(scored.records, "content_f1").n == 2
    captions(tmp_path, {"im1": "a", "im2": "b"})
    with pytest.raises(UserError, match="Are they positions instead of ids, or of another split"):
        score_files("brain-to-text", predicted, tmp_path / "out", references=references, partial=True)


def test_pictures_against_a_dataset(study, tmp_path):
    ids = study.averages("s1", "test").stimulus_ids
    (tmp_path / "decoded").mkdir()
    for name, picture in zip(ids, study.images(ids), strict=True):
        Image.fromarray(picture).save(tmp_path / "decoded" / f"{name}.png")
    where = {"dataset": study.path, "subject": "s1"}
    scored = score_files("brain-to-image", tmp_path / "decoded", tmp_path / "out", **where, options=QUICK)
    assert record_of(scored.records, "pixcorr").value == pytest.approx(1)
    assert record_of(scored.records, "ssim").value == pytest.approx(1)
    assert record_of(scored.records, "two_way").value == 1
    assert 0 < record_of(scored.records, "pixcorr").baseline < 1
    assert "alexnet2" in scored.skipped
    with pytest.raises(UserError, match="--seen-features x: expected --features x=FILE beside it"):
        score_files("brain-to-image", tmp_path / "decoded", tmp_path / "out", **where, seen_features=["x=y"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Not scored here, and why" in page
    assert "Seen and decoded pictures" in page


def test_pictures_of_several_sizes_against_pictures(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("seen", "decoded"):
        (tmp_path / folder).mkdir()
    for i in range(3):
        picture = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        picture.save(tmp_path / "seen" / f"{i}.png")
        picture.resize((16 * (i + 1),) * 2, Image.Resampling.NEAREST).save(tmp_path / "decoded" / f"{i}.png")
    scored = score_files("brain-to-image", tmp_path / "decoded", tmp_path / "out", references=tmp_path / "seen")
    assert record_of(scored.records, "pixcorr").value > 0.8
    assert record_of(scored.records, "two_way").value == 1


def test_features_of_the_user_are_scored(study, tmp_path):
    ids = study.averages("s1", "test").stimulus_ids
    np.save(tmp_path / "p.npy", study.images(ids))
    (tmp_path / "p.txt").write_text("\n".join(ids))
    values = np.random.default_rng(0).standard_normal((len(ids), 6)).astype(np.float32)
    np.savez(tmp_path / "seen.npz", names=np.array(ids), features=values)
    np.savez(tmp_path / "decoded.npz", names=np.array(ids[::-1]), features=values[::-1])
    given = {"features": [f"mine={tmp_path}/decoded.npz"], "seen_features": [f"mine={tmp_path}/seen.npz"]}
    scored = score_files(
        "brain-to-image", tmp_path / "p.npy", tmp_path / "out", dataset=study.path, subject="s1", options=QUICK, **given
    )
    assert record_of(scored.records, "features:mine").value == 1
    with pytest.raises(UserError, match="expected the same features of the seen pictures, got none"):
        score_files(
            "brain-to-image",
            tmp_path / "p.npy",
            tmp_path / "out",
            dataset=study.path,
            subject="s1",
            features=[f"other={tmp_path}/decoded.npz"],
        )


@pytest.mark.parametrize("units", ["zscored", "raw"])
def test_responses_against_a_dataset(study, tmp_path, units):
    averages = study.averages("s1", "test")
    values = averages.responses.copy()
    if units == "raw":
        statistics = study.zscore("s1")
        values = values * statistics.std.mean(axis=0) + statistics.mean.mean(axis=0)
    save_file({"responses": np.ascontiguousarray(values[::-1])}, tmp_path / "p.safetensors")
    (tmp_path / "ids.json").write_text(json.dumps(averages.stimulus_ids[::-1]))
    scored = score_files(
        "to-brain",
        tmp_path / "p.safetensors",
        tmp_path / "out",
        dataset=study.path,
        subject="s1",
        ids=tmp_path / "ids.json",
        units=units,
        options=QUICK,
    )
    assert record_of(scored.records, "voxel_r").value == pytest.approx(1, abs=1e-4)
    assert record_of(scored.records, "mse").value == pytest.approx(0, abs=1e-6)
    assert record_of(scored.records, "identification_top1").value == 1
    assert {r.roi for r in scored.records} == {None, "V1"}


def test_responses_against_an_array(tmp_path):
    rng = np.random.default_rng(0)
    measured = rng.standard_normal((20, 7)).astype(np.float32)
    for name, values in (("m", measured), ("p", measured + rng.standard_normal((20, 7)))):
        np.save(tmp_path / f"{name}.npy", values)
        (tmp_path / f"{name}.txt").write_text("\n".join(f"im{i}" for i in range(20)))
    scored = score_files(
        "to-brain", tmp_path / "p.npy", tmp_path / "out", references=tmp_path / "m.npy", source="text", options=QUICK
    )
    record = record_of(scored.records, "voxel_r")
    assert record.direction == "text->brain"
    assert 0.4 < record.value < 0.95
    assert record.p < 0.05
    assert record.ceiling is None


def test_the_subject_has_to_be_named(study, tmp_path):
    predicted, _ = captions(tmp_path)
    with pytest.raises(UserError, match="--subject: expected one of s1, s2, got none"):
        score_files("brain-to-text", predicted, tmp_path / "out", dataset=study.path)


def test_training_stimuli_are_refused(study, tmp_path):
    train = study.averages("s1", "train")
    np.save(tmp_path / "p.npy", train.responses)
    (tmp_path / "p.txt").write_text("\n".join(train.stimulus_ids))
    with pytest.raises(UserError, match="of another split"):
        score_files("to-brain", tmp_path / "p.npy", tmp_path / "out", dataset=study.path, subject="s1")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "expected --dataset DIR or --references FILE, got neither"),
        (["--references", "r.json", "--dataset", "r.json"], "got both"),
        (["--references", "nowhere.json"], "nowhere.json: expected a file, got none there"),
        (["--references", "p.json", "--constant", "x", "--out", "p.json"], "expected a folder for scores"),
        (["--references", "r.json", "--constant", " "], "--constant: expected a caption, got none"),
        (["--references", "r.json", "--weights", "w"], "--weights: expected options that bear on brain-to-text"),
        (["--references", "r.json", "--units", "raw"], "--units: expected options that bear on brain-to-text"),
        (["--references", "r.json", "--seed", "-1"], "--seed: expected 0 or more"),
        (["--references", "blank.json"], "or a blank one for '1'"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(tmp_path, monkeypatch, capsys, options, told):
    captions(tmp_path)
    (tmp_path / "blank.json").write_text(json.dumps(REFERENCES | {"1": ["a cat", " "]}))
    monkeypatch.chdir(tmp_path)
    argv = ["score", "brain-to-text", "--predictions", "p.json", *options]
    assert main(argv if "--out" in argv else [*argv, "--out", "out"]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_compare_from_the_command_line(tmp_path, monkeypatch, capsys):
    predicted, references = captions(tmp_path)
    for name in "ab":
        score_files("brain-to-text", predicted, tmp_path / name, references=references, subject="subj01", options=QUICK)
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "first=a", "b", "--out", "t.tsv"]) == 0
    said = capsys.readouterr().out
    assert "first (undeclared)" in said
    assert "t.tsv" in said
    rows = [line.split("\t") for line in (tmp_path / "t.tsv").read_text().splitlines()]
    assert rows[0][:4] == ["direction", "subject", "roi", "system"]
    assert {row[3] for row in rows[1:]} == {"first", "b"}
    captions(tmp_path, references=REFERENCES | {"2": ["a cow"]})
    score_files("brain-to-text", predicted, tmp_path / "c", references=references, subject="subj01", options=QUICK)
    assert main(["compare", "a", "c"]) == 2
    assert "references is" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "c")
    with pytest.raises(UserError, match="expected a JSON list of records"):
        compare_files(["a", "c"])
    with pytest.raises(UserError, match=r"ends in \.tsv or \.json"):
        compare_files(["a", "b"], tmp_path / "t.xlsx")
