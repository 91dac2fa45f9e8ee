"""Paths of listings are read as they are written."""

from .listing import paths


def test_a_listing_is_read_as_paths():
    assert paths("a/\n  b.py  says what\n  c/  more\n    d.py\n  e.py\nf{1,2}.tar\n") == [
        "a/",
        "a/b.py",
        "a/c/",
        "a/c/d.py",
        "a/e.py",
        "f{1,2}.tar",
    ]


def test_what_may_be_absent_is_left_out():
    assert paths("a/\n  [c]   maybe\n  [d/]\n    e\n  f\n") == ["a/", "a/f"]
