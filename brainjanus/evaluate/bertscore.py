"""BERTScore: how well the words of two captions match in the hidden states of a language model.

Enters: captions. Leaves: the F1 of each decoded caption with its best reference. Source: Zhang et al. 2020, as the
package bert_score computes it without inverse document frequency and without rescaling. Differs: through transformers
alone, as bert_score 0.3.13 does not run with its present version; the figures agree.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from brainjanus.core.errors import UserError
from brainjanus.evaluate.clip import pretrained

# the hidden layer that agrees best with people, chosen by the authors on WMT16
LAYERS = {
    "roberta-large": 17, "roberta-base": 10, "bert-base-uncased": 9, "bert-large-uncased": 18,
    "distilbert-base-uncased": 5, "deberta-xlarge-mnli": 40,
}  # fmt: skip
BATCH = 64


# L tokens, D width
class Words(NamedTuple):
    """A caption's hidden states, of unit length. counted: False for the marks at its ends: they can be matched, but
    their own match does not count."""

    states: Float[Tensor, "l d"]
    counted: Bool[Tensor, "l"]


class BertScorer:
    """A frozen language model and the layer that is read; see `load`."""

    def __init__(self, model: Any, tokenizer: Any, name: str, layer: int) -> None:
        self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer
        self.name, self.layer = name, layer

    @classmethod
    def load(cls, folder_or_hub_name: Path | str, layer: int | None = None, device: str = "cpu") -> "BertScorer":
        """Load a model and its tokenizer; the field's is roberta-large.

        layer: default the one of LAYERS; a hidden layer, 0 being the embedding of words.
        Raises UserError if the model is absent or damaged, transformers is missing, or the layer does not exist.
        """
        name = str(folder_or_hub_name)
        model, tokenizer = pretrained(name, "AutoModel", "AutoTokenizer", "BERTScore")
        layer = LAYERS.get(Path(name).name) if layer is None else layer
        depth = model.config.num_hidden_layers
        if layer is None or not 0 <= layer <= depth:
            raise UserError(
                f"BERTScore with '{name}': expected a layer from 0 to {depth}, got {layer}. It is known for "
                f"{', '.join(LAYERS)} only; name the layer, or use one of these."
            )
        return cls(model.to(device), tokenizer, name, layer)

    @property
    def definition(self) -> str:
        """What its figures are."""
        from transformers import __version__

        what = "F1 with the best reference, no idf, not rescaled"
        return f"BERTScore, {what}, {Path(self.name).name} layer {self.layer}, transformers {__version__}"

    @torch.no_grad()
    def embed(self, captions: Sequence[str]) -> list[Words]:
        """Hidden states of each caption. What exceeds the model's length is cut, as bert_score does."""
        order = sorted(range(len(captions)), key=lambda row: len(captions[row]))  # alike lengths share a batch
        found: dict[int, Words] = {}
        limit = getattr(self._model.config, "max_position_embeddings", 512)
        longest = min(self._tokenizer.model_max_length, limit - 2)  # RoBERTa's positions begin at 2
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            # the blank makes RoBERTa read the first word as it reads the others
            texts = [" " + captions[row].strip() if captions[row].strip() else "" for row in rows]
            inputs = self._tokenizer(
                texts, return_tensors="pt", padding=True, truncation=True, max_length=longest,
                return_special_tokens_mask=True,
            ).to(self._model.device)  # fmt: skip
            special = inputs.pop("special_tokens_mask").bool()
            states = self._model(**inputs, output_hidden_states=True).hidden_states[self.layer].float().cpu()
            states = states / states.norm(dim=-1, keepdim=True)
            for row, mask, vectors, mark in zip(
                rows, inputs["attention_mask"].bool().cpu(), states, special.cpu(), strict=True
            ):
                found[row] = Words(vectors[mask].clone(), ~mark[mask])
        return [found[row] for row in range(len(captions))]


def bertscore(references: Sequence[Sequence[Words]], said: Sequence[Words]) -> Float[np.ndarray, "n"]:
    """F1 of each caption with its best reference; 0 for a caption without words."""
    return np.array(
        [max(_f1(words, reference) for reference in group) for group, words in zip(references, said, strict=True)],
        np.float64,
    )


def _f1(said: Words, meant: Words) -> float:
    if not said.counted.any() or not meant.counted.any():
        return 0.0
    similarity = said.states @ meant.states.T
    precision = similarity.max(dim=1).values[said.counted].mean()
    recall = similarity.max(dim=0).values[meant.counted].mean()
    return float(torch.nan_to_num(2 * precision * recall / (precision + recall)))
