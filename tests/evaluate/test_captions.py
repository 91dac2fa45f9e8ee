import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.evaluate import captions as module
from brainjanus.evaluate.captions import CAPTION_METRICS, CaptionScorer, constant_caption, score_captions
from brainjanus.evaluate.meteor import Meteor, meteor_of
from brainjanus.evaluate.ptb import JavaError, python_tokens

pytest.importorskip("pycocoevalcap", reason="needs the extra captions")
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
COUNTED = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider")
WORDS = "a the man dog surf board red on in water field rides wave big .".split()  # noqa: SIM905 - shorter
RNG = np.random.default_rng(0)


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))


def corpus(n: int = 12, seed: int = 0) -> tuple[list[list[str]], list[str]]:
    rng = random.Random(seed)
    return [[sentence(rng) for _ in range(rng.randint(1, 5))] for _ in range(n)], [sentence(rng) for _ in range(n)]


@pytest.fixture(scope="module")
def published(real_data: Path):
    """References, and two systems' captions, in the order of the keys."""
    folder = real_data / "brainhub" / "captions"
    references = json.loads((folder / "fmri_cococap.json").read_text())
    read = {
        name: json.loads((folder / name / "sub01_decoded_caption.json").read_text())
        for name in ("umbrae-v-1-4", "onellm")
    }
    return list(references.values()), {name: [said[key] for key in references] for name, said in read.items()}


PUBLISHED = ("bleu1", "bleu2", "bleu3", "bleu4", "meteor", "rouge_l", "cider")
# percentages: BLEU-1..4, METEOR, ROUGE-L, CIDEr; the first two rows are official, the others were computed with Java
ROWS = {
    "umbrae-v-1-4": (59.44, 40.48, 27.66, 19.03, 19.45, 43.71, 61.06),
    "onellm": (47.04, 26.97, 15.49, 9.51, 13.55, 35.05, 22.99),
    "shuffled": (36.61, 15.78, 6.84, 3.27, 8.40, 27.48, 4.57),
    "constant": (51.35, 26.99, 10.85, 5.69, 9.33, 34.00, 7.10),
    "human": (64.22, 44.33, 29.47, 19.65, 24.64, 47.90, 95.35),
}


@pytest.fixture(scope="module")
def meteor():
    """One process for all tests: it takes seconds to start."""
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    process = Meteor()
    yield process
    process.close()


@needs_java
def test_the_published_rows_are_reproduced(published, meteor):
    references, systems = published
    shuffled = list(systems["umbrae-v-1-4"])
    random.Random(0).shuffle(shuffled)
    constant = ["A person on a surfboard in the water."] * len(references)
    scorer = CaptionScorer(references, metrics=PUBLISHED)
    scorer._meteor = meteor
    for name, row in ROWS.items():
        said = {**systems, "shuffled": shuffled, "constant": constant}.get(name)
        scored = scorer.human() if said is None else scorer.score(said)
        assert len(scored.rows) == 982
        for metric, percent in zip(PUBLISHED, row, strict=True):
            assert scored.scores[metric].value == pytest.approx(percent / 100, abs=0.00006), (name, metric)
            everyone = scored.scores[metric].statistics.sum(axis=0, keepdims=True)
            assert scored.scores[metric].combine(everyone)[0] == pytest.approx(scored.scores[metric].value, abs=1e-12)


def test_without_java_the_official_rows_are_the_same(published):
    references, systems = published
    scorer = CaptionScorer(references, metrics=PUBLISHED, java=False)
    for name, said in systems.items():
        scored = scorer.score(said)
        assert "switched off" in scored.skipped["meteor"]
        for metric, percent in zip(PUBLISHED, ROWS[name], strict=True):
            if metric != "meteor":
                assert scored.scores[metric].value == pytest.approx(percent / 100, abs=0.00006), (name, metric)


def counts_of(resamples):
    return np.stack([np.bincount(drawn, minlength=resamples.shape[1]) for drawn in resamples])


def test_a_corpus_score_of_a_resample_is_the_score_of_the_resampled_captions():
    references, said = corpus()
    rows = RNG.integers(len(said), size=(3, len(said)))
    whole = score_captions(references, said, metrics=COUNTED, java=False).scores
    for draw, row in enumerate(rows):
        again = score_captions([references[i] for i in row], [said[i] for i in row], metrics=COUNTED, java=False).scores
        for name in set(COUNTED) - {"cider"}:  # which keeps the weights of the n-grams
            assert whole[name].resampled(counts_of(rows))[draw] == pytest.approx(again[name].value), name
        assert whole["cider"].resampled(counts_of(rows))[draw] == pytest.approx(whole["cider"].samples[row].mean())


@pytest.mark.parametrize("name", COUNTED)
def test_all_stimuli_once_give_the_value(name):
    references, said = corpus()
    score = score_captions(references, said, metrics=[name], java=False).scores[name]
    assert score.resampled(np.ones((1, len(said)), np.int64))[0] == pytest.approx(score.value)
    np.testing.assert_allclose(score.combine(score.statistics), score.samples, atol=1e-12)


def test_bleu_is_that_of_its_formula():
    scores = score_captions([["a b c d", "a b x"]], ["a b c"], metrics=("bleu1", "bleu2"), java=False).scores
    assert scores["bleu1"].value == pytest.approx(1)  # lengths 3 and 3: no penalty
    scores = score_captions([["a b c d"]], ["a b x"], metrics=("bleu1", "bleu2"), java=False).scores
    assert scores["bleu1"].value == pytest.approx(2 / 3 * np.exp(1 - 4 / 3))
    assert scores["bleu2"].value == pytest.approx(np.sqrt(2 / 3 * 1 / 2) * np.exp(1 - 4 / 3))


def test_rouge_l_is_that_of_its_formula():
    score = score_captions([["the red dog runs"]], ["a dog runs"], metrics=["rouge_l"], java=False).scores["rouge_l"]
    precision, recall, beta = 2 / 3, 2 / 4, 1.2
    assert score.value == pytest.approx((1 + beta**2) * precision * recall / (recall + beta**2 * precision))


def test_saying_the_reference_earns_the_most():
    references, said = corpus(seed=3)
    first = [group[0] for group in references]
    with CaptionScorer(references, metrics=COUNTED, java=False) as scorer:
        right, wrong = scorer.score(first).scores, scorer.score(said).scores
    assert all(right[name].value > wrong[name].value for name in COUNTED)
    assert right["bleu4"].value == pytest.approx(1)
    assert right["rouge_l"].value == pytest.approx(1)


@pytest.mark.parametrize(
    "said", ["", " \n ", "...", "|||", "a | b ||| c", "é" * 50, "\ud800", "a dog\nruns\tfast", "x " * 5000]
)
def test_any_caption_is_scored(said):
    references = [["a dog runs fast", "a dog"], ["two cats", "a cat"], ["..."]]
    scored = score_captions(references, [said, "a cat", ""], metrics=COUNTED, java=False)
    for name in COUNTED:
        assert np.isfinite(scored.scores[name].samples).all()
        assert scored.scores[name].samples[2] == pytest.approx(0, abs=1e-6)
    if not any(python_tokens([said])):
        assert scored.scores["rouge_l"].samples[0] == 0


def test_one_stimulus_has_no_cider():
    scored = score_captions([["a dog"]], ["a dog"], metrics=COUNTED, java=False)
    assert scored.scores["bleu1"].value == pytest.approx(1)
    assert scored.skipped["cider"].startswith("CIDEr was not scored: one stimulus tells no rare n-gram")


def test_human_leaves_out_who_is_alone():
    references = [["a dog runs", "a dog runs"], ["alone"], ["a cat", "two dogs"]]
    with CaptionScorer(references, metrics=("bleu1",), java=False) as scorer:
        scored = scorer.human()
    assert scored.rows.tolist() == [0, 2]
    expected = score_captions([["a dog runs"], ["two dogs"]], ["a dog runs", "a cat"], metrics=("bleu1",), java=False)
    assert scored.scores["bleu1"].value == expected.scores["bleu1"].value
    with (
        CaptionScorer([["alone"]], metrics=("bleu1",), java=False) as scorer,
        pytest.raises(UserError, match="expected at least one stimulus with two captions"),
    ):
        scorer.human()


def test_definitions_name_tokenizer_and_versions():
    scored = score_captions(*corpus(), metrics=COUNTED, java=False)
    assert list(scored.scores) == list(scored.definition) == list(COUNTED)
    assert scored.definition["bleu1"].startswith("BLEU-1, of the corpus, closest length, pycocoevalcap 1.")
    assert scored.definition["cider"].endswith("tokens: Python PTB tokenizer")


def test_everything_is_scored_or_skipped_with_a_sentence():
    scored = score_captions(*corpus(), java=False)
    assert [name for name in CAPTION_METRICS if name in scored.scores or name in scored.skipped] == list(
        CAPTION_METRICS
    )
    assert list(scored.skipped) == ["meteor", "spice", "bertscore", "clip_s", "ref_clip_s"]
    for sentence_ in scored.skipped.values():
        assert "was not scored: " in sentence_ and "; " in sentence_ and sentence_.endswith(".")


def test_without_pycocoevalcap_the_sentence_names_the_extra(monkeypatch):
    monkeypatch.setattr(module, "_has_pycocoevalcap", lambda: False)
    scored = score_captions(*corpus())
    assert not scored.scores
    assert scored.skipped["cider"] == (
        "CIDEr was not scored: pycocoevalcap is not installed; pip install 'brainjanus[captions]'."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": [["a"], []]}, "stimulus 1: expected a list of at least one reference caption, got none"),
        ({"references": [["a"], []], "names": ["x", "y"]}, "stimulus 'y': expected a list"),
        (
            {"references": [["a"], "a dog"]},
            "stimulus 1: expected a list of at least one reference caption, got a string",
        ),
        ({"references": []}, "expected at least one stimulus, got none"),
        ({"decoded": ["a"]}, "decoded captions: expected 2, one for each stimulus, got 1"),
        ({"metrics": ["bleu5"]}, "caption metrics: expected some of bleu1, .*, got 'bleu5'"),
        (
            {"pictures": np.zeros((1, 4, 4, 3), np.uint8)},
            "pictures for CLIP-S: expected 2, one for each stimulus, got 1",
        ),
    ],
)
def test_bad_input_is_one_sentence(change, message):
    given = {"references": [["a"], ["b"]], "decoded": ["a", "b"], "java": False, "metrics": ["bleu1"]} | change
    with pytest.raises(UserError, match=message):
        score_captions(given.pop("references"), given.pop("decoded"), **given)


def pretend_java(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program named java that does something else."""
    (folder / "java").write_text(script)
    (folder / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho\n", ""])
def test_broken_java_is_as_no_java(script, monkeypatch, tmp_path):
    pretend_java(tmp_path, monkeypatch, script)
    references, said = corpus()
    scored = score_captions(references, said, metrics=(*COUNTED, "meteor", "spice"))
    without = score_captions(references, said, metrics=COUNTED, java=False)
    assert {name: score.value for name, score in scored.scores.items()} == {
        name: score.value for name, score in without.scores.items()
    }
    assert set(scored.skipped) == {"meteor", "spice"}
    assert scored.definition["bleu1"].endswith("tokens: Python PTB tokenizer")  # however Java broke


def test_java_that_breaks_later_changes_the_tokens_of_the_references_too(monkeypatch):
    def other_tokens(captions):
        return ["other"] * len(captions)

    def broken(captions):
        raise JavaError("stopped")

    references, said = corpus()
    monkeypatch.setattr(module, "java_tokens", other_tokens)
    with CaptionScorer(references, metrics=COUNTED) as scorer:
        assert scorer.score(said).scores["bleu1"].value == pytest.approx(1)
        monkeypatch.setattr(module, "java_tokens", broken)
        scored = scorer.score(said)
    assert scored.scores["bleu1"].value == score_captions(references, said, java=False).scores["bleu1"].value
    assert scored.definition["bleu1"].endswith("Python PTB tokenizer")


# METEOR's Java program, as far as its protocol goes: each caption's statistics are its number of words, 23 times
PRETENDED_METEOR = """#!/usr/bin/env python3
import sys
for line in sys.stdin:
    kind, *parts = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":
        print(*[len(parts[-1].split())] * 23, flush=True)
    else:
        print(*(len(part.split()) / 100 for part in parts), .5, sep="\\n", flush=True)
"""


def test_meteor_speaks_with_one_process(monkeypatch, tmp_path):
    pretend_java(tmp_path, monkeypatch, PRETENDED_METEOR)
    meteor = Meteor()
    for _ in range(2):
        value, samples, statistics = meteor.score([["a dog", "x ||| y"], ["b"]], ["a ||| b", ""])
        assert value == 0.5
        assert samples.tolist() == [0.23, 0.23]
        assert statistics[:, 0].tolist() == [5, 0]  # a | | | b
    meteor.close()
    assert meteor._process.returncode is not None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/bin/sh\nsleep 60\n", "did not answer within 0.3 s"),
        ("#!/bin/sh\necho no heap >&2\nexit 1\n", "did not answer as METEOR does .*no heap"),
        ("#!/bin/sh\necho Error: what\nsleep 60\n", "did not answer as METEOR does .*Error: what"),
    ],
)
def test_meteor_that_fails_is_ended(script, reason, monkeypatch, tmp_path):
    pretend_java(tmp_path, monkeypatch, script)
    meteor = Meteor(timeout_sec=0.3 if "within" in reason else 30.0)
    with pytest.raises(JavaError, match=reason):
        meteor.score([["a"]], ["a"])
    assert meteor._process.returncode is not None
    meteor.close()


def test_failed_meteor_leaves_the_other_scores(monkeypatch, tmp_path):
    references, said = corpus()
    monkeypatch.setattr(module, "java_tokens", python_tokens)
    pretend_java(tmp_path, monkeypatch, "#!/bin/sh\necho no heap >&2\nexit 1\n")
    with CaptionScorer(references, metrics=("bleu1", "meteor")) as scorer:
        for _ in range(2):  # the second time it is not tried again
            scored = scorer.score(said)
            assert list(scored.scores) == ["bleu1"]
            assert "no heap" in scored.skipped["meteor"]
            shutil.rmtree(tmp_path, ignore_errors=True)


def test_meteor_by_java_is_that_of_its_formula(meteor):
    references, said = corpus(seed=5)
    said[0], said[1], said[2] = references[0][0], "", "a ||| b"
    value, samples, statistics = meteor.score(references, said)
    assert samples[0] == pytest.approx(1)
    assert samples[1] == 0
    assert meteor_of(statistics.sum(axis=0, keepdims=True))[0] == pytest.approx(value, abs=1e-12)
    np.testing.assert_allclose(meteor_of(statistics), samples, atol=1e-12)
    alone = meteor.score(references[3:4], said[3:4])
    assert alone.value == pytest.approx(samples[3])


PRETENDED_SPICE = """#!/usr/bin/env python3
import json, os, sys
assert "--add-opens=java.base/java.lang=ALL-UNNAMED" in os.environ["JDK_JAVA_OPTIONS"]
arguments = sys.argv[sys.argv.index("spice-1.0.jar") + 1 :]
rows = json.load(open(arguments[0]))
open(os.path.join(arguments[arguments.index("-cache") + 1], "parsed"), "a").write("x")
scores = [{"image_id": row["image_id"], "scores": {"All": {"f": row["image_id"] / 10 + len(row["refs"]) / 100}}}
          for row in rows]
open(arguments[arguments.index("-out") + 1], "w").write(json.dumps(scores[::-1]))
"""


@pytest.fixture
def spice(monkeypatch, tmp_path):
    """The folder of SPICE with (empty) models, and tokens without Java."""
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    for name in module._CORENLP:
        (tmp_path / "spice" / "lib" / name).touch()
    monkeypatch.setattr(module, "_spice_folder", lambda: tmp_path / "spice")
    monkeypatch.setattr(module, "java_tokens", python_tokens)
    return tmp_path


def test_spice_is_asked_and_answers_by_stimulus(spice, monkeypatch):
    pretend_java(spice, monkeypatch, PRETENDED_SPICE)
    with CaptionScorer([["a", "b"], ["c"], ["d"]], metrics=["spice"]) as scorer:
        for _ in range(2):
            score = scorer.score(["a", "b", "c"]).scores["spice"]
            np.testing.assert_allclose(score.samples, [0.02, 0.11, 0.21])
            assert score.value == pytest.approx(score.samples.mean())
        cache = Path(scorer._spice_cache.name)
        assert (cache / "parsed").read_text() == "xx"  # kept for the next captions
        definition = scorer.score(["a", "b", "c"]).definition["spice"]
    assert definition.startswith("SPICE 1.0, F1, pycocoevalcap")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("script", "reason"), [("exit 1", "stopped with status 1"), ("exit 0", "did not write SPICE's scores")]
)
def test_spice_that_fails_is_skipped(script, reason, spice, monkeypatch):
    pretend_java(spice, monkeypatch, f"#!/bin/sh\n{script}\n")
    scored = score_captions([["a"], ["b"]], ["a", "b"], metrics=["bleu1", "spice"])
    assert list(scored.scores) == ["bleu1"]
    assert reason in scored.skipped["spice"]


def test_spice_downloads_nothing(spice):
    (spice / "spice" / "lib" / module._CORENLP[1]).unlink()
    skipped = score_captions([["a"]], ["a"], metrics=["spice"]).skipped["spice"]
    assert skipped.startswith(
        "SPICE was not scored: it needs Stanford CoreNLP 3.6.0; run python -c 'from pycocoevalcap"
    )


def test_the_constant_caption_is_the_best_of_all_by_cider():
    references, _ = corpus(n=10, seed=7)
    chosen = constant_caption(references)
    with CaptionScorer(references, metrics=["cider"], java=False) as scorer:
        earned = {
            caption: scorer.score([caption] * len(references)).scores["cider"].value
            for group in references
            for caption in group
        }
    assert earned[chosen] == pytest.approx(max(earned.values()))


def test_the_constant_caption_of_one_stimulus_is_one_of_its_captions():
    assert constant_caption([["b dog", "A dog."]]) == "A dog."
