"""Text tokenizer: captions in, codes out, and back.

Byte-level BPE (Sennrich et al. 2016) trained on the captions of the training split with the `tokenizers` library.
Code 0 ends every text and fills up shorter ones.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from brainjanus.core.errors import UserError

END = 0


@dataclass(frozen=True)
class TextTokenizerConfig:
    """num_codes: at most so many pieces (256 of them are the bytes). max_length: codes of a text, its end included;
    None takes the longest caption of the dataset."""

    num_codes: int = 512
    max_length: int | None = None


# B texts, L codes of the longest of them
class Prompt(NamedTuple):
    """Texts as conditions, which are as long as they are: behind the end of the shorter ones nothing exists."""

    codes: Int[Tensor, "b l"]
    seen: Bool[Tensor, "b l"]


class TextTokenizer:
    """Encode and decode text; `num_codes` is the size of its codebook, the end included.

    end: the code that ends a text. controls: what the model's control tokens are among the codes, by name; none here.
    """

    end: int = END
    controls: Mapping[str, int] = {}

    def __init__(self, tokenizer: Tokenizer, max_length: int):
        self.tokenizer = tokenizer
        self.max_length = max_length

    @property
    def num_codes(self) -> int:
        return self.tokenizer.get_vocab_size()

    @classmethod
    def fit(
        cls, captions: Iterable[str], config: TextTokenizerConfig, *, longest_among: Iterable[str] = ()
    ) -> "TextTokenizer":
        """Learn the pieces from captions (training split only).

        longest_among: more captions that have to fit, which only the length is taken from: nothing is learnt of them.
        """
        captions = list(captions)
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=max(config.num_codes, len(alphabet) + 1),
            special_tokens=["<end>"],
            initial_alphabet=sorted(alphabet),
            show_progress=False,
        )
        tokenizer.train_from_iterator(captions, trainer)
        encodings = tokenizer.encode_batch([*captions, *longest_among])
        longest = max((len(encoding.ids) + 1 for encoding in encodings), default=1)
        return cls(tokenizer, config.max_length or longest)

    def encode(self, texts: Sequence[str]) -> Int[Tensor, "b l"]:
        """Codes of texts, each ended and filled up with its end to max_length codes, whatever else is in the batch.

        Raises UserError if a text is longer than max_length codes.
        """
        rows = [[*pieces, self.end] for pieces in self.pieces(texts)]
        longest = max(map(len, rows), default=1)
        if longest > self.max_length:
            text = texts[max(range(len(rows)), key=lambda i: len(rows[i]))]
            raise UserError(
                f"text '{text}': expected at most {self.max_length} codes with its end, got {longest}. "
                "Shorten it, or train with a larger text_tokenizer.max_length."
            )
        return torch.tensor([row + [self.end] * (self.max_length - len(row)) for row in rows], dtype=torch.long)

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Codes of texts as they are, without their end."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def prompt(self, texts: Sequence[str]) -> Prompt:
        """Texts as what a condition is: their codes with their end, of which the filling behind it is not seen."""
        codes = self.encode(texts)
        return Prompt(codes, up_to_end(codes, self.end))

    def decode(self, codes: Int[Tensor, "b l"]) -> list[str]:
        """Texts up to the first end of each row."""
        texts = []
        for row in codes.tolist():
            row = row[: row.index(self.end)] if self.end in row else row
            texts.append(self.tokenizer.decode(row, skip_special_tokens=True).strip())
        return texts

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))

    @classmethod
    def load(cls, folder: Path, max_length: int) -> "TextTokenizer":
        """Read what `save` wrote. Raises UserError if it is missing or damaged."""
        try:
            return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), max_length)
        except Exception as error:  # the library raises bare Exception
            raise UserError(
                f"{folder / 'tokenizer.json'}: expected a saved text tokenizer, got '{error}'. "
                "The run folder is damaged: copy it again or train again."
            ) from error


def up_to_end(codes: Int[Tensor, "b l"], end: int) -> Bool[Tensor, "b l"]:
    """True up to and with the first end of each row."""
    ended = (codes == end).int().cumsum(dim=1)
    return ended - (codes == end).int() == 0
