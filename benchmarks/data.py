"""Everyone's data: how fast a large study is prepared, and (`data_fuzz.py`, `doctor.py`) what damage and defects do.

One subject of the size of NSD, in NSD's own folders: 30,000 trials x 15,724 voxels in 40 session files (NIfTI, int16,
scaled by 300, on a grid that is hardly larger than the mask), and 10,000 of the 73,000 pictures of 425 px (HDF5), each
shown three times. They are stored at 425 px: what is measured is the way of the bytes. The disk's rate is that of
reading these files and writing as many bytes as the dataset has, one file after the other, measured before and after in
the same run: the better of the two. Files are dropped from the system's cache before they are read, and what is written
counts when the disk has it. Then it is done again and killed (SIGKILL) a few times on the way.

A session as NSD publishes it, of which 2 % are in the mask, is compressed: how fast it is read is compared with gzip.
python benchmarks/data.py --out benchmarks/results/data.json [--quick] [--preparing]
"""

import argparse
import csv
import filecmp
import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import data_fuzz
import doctor
import h5py
import nibabel
import numpy as np
from records import Claim, arguments, write
from scipy.io import savemat

from brainjanus.core.errors import written_beside
from brainjanus.data.layouts import open_study
from brainjanus.data.plan import StreamOptions
from brainjanus.data.stream import stream_study
from brainjanus.data.study import StudyOptions

SESSIONS, TRIALS, SITES, PICTURES, SIDE = 40, 750, 15_724, 10_000, 425
SHARED, ALL_PICTURES = 1_000, 73_000
QUICK_SESSIONS, QUICK_PICTURES = 4, 1_500
GRID, PUBLISHED_GRID = (28, 27, 21), (81, 104, 83)
IN_BRAIN = 0.3  # of the voxels of the published grid
BAR, MOST_GB = 0.5, 2.0
KILLED_AT = (0.1, 0.35, 0.6, 0.85)  # of the time that it took in one go
BLOCK = 8 << 20
FUNC = "ppdata/subj01/func1pt8mm"


def make_source(folder: Path, sessions: int, pictures: int, seed: int) -> None:
    """Raw NSD of one subject: sessions, the pictures that it saw (the others are holes), captions, design. Once."""
    if (folder / "complete").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(seed)
    inside = np.zeros(int(np.prod(GRID)), np.float32)
    inside[rng.choice(len(inside), SITES, replace=False)] = 1
    rois, betas = folder / "nsddata" / FUNC / "roi", folder / "nsddata_betas" / FUNC / "betas_fithrf_GLMdenoise_RR"
    stimuli = folder / "nsddata_stimuli/stimuli/nsd"
    for home in (rois, betas, folder / "nsddata/experiments/nsd", annotations_of(folder)):
        home.mkdir(parents=True)
    save_volume(rois / "nsdgeneral.nii.gz", inside.reshape(GRID))
    offset = rng.integers(-3000, 3000, (*GRID, 1), dtype=np.int16)
    for k in range(sessions):
        data = rng.integers(-900, 900, (*GRID, TRIALS), dtype=np.int16) + offset
        save_volume(betas / f"betas_session{k + 1:02}.nii", data)
    seen = np.sort(rng.choice(ALL_PICTURES, pictures, replace=False))
    with h5py.File(stimuli / "nsd_stimuli.hdf5", "w") as file:
        brick = file.create_dataset("imgBrick", (ALL_PICTURES, SIDE, SIDE, 3), np.uint8)
        for image in seen.tolist():
            brick[image] = np.frombuffer(rng.bytes(SIDE * SIDE * 3), np.uint8).reshape(SIDE, SIDE, 3)
    write_design(folder, rng, seen, sessions * TRIALS)
    os.sync()
    (folder / "complete").touch()


def write_design(folder: Path, rng: np.random.Generator, seen: np.ndarray, num_trials: int) -> None:
    """Who saw what: in the first `num_trials` trials each of `seen` about equally often. Captions of each."""
    experiment = folder / "nsddata/experiments/nsd"
    others = np.setdiff1d(np.arange(ALL_PICTURES), seen)
    images = rng.permutation(seen)
    mine = np.concatenate([images, others[: PICTURES - len(images)]])
    rest = rng.permutation(np.setdiff1d(np.arange(ALL_PICTURES), mine[:SHARED]))[: 7 * (PICTURES - SHARED)]
    theirs = np.hstack([np.tile(mine[:SHARED], (7, 1)), rest.reshape(7, -1)])
    order = rng.permutation(np.arange(num_trials) % len(images))
    order = np.concatenate([order, np.zeros(SESSIONS * TRIALS - num_trials, int)])
    content = {"masterordering": order + 1, "subjectim": np.vstack([mine, theirs]) + 1, "sharedix": mine[:SHARED] + 1}
    savemat(experiment / "nsd_expdesign.mat", content)
    with open(experiment / "nsd_stim_info_merged.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["", "cocoId", "cocoSplit", "nsdId"])
        table.writerows([i, i + 1, "train2017", i] for i in range(ALL_PICTURES))
    notes = [{"image_id": i + 1, "id": i, "caption": f"a caption of picture {i}"} for i in seen.tolist()]
    (annotations_of(folder) / "captions_train2017.json").write_text(json.dumps({"annotations": notes}))


def annotations_of(folder: Path) -> Path:
    return folder / "nsddata_stimuli/stimuli/nsd/annotations"


def save_volume(path: Path, data: np.ndarray) -> None:
    with written_beside(path) as beside:
        image = nibabel.Nifti1Image(data, np.diag([1.8, 1.8, 1.8, 1]))
        if path.suffix == ".gz":
            with gzip.open(beside, "wb", compresslevel=1) as file:
                file.write(image.to_bytes())
        else:
            beside.write_bytes(image.to_bytes())


def large_files(folder: Path) -> list[Path]:
    return sorted([*folder.rglob("betas_session*"), *folder.rglob("nsd_stimuli.hdf5")])


def forget(files: Sequence[Path]) -> None:
    """Drop files from the system's cache."""
    os.sync()
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_through(path: Path) -> None:
    """All that the disk has of a file; holes are skipped."""
    size, place = path.stat().st_size, 0
    with open(path, "rb", buffering=0) as file:
        while place < size:
            try:
                place = os.lseek(file.fileno(), place, os.SEEK_DATA)
            except OSError:  # nothing but a hole follows
                return
            hole = os.lseek(file.fileno(), place, os.SEEK_HOLE)
            os.lseek(file.fileno(), place, os.SEEK_SET)
            while place < hole and (data := file.read(min(BLOCK, hole - place))):
                place += len(data)


def bytes_on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512


def sequential_sec(inputs: Sequence[Path], sizes: Sequence[int], folder: Path) -> float:
    """How long it takes to read these files, and to write files of these sizes until the disk has them."""
    forget(inputs)
    data = np.random.default_rng(0).bytes(BLOCK)
    start = time.perf_counter()
    for path in inputs:
        read_through(path)
    for number, size in enumerate(sizes):
        with open(folder / f"sequential{number}.bin", "wb", buffering=0) as file:
            for first in range(0, size, BLOCK):
                file.write(data[: min(BLOCK, size - first)])
            os.fsync(file.fileno())
    taken = time.perf_counter() - start
    for number in range(len(sizes)):
        (folder / f"sequential{number}.bin").unlink()
    return taken


def stream(source: Path, out: Path) -> None:
    """In this process, and say how long it took, until the disk has it, and the peak of memory."""
    start = time.perf_counter()
    dataset = stream_study(open_study("nsd", source, StudyOptions()), out, StreamOptions(image_size=SIDE))
    os.sync()
    print(json.dumps({"sec": time.perf_counter() - start, "peak": peak_bytes(), "fingerprint": dataset.fingerprint}))


def read_session(source: Path) -> None:
    """Read the only session of a study in this process, and say how long it took, and the peak of memory."""
    session = open_study("nsd", source, StudyOptions()).subjects[0].sessions[0]
    start = time.perf_counter()
    session.read()
    print(json.dumps({"sec": time.perf_counter() - start, "peak": peak_bytes()}))


def peak_bytes() -> int:
    """Of this process alone: Linux counts in ru_maxrss what the process that started it had."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def told(*words: str | Path) -> dict:
    """What this script says of one of its parts, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, *map(str, words)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def of_preparing(options: argparse.Namespace) -> list[Claim]:
    """Of the source in options.work, made there if it is not yet; options.quick: about a tenth of it."""
    source = options.work / ("data-quick" if options.quick else "data")
    sessions, pictures = (QUICK_SESSIONS, QUICK_PICTURES) if options.quick else (SESSIONS, PICTURES)
    make_source(source, sessions, pictures, options.seed)
    inputs = large_files(source)
    read = sum(map(bytes_on_disk, inputs))
    outs = [options.work / name for name in ("data-whole", "data-killed")]
    for out in outs:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(out.parent / f".{out.name}.streaming", ignore_errors=True)
    sizes = [sessions * TRIALS * SITES * 4, pictures * SIDE * SIDE * 3]
    before = sequential_sec(inputs, sizes, options.work)
    forget(inputs)
    facts = told("--stream", source, outs[0])
    sequential = min(before, sequential_sec(inputs, sizes, options.work))
    written = sum(path.stat().st_size for path in outs[0].rglob("*") if path.is_file())
    kills = 0
    for share in KILLED_AT:
        words = [sys.executable, __file__, "--stream", str(source), str(outs[1])]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(share * facts["sec"] + 2)  # what was done before need not be done again
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += not outs[1].exists()
    start = time.perf_counter()
    if not outs[1].exists():
        told("--stream", source, outs[1])
    resumed = time.perf_counter() - start
    names = ("dataset.json", *json.loads((outs[0] / "dataset.json").read_text())["files"])
    differing = sum(not filecmp.cmp(outs[0] / name, outs[1] / name, shallow=False) for name in names)
    for out in outs:
        shutil.rmtree(out)
    mb = (read + written) / 1e6
    return [
        Claim("read and written", mb / 1e3, "GB"),
        Claim("prepared in", facts["sec"], "s"),
        Claim("rate", mb / facts["sec"], "MB/s", "one file after the other", mb / sequential, bar=BAR),
        Claim("peak memory", facts["peak"] / 1e9, "GB", bar=MOST_GB, at_most=True),
        Claim("killed on the way", kills, "times", bar=1),
        Claim("files that differ after it", differing, "", bar=0, at_most=True),
        Claim("the last start, its imports included", resumed, "s"),
    ]


def of_a_published_session(options: argparse.Namespace) -> list[Claim]:
    """Compressed, of the whole volume. It is the same for --quick."""
    source = options.work / "data-published"
    rng = np.random.default_rng(options.seed)
    num_voxels = int(np.prod(PUBLISHED_GRID))
    betas = source / "nsddata_betas" / FUNC / "betas_fithrf_GLMdenoise_RR/betas_session01.nii.gz"
    if not betas.exists():
        rois = source / "nsddata" / FUNC / "roi"
        for home in (rois, betas.parent, source / "nsddata/experiments/nsd", annotations_of(source)):
            home.mkdir(parents=True, exist_ok=True)
        brain = rng.permutation(num_voxels)[: int(IN_BRAIN * num_voxels)]
        inside = np.zeros(num_voxels, np.float32)
        inside[brain[:SITES]] = 1
        save_volume(rois / "nsdgeneral.nii.gz", inside.reshape(PUBLISHED_GRID))
        write_design(source, rng, np.arange(PICTURES), SESSIONS * TRIALS)
        data = np.zeros((TRIALS, num_voxels), np.int16)
        for trial in data:
            trial[brain] = rng.normal(0, 400, len(brain))
        save_volume(betas, data.T.reshape(*PUBLISHED_GRID, TRIALS))
    start = time.perf_counter()
    subprocess.run(["gzip", "-dc", betas], stdout=subprocess.DEVNULL, check=True)
    unzipped = time.perf_counter() - start
    facts = told("--session", source)
    mb = num_voxels * TRIALS * 2 / 1e6
    return [
        Claim("a session as published, 81 x 104 x 83 x 750", mb / facts["sec"], "MB/s", "gzip -dc", mb / unzipped),
        Claim("its peak memory", facts["peak"] / 1e9, "GB", bar=MOST_GB, at_most=True),
    ]


def claims(options: argparse.Namespace) -> list[Claim]:
    preparing = of_preparing(options) + of_a_published_session(options)
    return preparing if options.preparing else preparing + data_fuzz.claims(options) + doctor.claims(options)


def main() -> None:
    if sys.argv[1:2] == ["--stream"]:
        stream(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    if sys.argv[1:2] == ["--session"]:
        read_session(Path(sys.argv[2]))
        return
    options = arguments(__doc__, flags={"preparing": "neither damaged files nor planted defects"})
    write(claims(options), options.out)


if __name__ == "__main__":
    main()
