import json
import os
import shutil
from pathlib import Path

import pytest

from brainjanus.evaluate import ptb
from brainjanus.evaluate.ptb import JavaError, java_tokens, one_line, python_tokens, run_java

pytest.importorskip("pycocoevalcap", reason="needs the extra captions")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
HARD = [
    "", " ", ".", "A.", "!!!", "a dog", "The man's dogs' dog isn't, can't, won't; cannot!",
    'a "quoted" word \'and\' it’s',
    "(a) [b] {c}", "x-large t-shirt, black/white and/or snow-covered,red", "1,000 people at 10:30am on 5th St. no. 5",
    "Mr. Smith in the U.S. at 5 p.m. today", "a dog.The cat. runs... ok.... what.. ", "10 %, $5 & #1 a|b ||| c",
    "gonna wanna gotta lemme gimme", "'tis the '90s, 80's", "café naïve 日本語 £5 €5 ½ cup 1 1/2",
    "– em — -- --- - a -b",
    "AT&T black&white rock&roll", "the 'single' and `back`", "well- known -start end-", "foo@bar.com http://a.b/c?d=1.",
    "<unk> </s> dog", "a\\b", "we've they'd I'm you'll O'Brien o'clock", "5 dogs; 3 cats: 2 birds", "ok?! no??",
]  # fmt: skip


@needs_java
def test_python_gives_the_tokens_of_java():
    for caption, said, meant in zip(HARD, python_tokens(HARD), java_tokens([*HARD, "x"]), strict=False):
        if caption != "A.":  # Java looks at the caption that follows
            assert said == meant, caption


@needs_java
def test_python_and_java_agree_on_published_captions(real_data: Path):
    folder = real_data / "brainhub" / "captions"
    captions = [
        caption for group in json.loads((folder / "fmri_cococap.json").read_text()).values() for caption in group
    ]
    for path in sorted(folder.glob("*/*.json")):
        captions += json.loads(path.read_text()).values()
    same = [a == b for a, b in zip(python_tokens(captions), java_tokens(captions), strict=True)]
    assert len(same) > 6000
    assert sum(same) / len(same) > 0.999


def test_punctuation_is_that_of_pycocoevalcap():
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    assert frozenset(PUNCTUATIONS) == ptb.PUNCTUATION


@pytest.mark.parametrize("tokens", [python_tokens, pytest.param(java_tokens, marks=needs_java)])
def test_a_break_inside_a_caption_shifts_no_line(tokens):
    marks = ["\n", "\r\n", "\r", "\t", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\0", "\ud800"]
    captions = [caption for mark in marks for caption in (f"a red {mark} dog{mark}", "a cat")]
    assert tokens(captions) == ["a red dog", "a cat"] * len(marks)


def test_one_line_keeps_letters_of_all_scripts():
    assert one_line(" é\n日本\t😀 ") == "é 日本 😀"


@pytest.mark.parametrize(
    "caption", ["a" * 10_000, "a dog " * 2000, "." * 10_000, "'" * 10_000, "1," * 5000, "a-" * 5000]
)
def test_a_long_caption_takes_no_long(caption):
    assert len(python_tokens([caption])) == 1


def pretend_java(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program named java that does something else."""
    program = folder / "java"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_without_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JavaError, match="is not installed"):
        java_tokens(["a dog"])


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'no VM here' >&2; exit 3", r"stopped with status 3 \(no VM here\)"),
        ("exit 1", r"stopped with status 1 \(without a word\)"),
        ("sleep 60", "did not answer within 0.2 s"),
        ("cat > /dev/null; echo a dog", "returned 1 lines for 2 captions"),
        ("cat > /dev/null", "returned 0 lines for 2 captions"),
    ],
)
def test_java_that_does_not_work(script, reason, monkeypatch, tmp_path):
    pretend_java(tmp_path, monkeypatch, script)
    with pytest.raises(JavaError, match=reason):
        java_tokens(["a dog", "a cat"], timeout_sec=0.2 if "sleep" in script else 30.0)


def test_java_that_cannot_be_run(monkeypatch, tmp_path):
    (tmp_path / "java").write_bytes(b"\x7fELF rubbish")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JavaError, match="cannot be started"):
        run_java(["-version"], timeout_sec=5.0)
