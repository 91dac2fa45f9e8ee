"""Vocabulary: the sole owner of the joint token ids.

Codes (ids local to one codebook) enter, tokens (ids in the joint vocabulary) leave, and back. The ranges lie one
behind the other: control | text | image | brain. Every subject has a control token of its own, which opens a block of
its brain tokens.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from jaxtyping import Int
from torch import Tensor

from brainjanus.core.errors import UserError

Modality = Literal["text", "image", "brain"]
MODALITIES: tuple[Modality, ...] = ("text", "image", "brain")
CONTROLS = ("begin", "text", "image", "features", "hidden", "dropped")  # then one for each subject


@dataclass(frozen=True)
class Vocabulary:
    """text, image, brain: codebook sizes. subjects: whose brains have a control token."""

    text: int
    image: int
    brain: int
    subjects: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(CONTROLS) + len(self.subjects) + self.text + self.image + self.brain

    def control(self, name: str) -> int:
        """The token of a control name, or the one that opens a block of a subject ('brain:subj01')."""
        if name in CONTROLS:
            return CONTROLS.index(name)
        subject = name.removeprefix("brain:")
        if subject not in self.subjects:
            raise UserError(
                f"vocabulary: expected one of the subjects {', '.join(self.subjects)}, got '{subject}'. "
                "Was the model trained on another dataset?"
            )
        return len(CONTROLS) + self.subjects.index(subject)

    def range(self, modality: Modality) -> range:
        """The tokens of a modality."""
        start = len(CONTROLS) + len(self.subjects)
        for name in MODALITIES:
            size = getattr(self, name)
            if name == modality:
                return range(start, start + size)
            start += size
        raise UserError(f"vocabulary: expected one of {', '.join(MODALITIES)}, got '{modality}'.")

    def to_tokens(self, codes: Int[Tensor, "*b"], modality: Modality) -> Int[Tensor, "*b"]:
        """Codes of a modality as tokens. Raises UserError for a code outside its codebook."""
        tokens = self.range(modality)
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= len(tokens)):
            raise UserError(
                f"{modality} codes: expected ids in [0, {len(tokens)}), got {int(codes.min())}..{int(codes.max())}. "
                "Do they come from another tokenizer?"
            )
        return codes + tokens.start

    def to_codes(self, tokens: Int[Tensor, "*b"], modality: Modality) -> Int[Tensor, "*b"]:
        """Tokens of a modality as codes. Raises UserError for a token of another range."""
        own = self.range(modality)
        if tokens.numel() and (int(tokens.min()) < own.start or int(tokens.max()) >= own.stop):
            raise UserError(
                f"{modality} tokens: expected ids in [{own.start}, {own.stop}), got "
                f"{int(tokens.min())}..{int(tokens.max())}. Do they belong to another modality?"
            )
        return tokens - own.start

    def to_dict(self) -> dict:
        return asdict(self)
