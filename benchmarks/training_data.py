"""Training data from disk: does a step ever wait for its batch, and does memory grow with the dataset?

A store of 27,000 responses of 15,724 sites in float16 (849 MB, as one NSD subject) is made once in --work. Each run is
a process of its own, so that its peak memory is that of it alone. Batches of 32 random rows, float32, are made by one
background thread, while the main thread sleeps for 20 ms a step: a stand-in for an accelerator that computes, which
leaves the processor idle just as that does. Busy is the share of 20 ms in the time that a step took in all, the best of
three rounds; beside it that of a loop without data, which is what timers and other programs leave. Warm: the file is in
the system's cache. Cold: it is dropped from there before each step, so that every response comes from the disk.
python benchmarks/training_data.py --out benchmarks/results/training_data.json [--quick]
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from records import Claim, arguments, write

from brainjanus.core.ahead import ahead
from brainjanus.core.errors import written_beside
from brainjanus.model.omni import OmniConfig
from brainjanus.model.sequence import Task
from brainjanus.tokenizers.brain import BrainTokenizer, BrainTokenizerConfig
from brainjanus.tokenizers.patch import PatchConfig
from brainjanus.tokenizers.quantizer import QuantizerConfig
from brainjanus.train.codes import BrainRows, Codes
from brainjanus.train.state import generator_of
from brainjanus.train.store import Rows, held, stored

ROWS, QUICK_ROWS, SITES = 27_000, 2_700, 15_724
REPEATS, PICTURE_CODES, PATCH = 3, 576, 64
BATCH, STEP_SEC = 32, 0.020
STEPS, QUICK_STEPS, ROUNDS = 200, 40, 3
BUSY, MOST_MB = 0.95, 1000.0


def make_store(folder: Path, num_rows: int, seed: int) -> None:
    """Responses (safetensors and HDF5, the same numbers), and codes as `encode_split` lays them out. In chunks."""
    if (folder / "complete").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    header = {"rows": {"dtype": "F16", "shape": [num_rows, SITES], "data_offsets": [0, 2 * num_rows * SITES]}}
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    rng = np.random.default_rng(seed)
    with (
        written_beside(folder / "responses.safetensors") as beside, beside.open("wb") as file,
        written_beside(folder / "responses.h5") as other, h5py.File(other, "w") as hdf5,
    ):  # fmt: skip
        file.write(len(told).to_bytes(8, "little") + told)
        peer = hdf5.create_dataset("rows", (num_rows, SITES), np.float16)  # contiguous
        for start in range(0, num_rows, 300):
            part = rng.standard_normal((min(300, num_rows - start), SITES), np.float32).astype(np.float16)
            file.write(part.tobytes())
            peer[start : start + len(part)] = part
    for kind, rows, length, dtype in (
        ("brain", num_rows, -(-SITES // PATCH), torch.int16),
        ("image", num_rows // REPEATS, PICTURE_CODES, torch.int16),
    ):
        draw = partial(torch.randint, 16_384 if kind == "image" else 128, generator=torch.Generator().manual_seed(seed))
        stored(
            folder, kind, ("key",), rows, lambda part, d=draw, k=length, t=dtype: d((part.stop - part.start, k)).to(t),
            f"codes of {kind}",
        )  # fmt: skip
    os.sync()
    (folder / "complete").touch()


def batches(source: str, folder: Path) -> tuple[Callable[[int], Any], int]:
    """What makes the batch of a step, and the bytes of responses in it. source: rows, codes, hdf5 or none."""
    if source == "none":
        return lambda step: None, 0
    if source == "hdf5":
        dataset = h5py.File(folder / "responses.h5")["rows"]

        def from_hdf5(step: int) -> torch.Tensor:
            which = torch.randint(len(dataset), (BATCH,), generator=generator_of(0, step))
            rows, back = np.unique(which.numpy(), return_inverse=True)  # it wants them sorted, each once
            return torch.from_numpy(dataset[rows][back]).float()

        return from_hdf5, BATCH * SITES * 2
    rows = Rows.of(folder / "responses.safetensors", "rows")
    if source == "rows":

        def from_rows(step: int) -> torch.Tensor:
            return rows[torch.randint(len(rows), (BATCH,), generator=generator_of(0, step))].float()

        return from_rows, BATCH * rows.row_bytes
    codes, config = codes_of(folder, rows), OmniConfig(image_input="codes")
    task = Task(("image",), "brain:a")
    return lambda step: codes.batch(task, BATCH, generator_of(0, step), config), BATCH * rows.row_bytes


def codes_of(folder: Path, rows: Rows) -> Codes:
    """A tokenized split of these rows, three trials a stimulus."""
    brain, image = (
        held(Rows.behind([Rows.of(path, "rows") for path in sorted(folder.glob(f"{kind}-*/part-*.safetensors"))]))
        for kind in ("brain", "image")
    )
    quantizer = QuantizerConfig(num_codes=128, dim=4)
    config = BrainTokenizerConfig(patch_size=PATCH, patch=PatchConfig(width=8, depth=1, heads=2), quantizer=quantizer)
    trials = torch.arange(len(rows))
    shown = BrainRows(trials % len(image), trials < 0, rows, brain)
    each = list(torch.arange(len(image))[:, None])
    tokenizer = BrainTokenizer(config, {"a": torch.arange(SITES)})
    ids = tuple(map(str, range(len(image))))
    return Codes(ids, None, image, each, None, [], {}, {"a": shown}, tokenizer)


def forget(folder: Path) -> None:
    """Drop the files of the store from the system's cache."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 4096:
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(source: str, folder: Path, steps: int, cold: bool) -> dict[str, float]:
    """In this process: the share of time that steps were busy, batches a second without steps, and peak memory."""
    make, size = batches(source, folder)
    made = (lambda step: (forget(folder), make(step))[1]) if cold else make
    if not cold:
        for path in folder.rglob("*.*"):  # into the cache
            if path.is_file():
                with path.open("rb", buffering=0) as file:
                    while file.read(1 << 20):
                        pass
    made(0)
    best, rate = 0.0, 0.0
    for around in range(ROUNDS):
        start = time.perf_counter()
        with closing(ahead(made, around * steps, (around + 1) * steps)) as coming:
            for _ in coming:
                time.sleep(STEP_SEC)
        best = max(best, STEP_SEC * steps / (time.perf_counter() - start))
        start = time.perf_counter()
        for step in range(steps):
            made(around * steps + step)
        rate = max(rate, steps / (time.perf_counter() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return {"busy": best, "rate": rate, "peak_mb": peak, "mb_per_sec": rate * size / 1e6}


def measured_apart(source: str, folder: Path, steps: int, cold: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", source, str(folder), str(steps), str(int(cold))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def claims(options: argparse.Namespace) -> list[Claim]:
    """Of the store in options.work, made there if it is not yet; options.quick: a tenth of it."""
    folder = options.work / ("training-data-quick" if options.quick else "training-data")
    rows, steps = (QUICK_ROWS, QUICK_STEPS) if options.quick else (ROWS, STEPS)
    make_store(folder, rows, options.seed)
    idle = measured_apart("none", folder, steps, False)["busy"]
    peer = {cold: measured_apart("hdf5", folder, steps, cold) for cold in (False, True)}
    found = []
    for source, what in (("rows", "random rows"), ("codes", "Codes.batch, image->brain")):
        for cold in (False, True):
            facts, told = measured_apart(source, folder, steps, cold), f"{what}, {'cold' if cold else 'warm'}"
            found += [
                Claim(f"{told}: busy", facts["busy"], "of the time", "the same loop without data", idle, bar=BUSY),
                Claim(f"{told}: batches", facts["rate"], "/s", "contiguous HDF5, rows alone", peer[cold]["rate"]),
                Claim(f"{told}: read", facts["mb_per_sec"], "MB/s of responses"),
                Claim(f"{told}: peak memory", facts["peak_mb"], "MB", bar=MOST_MB, at_most=True),
            ]
    return found


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        source, folder, steps, cold = sys.argv[2:]
        print(json.dumps(measure(source, Path(folder), int(steps), bool(int(cold)))))
        return
    options = arguments(__doc__)
    write(claims(options), options.out)


if __name__ == "__main__":
    main()
