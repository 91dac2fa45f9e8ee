"""Rows lie in the file where `save_file` puts them, and what is read back is what was written."""

import hashlib

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from brainjanus.core.errors import UserError
from brainjanus.data.stored import Finished, Segment, Stored, lay_out, opened, record, recorded, verified

TENSORS = {"pixels": ("uint8", (5, 3)), "stimulus": ("int64", (5,)), "half": ("float16", (2, 2))}


def test_a_file_written_by_rows_is_that_of_save_file(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 99, shape).astype(dtype) for name, (dtype, shape) in TENSORS.items()}
    lay_out(tmp_path / "a", TENSORS)
    for name, array in arrays.items():
        for first in (2, 0):
            Stored(tmp_path / "a", name).write(first, array[first : first + 2])
        Stored(tmp_path / "a", name).write(min(4, len(array)), array[4:])
    save_file(arrays, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    np.testing.assert_array_equal(Stored(tmp_path / "a", "pixels")[np.array([4, 1, 4])], arrays["pixels"][[4, 1, 4]])
    np.testing.assert_array_equal(Stored(tmp_path / "a", "stimulus").read(1, 3), arrays["stimulus"][1:4])


def test_a_file_that_is_there_is_kept_with_its_records_and_another_is_not(tmp_path):
    path, tensors = tmp_path / "home" / "x.safetensors", {"rows": ("float32", (3, 2))}
    opened(path, "rows", tensors).write(1, np.ones((1, 2), np.float32))
    record(path.parent / "0.npz", crc=1)
    assert opened(path, "rows", tensors).read(1, 1).tolist() == [[1, 1]]
    assert recorded(path.parent / "0.npz") is not None
    for other in ({"rows": ("float16", (3, 2))}, {"rows": ("float16", (3, 4))}):
        opened(path, "rows", other)
        assert recorded(path.parent / "0.npz") is None
        assert (load_file(path)["rows"] == 0).all()
    path.write_bytes(path.read_bytes()[:-1])
    assert opened(path, "rows", other).read(2, 1).tolist() == [[0] * 4]


def test_a_record_that_is_damaged_is_none(tmp_path):
    path = tmp_path / "0.npz"
    record(path, rows=np.arange(100), crc=7)
    whole = path.read_bytes()
    found = recorded(path)
    assert found is not None and int(found["crc"]) == 7 and found["rows"].tolist() == list(range(100))
    for damaged in (b"", whole[:200], whole[:-10], bytes(len(whole))):
        path.write_bytes(damaged)
        assert recorded(path) is None
    path.unlink()
    assert recorded(path) is None


def test_what_was_written_is_verified_and_its_bytes_are_summed(tmp_path):
    path, read = tmp_path / "x.safetensors", []
    lay_out(path, {"rows": ("float32", (4, 3))})
    stored = Stored(path, "rows")
    rows = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    segments = [Segment(first, 2, stored.write(first, rows[first : first + 2])) for first in (0, 2)]
    file = Finished(path, "x", "rows", segments)
    assert verified(file, read.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(read) == rows.nbytes
    stored.write(3, np.zeros((1, 3), np.float32))
    with pytest.raises(UserError, match="expected rows 2 to 3 as they were written, got others"):
        verified(file, read.append)
