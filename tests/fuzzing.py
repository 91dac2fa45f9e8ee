"""Files that are damaged or hostile, and what the readers make of them: of tests/data/test_fuzz.py and
benchmarks/data_fuzz.py.

Every reader has a folder of files that it reads whole. A case damages one of them (`damage`), reads, and compares
everything around with what was there before. Hostile files are made by hand: members and links that point outside,
pickles that would leave a file behind, bombs. As a program it works off cases, one line of JSON each, so that a
process that hangs or dies costs one case: python tests/fuzzing.py ARENA READER SEED FIRST END [CASE ..]
"""

import faulthandler
import gzip
import hashlib
import importlib
import io
import json
import os
import pickle
import resource
import shutil
import struct
import sys
import tarfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import nibabel
import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from scipy.io import loadmat, savemat

from brainjanus.core.config import load_config
from brainjanus.core.errors import UserError
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.layouts import open_study
from brainjanus.data.plan import StreamOptions
from brainjanus.data.prepare import PrepareConfig, prepare
from brainjanus.data.readers import epochs, hdf5, nifti, predictions, shards, tables, tensors
from brainjanus.data.readers.arrays import open_array, read_array
from brainjanus.data.readers.pictures import picture_names, read_pictures
from brainjanus.data.stream import stream_study
from brainjanus.data.study import StudyOptions
from brainjanus.data.write import write_dataset

GB = 1 << 30
ROOM = 2 * GB  # of address space that a worker may take beyond what it has when it begins
MOST_SEC = 20.0  # of one case
HASHED = 1 << 20  # larger files are compared by size and time
Build = Callable[[Path, Path], object]  # of a folder, and another one that is not to be touched
Read = Callable[[Path, Path], object]  # of a folder, and another one that is written to


class Reader(NamedTuple):
    """build: fills a folder. read: (folder, out) reads all of it, as users do; writes to `out` alone.

    command: the same as a command line, if there is one that does it. after: what is done to every other case once it
    is damaged, or what follows would never be read."""

    build: Callable[[Path], object]
    read: Read
    command: Callable[[Path, Path], list[str]] | None = None
    after: Callable[[Path], object] | None = None


class Hostile(NamedTuple):
    """A file that was made to do harm. build: (folder, outside), where files lie that are not to be touched.

    refused: whether it has to be refused; otherwise it may be read, for what it holds is harmless to whom reads it."""

    kind: str  # outside, pickle, bomb
    build: Build
    read: Read
    refused: bool = True


class Outcome(NamedTuple):
    """ended: read, refused, failed. said: the sentence, or the traceback. damaged: which file, how. changed: files that
    are not what they were, or new, outside of the target. grown: bytes of memory at the peak."""

    case: str
    ended: str
    said: str = ""
    damaged: str = ""
    changed: tuple[str, ...] = ()
    unpickled: bool = False
    grown: int = 0
    sec: float = 0.0
    notes: int = 0  # warnings of libraries


# ---- what is read


def rng(seed: object = 0) -> np.random.Generator:
    return np.random.default_rng(list(str(seed).encode()))


MATRIX = rng().normal(0, 2, (12, 6)).astype(np.float32)
NAMES = [f"s{i:02}" for i in range(12)]
PIXELS = rng().integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
GRID = (3, 4, 2)
MASK = np.arange(24).reshape(GRID) % 4 == 0  # 6 voxels


def image(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def tar_of(path: Path, members: Sequence[tuple[str, bytes]], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def zip_of(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # of a name that comes twice
        for name, data in members:
            archive.writestr(name, data)


def volume(path: Path, data: np.ndarray) -> None:
    nibabel.save(nibabel.Nifti1Image(data, np.diag([2, 2, 2, 1.0])), path)


def hdf5_of(path: Path, **arrays: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def table(path: Path, header: str, rows: Sequence[Sequence[object]]) -> None:
    path.write_text("\n".join([header.replace(" ", "\t"), *("\t".join(map(str, row)) for row in rows)]) + "\n")


def build_arrays(folder: Path) -> None:
    np.save(folder / "a.npy", MATRIX)
    np.savez(folder / "a.npz", a=MATRIX, b=NAMES)
    np.savez_compressed(folder / "c.npz", a=MATRIX)
    savemat(folder / "a.mat", {"a": MATRIX, "s": {"b": MATRIX, "c": "text"}})
    savemat(folder / "c.mat", {"a": MATRIX}, do_compression=True)
    savemat(folder / "4.mat", {"a": MATRIX}, format="4")
    with h5py.File(folder / "v73.mat", "w", userblock_size=512) as file:
        file["a"] = MATRIX.T
    with open(folder / "v73.mat", "r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    with h5py.File(folder / "a.h5", "w") as file:
        file["a"] = MATRIX
        file.create_dataset("g/b", data=MATRIX, chunks=(4, 6), compression="gzip", shuffle=True, fletcher32=True)
    save_file({"a": MATRIX, "b": MATRIX[:1]}, folder / "a.safetensors")


ARRAYS = ("a.npy", "a.npz:a", "c.npz", "a.mat:a", "a.mat:s.b", "c.mat", "4.mat", "v73.mat", "a.h5:a", "a.h5:g/b",
          "a.safetensors:a")  # fmt: skip


def read_arrays(folder: Path, out: Path) -> None:
    for source in ARRAYS:
        np.array(read_array(str(folder / source)))
        with open_array(str(folder / source)) as array:
            np.asarray(array[:1])


def build_pictures(folder: Path) -> None:
    kinds = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "PNG", "PNG", "PNG", "PNG", "PNG", "PNG")
    members = [(f"{name}.{kind.lower()}", image(p, kind)) for name, p, kind in zip(NAMES, PIXELS, kinds, strict=True)]
    (folder / "pictures").mkdir()
    for name, data in members:
        (folder / "pictures" / name).write_bytes(data)
    zip_of(folder / "p.zip", members)
    tar_of(folder / "p.tar", members)
    tar_of(folder / "p.tar.gz", members, "w:gz")
    tar_of(folder / "p.tar.bz2", members[:3], "w:bz2")
    tar_of(folder / "p.tar.xz", members[:3], "w:xz")
    np.save(folder / "p.npy", PIXELS)
    hdf5_of(folder / "p.h5", p=PIXELS.transpose(0, 3, 1, 2) / np.float32(255))


def read_all_pictures(source: Path) -> list[str]:
    names = picture_names(str(source))
    for _, picture in read_pictures(str(source), names, 8):
        assert picture.shape == (8, 8, 3)
    return names


def read_picture_sources(folder: Path, out: Path) -> None:
    for source in ("pictures", "p.zip", "p.tar", "p.tar.gz", "p.tar.bz2", "p.tar.xz", "p.npy", "p.h5"):
        read_all_pictures(folder / source)


def build_nifti(folder: Path) -> None:
    for suffix in (".nii", ".nii.gz"):
        volume(folder / f"mask{suffix}", MASK.astype(np.uint8))
        volume(folder / f"betas{suffix}", rng().integers(-3000, 3000, (*GRID, 12)).astype(np.int16))


def read_niftis(folder: Path, out: Path) -> None:
    for suffix in (".nii", ".nii.gz"):
        mask, betas = str(folder / f"mask{suffix}"), str(folder / f"betas{suffix}")
        where = nifti.read_mask(mask)
        nifti.read_roi(mask, where)
        nifti.read_labels(mask, where)
        nifti.grid_of(betas)
        nifti.betas_shape(betas, where)
        nifti.read_betas([betas], where)
        nifti.stream_betas(betas, where)


def build_predictions(folder: Path) -> None:
    (folder / "captions.json").write_text(json.dumps({name: f"a {name}" for name in NAMES}))
    table(folder / "captions.tsv", "stimulus_id caption", [(name, f"a {name}") for name in NAMES])
    np.savez(folder / "r.npz", responses=MATRIX, ids=NAMES)
    np.save(folder / "r.npy", MATRIX)
    (folder / "r.txt").write_text("\n".join(NAMES) + "\n")
    save_file(dict(zip(NAMES, MATRIX, strict=True)), folder / "keyed.safetensors")
    save_file({"responses": MATRIX, "standard_error": MATRIX}, folder / "made.safetensors")
    (folder / "rows.json").write_text(json.dumps(NAMES))
    volume(folder / "r.nii.gz", rng().random((*GRID, 12)).astype(np.float32))
    zip_of(folder / "p.zip", [(f"{name}.png", image(p)) for name, p in zip(NAMES, PIXELS, strict=True)])


def read_predictions(folder: Path, out: Path) -> None:
    where = nifti.volume_of(MASK, np.diag([2, 2, 2, 1.0]))
    space = BrainSpace("s", 6, geometry=where.geometry, index=where.voxels)
    for name in ("captions.json", "captions.tsv"):
        predictions.read_caption_predictions(folder / name)
    predictions.read_picture_predictions(str(folder / "p.zip"))
    for name in ("r.npz", "r.npy", "keyed.safetensors", "made.safetensors", "r.nii.gz"):
        ids = folder / "rows.json" if name.startswith("r.nii") else None
        predictions.read_response_predictions(str(folder / name), ids, space)


def build_tables(folder: Path) -> None:
    table(
        folder / "trials.tsv", "stimulus_id session run fold", [(n, i // 6 + 1, 1, i % 3) for i, n in enumerate(NAMES)]
    )
    (folder / "captions.json").write_text(json.dumps({name: ["a", "b"] for name in NAMES}))
    table(folder / "captions.tsv", "stimulus_id caption", [(name, "a") for name in NAMES])
    table(folder / "places.tsv", "x y z", np.round(MATRIX[:, :3], 3).tolist())
    table(folder / "sensors.tsv", "name x y z", [(f"E{i}", 90 * i, 10, -70 * i) for i in range(3)])
    (folder / "rois.json").write_text(json.dumps({"V1": [0, 1, 2], "V4": [5]}))
    table(folder / "rois.tsv", "site roi", [(0, "V1"), (5, "V4")])
    np.save(folder / "rois.npy", np.array(["V1", "V1", "", "V4", "", ""]))
    np.savez(folder / "f.npz", names=NAMES, features=MATRIX)
    np.save(folder / "f.npy", MATRIX)
    (folder / "f.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "ids.json").write_text(json.dumps(NAMES))


def read_tables(folder: Path, out: Path) -> None:
    tables.read_trials(folder / "trials.tsv")
    for name in ("captions.json", "captions.tsv"):
        tables.read_captions(folder / name)
    tables.read_coordinates(str(folder / "places.tsv"))
    tables.read_sensors(folder / "sensors.tsv", in_head=True)
    for name in ("rois.json", "rois.tsv", "rois.npy"):
        tables.read_rois([str(folder / name)], 6, None)
    for name in ("f.npz", "f.npy"):
        tables.read_features(str(folder / name))
    predictions.read_ids(folder / "ids.json")


def build_shards(folder: Path) -> None:
    members = []
    for i, row in enumerate(MATRIX):
        fortran = np.asfortranarray(np.stack([row, row, row])) if i % 2 else np.stack([row, row, row])
        members += [(f"sample{i:03}.x.npy", npy(fortran)), (f"sample{i:03}.id.npy", npy(np.array([i])))]
    tar_of(folder / "a.tar", members)
    (folder / "unpacked").mkdir()
    for name, data in members:
        (folder / "unpacked" / name).write_bytes(data)


def read_shards(folder: Path, out: Path) -> None:
    for place in ("a.tar", "unpacked"):
        samples = shards.shard_samples(folder / place, ("x.npy", "id.npy"))
        pieces = [parts["id.npy"] for parts in samples.values() if "id.npy" in parts]
        for piece, data in zip(pieces, shards.read_pieces(pieces), strict=True):
            shards.whole(piece, shards.parse_npy(piece, data), "image")
        list(shards.read_npy_rows([(parts["x.npy"], 2) for parts in samples.values() if "x.npy" in parts], 6))


def build_tensors(folder: Path) -> None:
    save_file({"a": MATRIX, "i": np.arange(12), "h": tensors.as_bfloat16(MATRIX)}, folder / "a.safetensors")
    raw = (folder / "a.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    told = raw[8 : 8 + length].replace(b'"U16"', b'"BF16"')
    (folder / "b.safetensors").write_bytes(len(told).to_bytes(8, "little") + told + raw[8 + length :])


def read_tensors(folder: Path, out: Path) -> None:
    for name in ("a", "b"):
        found = tensors.tensors_of(folder / f"{name}.safetensors")
        for key, place in found.items():
            tensors.as_float32(tensors.mapped(folder / f"{name}.safetensors", key, place), place.dtype)
        read_array(f"{folder / name}.safetensors:a")


def build_epochs(folder: Path) -> None:
    arrays = {"data": rng().normal(size=(4, 3, 2, 5)), "ch": np.array(["Oz", "Pz"]), "times": np.arange(5) / 250}
    np.savez(folder / "a.npz", **arrays)
    np.savez_compressed(folder / "c.npz", **arrays)
    hdf5_of(folder / "a.h5", **arrays | {"ch": ["Oz", "Pz"]})


def read_epochs(folder: Path, out: Path) -> None:
    for name in ("a.npz", "c.npz", "a.h5"):
        found = epochs.find_epochs(folder / name, "data", "ch", "times")
        found.read(0, 2)
        found.read(2, 4)


def build_hdf5(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "w") as file:
        file["g/x"] = MATRIX
        file["n"] = 7
        file.create_dataset("z", data=MATRIX, chunks=(4, 6), compression="gzip")


def read_hdf5(folder: Path, out: Path) -> None:
    path = folder / "a.h5"
    for key in ("g/x", "z"):
        with hdf5.open_dataset(path, key) as dataset:
            np.asarray(dataset[:4])
    with hdf5.open_hdf5(path) as file:
        hdf5.number_in(path, file, "n")
        list(hdf5.group_in(path, file, "g"))
        np.asarray(hdf5.dataset_in(path, file, "z", ndim=2)[()])


def build_prepare(folder: Path) -> None:
    np.savez(folder / "betas.npz", betas=MATRIX)
    table(folder / "trials.tsv", "stimulus_id session", [(name, i // 6 + 1) for i, name in enumerate(NAMES)])
    zip_of(folder / "p.zip", [(f"{name}.png", image(p)) for name, p in zip(NAMES, PIXELS, strict=True)])
    (folder / "captions.json").write_text(json.dumps({name: ["a cup"] for name in NAMES}))
    np.savez(folder / "f.npz", names=NAMES, features=MATRIX)
    table(folder / "places.tsv", "x y z", np.round(MATRIX[:6, :3], 3).tolist())
    (folder / "rois.json").write_text(json.dumps({"V1": [0, 1, 2]}))
    (folder / "spec.toml").write_text(
        'name = "small"\nimage_size = 8\npictures = ["p.zip"]\ncaptions = "captions.json"\nfeatures = "deep=f.npz"\n'
        'test_fraction = 0.3\nzscore = "all"\n[[subjects]]\nsubject = "one"\nresponses = "betas.npz"\n'
        'trials = "trials.tsv"\ncoordinates = "places.tsv"\nrois = ["rois.json"]\n'
    )
    table(folder / "bare.tsv", "stimulus_id", [(f"{name}.png",) for name in NAMES])
    text = (folder / "trials.tsv").read_text().replace("\t", ".png\t").replace("stimulus_id.png", "stimulus_id")
    (folder / "trials.tsv").write_text(text)
    text = (folder / "captions.json").read_text().replace('":', '.png":')
    (folder / "captions.json").write_text(text)
    np.savez(folder / "f.npz", names=[f"{name}.png" for name in NAMES], features=MATRIX)


def read_prepare(folder: Path, out: Path) -> None:
    prepare(PrepareConfig.load(folder / "spec.toml"), out / "dataset")


def build_prepare_nifti(folder: Path) -> None:
    volume(folder / "mask.nii.gz", MASK.astype(np.uint8))
    volume(folder / "v1.nii.gz", (np.arange(24).reshape(GRID) < 12).astype(np.uint8))
    volume(folder / "betas.nii.gz", rng().normal(size=(*GRID, 12)).astype(np.float32))
    members = [(f"{name}.png", image(p)) for name, p in zip(NAMES, PIXELS, strict=True)]
    tar_of(folder / "p.tar.gz", members, "w:gz")
    table(folder / "captions.tsv", "stimulus_id caption", [(f"{name}.png", "a cup") for name in NAMES])


def read_prepare_nifti(folder: Path, out: Path) -> None:
    config = PrepareConfig(
        responses=(str(folder / "betas.nii.gz"),), trials="in-order", mask=str(folder / "mask.nii.gz"), zscore="all",
        rois=(f"V1={folder / 'v1.nii.gz'}",), pictures=(str(folder / "p.tar.gz"),), image_size=8,
        captions=str(folder / "captions.tsv"),
    )  # fmt: skip
    prepare(config, out / "dataset")


def build_prepare_sensors(folder: Path) -> None:
    hdf5_of(folder / "eeg.h5", eeg=rng().normal(size=(12, 3, 5)).astype(np.float32))
    table(folder / "sensors.tsv", "name x y z", [(f"E{i}", 90 * i - 80, 10, -70 * i) for i in range(3)])
    table(folder / "trials.tsv", "stimulus_id split", [(n, "test" if i < 4 else "train") for i, n in enumerate(NAMES)])
    (folder / "captions.json").write_text(json.dumps({name: ["a cup"] for name in NAMES}))
    (folder / "rois.json").write_text(json.dumps({"occ": {"sensors": ["E1"], "window_sec": [0, 0.01]}}))


def read_prepare_sensors(folder: Path, out: Path) -> None:
    config = PrepareConfig(
        responses=(str(folder / "eeg.h5"),), trials=str(folder / "trials.tsv"), captions=str(folder / "captions.json"),
        sensors=str(folder / "sensors.tsv"), rois=(str(folder / "rois.json"),), sampling_hz=250.0, kind="sensors",
        zscore="all",
    )  # fmt: skip
    prepare(config, out / "dataset")


def build_dataset(folder: Path) -> None:
    ids = NAMES * 2
    trials = Trials(
        ids, np.repeat([1, 2], 12), np.ones(24, int), np.repeat([1, 2], 12), (["test"] * 4 + ["train"] * 8) * 2
    )
    places = rng().normal(size=(6, 3)).astype(np.float32)
    space = BrainSpace("one", 6, coordinates_mm=places, rois={"V1": np.arange(6) < 2})
    stimuli = Stimuli(
        NAMES, PIXELS, captions={name: ["a cup", "cup"] for name in NAMES},
        features={"deep": np.arange(72, dtype=np.float16).reshape(12, 2, 3)},
        further_captions={"vlm": {name: ["one cup"] for name in NAMES}},
    )  # fmt: skip
    responses = rng().normal(3, 2, (24, 6))
    write_dataset(folder / "dataset", name="small", modality="fMRI", subjects=[Subject(space, responses, trials)],
                  stimuli=stimuli, zscore="session")  # fmt: skip


def read_dataset(folder: Path, out: Path) -> None:
    dataset = Dataset.open(folder / "dataset")
    ids = dataset.stimulus_ids
    for subject in dataset.subjects:
        dataset.trials(subject), dataset.space(subject), dataset.zscore(subject), dataset.units(subject)
        dataset.responses(subject)
        dataset.averages(subject, "test")
    for source in (None, *dataset.caption_sources):
        [dataset.captions(name, source) for name in ids]
    if dataset.image_size is not None:
        dataset.images(ids)
        [dataset.pictures(name) for name in ids]
    for name in dataset.feature_names:
        dataset.features(name, ids)


def read_doctor(folder: Path, out: Path) -> None:
    from brainjanus.doctor import doctor

    doctor(folder / "dataset", out / "report")


def build_info(folder: Path) -> None:
    for build in (build_arrays, build_pictures, build_nifti, build_tables, build_dataset, build_prepare):
        build(folder)


def read_info(folder: Path, out: Path) -> None:
    from brainjanus.info import describe

    for path in (folder, *sorted(folder.rglob("*"))):
        described = describe(path)
        described.text(), described.json()


def build_config(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps({"image_size": 8, "zscore": "all", "val_fraction": 0.1, "name": "a"}))
    (folder / "a.toml").write_text('image_size = 8\nzscore = "all"\nval_fraction = 0.1\nname = "a"\n')


def read_config(folder: Path, out: Path) -> None:
    for name in ("a.json", "a.toml"):
        load_config(StreamOptions, folder / name)


def miniature(module: str) -> Any:
    """A module of tests/data/layouts, which build small files of each layout."""
    place = str(Path(__file__).parent / "data")
    if place not in sys.path:
        sys.path.append(place)
    return importlib.import_module(f"layouts.{module}")


def build_layout(name: str, variant: str = "") -> Callable[[Path], object]:
    def build(folder: Path) -> None:
        planted = miniature("conftest").Planted
        if name in ("nsd", "bids"):
            made = miniature(f"test_{name}")
            if name == "nsd":
                made.Miniature(folder / "files")
            elif not variant:
                made.Volumes(folder / "files")
            else:
                surfaces(made, folder / "files/derivatives/glm")
        elif name == "arrays":
            miniature("test_arrays").build(folder / "files")
        elif name.startswith("things"):
            root = folder / "files"
            miniature("test_things").build(root, name, suffix=variant or ".npz")
        else:
            module = "test_brainjanus_release" if name == "brainjanus" else f"test_{name}"
            options = {"unpacked": True} if variant == "unpacked" else {}
            miniature(module).build(folder / "files", planted(), **options)
        if name == "mindeye2":
            pictures = planted().pixels
            (folder / "vlm.json").write_text(json.dumps({str(image): [f"a {image}"] for image in pictures}))

    return build


def surfaces(made: Any, root: Path) -> None:
    """Betas of vertices, with labels and surfaces: GIfTI."""
    func = root / "sub-01/func"
    for side in "LR":
        stem = f"sub-01_task-see_hemi-{side}"
        made.gifti(func / f"{stem}_betas.func.gii", list(rng(side).normal(size=(6, 9)).astype(np.float32)))
        places = rng().normal(size=(9, 3)).astype(np.float32)
        made.gifti(root / f"sub-01/anat/sub-01_hemi-{side}_midthickness.surf.gii", [places])
        labels = (np.arange(9) % 3).astype(np.int32)
        made.gifti(root / f"sub-01/anat/sub-01_hemi-{side}_dseg.label.gii", [labels], {0: "no", 1: "V1", 2: "V2"})
    made.table(func / "sub-01_task-see_events.tsv", stimulus=["a", "b", "c", "d", "e", "a"])


def read_layout(name: str) -> Read:
    def read(folder: Path, out: Path) -> None:
        captions = (f"vlm={folder / 'vlm.json'}",) if name == "mindeye2" else ()
        root = folder / "files" / ("derivatives/glm" if name == "bids" else "")
        study = open_study(name, root, StudyOptions(captions=captions))
        stream_study(study, out / "dataset", StreamOptions(image_size=8, drop_constant_sites=True))

    return read


def layout(name: str, variant: str = "") -> Reader:
    def command(folder: Path, out: Path) -> list[str]:
        root = folder / "files" / ("derivatives/glm" if name == "bids" else "")
        return ["prepare", "--from", name, str(root), "--out", str(out / "dataset"), "--image-size", "8"]

    return Reader(build_layout(name, variant), read_layout(name), command)


READERS = {
    "arrays": Reader(build_arrays, read_arrays),
    "pictures": Reader(build_pictures, read_picture_sources),
    "nifti": Reader(build_nifti, read_niftis),
    "predictions": Reader(build_predictions, read_predictions),
    "tables": Reader(build_tables, read_tables),
    "shards": Reader(build_shards, read_shards),
    "tensors": Reader(build_tensors, read_tensors),
    "epochs": Reader(build_epochs, read_epochs),
    "hdf5": Reader(build_hdf5, read_hdf5),
    "prepare": Reader(
        build_prepare,
        read_prepare,
        lambda folder, out: ["prepare", "--config", str(folder / "spec.toml"), "--out", str(out / "dataset")],
    ),
    "prepare, NIfTI": Reader(build_prepare_nifti, read_prepare_nifti),
    "prepare, sensors": Reader(build_prepare_sensors, read_prepare_sensors),
    "dataset": Reader(
        build_dataset, read_dataset, lambda folder, out: ["info", str(folder / "dataset")], lambda folder: sized(folder)
    ),
    "doctor": Reader(
        build_dataset,
        read_doctor,
        lambda folder, out: ["doctor", str(folder / "dataset"), "--out", str(out / "report")],
        lambda folder: sized(folder),
    ),
    "info": Reader(build_info, read_info, lambda folder, out: ["info", str(folder / "a.npz")]),
    "config": Reader(build_config, read_config),
    "nsd": layout("nsd"),
    "mindeye2": layout("mindeye2"),
    "mindeye1": layout("mindeye1"),
    "mindeye1, unpacked": layout("mindeye1", "unpacked"),
    "mindllm": layout("mindllm"),
    "brainjanus": layout("brainjanus"),
    "things-eeg2": layout("things-eeg2"),
    "things-meg": layout("things-meg", ".h5"),
    "bids": layout("bids"),
    "bids, surfaces": layout("bids", "surfaces"),
    "plain arrays": layout("arrays"),
}  # fmt: skip


# ---- damages


class Payload:
    """Whoever unpickles it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def place(data: bytes, random: np.random.Generator) -> int:
    """A place in a file, most often near its beginning, where headers are, or at its end, where zip has them."""
    size, kind = len(data), random.random()
    if kind < 0.5:
        return int(min(random.exponential(max(size / 20, 100)), size - 1))
    return int(size - 1 - min(random.exponential(100), size - 1)) if kind < 0.6 else int(random.integers(size))


def broken(data: bytes, random: np.random.Generator) -> tuple[str, bytes]:
    """What transfers and disks do to bytes."""
    at = place(data, random)
    kind = ("truncated", "flipped", "flipped", "inserted", "cut out", "overwritten")[int(random.integers(6))]
    if kind == "truncated":
        return kind, data[:at]
    if kind == "inserted":
        return kind, data[:at] + random.bytes(int(random.integers(1, 600))) + data[at:]
    if kind == "cut out":
        return kind, data[:at] + data[at + int(random.integers(1, 600)) :]
    if kind == "overwritten":
        return kind, data[:at] + bytes([int(random.choice([0, 255]))]) * 16 + data[at + 16 :]
    flipped = bytearray(data)
    for _ in range(int(random.integers(1, 9))):
        flipped[min(at + int(random.integers(64)), len(data) - 1)] ^= 1 << int(random.integers(8))
    return kind, bytes(flipped)


def retyped(array: np.ndarray, random: np.random.Generator, mark: Path) -> tuple[str, np.ndarray]:
    """An array of another dtype, shape or with other values; Python objects bear a payload."""
    kinds: dict[str, Callable[[], np.ndarray]] = {
        "complex": lambda: array.astype(np.complex64),
        "bool": lambda: array.astype(bool),
        "text": lambda: array.astype("U8"),
        "bytes": lambda: array.astype("S8"),
        "structured": lambda: np.zeros(array.shape, [("a", "<f4"), ("b", "<i2")]),
        "big-endian": lambda: array.astype(array.dtype.newbyteorder(">")),
        "int64": lambda: np.full(array.shape, 2**62, np.int64),
        "uint8": lambda: np.zeros(array.shape, np.uint8),
        "dates": lambda: np.zeros(array.shape, "datetime64[s]"),
        "half": lambda: np.full(array.shape, 6e4, np.float16),
        "NaN": lambda: np.full(array.shape, np.nan),
        "one infinity": lambda: np.where(np.arange(array.size).reshape(array.shape) == 0, np.inf, 1.0),
        "large": lambda: np.full(array.shape, 3e38, np.float32),
        "negative": lambda: np.full(array.shape, -1.0),
        "constant": lambda: np.zeros(array.shape, np.float32),
        "scalar": lambda: np.float64(3).reshape(()),
        "no rows": lambda: array[:0] if array.ndim else array,
        "another axis": lambda: array[None],
        "turned": lambda: array.T,
        "fewer rows": lambda: array[1:] if array.ndim else array,
        "objects": lambda: np.array([Payload(mark)] * max(array.size, 1), dtype=object),
    }
    name = str(random.choice(list(kinds)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return name, kinds[name]()
        except (ValueError, TypeError):  # words that are no numbers
            return "zeros", np.zeros(array.shape)


def reshaped(path: Path, random: np.random.Generator, mark: Path) -> str | None:
    """Write a whole file of the same format with something else in it; what was done, or None: nothing of this kind."""
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if suffix == ".npy":
        kind, array = retyped(np.load(path), random, mark)
        path.write_bytes(npy(array))
    elif suffix == ".npz":
        with np.load(path) as content:
            arrays = dict(content)
        name = str(random.choice(list(arrays)))
        kind, arrays[name] = retyped(arrays[name], random, mark)
        np.savez(path, **arrays)
    elif suffix == ".mat" and b"7.3" not in path.read_bytes()[:20]:
        content = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
        name = str(random.choice(list(content)))
        kind, array = retyped(np.asarray(MATRIX if content[name].dtype.names else content[name]), random, mark)
        content[name] = array if array.dtype.kind not in "OMVS" else np.array([{"a": 1}], dtype=object)
        savemat(path, content)
    elif suffix in (".h5", ".hdf5", ".mat"):
        with h5py.File(path, "r+") as file:
            names: list[str] = []
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
            name = names[int(random.integers(len(names)))]
            old = file[name][()] if file[name].size < 1e6 else file[name][:2]
            kind, array = retyped(np.asarray(old), random, mark)
            del file[name]
            if array.dtype.kind in "OUMS":
                kind, array = "words", np.full(array.shape, b"word", dtype="S4")
            file[name] = array
    elif suffix == ".safetensors":
        kind = retold(path, random)
    elif suffix in (".nii", ".nii.gz"):
        source = nibabel.load(path)
        kind, array = retyped(np.asarray(source.dataobj), random, mark)
        if array.dtype.kind not in "fiuc" or array.dtype == np.float16:
            kind, array = "no numbers", np.zeros(GRID, [("R", "u1"), ("G", "u1"), ("B", "u1")])
        array = array if array.dtype != np.int64 else array.astype(np.int32)
        nibabel.save(nibabel.Nifti1Image(array, source.affine), path)
    elif suffix in (".png", ".jpg", ".jpeg"):
        kind = str(random.choice(["16 bits", "transparent", "palette", "CMYK", "one pixel", "many frames"]))
        path.write_bytes(odd_picture(kind))
    elif suffix in (".tsv", ".csv", ".txt"):
        kind = reworded(path, random)
    elif suffix in (".json", ".toml"):
        kind = revalued(path, random)
    elif suffix == ".tar":
        with tarfile.open(path) as archive:
            members = [(one.name, archive.extractfile(one).read()) for one in archive if one.isfile()]  # type: ignore
        which = int(random.integers(len(members)))
        name, data = members[which]
        if name.endswith(".npy"):
            kind, array = retyped(np.load(io.BytesIO(data)), random, mark)
            members[which] = (name, npy(array))
        else:
            kind = "no picture"
            members[which] = (name, odd_picture("16 bits"))
        tar_of(path, members)
    else:
        return None
    return kind


def odd_picture(kind: str) -> bytes:
    picture, file = Image.fromarray(PIXELS[0]), io.BytesIO()
    if kind == "16 bits":
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(file, "PNG")
    elif kind == "transparent":
        Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(file, "PNG")
    elif kind == "palette":
        picture.convert("P").save(file, "PNG", transparency=0)
    elif kind == "CMYK":
        picture.convert("CMYK").save(file, "JPEG")
    elif kind == "one pixel":
        picture.resize((1, 300)).save(file, "PNG")
    else:
        picture.save(file, "GIF", save_all=True, append_images=[picture.rotate(90)])
    return file.getvalue()


def retold(path: Path, random: np.random.Generator) -> str:
    """A safetensors file whose header says something else."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = str(random.choice([key for key in header if key != "__metadata__"]))
    facts = header[name]
    kind = str(random.choice(["dtype", "shape", "turned", "offsets", "huge", "nothing", "other name", "overlap"]))
    if kind == "dtype":
        facts["dtype"] = str(random.choice(["F64", "I64", "BOOL", "BF16", "F8_E4M3", "X1", "I32", "F32"]))
    elif kind == "turned":
        facts["shape"] = facts["shape"][::-1]
    elif kind == "shape":
        facts["shape"] = [int(np.prod(facts["shape"]))]
    elif kind == "offsets":
        facts["data_offsets"] = [int(n) for n in random.integers(-10, 10_000, 2)]
    elif kind == "huge":
        facts["shape"], facts["data_offsets"] = [2**40, 2**22], [0, 2**62]
    elif kind == "nothing":
        header[name] = {}
    elif kind == "overlap":
        facts["data_offsets"] = [0, facts["data_offsets"][1] - facts["data_offsets"][0]]
    else:
        header["../evil"] = header.pop(name)
    told = json.dumps(header).encode()
    path.write_bytes(len(told).to_bytes(8, "little") + told + data[8 + length :])
    return f"header: {kind}"


WORDS = (
    "", "nan", "inf", "--5", "-1", "1e400", "9" * 40, "9" * 5000, "²", "٣", "\0", "x" * 200_000, '"', "\ufeff", "é",
    "../../evil", "/etc/passwd", "a\rb", "None",
)  # fmt: skip


def reworded(path: Path, random: np.random.Generator) -> str:
    separator = "," if path.suffix == ".csv" else "\t"
    rows = [line.split(separator) for line in path.read_text(encoding="utf-8").split("\n")]
    row = int(random.integers(min(len(rows), 60)))
    column = int(random.integers(len(rows[row])))
    word = WORDS[int(random.integers(len(WORDS)))]
    if random.random() < 0.2:
        rows[row] = rows[row][:column]
        word = "a row that is short"
    elif random.random() < 0.1:
        rows.insert(row, list(rows[row]))
        word = "a row twice"
    else:
        rows[row][column] = word
    encoding = str(random.choice(["utf-8", "utf-8", "utf-8", "utf-16", "latin-1"]))
    path.write_bytes("\n".join(separator.join(cells) for cells in rows).encode(encoding, "replace"))
    return f"{encoding}: {word[:20]!r}"


VALUES = (
    "null", "true", "[]", "{}", "[[[]]]", "-1", "1e400", "NaN", "-Infinity", "9" * 40, "9" * 5000, '""', '"\\u0000"',
    '"\\ud800"', '"a\\nb"', '"../../evil"', '"/etc/passwd"', '{"a": 1, "a": 2}', "[null, 1]", '[1, "a"]',
    '"' + "x" * 70_000 + '"',
)  # fmt: skip


def revalued(path: Path, random: np.random.Generator) -> str:
    """JSON or TOML in which one value, found by its place in the text, is another."""
    text = path.read_text(encoding="utf-8")
    value = VALUES[int(random.integers(len(VALUES)))]
    if path.suffix == ".toml":
        lines = text.split("\n")
        which = int(random.integers(len(lines)))
        name = lines[which].partition("=")[0]
        lines[which] = f"{name}= {value}"
        changed = "\n".join(lines)
    else:
        content = json.loads(text)
        spots: list[tuple[Any, Any]] = []

        def walk(node: Any) -> None:
            for key, child in node.items() if isinstance(node, dict) else enumerate(node):
                spots.append((node, key))
                if isinstance(child, dict | list) and len(spots) < 3000:
                    walk(child)

        walk(content)
        node, key = spots[int(random.integers(len(spots)))]
        if isinstance(node, dict) and random.random() < 0.2:
            node.pop(key)
            value = f"no {key}"
        else:
            node[key] = "<here>"
        changed = json.dumps(content).replace('"<here>"', value)
        changed = value if random.random() < 0.05 else changed
    encoding = str(random.choice(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    path.write_bytes(changed.encode(encoding, "replace"))
    return f"{encoding}: {value[:20]}"


def damage(path: Path, others: Sequence[Path], random: np.random.Generator, mark: Path) -> str:
    """Damage a file in some way; returns which."""
    kind = random.random()
    if kind < 0.35:
        done = reshaped(path, random, mark)
        if done is not None:
            return done
    elif kind < 0.38:
        path.write_bytes(b"")
        return "empty"
    elif kind < 0.41:
        path.unlink()
        path.mkdir()
        return "a folder"
    elif kind < 0.43:
        path.unlink()
        return "missing"
    elif kind < 0.46:
        other = others[int(random.integers(len(others)))]
        path.write_bytes(other.read_bytes())
        return f"that is {other.name}"
    elif kind < 0.49:
        path.write_bytes(pickle.dumps(Payload(mark)))
        return "a pickle"
    elif kind < 0.50:
        path.write_bytes(random.bytes(int(random.integers(1, 4000))))
        return "noise"
    data = path.read_bytes()
    if path.suffix in (".gz", ".tgz") and random.random() < 0.5 and data[:2] == b"\x1f\x8b":
        done, data = broken(gzip.decompress(data), random)
        path.write_bytes(gzip.compress(data))
        return f"{done} inside"
    done, data = broken(data, random) if data else ("a byte", b"\0")
    path.write_bytes(data)
    return done


# ---- cases


def state(root: Path, leave_out: Path) -> dict[str, str]:
    """Every file and folder, and what is in it."""
    found = {}
    for file in sorted(root.rglob("*")):
        if file.is_relative_to(leave_out):
            continue
        facts = file.lstat()
        is_file = file.is_file() and not file.is_symlink()
        if is_file and facts.st_size < HASHED:
            found[str(file)] = hashlib.blake2b(file.read_bytes()).hexdigest()
        else:
            found[str(file)] = (
                f"{facts.st_mode} {facts.st_size if is_file else ''} {facts.st_mtime_ns if is_file else ''}"
            )
    return found


class Arena:
    """root/input is what is read, root/out the target; the rest, with the working directory, has to stay as it is."""

    def __init__(self, root: Path) -> None:
        self.root, self.input, self.out = root, root / "input", root / "out"
        self.outside, self.mark = root / "outside", root / "unpickled"
        for folder in (self.input, self.out, self.outside, root / "cwd"):
            folder.mkdir(parents=True)
        (self.outside / "canary.txt").write_text("what nobody reads or writes")
        hdf5_of(self.outside / "secret.h5", a=MATRIX)
        (self.outside / "secret.bin").write_bytes(MATRIX.tobytes())
        (self.outside / "secret.png").write_bytes(image(PIXELS[0]))

    def run(self, case: str, read: Read, damaged: str = "") -> Outcome:
        """Read what lies in the input. The clean-up of the target is ours; of all else, the reader's."""
        before = state(self.root, self.out)
        base = peak(reset=True)
        start = time.perf_counter()
        ended, said = "read", ""
        with warnings.catch_warnings(record=True) as notes, redirect_stderr(io.StringIO()):
            warnings.simplefilter("always")
            try:
                read(self.input, self.out)
            except UserError as error:
                ended, said = "refused", str(error)
                if "\n" in said:
                    ended, said = "failed", f"several lines: {said[:3000]}"
            except (Exception, SystemExit) as error:  # the bar of the whole: nothing else may be raised
                ended, said = "failed", f"{type(error).__name__}: {error}\n{traceback.format_exc()[-1800:]}"
        sec, grown = time.perf_counter() - start, peak() - base
        if sec > MOST_SEC:
            ended, said = "failed", f"took {sec:.0f} s"
        after = state(self.root, self.out)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        shutil.rmtree(self.out)
        self.out.mkdir()
        unpickled = self.mark.exists()
        if unpickled:
            self.mark.rmdir()
        return Outcome(case, ended, said, damaged, tuple(changed), unpickled, max(grown, 0), sec, len(notes))


def peak(reset: bool = False) -> int:
    """The most memory that this process had, since the last reset where the system can do that."""
    if reset:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    try:
        text = Path("/proc/self/status").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM"))) * 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def limit_memory() -> None:
    """Nothing may take more than ROOM from here on: a case that would has a MemoryError instead of the machine."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


class Cases:
    """All cases of one reader: the same number is the same case."""

    def __init__(self, name: str, root: Path, seed: int) -> None:
        self.name, self.reader, self.seed, self.arena = name, READERS[name], seed, Arena(root)
        self.reader.build(self.arena.input)
        self.whole = root / "whole"
        shutil.copytree(self.arena.input, self.whole)
        self.files = [one.relative_to(self.whole) for one in sorted(self.whole.rglob("*")) if one.is_file()]
        sound = self.arena.run(name, self.reader.read)
        if sound.ended != "read":
            raise AssertionError(f"{name}: what was not damaged has to be read, got {sound.said}")

    def damaged(self, number: int) -> tuple[Path, str]:
        random = rng((self.name, self.seed, number))
        file = self.files[int(random.integers(len(self.files)))]
        others = [self.whole / one for one in self.files if (self.whole / one).stat().st_size < HASHED]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = damage(self.arena.input / file, others, random, self.arena.mark)
        if self.reader.after is not None and number % 2:
            self.reader.after(self.arena.input)
        return file, done

    def restore(self, file: Path) -> None:
        if self.reader.after is not None:
            shutil.rmtree(self.arena.input)
            shutil.copytree(self.whole, self.arena.input)
            return
        target = self.arena.input / file
        if target.is_dir():
            shutil.rmtree(target)
        shutil.copyfile(self.whole / file, target)

    def run(self, number: int) -> Outcome:
        file, done = self.damaged(number)
        outcome = self.arena.run(f"{self.name} {number}", self.reader.read, f"{file}: {done}")
        self.restore(file)
        return outcome


def run_hostile(name: str, root: Path) -> Outcome:
    arena = Arena(root)
    one = HOSTILE[name]
    one.build(arena.input, arena.outside)
    outcome = arena.run(name, one.read, name)
    if one.refused and outcome.ended == "read":
        return outcome._replace(ended="failed", said="it was read")
    return outcome


# ---- hostile files


def zeros(size: int, wrapped: str = "", first: bytes = b"") -> bytes:
    """`first` and as many zeros as make `size` bytes, deflated without ever being in memory; checksums are wrong.

    wrapped: "gzip", "zlib" or "" (as in zip)."""
    deflate = zlib.compressobj(9, wbits=-15)
    head = deflate.compress(first) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = 1 << 22
    one = deflate.compress(bytes(block)) + deflate.flush(zlib.Z_FULL_FLUSH)
    rest = (size - len(first)) % block
    last = deflate.compress(bytes(rest)) + deflate.flush()
    raw = head + one * ((size - len(first)) // block) + last
    if wrapped == "gzip":
        return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + raw + struct.pack("<II", 0, size & 0xFFFFFFFF)
    return b"\x78\xda" + raw + bytes(4) if wrapped == "zlib" else raw


def zip_bomb(path: Path, name: str, size: int, first: bytes = b"") -> None:
    """An archive with one deflated member of that many bytes."""
    data, called = zeros(size, first=first), name.encode()
    facts = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, 0, len(data), size, len(called), 0)
    local = b"PK\x03\x04" + facts + called
    central = b"PK\x01\x02" + struct.pack("<H", 20) + facts + bytes(14) + called
    central = b"PK\x01\x02" + struct.pack("<H", 20) + facts + struct.pack("<HHHII", 0, 0, 0, 0, 0) + called
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local) + len(data), 0)
    path.write_bytes(local + data + central + end)


def tar_gz_bomb(path: Path, name: str, size: int, kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    padded = size + -size % 512 + 1024
    path.write_bytes(zeros(512 + padded, "gzip", info.tobuf(tarfile.GNU_FORMAT)))


def npy_header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def hdf5_bomb(
    path: Path, key: str, shape: tuple[int, ...], dtype: str = "f4", chunk: tuple[int, ...] | None = None
) -> None:
    """A dataset of that shape: written chunks that are gzipped zeros, or, without `chunk`, nothing but a fill value."""
    with h5py.File(path, "a") as file:
        if chunk is None:
            file.create_dataset(key, shape, dtype, fillvalue=1, chunks=tuple(min(n, 1024) for n in shape))
            return
        dataset = file.create_dataset(key, shape, dtype, chunks=chunk, compression="gzip")
        data = zeros(int(np.prod(chunk)) * np.dtype(dtype).itemsize, "zlib")
        for first in range(0, shape[0], chunk[0]):
            dataset.id.write_direct_chunk((first, *[0] * (len(shape) - 1)), data)


def png_bomb(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zeros((3 * side + 1) * side, "zlib")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def nifti_bomb(path: Path, shape: tuple[int, ...], dtype: type = np.int8) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    path.write_bytes(zeros(352 + size, "gzip", header.binaryblock + bytes(4)))


def mat_element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def mat_array(flags: int, *parts: bytes, shape: tuple[int, int] = (1, 1), name: bytes = b"a") -> bytes:
    head = mat_element(6, struct.pack("<II", flags, 0)) + mat_element(5, struct.pack("<ii", *shape))
    return mat_element(14, head + mat_element(1, name) + b"".join(parts))


MAT_HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
NUMBER = mat_array(6, mat_element(9, struct.pack("<d", 1)), name=b"")


def mat_bomb(path: Path, shape: tuple[int, int]) -> None:
    size = shape[0] * shape[1] * 8
    head = mat_element(6, struct.pack("<II", 6, 0)) + mat_element(5, struct.pack("<ii", *shape)) + mat_element(1, b"a")
    first = struct.pack("<II", 14, len(head) + 8 + size) + head + struct.pack("<II", 9, size)
    path.write_bytes(MAT_HEADER + mat_element(15, zeros(len(first) + size, "zlib", first)))


def gifti_bomb(path: Path, size: int) -> None:
    import base64

    data = base64.b64encode(zeros(size, "zlib")).decode()
    gifti_text(path, f"<Data>{data}</Data>", "GZipBase64Binary", size)


def gifti_text(path: Path, data: str, encoding: str, size: int, more: str = "") -> None:
    path.write_text(
        f'<?xml version="1.0"?>\n<GIFTI Version="1.0" NumberOfDataArrays="1"><DataArray Intent="NIFTI_INTENT_NONE" '
        f'DataType="NIFTI_TYPE_FLOAT32" ArrayIndexingOrder="RowMajorOrder" Dimensionality="1" Dim0="{size // 4}" '
        f'Encoding="{encoding}" Endian="LittleEndian" {more}>{data}</DataArray></GIFTI>'
    )


def points_outside(kind: str, path: Path, outside: Path, key: str = "a") -> None:
    """An HDF5 file whose dataset is elsewhere."""
    with h5py.File(path, "a") as file:
        if kind == "an external link":
            file[key] = h5py.ExternalLink(str(outside / "secret.h5"), "/a")
        elif kind == "a soft link to an external one":
            file["to"] = h5py.ExternalLink(str(outside / "secret.h5"), "/")
            file[key] = h5py.SoftLink("/to/a")
        elif kind == "a virtual dataset":
            layout = h5py.VirtualLayout(MATRIX.shape, "f4")
            layout[:] = h5py.VirtualSource(str(outside / "secret.h5"), "a", MATRIX.shape)
            file.create_virtual_dataset(key, layout)
        else:
            file.create_dataset(key, MATRIX.shape, "f4", external=[(str(outside / "secret.bin"), 0, MATRIX.nbytes)])


LINKS = ("an external link", "a soft link to an external one", "a virtual dataset", "external storage")


def odd_members(path: Path, outside: Path, kind: str, name: str, mode: str = "w") -> None:
    """A tar with one member that is no plain file inside."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        info = tarfile.TarInfo(name)
        data = image(PIXELS[0]) if name.endswith("png") else npy(MATRIX)
        if kind in ("a symbolic link", "a hard link"):
            info.type = tarfile.SYMTYPE if kind == "a symbolic link" else tarfile.LNKTYPE
            info.linkname, data = str(outside / "secret.png"), b""
        elif kind == "a device":
            info.type, info.devmajor, info.devminor, data = tarfile.CHRTYPE, 1, 5, b""
        elif kind == "a pipe":
            info.type, data = tarfile.FIFOTYPE, b""
        elif kind == "a path above":
            info.name = f"../outside/{name}"
        elif kind == "an absolute path":
            info.name = str(outside / name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
        if kind == "a member twice":
            archive.addfile(info, io.BytesIO(data))


MEMBERS = ("a symbolic link", "a hard link", "a device", "a pipe", "a path above", "an absolute path", "a member twice")
INSIDE = ("a path above", "an absolute path")  # as names of pictures, which are never paths, they do no harm


def array_at(name: str) -> Read:
    return lambda folder, out: np.array(read_array(str(folder / name)))


def arrays_of_pickles(path: Path, mark: Path) -> None:
    objects = np.array([Payload(mark)] * 12, dtype=object)
    if path.suffix == ".npy":
        np.save(path, objects, allow_pickle=True)
    else:
        np.savez(path, a=objects, ids=objects, names=objects, features=objects, data=objects, ch=objects, times=objects)


def read_shard(folder: Path, out: Path) -> None:
    pieces = [parts["x.npy"] for parts in shards.shard_samples(folder / "a.tar", ("x.npy",)).values()]
    for piece, data in zip(pieces, shards.read_pieces(pieces), strict=True):
        shards.parse_npy(piece, data)


def spoiled(name: str, change: Build, variant: str = "") -> Build:
    """A layout's files, of which something is hostile."""

    def build(folder: Path, outside: Path) -> None:
        build_layout(name, variant)(folder)
        change(folder / "files", outside)

    return build


def replaced(file: str, key: str, kind: str) -> Build:
    def change(root: Path, outside: Path) -> None:
        with h5py.File(root / file, "r+") as opened:
            del opened[key]
        points_outside(kind, root / file, outside, key)

    return change


def renamed_member(file: str, name: str) -> Build:
    def change(root: Path, outside: Path) -> None:
        with tarfile.open(root / file) as archive:
            members = [(one.name, archive.extractfile(one).read()) for one in archive]  # type: ignore[union-attr]
        tar_of(root / file, [(name.format(members[0][0]), members[0][1]), *members[1:]])

    return change


def pickled_member(file: str, extension: str) -> Build:
    def change(root: Path, outside: Path) -> None:
        with tarfile.open(root / file) as archive:
            members = [(one.name, archive.extractfile(one).read()) for one in archive]  # type: ignore[union-attr]
        evil = npy(np.array([Payload(outside.parent / "unpickled")], dtype=object), allow_pickle=True)
        which = next(i for i, (name, _) in enumerate(members) if name.endswith(extension))
        members[which] = (members[which][0], evil)
        tar_of(root / file, members)

    return change


def spec_with(**changes: str) -> Build:
    """A spec whose names point outside of the dataset that it makes."""

    def build(folder: Path, outside: Path) -> None:
        build_prepare(folder)
        text = (folder / "spec.toml").read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(f'"{old}', f'"{new}')
        (folder / "spec.toml").write_text(text)

    return build


def manifest_with(change: Callable[[dict[str, Any]], object]) -> Build:
    def build(folder: Path, outside: Path) -> None:
        build_dataset(folder)
        manifest = json.loads((folder / "dataset/dataset.json").read_text())
        change(manifest)
        (folder / "dataset/dataset.json").write_text(json.dumps(manifest))

    return build


def deep(path: Path) -> None:
    path.write_text("[" * 100_000 + "]" * 100_000 if path.suffix == ".json" else "a = " + "[" * 100_000)


def deep_dataset(folder: Path, outside: Path) -> None:
    build_dataset(folder)
    deep(folder / "dataset/dataset.json")


def captions_from(folder: Path, out: Path) -> object:
    from brainjanus.data.captions import caption_sources

    return caption_sources([f"vlm={folder / 'a.json'}"], NAMES)


def masks(folder: Path, out: Path) -> object:
    return nifti.read_mask(str(folder / "a.nii.gz"))


def streamed(folder: Path, out: Path) -> object:
    mask = nifti.volume_of(np.ones((1, 1, 1), bool), np.eye(4))
    return nifti.stream_betas(str(folder / "a.nii.gz"), mask, same_affine=False)


def betas(folder: Path, out: Path) -> object:
    mask = nifti.volume_of(np.ones((64, 64, 32), bool), np.eye(4))
    return nifti.read_betas([str(folder / "a.nii.gz")], mask)


def whole_dataset(folder: Path, out: Path) -> object:
    with hdf5.open_hdf5(folder / "a.h5") as file:
        return hdf5.dataset_in(folder / "a.h5", file, "a", ndim=2)[()]


def opened_dataset(folder: Path, out: Path) -> object:
    with hdf5.open_dataset(folder / "a.h5", "a") as dataset:
        return np.asarray(dataset[:2])


def surface(folder: Path, out: Path) -> object:
    from brainjanus.data.layouts.bids_sites import _gifti

    return _gifti(folder / "a.func.gii")


def found_epochs(name: str) -> Read:
    return lambda folder, out: epochs.find_epochs(folder / name, "data", "ch", "times").read(0, 1)


def hostile() -> dict[str, Hostile]:
    """All hostile files, by name."""
    found: dict[str, Hostile] = {}

    def add(name: str, kind: str, build: Build, read: Read, refused: bool = True) -> None:
        found[name] = Hostile(kind, build, read, refused)

    for kind in LINKS:
        for suffix in (".h5", ".mat"):

            def build(folder: Path, outside: Path, kind: str = kind, suffix: str = suffix) -> None:
                points_outside(kind, folder / f"a{suffix}", outside)
                if suffix == ".mat":
                    data = (folder / "a.mat").read_bytes()
                    (folder / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + data)

            add(f"{kind}, array{suffix}", "outside", build, array_at(f"a{suffix}:a"))
        add(f"{kind}, hdf5", "outside", lambda f, o, k=kind: points_outside(k, f / "a.h5", o), whole_dataset)
        add(f"{kind}, one dataset", "outside", lambda f, o, k=kind: points_outside(k, f / "a.h5", o), opened_dataset)
        add(
            f"{kind}, pictures",
            "outside",
            lambda f, o, k=kind: points_outside(k, f / "a.h5", o),
            lambda f, o: read_all_pictures(f / "a.h5"),
        )
        add(
            f"{kind}, epochs",
            "outside",
            lambda f, o, k=kind: points_outside(k, f / "a.h5", o, "data"),
            found_epochs("a.h5"),
        )
        for name, file, key in (
            ("mindeye2", "betas_all_subj01_fp32_renorm.hdf5", "betas"),
            ("mindeye2", "coco_images_224_float16.hdf5", "images"),
            ("mindllm", "subject_1.h5", "train"),
            ("things-meg", "sub-01/preprocessed_meg_training.h5", "meg_data"),
            ("things-meg", "sub-01/preprocessed_meg_training.h5", "times"),
        ):
            variant = ".h5" if name == "things-meg" else ""
            add(
                f"{kind}, {name} {key}", "outside", spoiled(name, replaced(file, key, kind), variant), read_layout(name)
            )
    for kind in MEMBERS:
        for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz")):
            add(
                f"{kind}, pictures{suffix}",
                "outside",
                lambda f, o, k=kind, s=suffix, m=mode: odd_members(f / f"a{s}", o, k, "x.png", m),
                lambda f, o, s=suffix: read_all_pictures(f / f"a{s}"),
                refused=kind not in INSIDE,
            )
        add(f"{kind}, shard", "outside", lambda f, o, k=kind: odd_members(f / "a.tar", o, k, "s0.x.npy"), read_shard)
    for name in ("../outside/x.png", "{}/x.png", "C:\\x.png"):
        add(
            f"zip member {name}",
            "outside",
            lambda f, o, n=name: zip_of(f / "a.zip", [(n.format(o), image(PIXELS[0]))]),
            lambda f, o: read_all_pictures(f / "a.zip"),
            refused=False,
        )
    add(
        "zip member twice",
        "outside",
        lambda f, o: zip_of(f / "a.zip", [("x.png", image(PIXELS[0]))] * 2),
        lambda f, o: read_all_pictures(f / "a.zip"),
    )
    for name, file in (("mindeye1", "train/train_subj01_0.tar"), ("mindeye2", "wds/subj01/train/0.tar")):
        for evil in ("../../outside/{}", "/tmp/{}"):
            add(f"member {evil}, {name}", "outside", spoiled(name, renamed_member(file, evil)), read_layout(name))
    add("a subject named ../../evil", "outside", spec_with(one="../../evil"), read_prepare)
    add("an absolute subject", "outside", spec_with(one="/tmp/brainjanus-evil"), read_prepare)
    add("features named ../../evil", "outside", spec_with(**{"deep=": "../../../evil="}), read_prepare)
    add(
        "a source of captions named ../evil",
        "outside",
        build_layout_and_captions,
        lambda f, o: stream_study(
            open_study("mindeye2", f / "files", StudyOptions(captions=(f"../../evil={f / 'vlm.json'}",))), o / "dataset"
        ),
    )
    add(
        "a manifest whose files are outside",
        "outside",
        manifest_with(lambda m: m["files"].update({"../../outside/canary.txt": {"bytes": 26}})),
        read_dataset,
    )
    add(
        "a manifest whose subject is outside",
        "outside",
        manifest_with(lambda m: m.update(subjects=["../../../outside"])),
        read_dataset,
    )
    add(
        "a surface whose numbers are outside",
        "outside",
        lambda f, o: gifti_text(
            f / "a.func.gii",
            "<Data></Data>",
            "ExternalFileBinary",
            MATRIX.nbytes,
            f'ExternalFileName="{o / "secret.bin"}" ExternalFileOffset="0"',
        ),
        surface,
    )

    mark = lambda folder: folder.parent / "unpickled"  # noqa: E731
    for suffix in (".npy", ".npz"):

        def pickled(folder: Path, outside: Path, suffix: str = suffix) -> None:
            arrays_of_pickles(folder / f"a{suffix}", mark(folder))
            (folder / "a.txt").write_text("\n".join(NAMES))

        name, key = f"a{suffix}", ":a" if suffix == ".npz" else ""
        ways: dict[str, Read] = {
            "array": array_at(name + key),
            "pictures": lambda f, o, s=name + key: picture_names(str(f / s)),
            "responses": lambda f, o, s=name + key: predictions.read_response_predictions(str(f / s)),
            "ids": lambda f, o, s=name + key: predictions.row_ids(str(f / s), 12, f / s),
            "features": lambda f, o, s=name: tables.read_features(str(f / s)),
            "ROIs": lambda f, o, s=name + key: tables.read_rois([str(f / s)], 12, None),
            "coordinates": lambda f, o, s=name + key: tables.read_coordinates(str(f / s)),
        }
        for way, read in ways.items():
            if (suffix, way) != (".npy", "ids"):
                add(f"pickled {suffix}, {way}", "pickle", pickled, read)
    add(
        "pickled ids in npz",
        "pickle",
        lambda f, o: np.savez(f / "a.npz", responses=MATRIX, ids=np.array([Payload(mark(f))] * 12, dtype=object)),
        lambda f, o: predictions.read_response_predictions(str(f / "a.npz")),
    )
    add("pickled npz, epochs", "pickle", lambda f, o: arrays_of_pickles(f / "a.npz", mark(f)), found_epochs("a.npz"))
    for name in ("a.npy", "a.npz", "a.mat", "a.h5", "a.safetensors"):
        add(
            f"a bare pickle called {name}",
            "pickle",
            lambda f, o, n=name: (f / n).write_bytes(pickle.dumps(Payload(mark(f)))),
            array_at(name),
        )
    add(
        "pickled member, shard",
        "pickle",
        lambda f, o: tar_of(
            f / "a.tar", [("s.x.npy", npy(np.array([Payload(mark(f))], dtype=object), allow_pickle=True))]
        ),
        read_shard,
    )
    add(
        "pickled member, mindeye1",
        "pickle",
        spoiled("mindeye1", pickled_member("train/train_subj01_0.tar", "nsdgeneral.npy")),
        read_layout("mindeye1"),
    )
    add(
        "pickled numbers, mindeye2",
        "pickle",
        spoiled("mindeye2", pickled_member("wds/subj01/train/0.tar", ".behav.npy")),
        read_layout("mindeye2"),
    )

    def things(root: Path, outside: Path) -> None:
        file = root / "sub-01/preprocessed_eeg_training.npz"
        file.unlink()
        file.with_suffix(".npy").write_bytes(
            npy(np.array({"a": Payload(outside.parent / "unpickled")}, dtype=object), allow_pickle=True)
        )

    add("things-eeg2 as published", "pickle", spoiled("things-eeg2", things), read_layout("things-eeg2"))
    add(
        "a function in .mat",
        "pickle",
        lambda f, o: (f / "a.mat").write_bytes(MAT_HEADER + mat_array(16, NUMBER)),
        array_at("a.mat:a"),
    )
    add(
        "an object in .mat",
        "pickle",
        lambda f, o: (f / "a.mat").write_bytes(
            MAT_HEADER
            + mat_array(
                3, mat_element(1, b"evil"), mat_element(5, struct.pack("<i", 4)), mat_element(1, b"x\0\0\0"), NUMBER
            )
        ),
        array_at("a.mat:a"),
    )
    for name in ("a.npy", "a.npz", "a.pt", "a.pkl", "a.mat"):

        def anything(folder: Path, outside: Path, name: str = name) -> None:
            if name.startswith("a.np"):
                arrays_of_pickles(folder / name, mark(folder))
            else:
                (folder / name).write_bytes(pickle.dumps(Payload(mark(folder))))

        add(f"info of a pickled {name}", "pickle", anything, read_info, refused=False)

    huge = 4 * GB
    add(
        "zip bomb, pictures",
        "bomb",
        lambda f, o: zip_bomb(f / "a.zip", "x.png", huge - 2),
        lambda f, o: read_all_pictures(f / "a.zip"),
    )
    add(
        "tar.gz bomb, pictures",
        "bomb",
        lambda f, o: tar_gz_bomb(f / "a.tar.gz", "x.png", huge),
        lambda f, o: read_all_pictures(f / "a.tar.gz"),
    )
    add(
        "tar.gz bomb, a long name",
        "bomb",
        lambda f, o: tar_gz_bomb(f / "a.tar.gz", "x", huge, tarfile.GNUTYPE_LONGNAME),
        lambda f, o: read_all_pictures(f / "a.tar.gz"),
    )
    add(
        "tar.gz bomb, facts of a member",
        "bomb",
        lambda f, o: tar_gz_bomb(f / "a.tar.gz", "x", huge, tarfile.XHDTYPE),
        lambda f, o: read_all_pictures(f / "a.tar.gz"),
    )
    add(
        "PNG of 13,000 x 13,000",
        "bomb",
        lambda f, o: zip_of(f / "a.zip", [("x.png", png_bomb(13_000))]),
        lambda f, o: read_all_pictures(f / "a.zip"),
    )
    add(
        "PNG of 60,000 x 60,000",
        "bomb",
        lambda f, o: (f / "x.png").write_bytes(png_bomb(60_000)),
        lambda f, o: read_all_pictures(f),
    )
    add("mask of zeros, .nii.gz", "bomb", lambda f, o: nifti_bomb(f / "a.nii.gz", (1200, 1200, 1000)), masks)
    add(
        "small mask of zeros, .nii.gz",
        "bomb",
        lambda f, o: nifti_bomb(f / "a.nii.gz", (640, 640, 640), np.float64),
        masks,
    )
    add("betas of zeros, .nii.gz", "bomb", lambda f, o: nifti_bomb(f / "a.nii.gz", (64, 64, 32, 30_000)), betas)
    add(
        "a billion trials, .nii.gz",
        "bomb",
        lambda f, o: nifti_bomb(f / "a.nii.gz", (1, 1, 1, 32_767)),
        streamed,
        refused=False,
    )

    def lying(folder: Path, outside: Path) -> None:
        nifti_bomb(folder / "a.nii.gz", (64, 64, 32, 10))
        head = bytearray(gzip.GzipFile(folder / "a.nii.gz").read(352))
        head[40:56] = struct.pack("<8h", 4, 32_767, 32_767, 32_767, 32_767, 1, 1, 1)
        (folder / "a.nii.gz").write_bytes(zeros(1 << 22, "gzip", bytes(head)))

    add("a header that lies, .nii.gz", "bomb", lying, betas)
    add(
        "HDF5 of a fill value, array",
        "bomb",
        lambda f, o: hdf5_bomb(f / "a.h5", "a", (1 << 20, 1 << 12)),
        array_at("a.h5:a"),
    )
    add(
        "HDF5 of a fill value, 3 GB",
        "bomb",
        lambda f, o: hdf5_bomb(f / "a.h5", "a", (3 << 8, 1 << 20)),
        array_at("a.h5:a"),
    )

    def matlab(folder: Path, outside: Path) -> None:
        hdf5_bomb(folder / "a.h5", "a", (3 << 8, 1 << 20))
        (folder / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + (folder / "a.h5").read_bytes())

    add("mat v7.3 of a fill value", "bomb", matlab, array_at("a.mat:a"))
    add(
        "HDF5 of a fill value, one dataset",
        "bomb",
        lambda f, o: hdf5_bomb(f / "a.h5", "a", (1 << 20, 1 << 12)),
        whole_dataset,
    )
    gzipped = lambda f, o, shape=(8, 1 << 26), chunk=(1, 1 << 26): hdf5_bomb(f / "a.h5", "a", shape, "f4", chunk)  # noqa: E731
    add("HDF5 of gzipped zeros, array", "bomb", gzipped, array_at("a.h5:a"))
    add("HDF5 of gzipped zeros, one dataset", "bomb", gzipped, whole_dataset)
    add(
        "HDF5 with chunks of 2 GB",
        "bomb",
        lambda f, o: hdf5_bomb(f / "a.h5", "a", (16, 1 << 25), "f4", (16, 1 << 25)),
        opened_dataset,
    )
    add(
        "HDF5 of pictures, 30,000 x 30,000",
        "bomb",
        lambda f, o: hdf5_bomb(f / "a.h5", "a", (1, 30_000, 30_000, 3), "u1"),
        lambda f, o: read_all_pictures(f / "a.h5"),
    )
    add("mat of gzipped zeros", "bomb", lambda f, o: mat_bomb(f / "a.mat", (1 << 14, 1 << 14)), array_at("a.mat"))
    for shape in ((1 << 40,), (1 << 29,), (1 << 62, 1 << 62), (10**30,)):
        add(
            f"npy that says {shape}",
            "bomb",
            lambda f, o, s=shape: (f / "a.npy").write_bytes(npy_header(s) + bytes(64)),
            array_at("a.npy"),
        )
        add(
            f"npz that says {shape}",
            "bomb",
            lambda f, o, s=shape: zip_of(f / "a.npz", [("a.npy", npy_header(s) + bytes(64))]),
            array_at("a.npz"),
        )
    add(
        "npz of zeros",
        "bomb",
        lambda f, o: zip_bomb(f / "a.npz", "a.npy", huge - 2, npy_header((huge // 4 - 40,))),
        array_at("a.npz"),
    )
    add(
        "npz of zeros, responses",
        "bomb",
        lambda f, o: zip_bomb(f / "a.npz", "responses.npy", huge - 2, npy_header((huge // 4 - 40,))),
        lambda f, o: predictions.read_response_predictions(str(f / "a.npz")),
    )
    add(
        "npz of zeros, ids",
        "bomb",
        lambda f, o: zip_bomb(f / "a.npz", "ids.npy", huge - 2, npy_header((huge // 4 - 40,))),
        lambda f, o: predictions.row_ids(str(f / "a.npz"), 12, None),
    )
    add(
        "npz of zeros, epochs",
        "bomb",
        lambda f, o: zip_bomb(f / "a.npz", "ch.npy", huge - 2, npy_header((huge // 4 - 40,))),
        found_epochs("a.npz"),
    )
    add("surface of gzipped zeros", "bomb", lambda f, o: gifti_bomb(f / "a.func.gii", 2 * GB), surface)
    add(
        "XML of a billion laughs",
        "bomb",
        lambda f, o: (f / "a.func.gii").write_text(
            '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b0 "ha">'
            + "".join(f'<!ENTITY b{i + 1} "{f"&b{i};" * 10}">' for i in range(10))
            + "]><GIFTI>&b10;</GIFTI>"
        ),
        surface,
    )
    deeps: dict[str, Read] = {
        "captions": lambda f, o: tables.read_captions(f / "a.json"),
        "JSON": lambda f, o: tables.read_json(f / "a.json"),
        "ids": lambda f, o: predictions.read_ids(f / "a.json"),
        "a source of captions": captions_from,
        "config.json": lambda f, o: load_config(StreamOptions, f / "a.json"),
        "config.toml": lambda f, o: load_config(StreamOptions, f / "a.toml"),
        "spec": lambda f, o: PrepareConfig.load(f / "a.toml"),
        "info": lambda f, o: read_info(f, o),
    }
    for way, read in deeps.items():
        add(
            f"100,000 brackets, {way}",
            "bomb",
            lambda f, o: (deep(f / "a.json"), deep(f / "a.toml")),
            read,
            refused=way != "info",
        )
    add("100,000 brackets, dataset", "bomb", deep_dataset, read_dataset)
    add(
        "100,000 brackets, space",
        "bomb",
        lambda f, o: (build_dataset(f), deep(f / "dataset/subjects/one/space.json"), sized(f)),
        read_dataset,
    )
    add(
        "100,000 brackets, captions of a dataset",
        "bomb",
        lambda f, o: (build_dataset(f), deep(f / "dataset/captions.json"), sized(f)),
        read_dataset,
    )
    for way, offsets in (("overlapping", [0, 2**62]), ("negative", [-8, 8]), ("huge", [2**62, 2**63 - 1])):

        def safetensors(folder: Path, outside: Path, offsets: list[int] = offsets) -> None:
            told = json.dumps({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": offsets}}).encode()
            (folder / "a.safetensors").write_bytes(len(told).to_bytes(8, "little") + told + bytes(64))

        add(f"safetensors with {way} offsets", "bomb", safetensors, array_at("a.safetensors"))
        add(
            f"safetensors with {way} offsets, mapped",
            "bomb",
            safetensors,
            lambda f, o: tensors.tensors_of(f / "a.safetensors"),
        )
    add(
        "safetensors with a header of 2^62 bytes",
        "bomb",
        lambda f, o: (f / "a.safetensors").write_bytes((2**62).to_bytes(8, "little") + bytes(64)),
        array_at("a.safetensors"),
    )
    return found


def sized(folder: Path) -> None:
    """A manifest that lists its files as they are now, where it can be read and they are there."""
    try:
        manifest = json.loads((folder / "dataset/dataset.json").read_text())
        for name, facts in manifest["files"].items():
            facts["bytes"] = (folder / "dataset" / name).stat().st_size
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return
    (folder / "dataset/dataset.json").write_text(json.dumps(manifest))


def build_layout_and_captions(folder: Path, outside: Path) -> None:
    build_layout("mindeye2")(folder)


HOSTILE = hostile()


# ---- a worker


def main(argv: list[str]) -> None:
    """Work off cases, a line each, as soon as it is done."""
    root, name, seed, first, end = Path(argv[0]), argv[1], int(argv[2]), int(argv[3]), int(argv[4])
    faulthandler.enable()

    def tell(outcome: Outcome) -> None:
        print(json.dumps(outcome._asdict()), flush=True)

    if name == "hostile":
        names = argv[5:] or list(HOSTILE)
        for number, case in enumerate(names[first:end]):
            arena = root / f"hostile{first + number}"
            if number == 0:
                limit_memory()
            tell(run_hostile(case, arena))
            shutil.rmtree(arena)
        return
    cases = Cases(name, root, seed)
    limit_memory()
    for number in range(first, end):
        tell(cases.run(number))


if __name__ == "__main__":
    main(sys.argv[1:])
