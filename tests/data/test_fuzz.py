"""Damaged and hostile files: each reader reads on, or says one sentence; no more, in memory and on the disk.

The cases are those of `fuzzing.py`, which `benchmarks/data_fuzz.py` uses, too, for thousands.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.io import savemat

from brainjanus.core.errors import UserError
from brainjanus.data.captions import caption_sources
from brainjanus.data.plan import StreamOptions
from brainjanus.data.readers import arrays, nifti, tables
from brainjanus.data.readers.arrays import read_array
from brainjanus.data.readers.pictures import read_pictures

_spec = importlib.util.spec_from_file_location("fuzzing", Path(__file__).parents[1] / "fuzzing.py")
fuzzing = importlib.util.module_from_spec(_spec)
sys.modules["fuzzing"] = fuzzing
_spec.loader.exec_module(fuzzing)

CASES, SLOW = 8, {"nsd": 1, "info": 2, "doctor": 2}
HOSTILE = list(fuzzing.HOSTILE)


def check(outcome) -> None:
    assert outcome.ended in ("read", "refused"), f"{outcome.case} ({outcome.damaged}): {outcome.said}"
    assert not outcome.changed and not outcome.unpickled, outcome


@pytest.mark.parametrize("name", fuzzing.READERS)
def test_damages_are_one_sentence(tmp_path, name):
    cases = fuzzing.Cases(name, tmp_path, seed=0)  # what is not damaged has to be read
    for number in range(SLOW.get(name, CASES)):
        check(cases.run(number))
    check(again := cases.arena.run(name, cases.reader.read))
    assert again.ended == "read"  # each case put back what it damaged


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, dict]:
    """The outcome of each hostile file, in a process with little memory."""
    command = [sys.executable, fuzzing.__file__, str(tmp_path_factory.mktemp("hostile")), "hostile", "0", "0", "1000"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return {one["case"]: one for one in map(json.loads, ended.stdout.splitlines())}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_do_no_harm(told, name):
    check(fuzzing.Outcome(**told[name]))
    assert told[name]["grown"] < 1e9


def test_hostile_files_are_of_every_kind():
    kinds = [one.kind for one in fuzzing.HOSTILE.values()]
    assert {kind: kinds.count(kind) >= 20 for kind in kinds} == {"outside": True, "pickle": True, "bomb": True}


def test_what_a_case_does_outside_is_seen(tmp_path):
    arena = fuzzing.Arena(tmp_path)

    def evil(folder, out):
        (out / "made.txt").write_text("in the target")
        (out.parent / "cwd/evil.txt").write_text("beside it")
        fuzzing.pickle.loads(fuzzing.pickle.dumps(fuzzing.Payload(arena.mark)))
        raise KeyError("evil")

    outcome = arena.run("evil", evil)
    assert outcome.ended == "failed" and "KeyError" in outcome.said and outcome.unpickled
    assert [Path(name).name for name in outcome.changed] == ["evil.txt", "unpickled"]


def test_the_command_line_says_one_line(tmp_path):
    cases = fuzzing.Cases("mindllm", tmp_path, seed=0)
    (cases.arena.input / "files/subject_1.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    argv = cases.reader.command(cases.arena.input, cases.arena.out)
    ended = subprocess.run([sys.executable, "-m", "brainjanus", *argv], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2
    assert ended.stderr.startswith("brainjanus: ") and ended.stderr.count("\n") == 1


# ---- what was mended, one by one


@pytest.mark.parametrize("cell", ["--5", "9" * 40, "²", "-"])
def test_numbers_are_plain_digits(tmp_path, cell):
    (tmp_path / "trials.tsv").write_text(f"stimulus_id\tsession\na\t{cell}\n", encoding="utf-8")
    with pytest.raises(UserError, match="expected whole numbers in 'session', got '"):
        tables.read_trials(tmp_path / "trials.tsv")


def test_half_a_character_is_refused_a_whole_one_is_not(tmp_path):
    file = tmp_path / "captions.json"
    file.write_text('{"a": ["\\ud83d\\ude00"]}')
    assert tables.read_captions(file) == {"a": ["\N{GRINNING FACE}"]}
    file.write_text('{"a": ["\\ud83d"]}')
    with pytest.raises(UserError, match=r"expected a JSON object, got .*surrogates not allowed"):
        tables.read_captions(file)
    with pytest.raises(UserError, match=r"expected captions as JSON, got .*surrogates not allowed"):
        caption_sources([f"vlm={file}"], ["a"])


def test_long_cells_are_cut_in_the_sentence(tmp_path):
    (tmp_path / "captions.tsv").write_text("stimulus_id\tcaption\n" + "x" * 100_000 + "\n")
    with pytest.raises(UserError, match="expected 2 cells in each row") as caught:
        tables.read_captions(tmp_path / "captions.tsv")
    assert len(str(caught.value)) < 500
    (tmp_path / "captions.tsv").write_text("stimulus_id\tcaption\na\t" + "x" * 200_000 + "\n")
    with pytest.raises(UserError, match="field larger than field limit"):
        tables.read_captions(tmp_path / "captions.tsv")


def test_names_of_features_are_in_utf_8(tmp_path):
    np.save(tmp_path / "f.npy", fuzzing.MATRIX)
    (tmp_path / "f.txt").write_bytes("é\n".encode("latin-1") * 12)
    with pytest.raises(UserError, match=r"f\.txt: expected names in UTF-8"):
        tables.read_features(str(tmp_path / "f.npy"))


def test_a_folder_in_place_of_a_picture(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match=r"a\.png: expected a picture, got .*directory"):
        list(read_pictures(str(tmp_path), ["a.png"], 8))


@pytest.mark.parametrize("options", [StreamOptions, fuzzing.PrepareConfig])
def test_pictures_have_a_size_that_can_be_stored(options):
    with pytest.raises(UserError, match="image_size 1000000000000"):
        options(image_size=10**12)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("subjects/one/trials.tsv", "stimulus_id\tsession\nx\t1\n"),
        ("subjects/one/space.json", '{"rois": NaN}'),
        ("subjects/one/space.json", '{"rois": ["V9"]}'),
        ("subjects/one/space.json", '{"rois": [], "subject": "one", "num_sites": 6, "geometry": "none"}'),
        ("captions.json", '{"s00": [1]}'),
        ("captions/vlm.json", "[1"),
        ("stimuli.tsv", "name\nx\n"),
        ("dataset.json", '{"format": "brainjanus-dataset", "version": 1, "name": "", "modality": "", "subjects": [], '
         '"image_size": 8, "fingerprint": "", "files": [1]}'),
        ("dataset.json", '{"format": "brainjanus-dataset", "version": 1, "name": "", "modality": "", "subjects": [], '
         '"image_size": 8, "fingerprint": {}, "files": {}}'),
        ("subjects/one/responses.safetensors", "other"),
        ("subjects/one/responses.safetensors", "responses"),
    ],
)  # fmt: skip
def test_a_dataset_that_was_changed_is_one_sentence(tmp_path, file, content):
    fuzzing.build_dataset(tmp_path)
    if file.endswith(".safetensors"):
        save_file({content: fuzzing.MATRIX}, tmp_path / "dataset" / file)
    else:
        (tmp_path / "dataset" / file).write_text(content)
    if file != "dataset.json":
        fuzzing.sized(tmp_path)
    name = Path(file).parent if "space" in file else Path(file)
    with pytest.raises(UserError, match=rf"{name}: expected "):
        fuzzing.read_dataset(tmp_path, tmp_path)


def test_one_number_of_matlab_7_3(tmp_path):
    fuzzing.hdf5_of(tmp_path / "a.h5", a=3.0)
    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + (tmp_path / "a.h5").read_bytes())
    assert read_array(str(tmp_path / "a.mat")) == 3


@pytest.mark.parametrize("kind", ["npz", "mat", "h5", "nii.gz"])
def test_zeros_are_told_from_measurements(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(arrays, "SMALL", 10_000)
    file = tmp_path / f"a.{kind}"
    for values in (np.random.default_rng(0).normal(size=(40, 50, 60)).astype(np.float32), np.zeros((90, 90, 90), "f4")):
        if kind == "npz":
            np.savez_compressed(file, a=values)
        elif kind == "mat":
            savemat(file, {"a": values}, do_compression=True)
        elif kind == "h5":
            with h5py.File(file, "w") as opened:
                opened.create_dataset("a", data=values, compression="gzip", chunks=values.shape)
        else:
            fuzzing.volume(file, values)
        read = nifti.read_mask if kind == "nii.gz" else read_array
        if values.any():
            read(str(file))
        else:
            with pytest.raises(UserError, match=r"as it was measured, got .* bytes out of"):
                read(str(file))
