"""The protocol of a result: what exactly was compared with what.

Enters: a dataset or a file of references, the stimuli, how repeats were used, a metric's definition. Leaves: a
Protocol, which every record carries, and the differences between two of them: results whose protocols differ are not
compared.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version

SOFTWARE = ("brainjanus", "torch", "numpy", "scipy")
UNDECLARED = "undeclared"  # what the maker of predictions did not say; it is compared with anything, and shown


@dataclass(frozen=True)
class Protocol:
    """What a figure depends on beside its direction, dataset, subject, ROI, estimator and metric.

    fingerprint: SHA-256 of the dataset, if there is one; references: of what predictions are held against (captions,
    pictures, responses). subjects: whose brains. split: "test", ... stimuli: hash of the sorted ids.
    responses: units and z-scoring of the brain responses. repeats: how repeats of a stimulus were used. definition: of
    the metric, with the library that computes it. beside: how the figures beside the value came about.
    software: versions of the rest, which are told and not compared.
    """

    fingerprint: str = UNDECLARED
    references: str = UNDECLARED
    subjects: str = UNDECLARED
    split: str = UNDECLARED
    stimuli: str = UNDECLARED
    responses: str = UNDECLARED
    repeats: str = UNDECLARED
    definition: str = UNDECLARED
    beside: Mapping[str, str] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """A short name: equal for results that may be compared as far as this protocol goes."""
        facts = {name: value for name, value in asdict(self).items() if name in COMPARED}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


UNKNOWN = Protocol()
COMPARED = ("fingerprint", "references", "subjects", "split", "stimuli", "responses", "repeats", "definition")


def hash_of_ids(ids: Iterable[str]) -> str:
    """One name for a set of stimuli, whatever their order: SHA-256 of the sorted ids, 16 digits."""
    return hashlib.sha256("\n".join(sorted(map(str, ids))).encode()).hexdigest()[:16]


def hash_of_captions(references: Mapping[str, Iterable[str]]) -> str:
    """One name for references: SHA-256 of their ids and captions, whatever the order of the ids and the layout."""
    text = json.dumps({key: list(references[key]) for key in sorted(references)}, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def software(*packages: str) -> dict[str, str]:
    """The installed versions of our own dependencies and of `packages`."""
    found = {}
    for name in (*SOFTWARE, *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that was not installed
            found[name] = "not installed"
    return found


def differences(first: Protocol, second: Protocol) -> dict[str, tuple[str, str]]:
    """The compared fields in which two protocols differ: name -> both values. The undeclared differs from nothing."""
    pairs = {name: (str(getattr(first, name)), str(getattr(second, name))) for name in COMPARED}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and UNDECLARED not in pair}
