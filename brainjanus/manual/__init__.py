"""The manual: one page of text a command, which `--help` prints without importing what the command needs.

Pages are written by `python docs/manual.py` out of the commands themselves; a test makes them again and compares.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from importlib import resources

from brainjanus.core.errors import UserError

HELP = ("-h", "--help")
OPTION = re.compile(r"^ {7}(--\S+)", flags=re.MULTILINE)
ANY = "NAME"  # ends an option that stands for many: --training.tasks.NAME
OTHERS_SAY = {  # what other programs call it -> how an option ends here
    "epochs": "steps", "max-steps": "steps", "num-epochs": "steps", "gpu": "device", "cuda": "device", "gpus": "device",
    "wandb": "log-to", "tensorboard": "log-to", "bf16": "precision", "fp16": "precision", "dtype": "precision",
    "temp": "temperature", "cfg": "guidance", "cfg-scale": "guidance", "guidance-scale": "guidance", "prompt": "text",
    "n": "samples", "n-samples": "samples", "output-dir": "out", "save-dir": "out", "roi": "rois", "bs": "batch-size",
}  # fmt: skip


def page(name: str) -> str | None:
    """The page of a command, such as "train tokenizer" or "prepare --from"; None if there is none."""
    words = [word for word in name.split() if not word.isupper()]  # LAYOUT is a value
    if not all(word.lstrip("-").isalpha() for word in words):
        return None
    file = resources.files(__package__) / f"{'_'.join(words)}.txt"
    return file.read_text(encoding="utf-8") if file.is_file() else None


def command_of(argv: Sequence[str]) -> str:
    """The command that these words begin with, and its kind, if it has one: "train tokenizer", "prepare --from"."""
    kinds = [word.partition("=")[0] for at, word in enumerate(argv) if at == 1 or (at and word.startswith("--"))]
    return next((name for kind in kinds if page(name := f"{argv[0]} {kind}") is not None), argv[0])


def page_asked(argv: Sequence[str]) -> str | None:
    """The page that these words ask for: a command, perhaps its kind, and --help. None if they say more than that."""
    words = [word for word in argv if word not in HELP]
    if len(words) == len(argv) or not words:
        return None
    settings = [word for word in words[1:] if word.startswith("--")]  # whose values decide what else is told
    return page(command_of(words)) if settings in ([], ["--from"]) else None


def check_options(argv: Sequence[str]) -> None:
    """Raises UserError for an option that the page of a command does not have, with the one that may be meant."""
    name = command_of(argv)
    text = page(name)
    if text is None:
        return
    known = [*OPTION.findall(text), *HELP]
    free = tuple(option.removesuffix(ANY) for option in known if option.endswith(ANY))
    for word in argv[1:]:
        option = word.partition("=")[0].replace("_", "-")
        if option.startswith("--") and option not in known and not (free and option.startswith(free)):
            raise UserError(
                f"{name}: expected an option that `brainjanus {name} --help` explains, got '{word.partition('=')[0]}'. "
                f"{meant(option, known)}"
            )


def meant(word: str, known: Iterable[str]) -> str:
    """A question that names what is near to a word, or the advice to look."""
    known = list(known)
    bare, translated = word.lstrip("-"), OTHERS_SAY.get(word.lstrip("-"))
    near = difflib.get_close_matches(word, known, 2, 0.75)
    for name in known:  # --steps for --training.optim.steps, --lr for its learning rate
        last = name.rpartition(".")[2].lstrip("-")
        initials = "".join(part[:1] for part in last.split("-"))
        alike = bare == initials or difflib.SequenceMatcher(None, bare, last).ratio() > 0.85
        if translated == last if translated else alike:
            near.append(name)
    found = list(dict.fromkeys(near))[:4]
    return f"Did you mean {' or '.join(found)}?" if found else "Correct it, or leave it out."
