"""No half-written file, whatever happens."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from brainjanus.core.errors import UserError, written_beside


@pytest.fixture
def file(tmp_path):
    (tmp_path / "there").write_text("old")
    return tmp_path / "there"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "old").write_text("old")
    return tmp_path / "there"


def fail(target, error):
    """Write half of a file or folder, then fail."""
    with written_beside(target) as beside:
        if target.is_dir():
            beside.mkdir()
            beside /= "half"
        beside.write_text("half")
        raise error


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_a_file_is_new_or_replaced(tmp_path, file):
    for target in (file, tmp_path / "a" / "b" / "new"):
        with written_beside(target) as beside:
            assert beside.name == target.name
            beside.write_text("new")
            assert not target.exists() or target.read_text() == "old"
        assert target.read_text() == "new"
        assert names(target.parent)[-1] == target.name, "nothing is left beside it"


def test_a_folder_is_replaced_as_a_whole(folder):
    with written_beside(folder) as beside:
        beside.mkdir()
        (beside / "new").write_text("new")
    assert names(folder) == ["new"]
    assert names(folder.parent) == ["there"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(errno.EIO, "broken")])
def test_what_goes_wrong_leaves_the_file_as_it_was(file, error):
    with pytest.raises(error if isinstance(error, type) else OSError):
        fail(file, error)
    assert file.read_text() == "old"
    assert names(file.parent) == ["there"]


def test_what_goes_wrong_leaves_the_folder_as_it_was(folder):
    with pytest.raises(KeyboardInterrupt):
        fail(folder, KeyboardInterrupt)
    assert names(folder) == ["old"]
    assert names(folder.parent) == ["there"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.EIO, "broken")])
def test_a_folder_comes_back_when_the_second_rename_fails(folder, monkeypatch, error):
    real = os.replace

    def replace(source, target):
        if target == folder and source.name == folder.name:
            raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(error if isinstance(error, type) else OSError), written_beside(folder) as beside:
        beside.mkdir()
    assert names(folder) == ["old"]
    assert names(folder.parent) == ["there"]


def test_a_folder_may_be_called_replaced(tmp_path):
    (tmp_path / "replaced" / "old").mkdir(parents=True)
    with written_beside(tmp_path / "replaced") as beside:
        beside.mkdir()
    assert names(tmp_path / "replaced") == []


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "expected room to write it, got a full disk"),
        (errno.EDQUOT, "expected room to write it, got a full disk"),
        (errno.EFBIG, "expected room to write it, got a full disk"),
        (errno.EROFS, "expected a place that can be written to"),
        (errno.EACCES, "expected a place that can be written to"),
    ],
)
def test_the_disk_is_the_users_to_mend(file, number, message):
    with pytest.raises(UserError, match=message):
        fail(file, OSError(number, "the reason"))
    assert file.read_text() == "old"
    assert names(file.parent) == ["there"]


def test_a_full_disk_that_safetensors_reports_is_one_too(file):
    with pytest.raises(UserError, match=r"full disk \(No space left on device\)"):
        fail(file, SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    with pytest.raises(SafetensorError, match="header"):
        fail(file, SafetensorError("invalid header"))
    assert file.read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_disk_that_is_full_for_numpy_is_one_too(file):
    def save():
        with written_beside(file), open("/dev/full", "wb", buffering=0) as full:
            np.save(full, np.zeros(9))

    with pytest.raises(UserError, match="expected room to write it, got a full disk"):
        save()


def test_a_file_in_the_way_is_the_users_to_mend(file):
    with pytest.raises(UserError, match="Choose another --out"), written_beside(file / "under" / "it"):
        pass


def test_a_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)


def test_names_with_line_breaks_stay_in_one_line():
    assert str(UserError("a\nb: expected a file, got\r\nnone.")) == "a b: expected a file, got none."
