"""The manual says what the commands are: its pages are those that would be written now, and complete."""

import re
import subprocess
import sys

import pytest

from brainjanus import cli, manual

WIDTH = 80


@pytest.fixture(scope="module")
def pages(project_root) -> dict[str, str]:
    folder = project_root / "brainjanus/manual"
    return {path.stem.replace("_", " "): path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}


def test_pages_are_those_of_the_commands(project_root):
    """In a process of its own: what checks shapes here would hide docstrings."""
    asked = [sys.executable, project_root / "docs/manual.py", "--check"]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=project_root, timeout=300)
    assert done.returncode == 0, done.stderr


def test_every_command_has_a_page(pages):
    assert pages.keys() >= cli.COMMANDS.keys()


def test_every_option_is_explained(pages):
    for name, text in pages.items():
        entries = re.findall(r"^ {7}(--\S+|\[?[A-Z]+\]?)(?: [^\n]*)?\n((?: {14}[^\n]*\n)*)", text, flags=re.M)
        assert entries
        for entry, told in entries:
            words = re.sub(r"Default: .*|Required\.", "", told, flags=re.DOTALL).strip()
            assert words, f"{name}: {entry} is not explained"


def test_pages_are_laid_out_as_manual_pages(pages):
    for name, text in pages.items():
        titles = re.findall(r"^([A-Z][A-Z -]+)$", text, flags=re.M)
        assert titles[:2] == ["NAME", "SYNOPSIS"] and titles[-2:] == ["EXIT STATUS", "SEE ALSO"]
        before, _, rest = text.partition("EXAMPLES\n")
        examples, _, after = rest.partition("\n\n")
        assert f"       brainjanus {name.split()[0]} " in examples and "Args:" not in text
        for line in (before + after).splitlines():
            assert len(line) <= WIDTH or len(line.split()) < 4, f"{name}: {line}"  # what cannot be broken


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["train", "--help"], "train"),
        (["train", "tokenizer", "-h"], "train tokenizer"),
        (["help", "prepare"], "prepare"),
        (["train", "tokeniser", "--help"], "train"),
        (["train", "--help", "extra"], "train"),
        (["prepare", "--from", "--help"], "prepare --from"),
        (["simulate", "eeg", "-h"], "simulate eeg"),
    ],
)
def test_help_prints_the_page(argv, name, capsys):
    assert cli.main(argv) == 0
    assert capsys.readouterr().out == manual.page(name)


def test_help_with_settings_shows_their_defaults(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["train", "--recipe", "nsd-7b", "--help"])
    assert stopped.value.code == 0 and "(default: 4096)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["train", "data/mine", "--out", "runs/mine", "--tokenizer", "runs/tokenizer", "--recipe", "quick"], "train"),
        (["train", "--tokenizer=runs/tokenizer", "data/mine"], "train"),
        (["train", "tokenizer", "data/mine", "--published"], "train tokenizer"),
        (["prepare", "--out", "data/nsd", "--from", "nsd"], "prepare --from"),
        (["simulate", "eeg", "--out", "data/eeg"], "simulate eeg"),
    ],
)
def test_options_are_those_of_the_command_or_its_kind(argv, name):
    assert manual.command_of(argv) == name
    manual.check_options(argv)


def test_settings_of_many_names_are_known_by_their_beginning():
    manual.check_options(["train", "d", "--training.tasks.brain:subj01->text", "1"])


def test_an_option_that_is_called_as_a_kind_is_an_option():
    manual.check_options(["train", "d", "--out", "x", "--tokenizer", "t", "--recipe", "quick"])


def test_what_has_no_page_is_not_checked():
    manual.check_options(["nothing", "--of-the-sort"])
