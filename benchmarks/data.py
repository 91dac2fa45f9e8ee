"""Preparing a large study: is it as fast as half of what the disk can do, in little memory, and can it be stopped?

One subject of the size of NSD: 30,000 trials x 15,724 voxels in 40 session files (int16, scaled by 300), and 10,000
pictures of 425 px (uint8), each shown three times. They are stored at 425 px: what is measured is the way of the bytes.
The disk's rate is that of reading these files and writing as many bytes as the dataset has, one file after the
other, measured before and after in the same run: the better of the two. Files are dropped from the system's cache
before they are read, and what is written counts when the disk has it. Then it is done again and killed (SIGKILL) a few
times on the way.
python benchmarks/data.py --out benchmarks/results/data.json [--quick]
"""

import argparse
import filecmp
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from records import Claim, arguments, write

from brainjanus.core.errors import written_beside
from brainjanus.core.space import BrainSpace
from brainjanus.data.plan import StreamOptions
from brainjanus.data.stream import stream_study
from brainjanus.data.study import Found, Pictures, Recorded, Session, Study

SESSIONS, TRIALS, SITES, PICTURES, SIDE = 40, 750, 15_724, 10_000, 425
QUICK_SESSIONS, QUICK_PICTURES = 4, 1_000
TEST, SCALE = 0.1, np.float32(300)
BAR, MOST_GB = 0.5, 2.0
KILLED_AT = (0.1, 0.35, 0.6, 0.85)  # of the time that it took in one go
BLOCK = 8 << 20


def make_source(folder: Path, sessions: int, pictures: int, seed: int) -> None:
    """Session files with a little signal, one file of pictures, and who saw what. Once."""
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    offset = rng.integers(-3000, 3000, SITES, dtype=np.int16)
    for k in range(sessions):
        with written_beside(folder / f"session{k:02}.bin") as beside:
            (rng.integers(-900, 900, (TRIALS, SITES), dtype=np.int16) + offset).tofile(beside)
    with written_beside(folder / "pictures.bin") as beside, beside.open("wb") as file:
        for start in range(0, pictures, 100):
            file.write(rng.bytes(min(100, pictures - start) * SIDE * SIDE * 3))
    shown = rng.permutation(np.repeat(np.arange(pictures), -(-sessions * TRIALS // pictures))[: sessions * TRIALS])
    (folder / "shown.json").write_text(json.dumps(shown.reshape(sessions, TRIALS).tolist()))
    os.sync()
    (folder / "complete").touch()


def study_of(folder: Path) -> Study:
    """A layout of this benchmark alone."""
    shown = json.loads((folder / "shown.json").read_text())
    num_pictures = (folder / "pictures.bin").stat().st_size // (SIDE * SIDE * 3)
    ids = [f"nsd{i:05}" for i in range(num_pictures)]
    files = [folder / f"session{k:02}.bin" for k in range(len(shown))]

    def session(file: Path) -> np.ndarray:
        return np.fromfile(file, np.int16).reshape(TRIALS, SITES) / SCALE

    def pictures(wanted: Sequence[str], size: int) -> Iterator[tuple[str, np.ndarray]]:
        assert size == SIDE
        with open(folder / "pictures.bin", "rb", buffering=0) as file:
            for name in wanted:
                file.seek(int(name[3:]) * SIDE * SIDE * 3)
                yield name, np.frombuffer(file.read(SIDE * SIDE * 3), np.uint8).reshape(SIDE, SIDE, 3)

    places = np.random.default_rng(0).normal(size=(SITES, 3)).astype(np.float32) * 30
    sessions = [
        Session(k + 1, [ids[i] for i in shown[k]], lambda file=file: session(file), num_bytes=file.stat().st_size)
        for k, file in enumerate(files)
    ]
    return Study(
        "nsd", "nsd-sized", "fMRI", [Recorded(BrainSpace("subj01", SITES, coordinates_mm=places), sessions)],
        Pictures(ids, pictures, SIDE * SIDE * 3), {"coco": {name: [f"a caption of {name}"] for name in ids}},
        {name: "test" if i < TEST * num_pictures else "train" for i, name in enumerate(ids)},
        found=[Found("betas", tuple(files)), Found("pictures", (folder / "pictures.bin",))],
    )  # fmt: skip


def forget(files: Sequence[Path]) -> None:
    """Drop files from the system's cache."""
    os.sync()
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def sequential_sec(inputs: Sequence[Path], sizes: Sequence[int], folder: Path) -> float:
    """How long it takes to read these files, and to write files of these sizes until the disk has them."""
    forget(inputs)
    data = np.random.default_rng(0).bytes(BLOCK)
    start = time.perf_counter()
    for path in inputs:
        with open(path, "rb", buffering=0) as file:
            while file.read(BLOCK):
                pass
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
    study = study_of(source)
    start = time.perf_counter()
    dataset = stream_study(study, out, StreamOptions(image_size=SIDE))
    os.sync()
    taken = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"sec": taken, "peak": peak, "fingerprint": dataset.fingerprint}))


def command(source: Path, out: Path) -> list[str]:
    return [sys.executable, __file__, "--stream", str(source), str(out)]


def claims(options: argparse.Namespace) -> list[Claim]:
    """Of the source in options.work, made there if it is not yet; options.quick: a tenth of it."""
    source = options.work / ("data-quick" if options.quick else "data")
    sessions, pictures = (QUICK_SESSIONS, QUICK_PICTURES) if options.quick else (SESSIONS, PICTURES)
    make_source(source, sessions, pictures, options.seed)
    inputs = sorted(source.glob("*.bin"))
    read = sum(path.stat().st_size for path in inputs)
    outs = [options.work / name for name in ("data-whole", "data-killed")]
    for out in outs:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(out.parent / f".{out.name}.streaming", ignore_errors=True)
    sizes = [sessions * TRIALS * SITES * 4, pictures * SIDE * SIDE * 3]
    before = sequential_sec(inputs, sizes, options.work)
    forget(inputs)
    done = subprocess.run(command(source, outs[0]), capture_output=True, text=True, check=True)
    facts = json.loads(done.stdout.splitlines()[-1])
    sequential = min(before, sequential_sec(inputs, sizes, options.work))
    written = sum(path.stat().st_size for path in outs[0].rglob("*") if path.is_file())
    kills = 0
    for share in KILLED_AT:
        process = subprocess.Popen(command(source, outs[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(share * facts["sec"] + 2)  # what was done before need not be done again
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += not outs[1].exists()
    resumed = time.perf_counter()
    if not outs[1].exists():
        subprocess.run(command(source, outs[1]), capture_output=True, check=True)
    resumed = time.perf_counter() - resumed
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


def main() -> None:
    if sys.argv[1:2] == ["--stream"]:
        stream(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    options = arguments(__doc__)
    write(claims(options), options.out)


if __name__ == "__main__":
    main()
