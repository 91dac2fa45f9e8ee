"""Captions as the tokens that the field's caption scores count, with Java or without.

Enters: captions. Leaves: one line per caption, its tokens lower-cased and separated by blanks, punctuation dropped.

`java_tokens` runs the Stanford PTBTokenizer that comes with pycocoevalcap (its jar, its options, its list of
punctuation); every published score rests on it. Differs: text travels as UTF-8 through a pipe instead of a file beside
the jar in the encoding of the machine, and there is a time limit. `python_tokens` stands in where there is no Java: the
same rules of the Penn Treebank as one regular expression. It gives the same line for all 8,317 captions of BrainHub
and coco_small (nltk's TreebankWordTokenizer for 8,301: it leaves a full stop inside a line on its word). The same line
for other captions is likely, not certain: Java's rules are many, and some look at the caption that follows.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

TIMEOUT_SEC = 120.0  # 8,000 captions take a third of a second
JAVA_OPTIONS = ("-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8")  # the machine's encoding may be another
# What pycocoevalcap drops. Brackets are dropped in capitals only, so that of lower-cased text they stay.
PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", "--", "...", *".?!,:-;"])

_ABBREVIATIONS = (  # keep their full stop wherever they stand; those of the second line before a number only
    "mr mrs ms dr prof gen col capt lt sgt rev hon gov sen rep pres adm maj messrs st ave blvd rd ste mt ft bldg jr sr "
    "inc co corp ltd bros assn univ dept vs etc al est cf tel jan feb mar apr jun jul aug sep sept oct nov dec mon tue "
    r"wed thu fri calif ph\.d"
).replace(" ", "|")
_BEFORE_NUMBERS = "no|nos|fig|figs|pp|ca"
_TOKEN = re.compile(
    rf"""
      https?://[^\s"<>]*[^\s"<>.,;:!?')] | [\w.+-]++@[\w-]+(?:\.[\w-]+)+ | [@\#][a-z]\w*  # addresses
    | </?[a-z][^<>\s]*>                                                   # a tag
    | (?<!\w)(?:{_ABBREVIATIONS})\.(?!\w) | (?<!\w)(?:{_BEFORE_NUMBERS})\.(?=\s*\d)
    | (?<![\w'])[a-z](?:(?:\.[a-z])+\.(?![\w.]) | \.(?![\w.]|\s*$))       # p.m., and an initial within a line
    | (?-i:\b[A-Z]+&[A-Z]+\b)                                             # AT&T
    | \b(?:can(?=not\b) | gon(?=na\b) | wan(?=na\b) | got(?=ta\b) | gim(?=me\b) | lem(?=me\b))
    | (?<!\w)(?:[dol]'[a-z]{{2,}} | c'mon | ma'am)\b
    | [a-z]+?(?=n't\b) | n't\b | '(?:s|m|d|re|ve|ll)\b | 't(?=(?:is|was)\b) | '(?:em|cause)\b | (?<!\w)'\d\ds?\b | 'n'?
    | (?<!\S)\d+[ ]\d{{1,2}}/\d{{1,2}}\b                                  # one and a half
    | (?<!\S)[-+]\d+(?:[.,:]\d+)* | \d*(?:[.,:]\d+)+                      # 1,000.5 and 10:30
    | [^\W_]+(?:[-/_][^\W_]+ | (?<=[^\W\d])[.!?](?=[^\W\d])[^\W_]+)*      # words; t-shirt, and/or, dog.the
    | [!?]{{2,}}                                                          # longer than what is punctuation
    | [^\s\w.,:;!?'"`\-\U00010000-\U0010ffff] | _                         # symbols
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SPELLED = str.maketrans(
    dict.fromkeys("’‘", "'")
    | dict.fromkeys("“”…–—", " ")
    | {"½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "€": "$", "£": "#", "\u00ad": None, "\u200b": " "}
)
_WRITTEN = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")  # line breaks of any script among them, and control characters


class JavaError(Exception):
    """Java is absent or does not do its work; the message is the rest of a sentence that begins with its name."""


def python_tokens(captions: Sequence[str]) -> list[str]:
    """One line of tokens per caption, without Java."""
    return [_python_line(one_line(caption)) for caption in captions]


def java_tokens(captions: Sequence[str], *, timeout_sec: float = TIMEOUT_SEC) -> list[str]:
    """One line of tokens per caption. Raises JavaError if there is no Java, it fails, or takes too long."""
    text = "".join(one_line(caption) + "\n" for caption in captions)
    main = "edu.stanford.nlp.process.PTBTokenizer"
    found = run_java(["-cp", str(_jar()), main, "-preserveLines", "-lowerCase"], text, timeout_sec=timeout_sec)
    lines = found.split("\n")[:-1]  # not splitlines: a caption may hold what Python takes for a break and Java does not
    if len(lines) != len(captions):
        raise JavaError(f"returned {len(lines)} lines for {len(captions)} captions")
    return [" ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION) for line in lines]


def run_java(
    arguments: Sequence[str],
    text: str = "",
    *,
    timeout_sec: float,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """What a Java program prints for `text`. Raises JavaError, and leaves no process behind."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            [java(), *JAVA_OPTIONS, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, cwd=cwd, start_new_session=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip
    except OSError as error:
        raise JavaError(f"cannot be started ({error.strerror})") from error
    with process:
        try:
            found, complaints = process.communicate(text.encode(), timeout_sec)
        except subprocess.TimeoutExpired:
            raise JavaError(f"did not answer within {timeout_sec:g} s") from None
        finally:
            end(process)
    if process.returncode:
        said = complaints.decode(errors="replace").strip().splitlines() or ["without a word"]
        raise JavaError(f"stopped with status {process.returncode} ({said[0][:200]})")
    return found.decode(errors="replace")


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads its session, with all that it started (java may be a script), and wait for it."""
    if process.poll() is None:  # once it was waited for, its number may be another's
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def java() -> str:
    """The path of Java. Raises JavaError if there is none."""
    found = shutil.which("java")
    if found is None:
        raise JavaError("is not installed")
    return found


def one_line(caption: str) -> str:
    """A caption without line breaks, control characters and halves of characters: each would shift the lines."""
    return _BREAKS.sub(" ", caption).strip().encode(errors="ignore").decode()


def _python_line(caption: str) -> str:
    tokens = _TOKEN.findall(caption.translate(_SPELLED))
    # a mixed number is one token, its blank one that does not break
    return " ".join(_WRITTEN.get(token, token.lower().replace(" ", "\u00a0")) for token in tokens)


def _jar() -> Path:
    from pycocoevalcap.tokenizer import ptbtokenizer

    return Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
