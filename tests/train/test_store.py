"""Rows on disk: those that are asked for, of files that stay as they were; parts made once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from brainjanus.core.errors import UserError
from brainjanus.train import store as module
from brainjanus.train.store import Rows, held, in_chunks, stored

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool]


def saved(path, dtype=torch.float32, shape=(10, 3), seed=0):
    """A tensor behind another one, as it is in a file."""
    rows = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=torch.Generator().manual_seed(seed))
    save_file({"before": torch.ones(5, dtype=torch.uint8), "rows": rows.to(dtype)}, path)
    return rows.to(dtype)


# --- rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_those_of_the_tensor(tmp_path, dtype):
    tensor = saved(tmp_path / "a", dtype, (10, 3, 2))
    rows = Rows.of(tmp_path / "a", "rows")
    assert (len(rows), rows.shape, rows.dtype) == (10, tensor.shape, dtype)
    for which in (
        torch.tensor([7, 2, 2, 9, 0]), torch.tensor([], dtype=torch.long), torch.tensor([-1]), torch.tensor([[1, 2]]),
        slice(2, 5), slice(None), slice(None, None, 4), slice(5, 5), 3, torch.tensor(3),
    ):  # fmt: skip
        assert torch.equal(rows[which], tensor[which])
    with pytest.raises(IndexError):
        rows[torch.tensor([10])]


def test_rows_of_several_files_and_some_rows_of_a_file(tmp_path):
    one, other = saved(tmp_path / "a"), saved(tmp_path / "b", seed=1)
    chosen = torch.tensor([9, 1, 4])
    rows = Rows.behind([Rows.of(tmp_path / "a", "rows", chosen), Rows.of(tmp_path / "b", "rows")])
    expected = torch.cat([one[chosen], other])
    assert len(rows) == 13
    assert torch.equal(rows[:], expected)
    assert torch.equal(rows[torch.tensor([12, 0, 2, 3, 0])], expected[[12, 0, 2, 3, 0]])
    again = Rows.behind([rows, Rows.of(tmp_path / "a", "rows", chosen)])
    assert torch.equal(again[:], torch.cat([expected, one[chosen]]))
    assert torch.equal(torch.cat(list(in_chunks(rows, 5))), expected)
    assert [len(part) for part in in_chunks(rows, 5)] == [5, 5, 3]


def test_little_is_held_in_memory_and_much_stays_on_disk(tmp_path, monkeypatch):
    tensor = saved(tmp_path / "a")
    rows = Rows.of(tmp_path / "a", "rows")
    assert torch.equal(held(rows), tensor)
    monkeypatch.setattr(module, "MOST_HELD", 119)
    assert held(rows) is rows, "120 bytes"


def test_each_row_is_read_once_and_all_are_announced_before(tmp_path, monkeypatch):
    saved(tmp_path / "a"), saved(tmp_path / "b")
    rows, seen = Rows.behind([Rows.of(tmp_path / name, "rows") for name in "ab"]), []

    def noted(name):
        original = getattr(module.os, name)

        def call(descriptor, what, offset, *more):
            seen.append((name, offset if name == "preadv" else what, what if name != "preadv" else len(what[0])))
            return original(descriptor, what, offset, *more)

        monkeypatch.setattr(module.os, name, call)

    noted("preadv"), noted("posix_fadvise")
    rows[torch.tensor([15, 3, 4, 3, 15, 8])]
    assert [name for name, *_ in seen] == ["posix_fadvise"] * 3 + ["preadv"] * 3
    assert [size for name, _, size in seen if name == "preadv"] == [24, 12, 12], "3 and 4 are neighbours"


def test_what_comes_in_pieces_is_read_to_its_end(tmp_path, monkeypatch):
    tensor = saved(tmp_path / "a")
    monkeypatch.setattr(
        module.os, "preadv", lambda fd, views, at: module.os.pread(fd, 5, at) and copied(fd, views[0], at)
    )

    def copied(fd, view, at):
        found = module.os.pread(fd, min(5, len(view)), at)
        view[: len(found)] = found
        return len(found)

    assert torch.equal(Rows.of(tmp_path / "a", "rows")[:], tensor)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-4])


def touch(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replace(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    facts = path.stat()
    module.os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [truncate, touch, replace, Path.unlink])
def test_says_which_file_was_changed_under_the_run(tmp_path, change):
    saved(tmp_path / "a")
    rows = Rows.of(tmp_path / "a", "rows")
    change(tmp_path / "a")
    with pytest.raises(UserError, match=r"/a: expected the file that was opened before.*, got .*copy it again"):
        rows[torch.tensor([0])]


def test_says_which_file_ends_too_early(tmp_path):
    """Cut short before it was opened, or by a system that says too little of it."""
    save_file({"rows": torch.ones(10, 3)}, tmp_path / "a")
    truncate(tmp_path / "a")
    rows = Rows.of(tmp_path / "a", "rows")
    assert len(rows[:9]) == 9
    with pytest.raises(UserError, match=r"/a: expected 12 bytes at \d+, got 8. Was it changed, cut short"):
        rows[torch.tensor([9])]


RESIDENT = """
import sys
from pathlib import Path
import torch
from brainjanus.train.store import Rows
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
rows = Rows.of(Path(sys.argv[1]), "rows")
rows[torch.arange(4)]
before = resident()
generator = torch.Generator().manual_seed(0)
for _ in range(600):
    rows[torch.randint(len(rows), (32,), generator=generator)]
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not say how much is resident")
def test_memory_does_not_grow_by_what_is_read(tmp_path):
    """64 MB, all rows of it read several times."""
    save_file({"rows": torch.zeros(4096, 8192, dtype=torch.float16)}, tmp_path / "large")
    command = [sys.executable, "-c", RESIDENT, str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 16


# --- what is made once


class Made:
    """Rows [i, 10 i], and which were asked for."""

    def __init__(self, stop_at=None):
        self.slices, self.stop_at = [], stop_at

    def __call__(self, part):
        if self.stop_at is not None and part.start >= self.stop_at:
            raise KeyboardInterrupt
        self.slices.append((part.start, part.stop))
        rows = torch.arange(part.start, part.stop)
        return torch.stack([rows, 10 * rows], dim=1).to(torch.int16)


def make_rows(folder, made, num_rows=150, key=("data", "weights"), part_rows=64):
    return stored(folder, "kind", key, num_rows, made, "encode", part_rows)


def test_parts_are_made_once_and_read_back(tmp_path, capsys):
    rows = make_rows(tmp_path, Made())
    assert rows.dtype == torch.int16 and torch.equal(rows[:], Made()(slice(0, 150)))
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("kind-") and len(folder.name) == len("kind-") + 16
    assert sorted(p.name for p in folder.iterdir()) == [f"part-{i:05}.safetensors" for i in range(3)]
    assert [len(load_file(p)["rows"]) for p in sorted(folder.iterdir())] == [64, 64, 22]
    assert "encode: 150/150" in capsys.readouterr().err
    again = Made()
    assert torch.equal(make_rows(tmp_path, again)[:], rows[:])
    assert again.slices == [] and capsys.readouterr().err == ""


def test_other_weights_or_other_data_are_encoded_anew(tmp_path):
    make_rows(tmp_path, Made())
    for key in (("data", "others"), ("x", "weights")):
        made = Made()
        make_rows(tmp_path, made, key=key)
        assert made.slices[0] == (0, 32)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_was_stopped_goes_on_at_its_part(tmp_path, monkeypatch):
    starts = []
    original = module.progress

    def noted(name, total, start=0):
        starts.append((total, start))
        return original(name, total, start)

    monkeypatch.setattr(module, "progress", noted)
    with pytest.raises(KeyboardInterrupt):
        make_rows(tmp_path, Made(stop_at=96))
    again = Made()
    rows = make_rows(tmp_path, again)
    assert again.slices == [(64, 96), (96, 128), (128, 150)]
    assert torch.equal(rows[:], Made()(slice(0, 150)))
    assert starts == [(150, 0), (150, 64)], "the bar starts where it was left"


@pytest.mark.parametrize(
    "damage", [truncate, lambda path: path.write_bytes(b"x"), lambda path: saved(path, shape=(3, 2))]
)
def test_what_is_damaged_is_made_again(tmp_path, damage):
    make_rows(tmp_path, Made())
    (folder,) = tmp_path.iterdir()
    damage(folder / "part-00001.safetensors")
    again = Made()
    assert torch.equal(make_rows(tmp_path, again)[:], Made()(slice(0, 150)))
    assert again.slices == [(64, 96), (96, 128)]


SHARED = """
import json, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from brainjanus.core.processes import together
from brainjanus.train.store import stored
made = []
def make(part):
    made.append(part.start)
    while part.start == 16 and len(list(out.glob("codes/*/part-*"))) < 5:
        time.sleep(0.01)  # the last part of all is that of the first process, which says so
    return torch.arange(part.start, part.stop)[:, None]
out = Path(sys.argv[1])
with together():
    rank = dist.get_rank()
    rows = stored(out / "codes", "kind", ("key",), 22, make, "encode", 4)
    Path(out, f"{rank}.json").write_text(json.dumps({"made": made, "rows": rows[:][:, 0].tolist()}))
"""


def test_two_processes_make_every_other_part_and_both_read_all(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SHARED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, script, tmp_path], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    facts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [fact["made"] for fact in facts] == [[0, 8, 16], [4, 12, 20]]
    assert all(fact["rows"] == list(range(22)) for fact in facts)
    assert done.stderr.count("encode: 22/22") == 1, "one bar for both"
