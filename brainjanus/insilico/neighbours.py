"""The shared space looked into: a run enters; what lies near what leaves, each beside what shuffling leaves of it.

modalities  the decoder's states while it reads a picture, a sentence or a brain of the same held-out stimulus (mean
            over its positions), and when it is about to answer with somebody's brain (at the positions of the
            answer, all of its codes hidden), layer by layer: identification, RSA (Kriegeskorte et al. 2008), CKA
            (Kornblith et al. 2019; unbiased, Song et al. 2012)
concepts    for each word, the mean state of stimuli that have it less that of the others: does that of pictures
            find that of sentences about other stimuli?
codes       how near words and image codes are to each brain code: by what the model expects when it is told the
            word (words only), by embeddings that enter, and by the vectors that predict codes. Right is what goes
            together in held-out responses
patterns    the words that a response makes likelier than other responses do; AUC against the captions
subjects    whether the same code, or the place that lies nearest, means the same words in two subjects
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.evaluate.cortex import draw_maps
from brainjanus.evaluate.text import content_words
from brainjanus.evaluate.topography import caption_groups
from brainjanus.generate import asked_of, codes_in, device_of, marginal
from brainjanus.insilico.experiment import (
    GREY,
    INK,
    RED,
    Experiment,
    as_numbers,
    check_new,
    check_own,
    check_seed,
    encoded,
    opened,
    own_subjects,
    results_in,
    save_maps,
    save_results,
    stacked,
    trust_of,
)
from brainjanus.model.checkpoint import Checkpoint
from brainjanus.outputs import can_draw
from brainjanus.run import Run, condition

LEAST = 5  # stimuli that all subjects saw; that a word, or a code at its place, needs
MOST_WORDS = 24
MOST_STATES = 8192  # numbers that the state of an answer may have; positions are averaged until it does
MOST_IMAGE_CODES, MOST_BRAIN_CODES = 512, 2048
SHUFFLES = 200
NEAREST = 3
SPLITS = 20  # of the stimuli into those seen and those read, that concepts are averaged over
ROWS = 128
READING, ANSWERING = "reading", "answering"

# N stimuli, L layers, D width, W words, K places, C codes of a codebook


class Neighbours(NamedTuple):
    """modalities: rows of readout, layer, pair, measure, value, floor, p. codes: of each subject, the words nearest to
    its most telling brain codes. maps: subject -> code -> what it changes on the cortex. results: as written."""

    modalities: list[dict[str, Any]]
    codes: dict[str, list[dict[str, Any]]]
    concepts: dict[str, Any] | None
    maps: dict[str, dict[str, Float[np.ndarray, "v"]]]
    results: dict[str, Any]


def neighbours(
    run: Run | Path | str,
    *,
    out: Path | str | None = None,
    dataset: Path | str | None = None,
    subjects: Sequence[str] = (),
    words: Sequence[str] = (),
    patterns: Sequence[str] = (),
    top: int = 4,
    seed: int = 0,
) -> Neighbours:
    """What lies near what in a trained model, on held-out stimuli; written into `out`, if given.

    run: a folder is read in float32; a Run is taken as it is, in half precision on a GPU.
    words: to be looked at; default: the content words that captions of the test stimuli share. patterns: ids of test
    stimuli whose responses' words are listed; default: the first ones. top: codes of each subject that are mapped.
    Raises UserError for a word or stimulus that the test split lacks, too few stimuli that all subjects saw, or a
    subject that was added to a trained model: it has no codes.
    """
    check_new(out)
    check_seed("neighbours", seed)
    asked = opened(run if isinstance(run, Run) else Run.open(run, precision="float32"), dataset, subjects)
    check_own(asked, "neighbours")
    seen = [set(asked.dataset.trials(subject).stimuli("test")) for subject in asked.subjects]
    ids = sorted(set.intersection(*seen))
    if len(ids) < LEAST:
        raise UserError(
            f"neighbours: expected at least {LEAST} test stimuli that all of {', '.join(asked.subjects)} saw, got "
            f"{len(ids)}. Name one subject: --subjects {asked.subjects[0]}."
        )
    if unknown := [one for one in patterns if one not in ids]:
        raise UserError(
            f"--patterns: expected test stimuli that all subjects saw ({', '.join(ids[:3])}, ...), got '{unknown[0]}'. "
            "Name some of these."
        )
    if top < 1:
        raise UserError(f"--top: expected at least 1, got {top}. Give a larger number.")
    rng = np.random.default_rng(seed)
    checkpoint, captions = asked.checkpoint, [asked.dataset.captions(one) for one in ids]
    groups = word_groups(captions, words)
    states = states_of(asked, ids)
    modalities = compared(states, rng)
    concepts = concepts_of(states, groups, rng) if groups else None
    measured = {subject: codes_of(asked, subject, ids) for subject in asked.subjects}
    told = can_read_words(checkpoint) and bool(groups)
    expected = {s: expected_codes(checkpoint, s, list(groups)) for s in asked.subjects} if told else {}
    nearness: list[dict[str, Any]] = []
    codes: dict[str, list[dict[str, Any]]] = {}
    maps: dict[str, dict[str, np.ndarray]] = {}
    for subject in asked.subjects:
        nearness += nearness_of(asked, subject, ids, groups, measured[subject], expected.get(subject), rng)
        if told:
            codes[subject] = telling_codes(expected[subject], list(groups), measured[subject])
            maps[subject] = code_maps(checkpoint, subject, expected[subject], codes[subject][:top])
    results = {
        "modalities": modalities,
        "concepts": concepts,
        "nearness": nearness,
        "codes": {subject: rows[:50] for subject, rows in codes.items()},
        "patterns": patterns_of(ids, groups, expected, measured, patterns or ids[:5]) if told else None,
        "subjects": subjects_compared(asked, expected, rng),
        "words": {word: int(mask.sum()) for word, mask in groups.items()},
        "floor": f"mean over {SHUFFLES} shuffles",
        "trust": trust_of(asked),
        "seed": seed,
        "protocol": asked.protocol(ids, "test"),
    }
    found = Neighbours(modalities, codes, concepts, maps, as_numbers(results))
    if out is not None:
        figure = draw(asked, found)
        with results_in(out) as folder:
            for subject, own in maps.items():
                if own:
                    save_maps(folder, "codes", asked.space(subject), own)
            save_results(folder, found.results, figure)
    return found


def word_groups(captions: Sequence[Sequence[str]], words: Sequence[str]) -> dict[str, Bool[np.ndarray, "n"]]:
    """word -> which stimuli have it in a caption."""
    if not words:
        return caption_groups(captions, most=MOST_WORDS)
    said = [frozenset[str]().union(*map(content_words, texts)) for texts in captions]
    found = {word: np.array([word in one for one in said]) for word in dict.fromkeys(words)}
    for word, mask in found.items():
        if not LEAST <= mask.sum() <= len(mask) - LEAST:
            raise UserError(
                f"--words '{word}': expected a content word in captions of at least {LEAST} of the {len(mask)} test "
                f"stimuli, and not of nearly all, got {int(mask.sum())}. Name another."
            )
    return found


def can_read_words(checkpoint: Checkpoint) -> bool:
    return checkpoint.tokenizers.text is not None and checkpoint.model.config.text_input == "codes"


# --- states of the decoder ------------------------------------------------------------------------------------------


States = dict[str, dict[str, list[np.ndarray]]]  # readout -> modality -> layer by layer [n, d]


@torch.no_grad()
def states_of(asked: Experiment, ids: Sequence[str]) -> States:
    """What the decoder's layers hold of the same stimuli as picture, sentence and brains."""
    checkpoint = asked.checkpoint
    lacks = {name for name in ("image", "text") if getattr(checkpoint.tokenizers, name) is None}
    if not all(asked.dataset.captions(one) for one in ids):
        lacks.add("text")
    names = [*(name for name in ("image", "text") if name not in lacks), *(f"brain:{s}" for s in asked.subjects)]
    own = own_subjects(checkpoint)
    answer = f"brain:{own[0]}"
    found: States = {READING: {}, ANSWERING: {}}
    for name in names:
        rows = condition(checkpoint, asked.dataset, name, ids)
        target = answer
        if name == answer:  # nobody answers with the brain that is given
            others = [f"brain:{s}" for s in own if f"brain:{s}" != name]
            target = [*others, *(one for one in ("text", "image") if getattr(checkpoint.tokenizers, one))][0]
        request = asked_of(checkpoint, {name: rows}, target)
        parts = [layers_of(checkpoint, request.rows(slice(i, i + ROWS))) for i in range(0, len(ids), ROWS)]
        title = {"image": "picture", "text": "sentence"}.get(name, name)
        for number, readout in enumerate((READING, ANSWERING)):
            if readout == READING or target == answer:
                layers = zip(*(part[number] for part in parts), strict=True)
                found[readout][title] = [np.concatenate(layer) for layer in layers]
    return found


def layers_of(checkpoint: Checkpoint, request: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For what enters, and each layer: the mean state over the condition; the states of the answer."""
    model, kept = checkpoint.model, list[Tensor]()
    block, target = request.conditions[0], request.target

    def enters(_module: nn.Module, inputs: Any) -> None:
        kept.append(inputs[0])

    def leaves(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept.append(output)

    layers = list(model.decoder.layers) or [model.decoder]  # a backbone that was added may have none
    hooks = [layers[0].register_forward_pre_hook(enters)]
    hooks += [layer.register_forward_hook(leaves) for layer in layers]
    try:
        hidden = torch.ones(target.content.shape[:2], dtype=torch.bool, device=target.content.device)
        model(request.conditions, target, hidden)
    finally:
        for hook in hooks:
            hook.remove()
    start = 1 + int(block.modality != "text" or block.codes is None or model.config.text_opening)
    exists = torch.ones(block.content.shape[:2]) if block.seen is None else block.seen.cpu().float()
    reading, answering = [], []
    for layer in kept:
        own = layer.float().cpu()
        content = own[:, start : start + block.length]
        reading.append(((content * exists[..., None]).sum(dim=1) / exists.sum(dim=1, keepdim=True)).numpy())
        places = own[:, -target.length :]
        groups = max(1, min(target.length, MOST_STATES // places.shape[2]))
        answering.append(torch.cat([p.mean(dim=1) for p in places.tensor_split(groups, dim=1)], dim=1).numpy())
    return reading, answering


def compared(states: States, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Every pair of modalities in every layer, against the same with the stimuli of one shuffled."""
    rows = []
    for readout, of in states.items():
        names = list(of)
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                for layer, (a, b) in enumerate(zip(of[first], of[second], strict=True)):
                    if readout == ANSWERING and layer == 0:  # what enters there is the same for all
                        continue
                    for measure, (value, null) in similarity(a, b, rng).items():
                        rows.append(
                            {
                                "readout": readout, "layer": layer, "pair": [first, second], "measure": measure,
                                "value": value, "floor": float(null.mean()), "floor_95": float(np.quantile(null, 0.95)),
                                "p": float((1 + (null >= value - 1e-12).sum()) / (1 + len(null))), "n": len(a),
                            }
                        )  # fmt: skip
    return rows


def similarity(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"], rng: np.random.Generator
) -> dict[str, tuple[float, np.ndarray]]:
    """Identification, RSA and CKA of two sets of states of the same stimuli, and of shuffled ones.

    identification: how often a state of the one is nearer to its own of the other (cosine, after each set's mean) than
    to another stimulus's; chance is .5.
    """
    x, y = (s - s.mean(axis=0, dtype=np.float64) for s in (a, b))
    u, v = (s / np.maximum(np.linalg.norm(s, axis=1, keepdims=True), 1e-12) for s in (x, y))
    across, same = u @ v.T, (_gram(x), _gram(y))
    upper = np.triu_indices(len(a), 1)
    distances = [rankdata(-(w @ w.T)[upper]) for w in (u, v)]
    ranked = np.zeros((len(a), len(a)))
    ranked[upper] = distances[1]
    ranked += ranked.T
    first = (distances[0] - distances[0].mean()) / max(distances[0].std(), 1e-12)
    spread, mean = max(distances[1].std(), 1e-12), distances[1].mean()
    norm = np.sqrt(max((same[0] ** 2).sum() * (same[1] ** 2).sum(), 1e-24))

    def all_of(order: Int[np.ndarray, "n"]) -> tuple[float, float, float]:
        mixed = across[:, order]
        own = np.diag(mixed)
        both = [(mixed < own[:, None]), (mixed < own[None])]
        share = np.mean([one.sum() / (len(a) * (len(a) - 1)) for one in both])
        turned = ranked[np.ix_(order, order)][upper]
        rsa = (first * (turned - mean)).mean() / spread
        cka = (same[0] * same[1][np.ix_(order, order)]).sum() / norm
        return float(share), float(rsa), float(cka)

    true = all_of(np.arange(len(a)))
    null = np.array([all_of(rng.permutation(len(a))) for _ in range(SHUFFLES)])
    return {name: (true[i], null[:, i]) for i, name in enumerate(("identification", "RSA", "CKA"))}


def _gram(x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """The U-centred Gram matrix, whose products are unbiased."""
    gram, n = x @ x.T, len(x)
    np.fill_diagonal(gram, 0)
    sums = gram.sum(axis=0) / (n - 2)
    gram = gram - sums[:, None] - sums[None] + gram.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(gram, 0)
    return gram


def concepts_of(
    states: States, groups: Mapping[str, Bool[np.ndarray, "n"]], rng: np.random.Generator
) -> dict[str, Any] | None:
    """Concepts of pictures against those of sentences of other stimuli, in the last layer: [words, words].

    top_1: how often a picture's concept finds the sentence's, mean over random halves of the stimuli.
    """
    found = None
    for readout in (ANSWERING, READING):
        if not {"picture", "sentence"} <= states[readout].keys():
            continue
        picture, sentence = (states[readout][name][-1] for name in ("picture", "sentence"))
        halves = [rng.permutation(len(picture)) % 2 == 0 for _ in range(SPLITS)]
        kept = {w: m for w, m in groups.items() if all(0 < m[h].sum() < h.sum() for one in halves for h in (one, ~one))}
        if len(kept) < 2:
            continue
        tables = [
            sum(_directions(picture, h, kept) @ _directions(sentence, ~h, kept).T for h in (one, ~one)) / 2
            for one in halves
        ]
        table, own = np.mean(tables, axis=0), np.arange(len(kept))
        hits = np.mean([_hit(one, own) for one in tables])
        off = table[~np.eye(len(kept), dtype=bool)]
        orders = [rng.permutation(len(kept)) for _ in range(SHUFFLES)]
        null = np.array([np.mean([_hit(one, order) for one in tables]) for order in orders])
        found = {
            "readout": readout, "words": list(kept), "similarity": table, "top_1": hits, "floor": null.mean(),
            "p": (1 + (null >= hits).sum()) / (1 + SHUFFLES), "same": np.diag(table).mean(), "different": off.mean(),
            "n": len(kept),
        }  # fmt: skip
        break
    return found


def _hit(table: np.ndarray, order: np.ndarray) -> float:
    return float((table.argmax(axis=1) == order).mean())


def _directions(states: np.ndarray, half: np.ndarray, groups: Mapping[str, np.ndarray]) -> Float[np.ndarray, "w d"]:
    rows = np.stack([states[half & m].mean(axis=0) - states[half & ~m].mean(axis=0) for m in groups.values()])
    rows = rows - rows.mean(axis=0)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


# --- codes ----------------------------------------------------------------------------------------------------------


def codes_of(asked: Experiment, subject: str, ids: Sequence[str]) -> Int[np.ndarray, "n k"]:
    """The brain codes of measured responses."""
    rows = condition(asked.checkpoint, asked.dataset, f"brain:{subject}", ids)
    return codes_in(asked.checkpoint, f"brain:{subject}", rows).numpy()


@torch.no_grad()
def expected_codes(checkpoint: Checkpoint, subject: str, words: list[str]) -> Float[np.ndarray, "w k c"]:
    """p(code at each place | the word)."""
    request = asked_of(checkpoint, {"text": words}, f"brain:{subject}")
    return marginal(checkpoint.model, request.conditions, request.target).cpu().numpy()


def nearness_of(
    asked: Experiment,
    subject: str,
    ids: Sequence[str],
    groups: Mapping[str, Bool[np.ndarray, "n"]],
    codes: Int[np.ndarray, "n k"],
    expected: Float[np.ndarray, "w k c"] | None,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """How well each kind of nearness says what goes together in held-out responses: r over pairs, names shuffled."""
    checkpoint = asked.checkpoint
    places, which = used_codes(codes, asked.checkpoint.model.vocabulary.brain)
    if not len(places):
        return []
    has = codes[:, places] == which
    entering, leaving = brain_vectors(checkpoint, subject, places, which)
    rows = []
    if groups and checkpoint.tokenizers.text is not None:
        truth = together(np.stack(list(groups.values()), axis=1), has)
        nearness = {f"{kind} vectors": _cosine(word_vectors(checkpoint, list(groups), kind), of)
                    for kind, of in (("entering", entering), ("predicting", leaving))}  # fmt: skip
        if expected is not None:
            nearness = {"told the word": (expected - expected.mean(axis=0))[:, places, which]} | nearness
        rows += [judged(subject, "word", kind, values, truth, rng) for kind, values in nearness.items()]
    if checkpoint.tokenizers.image is not None and asked.dataset.image_size is not None:
        seen = codes_in(checkpoint, "image", asked.dataset.images(ids)).numpy()
        shown = np.stack([np.bincount(row, minlength=checkpoint.model.vocabulary.image) > 0 for row in seen])
        often = np.argsort(-shown.sum(axis=0), kind="stable")[:MOST_IMAGE_CODES]
        often = often[(shown[:, often].sum(axis=0) >= LEAST) & (shown[:, often].sum(axis=0) <= len(ids) - LEAST)]
        if len(often):
            truth = together(shown[:, often], has)
            for kind, of in (("entering", entering), ("predicting", leaving)):
                values = _cosine(image_vectors(checkpoint, kind)[often], of)
                rows.append(judged(subject, "image code", f"{kind} vectors", values, truth, rng))
    return rows


def used_codes(codes: Int[np.ndarray, "n k"], num_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and codes that enough stimuli have there, and not nearly all; the most used ones."""
    counts = np.stack([np.bincount(column, minlength=num_codes) for column in codes.T])
    fit = (counts >= LEAST) & (counts <= len(codes) - LEAST)
    best = np.argsort(-np.where(fit, counts, 0).ravel(), kind="stable")[: min(int(fit.sum()), MOST_BRAIN_CODES)]
    return np.divmod(best, num_codes)


def together(first: Bool[np.ndarray, "n a"], second: Bool[np.ndarray, "n b"]) -> Float[np.ndarray, "a b"]:
    """How much oftener two things come together than if they had nothing to do with each other (phi coefficient)."""
    x, y = (one - one.mean(axis=0) for one in (first.astype(np.float64), second.astype(np.float64)))
    return _columns(x).T @ _columns(y)


def judged(
    subject: str, of: str, kind: str, values: Float[np.ndarray, "a b"], truth: Float[np.ndarray, "a b"], rng: Any
) -> dict[str, Any]:
    """r of nearness and togetherness, each less its row's and column's mean; the floor shuffles the names."""

    def centred(x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=0, keepdims=True) - x.mean(axis=1, keepdims=True) + x.mean()
        return x / max(np.linalg.norm(x), 1e-12)

    near, true = centred(values), centred(truth)
    r = float((near * true).sum())
    null = np.array([(near[rng.permutation(len(near))] * true).sum() for _ in range(SHUFFLES)])
    return {
        "subject": subject, "of": of, "nearness": kind, "r": r, "floor": float(null.mean()),
        "floor_95": float(np.quantile(null, 0.95)), "p": float((1 + (null >= r).sum()) / (1 + len(null))),
        "n": list(values.shape),
    }  # fmt: skip


@torch.no_grad()
def brain_vectors(
    checkpoint: Checkpoint, subject: str, places: np.ndarray, codes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The vectors that brain codes enter as, and those that predict them, at their places: [m, d]."""
    model, name = checkpoint.model, f"brain:{subject}"
    at, which = torch.from_numpy(places), torch.from_numpy(codes)
    book = model.brain_codebook[which].float()
    entering = model.aligners["brain"].float()(book) + torch.einsum("me,med->md", book, model.read[name].float()[at])
    head = _weight(model.heads["brain"])[which] + book @ _weight(model.pointers["brain"])
    leaving = head + torch.einsum("me,mde->md", book, model.point[name].float()[at])
    return entering.cpu().numpy(), leaving.cpu().numpy()


@torch.no_grad()
def word_vectors(checkpoint: Checkpoint, words: list[str], kind: str) -> np.ndarray:
    """The mean vector of each word's pieces."""
    model, text = checkpoint.model, checkpoint.tokenizers.text
    assert text is not None
    first = model.vocabulary.range("text").start
    table = model.embed_tokens.weight[first:] if kind == "entering" else _weight(model.heads["text"])
    return np.stack([table[torch.tensor(pieces)].float().mean(dim=0).cpu().numpy() for pieces in text.pieces(words)])


@torch.no_grad()
def image_vectors(checkpoint: Checkpoint, kind: str) -> np.ndarray:
    model = checkpoint.model
    book = model.image_codebook.float()
    if kind == "entering":
        return model.aligners["image"].float()(book).cpu().numpy()
    head = model.heads["image"]
    weight = _weight(head[-1] if isinstance(head, nn.Sequential) else head)
    return (weight + (book @ _weight(model.pointers["image"]) if "image" in model.pointers else 0)).cpu().numpy()


def _weight(module: Any) -> Tensor:
    """Raises UserError for weights that were rounded and given up."""
    if module.weight is None:
        raise UserError(
            "neighbours: expected a run with its weights as they were saved, got one that was rounded for generation. "
            'Open it with bj.Run.open(RUN, precision="float32").'
        )
    return module.weight.detach().float()


def _columns(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=0, keepdims=True), 1e-12)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return _columns(a.T).T @ _columns(b.T)


def telling_codes(
    expected: Float[np.ndarray, "w k c"], words: list[str], codes: Int[np.ndarray, "n k"]
) -> list[dict[str, Any]]:
    """Brain codes that held-out responses use, those first of which words say most, each with its nearest words.

    times: how many times as likely a code is under the word as under the mean of all words.
    """
    places, which = used_codes(codes, expected.shape[2])
    p = expected[:, places, which]
    mean = p.mean(axis=0)
    gain = p - mean
    rows = []
    for i in np.argsort(-gain.max(axis=0, initial=0), kind="stable"):
        best = np.argsort(-gain[:, i], kind="stable")[:NEAREST]
        near = {words[w]: p[w, i] / max(mean[i], 1e-12) for w in best}
        rows.append({"place": int(places[i]), "code": int(which[i]), "p": p[best[0], i], "times": near})
    return rows


@torch.no_grad()
def code_maps(
    checkpoint: Checkpoint, subject: str, expected: Float[np.ndarray, "w k c"], codes: Sequence[Mapping[str, Any]]
) -> dict[str, Float[np.ndarray, "v"]]:
    """What each code changes on the cortex, against the mean over words: decoded with it, less without (z)."""
    brain = checkpoint.tokenizers.brain
    base = torch.from_numpy(expected.mean(axis=0)).float().to(device_of(checkpoint)) @ brain.quantizer.codebook.float()
    rows = base.repeat(len(codes) + 1, 1, 1)
    for number, one in enumerate(codes):
        rows[number, one["place"]] = brain.quantizer.codebook[one["code"]].float()
    values = brain.decode_vectors(rows, subject).cpu().numpy()
    titles = [f"code {one['code']} at place {one['place']}: {', '.join(one['times'])}" for one in codes]
    return {title: values[i] - values[-1] for i, title in enumerate(titles)}


def patterns_of(
    ids: Sequence[str],
    groups: Mapping[str, Bool[np.ndarray, "n"]],
    expected: Mapping[str, Float[np.ndarray, "w k c"]],
    measured: Mapping[str, Int[np.ndarray, "n k"]],
    shown: Sequence[str],
) -> list[dict[str, Any]]:
    """For each subject, the words nearest to some responses, and how well this tells who has the word: AUC.

    Near is a word under which the model expects the codes of a response: log p, less the mean over responses.
    """
    found, words = [], list(groups)
    for subject in expected:
        log_p = np.log(np.maximum(expected[subject], 1e-12))
        nats = log_p[:, np.arange(log_p.shape[1]), measured[subject]].sum(axis=2).T
        nats = nats - nats.mean(axis=0)
        auc = {word: roc_auc_score(mask, nats[:, i]) for i, (word, mask) in enumerate(groups.items())}
        nearest = {one: [words[w] for w in np.argsort(-nats[ids.index(one)], kind="stable")[:NEAREST]] for one in shown}
        found.append({"subject": subject, "auc": np.mean(list(auc.values())), "floor": 0.5, "words": auc,
                      "nearest": nearest, "n": len(ids)})  # fmt: skip
    return found


def subjects_compared(
    asked: Experiment, expected: Mapping[str, Float[np.ndarray, "w k c"]], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Do codes, and places, mean the same words in two subjects? r of what words say of them, and names shuffled.

    codes: the same code at the place that lies nearest. places: how many bits each word tells about the place.
    """
    rows = []
    names = list(expected)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            nearest = nearest_places(asked, first, second)
            if nearest is None:
                continue
            a, b = (expected[s] - expected[s].mean(axis=0) for s in (first, second))
            b = b[:, nearest]
            told = [bits_told(expected[s]) for s in (first, second)]
            for of, x, y, shuffle in (("codes", a, b, 2), ("places", told[0], told[1][:, nearest], 1)):
                x, y = x - x.mean(axis=0), y - y.mean(axis=0)
                if of == "places":  # and less what a word tells about every place
                    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
                size = max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-12)
                r = float((x * y).sum() / size)
                null = [
                    (x * np.take(y, rng.permutation(y.shape[shuffle]), axis=shuffle)).sum() / size
                    for _ in range(SHUFFLES)
                ]
                rows.append(
                    {
                        "subjects": [first, second], "of": of, "r": r, "floor": float(np.mean(null)),
                        "p": float((1 + (np.array(null) >= r).sum()) / (1 + SHUFFLES)), "n": list(x.shape),
                    }
                )  # fmt: skip
    return rows


def bits_told(expected: Float[np.ndarray, "w k c"]) -> Float[np.ndarray, "w k"]:
    """How far what is expected under a word is from what is expected under all: Kullback-Leibler, in bits a place."""
    p, mean = np.maximum(expected, 1e-12), np.maximum(expected.mean(axis=0), 1e-12)
    return (p * np.log2(p / mean)).sum(axis=2)


def nearest_places(asked: Experiment, first: str, second: str) -> Int[np.ndarray, "k"] | None:
    """For each place of one subject that of the other whose sites lie nearest; None without coordinates."""
    centres = []
    brain = asked.checkpoint.tokenizers.brain
    for subject in (first, second):
        points = asked.space(subject).coordinates_mm
        if points is None:
            return None
        axes = brain.token_axes(subject)
        if axes is None:
            weight = np.eye(brain.num_patches(subject))[:, brain.site_patch(subject).cpu().numpy()]
        else:
            weight = axes.square().sum(dim=1).cpu().numpy()
        weight = np.repeat(weight, brain.config.quantizer.stages, axis=0).astype(np.float64)
        centres.append(weight @ points / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12))
    return np.linalg.norm(centres[0][:, None] - centres[1][None], axis=2).argmin(axis=1)


# --- figure ---------------------------------------------------------------------------------------------------------


def draw(asked: Experiment, found: Neighbours) -> bytes:
    """Modalities by layer, concepts, nearness and the most telling codes on the cortex."""
    from matplotlib.figure import Figure

    figure = Figure((11, 7.2), dpi=140)
    figure.text(0.015, 0.97, "What lies near what in the shared space", fontsize=12, weight="bold", color=INK)
    kinds = {"picture, sentence": INK, "picture, brain": RED, "sentence, brain": "#2471a3", "brain, brain": "#d68910"}
    for column, measure in enumerate(("identification", "RSA", "CKA")):
        axes = figure.add_axes((0.06 + column * 0.205, 0.62, 0.165, 0.26))
        for readout, style in ((READING, "--"), (ANSWERING, "-")):
            for kind, colour in kinds.items():
                rows = [one for one in found.modalities if (one["measure"], one["readout"]) == (measure, readout)]
                rows = [one for one in rows if ", ".join(name.partition(":")[0] for name in one["pair"]) == kind]
                layers = sorted({one["layer"] for one in rows})
                means = [np.mean([one["value"] for one in rows if one["layer"] == layer]) for layer in layers]
                floors = [np.mean([one["floor_95"] for one in rows if one["layer"] == layer]) for layer in layers]
                label = kind if readout == ANSWERING else None
                axes.plot(layers, means, style, color=colour, lw=1.3, marker="o", ms=2.5, label=label)
                axes.plot(layers, floors, ":", color=GREY, lw=0.6)
        axes.set_title(measure, fontsize=9, color=INK)
        axes.set_xlabel("layer (0: what enters)", fontsize=7.5, color=INK)
        axes.tick_params(labelsize=7, length=2)
        axes.spines[["top", "right"]].set_visible(False)
        if column == 0:
            axes.legend(fontsize=6, frameon=False, loc="lower right")
    told = "solid: about to answer with a brain; dashed: while reading; dotted: 95 % of shuffles"
    figure.text(0.06, 0.915, told, fontsize=7.5, color=GREY)
    if found.concepts is not None:
        concepts = found.concepts
        axes = figure.add_axes((0.73, 0.55, 0.24, 0.34))
        table = np.asarray(concepts["similarity"])
        top = float(np.abs(table).max()) or 1.0
        axes.imshow(table, cmap="RdBu_r", vmin=-top, vmax=top, interpolation="none", aspect="auto")
        size = 6 if len(concepts["words"]) > 14 else 7
        axes.set_xticks(range(len(concepts["words"])), concepts["words"], rotation=90, fontsize=size)
        axes.set_yticks(range(len(concepts["words"])), concepts["words"], fontsize=size)
        axes.tick_params(length=0)
        axes.set_xlabel("concept of sentences", fontsize=7.5, color=INK)
        title = f"concept of pictures; top-1 {concepts['top_1']:.0%}, chance {concepts['floor']:.0%}"
        axes.set_title(title, fontsize=8, color=INK)
    rows = found.results["nearness"]
    if rows:
        axes = figure.add_axes((0.2, 0.1, 0.25, 0.36))
        names = list(dict.fromkeys((one["of"], one["nearness"]) for one in rows))
        for y, name in enumerate(names):
            same = [one for one in rows if (one["of"], one["nearness"]) == name]
            axes.plot([one["r"] for one in same], [y] * len(same), "o", ms=4, color=RED)
            axes.plot([one["floor_95"] for one in same], [y] * len(same), "|", ms=8, color=GREY)
        axes.set_yticks(range(len(names)), [f"{of}: {kind}" for of, kind in names], fontsize=7)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.axvline(0, color=GREY, lw=0.5)
        axes.set_xlabel(
            "r with what goes together in held-out responses\n(|: 95 % of shuffles; a dot a subject)", fontsize=7
        )
        axes.set_title("how near to a brain code", fontsize=8, color=INK)
        axes.tick_params(labelsize=7, length=2)
        axes.spines[["top", "right"]].set_visible(False)
    lines = []
    for subject, codes in found.codes.items():
        lines += [f"{subject}: nearest words (times as likely as under all words)"]
        for one in codes[:3]:
            near = ", ".join(f"{word} {times:.1f}" for word, times in one["times"].items())
            lines += [f"   code {one['code']} at place {one['place']}: {near}"]
    for one in found.results["subjects"]:
        first, second = one["subjects"]
        lines += [f"{first}, {second}: {one['of']} mean the same, r {one['r']:.2f} (shuffled {one['floor']:.2f})"]
    for one in found.results["patterns"] or []:
        lines += [f"{one['subject']}: words nearest to a response, AUC {one['auc']:.2f} (chance .5)"]
    figure.text(0.52, 0.46, "\n".join(lines[:24]), fontsize=7, va="top", color=INK, linespacing=1.3)
    parts = [encoded(figure)]
    subject = asked.subjects[0]
    if found.maps.get(subject) and can_draw(asked.space(subject)):
        own = {f"{title} ({subject})": values for title, values in list(found.maps[subject].items())[:3]}
        parts.append(draw_maps(asked.space(subject), own, label="what the code changes (z)"))
    return stacked(parts)
