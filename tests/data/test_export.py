"""What is exported is read back by the readers of those layouts, and looks to a peer as its own files do."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from brainjanus.core.card import INVITATION
from brainjanus.core.errors import UserError
from brainjanus.data.dataset import Dataset, Trials
from brainjanus.data.datasheet import CARD
from brainjanus.data.export import export_brainjanus, export_mindeye2
from brainjanus.data.layouts import open_study
from brainjanus.data.study import Study, StudyOptions

NSD_IDS = [f"nsd-{image:05}" for image in (72_999, 0, 41, 42, 17, 9_000, 60_001, 5, 3, 2, 1, 777)]


def named(recording, ids: list[str], tmp_path: Path, val: int = 0) -> Dataset:
    """The recording with other names; the trials of both sessions in two orders, and unequal numbers of them."""
    called = dict(zip(recording.ids, ids, strict=True))
    order = np.concatenate([np.arange(12)[::-1], 12 + np.random.default_rng(1).permutation(12)[:10]])
    test = recording.ids[:4]
    recording.trial_ids = [recording.trial_ids[row] for row in order]
    recording.split = [
        "test" if name in test else "val" if name in recording.ids[12 - val :] else "train"
        for name in recording.trial_ids
    ]
    recording.trial_ids = [called[name] for name in recording.trial_ids]
    recording.ids = list(ids)
    recording.session, recording.responses = recording.session[order], recording.responses[order]
    recording.captions = {ids[1]: ["a red cup", "a cup"]}
    run, repeat = np.arange(22) % 3 + 1, np.repeat([1, 2], 12)[order]
    recording.trials = lambda: Trials(recording.trial_ids, recording.session, run, repeat, recording.split)
    return recording.write(tmp_path / "dataset")


@pytest.fixture(params=["nsd", "lab"])
def data(request, recording, tmp_path) -> Dataset:
    ids = NSD_IDS if request.param == "nsd" else [f"lab {i:02}" for i in range(12)]
    return named(recording, ids, tmp_path, val=2)


def trial_by_trial(study: Study) -> list[tuple]:
    rows = []
    for session in study.subjects[0].sessions:
        run = np.ones(len(session.stimulus_id), int) if session.run is None else session.run
        for name, number, response in zip(session.stimulus_id, run.tolist(), session.read().tolist(), strict=True):
            rows.append((session.number, number, name, study.split[name], *response))
    return sorted(rows)


def expected(data: Dataset, rounded: bool = False) -> list[tuple]:
    trials, responses = data.trials("subj01"), data.responses("subj01")
    if rounded:
        responses = torch.from_numpy(responses).bfloat16().float().numpy()
    columns = trials.session.tolist(), trials.run.tolist(), trials.stimulus_id, trials.split, responses.tolist()
    return sorted((*who, *response) for *who, response in zip(*columns, strict=True))


def test_mindeye2_round_trip(data, tmp_path):
    exported = export_mindeye2(data, tmp_path / "out")
    study = open_study("mindeye2", exported.path, StudyOptions())
    assert trial_by_trial(study) == expected(data)
    names = [name for session in study.subjects[0].sessions for name in session.stimulus_id]
    order = np.argsort(data.trials("subj01").session, kind="stable")
    assert names == [data.trials("subj01").stimulus_id[row] for row in order]
    assert any("val are in files of their own" in notice for notice in exported.notices)


def test_brainjanus_round_trip(data, tmp_path):
    study = open_study("brainjanus", export_brainjanus(data, tmp_path / "out").path, StudyOptions())
    assert trial_by_trial(study) == expected(data, rounded=True)
    assert study.zscore == "session"
    assert study.captions["captions"] == {data.stimulus_ids[1]: ["a red cup", "a cup"]}


@pytest.mark.parametrize(("export", "layout"), [(export_mindeye2, "mindeye2"), (export_brainjanus, "brainjanus")])
def test_pictures_come_back_by_id(data, tmp_path, export, layout):
    study = open_study(layout, export(data, tmp_path / "out").path, StudyOptions())
    size = {"mindeye2": 224, "brainjanus": 384}[layout]
    found = dict(study.pictures.read(list(study.pictures.ids), size))
    assert set(found) == {name for split in ("train", "val", "test") for name in data.split_ids(split)}
    for name, picture in found.items():
        from PIL import Image

        from brainjanus.data.readers.pictures import fit

        np.testing.assert_array_equal(picture, fit(Image.fromarray(data.images([name])[0]), size))


def members(path: Path) -> dict[str, np.ndarray]:
    with tarfile.open(path) as archive:
        return {m.name: np.load(io.BytesIO(archive.extractfile(m).read())) for m in archive}


def test_mindeye2_finds_what_its_own_code_asks_for(recording, tmp_path):
    """As its Train.py does: behav[:, 0, 0] is the image, behav[:, 0, 5] the row of the betas."""
    data = named(recording, NSD_IDS, tmp_path)
    out = export_mindeye2(data, tmp_path / "out").path
    with h5py.File(out / "betas_all_subj01_fp32_renorm.hdf5") as file:
        betas = file["betas"][:]
    with h5py.File(out / "coco_images_224_float16.hdf5") as file:
        assert file["images"].shape == (73_000, 3, 224, 224) and file["images"].dtype == np.float16
    assert betas.dtype == np.float32
    assert sorted(file.name for file in (out / "wds/subj01/train").iterdir()) == ["0.tar", "1.tar"]
    assert not (out / "wds/subj01/val").exists()
    seen = []
    for shard in ("train/0", "train/1", "new_test/0"):
        content = members(out / f"wds/subj01/{shard}.tar")
        for name, behav in content.items():
            if not name.endswith(".behav.npy") or "_behav" in name:
                continue
            key = name.removesuffix(".behav.npy")
            assert behav.shape == (1, 17)
            assert content[f"{key}.past_behav.npy"].shape == content[f"{key}.future_behav.npy"].shape == (15, 17)
            assert content[f"{key}.olds_behav.npy"].shape == (3, 17)
            seen.append((f"nsd-{int(behav[0, 0]):05}", betas[int(behav[0, 5])].tolist(), behav[0, 16] == 1))
            row = int(behav[0, 5])
            past = content[f"{key}.past_behav.npy"][:, 5]
            before = [r for r in range(row - 1, row - 16, -1) if r >= (0 if row < 12 else 12)]
            assert past[: len(before)].tolist() == before and (past[len(before) :] == -1).all()
            olds = content[f"{key}.olds_behav.npy"]
            assert set(olds[olds[:, 0] >= 0][:, 0]) <= {behav[0, 0]} and row not in olds[:, 5]
    trials, responses = data.trials("subj01"), data.responses("subj01")
    assert sorted(seen) == sorted(
        (name, response, split == "test")
        for name, response, split in zip(trials.stimulus_id, responses.tolist(), trials.split, strict=True)
    )


def test_brainjanus_has_its_files_in_bfloat16(recording, tmp_path):
    data = named(recording, NSD_IDS, tmp_path)
    out = export_brainjanus(data, tmp_path / "out").path
    there = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert {f"voxel/subj01_{name}_bf16.safetensors" for name in ("train", "train_avg", "test_avg")} <= there
    means = data.averages("subj01", "test")
    stored = load_file(out / "voxel/subj01_test_avg_bf16.safetensors")
    assert stored["voxels"].dtype == torch.bfloat16
    found = {f"nsd-{i:05}": row for i, row in zip(stored["ids"].tolist(), stored["voxels"], strict=True)}
    assert set(found) == set(means.stimulus_ids)
    for name, mean in zip(means.stimulus_ids, means.responses, strict=True):
        assert torch.equal(found[name], torch.from_numpy(mean).bfloat16())


@pytest.mark.parametrize(("export", "layout"), [(export_mindeye2, "mindeye2"), (export_brainjanus, "brainjanus")])
def test_the_card_comes_along_with_its_terms_and_notes(data, tmp_path, export, layout):
    card = data.path / CARD
    card.write_text(card.read_text().replace(INVITATION, "Consent form 7."))
    export(data, tmp_path / "out")
    text = (tmp_path / "out" / CARD).read_text()
    assert data.fingerprint in text and f"`brainjanus prepare --from {layout} FOLDER`" in text
    assert ("nsd-terms" in text) == data.stimulus_ids[0].startswith("nsd-")
    assert "Consent form 7." in text


@pytest.mark.parametrize("export", [export_mindeye2, export_brainjanus])
def test_an_existing_place_is_refused_and_left_alone(recording, tmp_path, export):
    data = recording.write(tmp_path / "dataset")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="expected a new folder, got something there"):
        export(data, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("export", [export_mindeye2, export_brainjanus])
def test_it_is_complete_or_not_there(recording, tmp_path, export, monkeypatch):
    data = recording.write(tmp_path / "dataset")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("brainjanus.data.export.fit", full)
    with pytest.raises(UserError, match="got a full disk"):
        export(data, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["dataset"]


@pytest.mark.parametrize("export", [export_mindeye2, export_brainjanus])
def test_without_pictures_it_is_refused(recording, tmp_path, export):
    recording.pixels = None
    data = recording.write(tmp_path / "dataset")
    with pytest.raises(UserError, match="peers train on them"):
        export(data, tmp_path / "out")


@pytest.mark.parametrize(("export", "layout"), [(export_mindeye2, "mindeye2"), (export_brainjanus, "brainjanus")])
def test_other_names_of_subjects_are_numbered_and_come_back(recording, tmp_path, export, layout):
    recording.space = replace(recording.space, subject="anna")
    out = export(recording.write(tmp_path / "dataset"), tmp_path / "out").path
    assert (out / "subjects.tsv").read_text() == "name\tsubject\nsubj01\tanna\n"
    assert open_study(layout, out, StudyOptions()).subjects[0].space.subject == "anna"
    (out / "subjects.tsv").write_text("name\tsubject\nsubj01\tanna\nsubj02\tanna\n")
    with pytest.raises(UserError, match=r"subjects\.tsv: expected each name and each subject once"):
        open_study(layout, out, StudyOptions())


def test_rois_go_the_way_of_mindeye2s_own(recording, tmp_path):
    inside = {"V1": np.arange(recording.space.num_sites) < 2, "a/b": np.arange(recording.space.num_sites) == 1}
    recording.space = replace(recording.space, rois=inside)
    out = export_mindeye2(recording.write(tmp_path / "dataset"), tmp_path / "out").path
    rois = open_study("mindeye2", out, StudyOptions()).subjects[0].space.rois
    assert {name: sites.tolist() for name, sites in rois.items()} == {
        name.replace("/", "_"): sites.tolist() for name, sites in inside.items()
    }
