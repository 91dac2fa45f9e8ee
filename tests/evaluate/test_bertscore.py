from pathlib import Path

import numpy as np
import pytest

from brainjanus.core.errors import UserError
from brainjanus.evaluate.bertscore import BertScorer, bertscore
from brainjanus.evaluate.captions import score_captions

transformers = pytest.importorskip("transformers", reason="an optional library")
SAID = ["a red dog", "cat", "", "a dog on a boat in the water"]
REFERENCES = [["a dog", "the red dog"], ["the cat"], ["a boat"], ["a boat"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights."""
    import torch

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "red", "dog", "cat", "on", "boat", "in", "water"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def by_formula(folder: Path, said: str, meant: str, layer: int) -> float:
    """BERTScore's F1 of two captions, token by token."""
    import torch

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()

    def states(caption: str) -> np.ndarray:
        with torch.no_grad():
            found = model(**tokenizer(caption, return_tensors="pt"), output_hidden_states=True).hidden_states[layer][0]
        return found.numpy().astype(float)

    def cosine(x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    x, y = states(said), states(meant)
    precision = np.mean([max(cosine(one, other) for other in y) for one in x[1:-1]])
    recall = np.mean([max(cosine(one, other) for one in x) for other in y[1:-1]])
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_f1_is_that_of_the_best_reference_by_the_formula(folder, layer):
    scorer = BertScorer.load(folder, layer)
    found = bertscore([scorer.embed(group) for group in REFERENCES], scorer.embed(SAID))
    expected = [
        max(by_formula(folder, said, meant, layer) for meant in group) if said else 0
        for said, group in zip(SAID, REFERENCES, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_caption_alone_is_embedded_as_in_a_batch(folder):
    scorer = BertScorer.load(folder, 2)
    for caption, words in zip(SAID, scorer.embed(SAID), strict=True):
        alone = scorer.embed([caption])[0]
        assert words.counted.tolist() == alone.counted.tolist()
        np.testing.assert_allclose(words.states, alone.states, atol=1e-5)


def test_a_long_caption_is_cut(folder):
    assert len(BertScorer.load(folder, 1).embed(["a dog " * 500])[0].states) <= 16


def test_it_is_one_of_the_caption_scores(folder):
    scored = score_captions(REFERENCES, SAID, metrics=["bertscore"], bertscore=BertScorer.load(folder, 2))
    assert list(scored.scores) == ["bertscore"]
    assert scored.scores["bertscore"].samples[2] == 0
    assert scored.definition["bertscore"].startswith(
        "BERTScore, F1 with the best reference, no idf, not rescaled, tiny-"
    )


@pytest.mark.parametrize(("layer", "got"), [(None, "got None"), (3, "got 3")])
def test_an_unknown_layer_is_refused(folder, layer, got):
    with pytest.raises(UserError, match=rf"expected a layer from 0 to 2, {got}"):
        BertScorer.load(folder, layer)
