"""The field's caption scores: BLEU, METEOR, ROUGE-L, CIDEr, SPICE, BERTScore, CLIP-S, RefCLIP-S.

Enters: reference captions of each stimulus, and one decoded caption for each. Leaves: figures as fractions, with the
statistics of each stimulus from which an interval is drawn; which metrics were not scored, and why; what exactly each
figure is. They are the protocol of BrainHub (Xia et al. 2024) and of COCO (Chen et al. 2015), through pycocoevalcap,
its jars included.

BLEU (Papineni et al. 2002) and METEOR (Denkowski & Lavie 2014) are figures of a corpus, not means over captions: their
counts are summed first. Hence every score is `combine(sum of statistics over stimuli)`, which for the other metrics is
the mean, and a resample of stimuli is summed in the same way. CIDEr (Vedantam et al. 2015) weighs n-grams by how few
stimuli they describe: its figures depend on the set of stimuli, and resampling keeps the weights.

Differs from pycocoevalcap: SPICE keeps its cache in a temporary folder and downloads nothing; without Java, the tokens
are those of `ptb.python_tokens`.
"""

import importlib.util
import json
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from brainjanus.core.errors import UserError
from brainjanus.evaluate.bertscore import BertScorer, bertscore
from brainjanus.evaluate.clip import CLIP_PREFIX, ClipModel, clip_s, ref_clip_s
from brainjanus.evaluate.meteor import Meteor, meteor_of
from brainjanus.evaluate.ptb import JavaError, java_tokens, python_tokens, run_java

BLEU_ORDERS = 4
TITLES = {
    "bleu1": "BLEU-1", "bleu2": "BLEU-2", "bleu3": "BLEU-3", "bleu4": "BLEU-4", "meteor": "METEOR",
    "rouge_l": "ROUGE-L", "cider": "CIDEr", "spice": "SPICE", "bertscore": "BERTScore", "clip_s": "CLIP-S",
    "ref_clip_s": "RefCLIP-S",
}  # fmt: skip
CAPTION_METRICS = tuple(TITLES)
SPICE_TIMEOUT_SEC = 3600.0  # it parses every caption: minutes for a thousand stimuli
_TINY, _SMALL = 1e-15, 1e-9  # what pycocoevalcap adds to BLEU's counts
_CONSTANT_STIMULI = 1000  # enough to rank constant captions; the work grows with the square
_CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_GET_SPICE = "python -c 'from pycocoevalcap.spice.get_stanford_models import *; get_stanford_models()'"
# SPICE's cache serialises through reflection, which Java forbids by default from version 16 on. Version 8 knows neither
# the option nor this variable.
_OPENED = " ".join(
    f"--add-opens=java.base/java.{name}=ALL-UNNAMED"
    for name in ("lang", "math", "util", "util.concurrent", "net", "text")
)


# N stimuli, S statistics, B resamples
class CaptionScore(NamedTuple):
    """One figure. samples: what each caption earns by itself (for BLEU and METEOR their mean is not the value)."""

    value: float
    samples: Float[np.ndarray, "n"]
    statistics: Float[np.ndarray, "n s"]
    combine: Callable[[Float[np.ndarray, "b s"]], Float[np.ndarray, "b"]]  # of sums of statistics

    def resampled(self, counts: Int[np.ndarray, "b n"]) -> Float[np.ndarray, "b"]:
        """The value of each resample; a row says how often it holds each stimulus."""
        return self.combine(counts @ self.statistics)


class Scored(NamedTuple):
    """Figures by metric, in the order of CAPTION_METRICS.

    skipped: metric -> a sentence, why it was not scored and what to do. definition: metric -> what the figure is,
    with tokenizer and versions. rows: indices of the stimuli that were scored.
    """

    scores: dict[str, CaptionScore]
    skipped: dict[str, str]
    definition: dict[str, str]
    rows: Int[np.ndarray, "n"]


def score_captions(references: Sequence[Sequence[str]], decoded: Sequence[str], **options: Any) -> Scored:
    """Score one set of captions; `options` as of CaptionScorer, which scores several against the same references."""
    with CaptionScorer(references, **options) as scorer:
        return scorer.score(decoded)


class CaptionScorer:
    """Scores sets of captions against the same references, which are tokenized, parsed and embedded once.

    references: one or more captions of each stimulus. names: how errors call the stimuli; default their numbers.
    metrics: those wanted, default all. java: False to do without even if it is there. bertscore, clip: the models that
    BERTScore, CLIP-S and RefCLIP-S need. pictures: RGB of each stimulus, for the latter two.
    Use it as a context, or `close` it: METEOR keeps a process.
    Raises UserError for an unknown metric, a stimulus without references, or another number of pictures.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        *,
        names: Sequence[str] | None = None,
        metrics: Collection[str] | None = None,
        java: bool = True,
        bertscore: BertScorer | None = None,
        clip: ClipModel | None = None,
        pictures: UInt8[np.ndarray, "n h w 3"] | None = None,
    ) -> None:
        unknown = sorted(set(metrics or ()) - set(CAPTION_METRICS))
        if unknown:
            raise UserError(
                f"caption metrics: expected some of {', '.join(CAPTION_METRICS)}, got '{unknown[0]}'. "
                "Is it misspelt? Leave the choice out to get all."
            )
        _check_references(references, names)
        if pictures is not None and len(pictures) != len(references):
            raise UserError(
                f"pictures for CLIP-S: expected {len(references)}, one for each stimulus, got {len(pictures)}. "
                "Was one list filtered without the other? Pass both in the same order."
            )
        self.metrics = tuple(name for name in CAPTION_METRICS if metrics is None or name in metrics)
        self._no_java = None if java else "was switched off"
        self._no_meteor: str | None = None
        self._meteor: Meteor | None = None
        self._spice_cache: tempfile.TemporaryDirectory[str] | None = None
        self._bertscore, self._clip = bertscore, clip
        self._captions = [caption for group in references for caption in group]
        self._ends = np.cumsum([len(group) for group in references])
        self._pictures: np.ndarray | None = None
        self._views: dict[str, Any] = {}
        self._views = self._view(self._captions)
        if clip is not None and pictures is not None and {"clip_s", "ref_clip_s"} & set(self.metrics):
            self._pictures = clip.embed_pictures(pictures)

    def __enter__(self) -> "CaptionScorer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End METEOR's process and drop SPICE's cache; a closed scorer starts them again when it scores."""
        if self._meteor is not None:
            self._meteor.close()
        if self._spice_cache is not None:
            self._spice_cache.cleanup()
        self._meteor = self._spice_cache = None

    def score(self, decoded: Sequence[str]) -> Scored:
        """Score one caption per stimulus, in the order of the references. Raises UserError for another number."""
        if len(decoded) != len(self._ends):
            raise UserError(
                f"decoded captions: expected {len(self._ends)}, one for each stimulus, got {len(decoded)}. "
                "Was one list filtered without the other? Pass both in the same order."
            )
        said = self._view(decoded)
        return self._score(self._groups(), said, np.arange(len(decoded)))

    def human(self) -> Scored:
        """The human ceiling: the first caption of each stimulus against its others.

        Stimuli with one caption are left out (`rows` are the others). Raises UserError if none has two.
        """
        groups = self._groups()
        rows = np.flatnonzero(np.diff(self._ends, prepend=0) > 1)
        if not len(rows):
            raise UserError(
                "human captions: expected at least one stimulus with two captions, got one caption for each. "
                "There is no second person to compare with; score without this ceiling."
            )
        said = {name: [group[row][0] for row in rows] for name, group in groups.items()}
        others = {name: [group[row][1:] for row in rows] for name, group in groups.items()}
        return self._score(others, said, rows)

    def _view(self, captions: Sequence[str]) -> dict[str, Any]:
        """Captions as the metrics see them: tokens and embeddings."""
        views: dict[str, Any] = {}
        if set(self.metrics) - {"bertscore", "clip_s", "ref_clip_s"} and _has_pycocoevalcap():
            views["tokens"] = self._tokens(captions)
        if self._bertscore is not None and "bertscore" in self.metrics:
            views["bertscore"] = self._bertscore.embed(captions)
        if self._clip is not None and {"clip_s", "ref_clip_s"} & set(self.metrics):
            views["clip"] = self._clip.embed_captions([CLIP_PREFIX + caption for caption in captions])
        return views

    def _tokens(self, captions: Sequence[str]) -> list[str]:
        if self._no_java is None:
            try:
                return java_tokens(captions)
            except JavaError as error:
                self._no_java = str(error)
                if "tokens" in self._views:  # references and captions by the same rules
                    self._views["tokens"] = python_tokens(self._captions)
        return python_tokens(captions)

    def _groups(self) -> dict[str, list[Any]]:
        """The references of each stimulus, in each view."""
        starts = np.concatenate([[0], self._ends[:-1]])
        return {
            name: [view[start:end] for start, end in zip(starts, self._ends, strict=True)]
            for name, view in self._views.items()
        }

    def _score(
        self, references: Mapping[str, list[Any]], said: Mapping[str, Any], rows: Int[np.ndarray, "n"]
    ) -> Scored:
        found: dict[str, CaptionScore] = {}
        skipped: dict[str, str] = {}
        definition: dict[str, str] = {}
        if "tokens" in said:
            self._score_tokens(references["tokens"], said["tokens"], found, skipped, definition)
        elif set(self.metrics) - {"bertscore", "clip_s", "ref_clip_s"}:
            for name in CAPTION_METRICS[: CAPTION_METRICS.index("bertscore")]:
                skipped[name] = _skipped(name, "pycocoevalcap is not installed", "pip install 'brainjanus[captions]'")
        if "bertscore" in said and self._bertscore is not None:
            found["bertscore"] = _mean(bertscore(references["bertscore"], said["bertscore"]))
            definition["bertscore"] = self._bertscore.definition
        else:
            skipped["bertscore"] = _skipped(
                "bertscore", "no language model was given", "pass the folder of roberta-large (--bert)"
            )
        if "clip" in said and self._clip is not None and self._pictures is not None:
            texts, pictures = np.stack(list(said["clip"])), self._pictures[rows]
            found["clip_s"] = _mean(clip_s(pictures, texts))
            found["ref_clip_s"] = _mean(ref_clip_s(pictures, texts, [np.stack(list(r)) for r in references["clip"]]))
            definition["clip_s"] = f"CLIP-S, 2.5 max(cos, 0), '{CLIP_PREFIX}', {self._clip.definition}"
            definition["ref_clip_s"] = f"RefCLIP-S, harmonic mean with the best reference, {definition['clip_s']}"
        else:
            what = "no CLIP model was given" if self._clip is None else "no pictures were given"
            todo = "pass the folder of CLIP ViT-B/32 (--clip), and the pictures of the stimuli"
            skipped |= {name: _skipped(name, what, todo) for name in ("clip_s", "ref_clip_s")}
        return Scored(self._in_order(found), self._in_order(skipped), self._in_order(definition), rows)

    def _in_order(self, by_name: dict[str, Any]) -> dict[str, Any]:
        return {name: by_name[name] for name in self.metrics if name in by_name}

    def _score_tokens(
        self,
        references: Sequence[Sequence[str]],
        said: Sequence[str],
        found: dict[str, CaptionScore],
        skipped: dict[str, str],
        definition: dict[str, str],
    ) -> None:
        """What pycocoevalcap scores."""
        java_ptb = "Stanford PTBTokenizer 3.4.1 (Java)"
        tokens = java_ptb if self._no_java is None else "Python PTB tokenizer"
        details = {
            "rouge_l": "ROUGE-L, beta 1.2",
            "cider": "CIDEr (pycocoevalcap's, with clipping and length penalty: CIDEr-D)",
            "meteor": "METEOR 1.5, en, -norm",
            "spice": "SPICE 1.0, F1",
        } | {f"bleu{order + 1}": f"BLEU-{order + 1}, of the corpus, closest length" for order in range(BLEU_ORDERS)}
        wanted = set(self.metrics)
        if wanted & {f"bleu{order + 1}" for order in range(BLEU_ORDERS)}:
            found |= _bleu(references, said)
        if "rouge_l" in wanted:
            found["rouge_l"] = _mean(_rouge_l(references, said))
        if "cider" in wanted and len(said) > 1:
            found["cider"] = _mean(_cider(references, said))
        elif "cider" in wanted:
            skipped["cider"] = _skipped("cider", "one stimulus tells no rare n-gram from a common one", "score several")
        for name, measure in (("meteor", self._score_meteor), ("spice", self._score_spice)):
            if name in wanted:
                try:
                    found[name] = measure(references, said)
                except JavaError as error:
                    skipped[name] = str(error)
        for name in found:
            definition[name] = f"{details[name]}, pycocoevalcap {version('pycocoevalcap')}; tokens: {tokens}"

    def _score_meteor(self, references: Sequence[Sequence[str]], said: Sequence[str]) -> CaptionScore:
        reason = self._no_java or self._no_meteor
        if reason is None:
            try:
                self._meteor = self._meteor or Meteor()
                return CaptionScore(*self._meteor.score(references, said), meteor_of)
            except JavaError as error:
                reason = self._no_meteor = str(error)
                if self._meteor is not None:
                    self._meteor.close()
                    self._meteor = None
        raise JavaError(_skipped("meteor", f"Java {reason}", "install a Java runtime, version 8 or newer"))

    def _score_spice(self, references: Sequence[Sequence[str]], said: Sequence[str]) -> CaptionScore:
        if self._no_java is not None:
            raise JavaError(_skipped("spice", f"Java {self._no_java}", "install a Java runtime, version 8 or newer"))
        folder = _spice_folder()
        if not all((folder / "lib" / name).is_file() for name in _CORENLP):
            raise JavaError(_skipped("spice", "it needs Stanford CoreNLP 3.6.0", f"run {_GET_SPICE}"))
        self._spice_cache = self._spice_cache or tempfile.TemporaryDirectory(prefix="spice-")
        try:
            return _mean(_spice(folder, Path(self._spice_cache.name), references, said))
        except JavaError as error:
            todo = "see whether this Java is version 8 to 17 and has 8 GB of memory"
            raise JavaError(_skipped("spice", f"Java {error}", todo)) from error


def constant_caption(captions: Sequence[Sequence[str]]) -> str:
    """The caption that, said of every stimulus, has the highest CIDEr: what a decoder can earn without a brain.

    captions: groups by stimulus, best those of the training split. All captions are tried, on at most 1,000 stimuli
    (evenly spaced); Python tokens. Ties go to the first in the alphabet.
    """
    _check_references(captions, None)
    groups = list(captions)[:: math.ceil(len(captions) / _CONSTANT_STIMULI)]
    lines = python_tokens([caption for group in groups for caption in group])
    original: dict[str, str] = {}
    for line, caption in zip(lines, (caption for group in groups for caption in group), strict=True):
        original.setdefault(line, caption)
    weight = np.repeat([1 / len(group) for group in groups], [len(group) for group in groups])
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    counts = [_ngrams(line) for line in lines]
    stimuli: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for stimulus, grams in zip(owner, counts, strict=True):
        for gram in grams:
            stimuli[gram].add(int(stimulus))
    rarity = {gram: math.log(len(groups) / len(found)) for gram, found in stimuli.items()}
    holders: dict[tuple[str, ...], tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    norms = np.zeros((len(lines), BLEU_ORDERS))
    for row, grams in enumerate(counts):
        for gram, count in grams.items():
            holders[gram][0].append(row)
            holders[gram][1].append(count * rarity[gram])
            norms[row, len(gram) - 1] += (count * rarity[gram]) ** 2
    norms = np.sqrt(norms)
    arrays = {gram: (np.array(rows), np.array(values)) for gram, (rows, values) in holders.items()}
    lengths = np.array([max(len(line.split()) - 1, 0) for line in lines])  # CIDEr counts pairs of words

    def cider(row: int) -> float:
        products = np.zeros((len(lines), BLEU_ORDERS))
        for gram, count in counts[row].items():
            rows, values = arrays[gram]
            products[rows, len(gram) - 1] += np.minimum(count * rarity[gram], values) * values
        scale = norms * norms[row]
        cosine = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0).mean(axis=1)
        return float((cosine * np.exp(-((lengths - lengths[row]) ** 2) / 72)) @ weight)

    first = {line: row for row, line in reversed(list(enumerate(lines)))}
    return original[max(sorted(first), key=lambda line: cider(first[line]))]


def _check_references(references: Sequence[Sequence[str]], names: Sequence[str] | None) -> None:
    for row, group in enumerate(references):
        if isinstance(group, str) or not group:
            raise UserError(
                f"stimulus {row if names is None else repr(names[row])}: expected a list of at least one reference "
                f"caption, got {'a string' if isinstance(group, str) else 'none'}. Was the file of references made for "
                "other stimuli, or with one caption instead of a list? Leave the stimulus out or add its captions."
            )
    if not len(references):
        raise UserError(
            "reference captions: expected at least one stimulus, got none. Do the ids of predictions and references "
            "agree? Compare the two files."
        )


def _skipped(name: str, why: str, todo: str) -> str:
    return f"{TITLES[name]} was not scored: {why}; {todo}."


def _has_pycocoevalcap() -> bool:
    return importlib.util.find_spec("pycocoevalcap") is not None


def _mean(samples: Float[np.ndarray, "n"]) -> CaptionScore:
    """A score that is the mean over stimuli."""
    statistics = np.stack([samples, np.ones(len(samples))], axis=1)
    return CaptionScore(float(samples.mean()), samples, statistics, lambda sums: sums[:, 0] / sums[:, 1])


def _bleu(references: Sequence[Sequence[str]], said: Sequence[str]) -> dict[str, CaptionScore]:
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=BLEU_ORDERS)
    for group, line in zip(references, said, strict=True):
        scorer += (line, list(group))
    values, samples = scorer.compute_score(option="closest", verbose=0)
    rows = []
    for counts in scorer.ctest:
        length = counts["testlen"]
        closest = min((abs(reference - length), reference) for reference in counts["reflen"])[1]
        rows.append([length, closest, *counts["correct"], *counts["guess"]])
    statistics = np.array(rows, float)
    return {
        f"bleu{order + 1}": CaptionScore(
            float(values[order]), np.array(samples[order]), statistics, partial(_bleu_of, order=order)
        )
        for order in range(BLEU_ORDERS)
    }


def _bleu_of(sums: Float[np.ndarray, "b 10"], order: int) -> Float[np.ndarray, "b"]:
    """BLEU of summed counts: length, reference length, correct and possible n-grams of each order."""
    correct, possible = sums[:, 2 : 3 + order], sums[:, 2 + BLEU_ORDERS : 3 + BLEU_ORDERS + order]
    precision = ((correct + _TINY) / (possible + _SMALL)).prod(axis=-1) ** (1 / (order + 1))
    ratio = (sums[:, 0] + _TINY) / (sums[:, 1] + _SMALL)
    return precision * np.exp(np.minimum(1 - 1 / ratio, 0))


def _rouge_l(references: Sequence[Sequence[str]], said: Sequence[str]) -> Float[np.ndarray, "n"]:
    from pycocoevalcap.rouge.rouge import Rouge

    rouge = Rouge()
    # an empty caption would match an empty reference: there, the empty string is a word
    scores = [
        rouge.calc_score([line], list(group)) if line else 0.0 for group, line in zip(references, said, strict=True)
    ]
    return np.array(scores, float)


def _cider(references: Sequence[Sequence[str]], said: Sequence[str]) -> Float[np.ndarray, "n"]:
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer()
    for group, line in zip(references, said, strict=True):
        scorer += (line, list(group))
    scorer.compute_doc_freq()
    return np.array(scorer.compute_cider(), float)


def _ngrams(line: str) -> Counter[tuple[str, ...]]:
    words = line.split()
    return Counter(
        tuple(words[i : i + order]) for order in range(1, BLEU_ORDERS + 1) for i in range(len(words) - order + 1)
    )


def _spice_folder() -> Path:
    from pycocoevalcap.spice import get_stanford_models  # spice.py itself is left alone: it would download

    return Path(get_stanford_models.__file__).parent


def _spice(
    folder: Path, cache: Path, references: Sequence[Sequence[str]], said: Sequence[str]
) -> Float[np.ndarray, "n"]:
    """The F1 of scene graphs of each caption (Anderson et al. 2016). Raises JavaError."""
    rows = [
        {"image_id": row, "test": line, "refs": list(group)}
        for row, (group, line) in enumerate(zip(references, said, strict=True))
    ]
    with tempfile.TemporaryDirectory(prefix="spice-") as work:
        asked, answered = Path(work) / "asked.json", Path(work) / "answered.json"
        asked.write_text(json.dumps(rows), encoding="utf-8")
        where = [str(asked), "-cache", str(cache), "-out", str(answered), "-subset", "-silent"]
        run_java(
            ["-Xmx8G", "-jar", "spice-1.0.jar", *where],
            timeout_sec=SPICE_TIMEOUT_SEC, cwd=folder, environment={"JDK_JAVA_OPTIONS": _OPENED},
        )  # fmt: skip
        try:
            scores = {item["image_id"]: item["scores"]["All"]["f"] for item in json.loads(answered.read_text())}
            return np.array([scores[row] for row in range(len(rows))], float)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JavaError(f"did not write SPICE's scores ({error!r})") from error
