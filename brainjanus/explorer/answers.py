"""What the explorer answers, and the same as JSON: written where it runs, read where it is asked.

Arrays are base64 of little-endian bytes (float32, int32), pictures PNG files in base64.
"""

import base64
import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image


class Map(NamedTuple):
    """An expected response [sites], z-scored, or a contrast of two. spread: standard deviation of single trials around
    it, or of the difference of two; None if it was not asked for."""

    values: Float[np.ndarray, "v"]
    spread: Float[np.ndarray, "v"] | None = None


class Decoded(NamedTuple):
    """What a response says. measured: the response [sites]. pictures: the expected one first, then samples; captions:
    the likeliest first, then samples. ranks: of what was seen among held-out candidates, by log p of its picture and
    its caption given the response, from 1; candidates: how many there were."""

    measured: Float[np.ndarray, "v"]
    pictures: list[UInt8[np.ndarray, "h w 3"]]
    captions: list[str]
    ranks: dict[str, int]
    log_p: dict[str, float]
    candidates: int


class Part(NamedTuple):
    """A stretch of a sequence: the token that opens it, and those behind it, in ids of the joint vocabulary.

    words: of a text, what each token says.
    """

    modality: str
    opening: int
    tokens: list[int]
    words: list[str]


class Tokens(NamedTuple):
    """A response as the model reads it. sequence: its tokens, and those of the caption and the picture that were seen.

    codes: of each token of the brain, local to its codebook; per_patch: how many tokens the same sites have, one after
    the other; patch: the first of them, of each site. after: with tokens swapped or masked, what the sites are then
    (NaN where masked), and what is decoded; None if none is.
    """

    sequence: list[Part]
    codes: Int[np.ndarray, "k"]
    num_codes: int
    per_patch: int
    patch: Int[np.ndarray, "v"]
    values: Float[np.ndarray, "v"]
    before: Decoded
    after: Decoded | None


Answer = Decoded | Tokens | dict[str, Map]  # maps by subject


def told(answer: Answer) -> dict[str, Any]:
    """As JSON has it."""
    if isinstance(answer, Decoded):
        facts = answer._asdict()
        pictures = [base64.b64encode(png(picture)).decode() for picture in answer.pictures]
        return facts | {"measured": packed(answer.measured), "pictures": pictures}
    if isinstance(answer, Tokens):
        return answer._asdict() | {
            "sequence": [part._asdict() for part in answer.sequence],
            "codes": answer.codes.tolist(),
            "patch": packed(answer.patch),
            "values": packed(answer.values),
            "before": told(answer.before),
            "after": None if answer.after is None else told(answer.after),
        }
    return {
        subject: {"values": packed(one.values), "spread": None if one.spread is None else packed(one.spread)}
        for subject, one in answer.items()
    }


def read_maps(facts: Mapping[str, Any]) -> dict[str, Map]:
    return {
        subject: Map(unpacked(one["values"]), None if one["spread"] is None else unpacked(one["spread"]))
        for subject, one in facts.items()
    }


def read_decoded(facts: Mapping[str, Any]) -> Decoded:
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))) for picture in facts["pictures"]]
    return Decoded(**{**facts, "measured": unpacked(facts["measured"]), "pictures": pictures})


def read_tokens(facts: Mapping[str, Any]) -> Tokens:
    arrays = {
        "sequence": [Part(**part) for part in facts["sequence"]],
        "codes": np.array(facts["codes"]),
        "patch": unpacked(facts["patch"], "<i4"),
        "values": unpacked(facts["values"]),
    }
    decoded = {name: None if facts[name] is None else read_decoded(facts[name]) for name in ("before", "after")}
    return Tokens(**{**facts, **arrays, **decoded})


def packed(values: np.ndarray) -> str:
    """Floats as float32, whole numbers as int32."""
    return base64.b64encode(values.astype("<f4" if values.dtype.kind == "f" else "<i4").tobytes()).decode()


def unpacked(text: str, kind: str = "<f4") -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind).copy()


def png(picture: UInt8[np.ndarray, "h w 3"], most: int | None = None) -> bytes:
    """A PNG file; most: pixels a side, at most."""
    made = Image.fromarray(picture)
    if most is not None:
        made.thumbnail((most, most))
    file = io.BytesIO()
    made.save(file, "PNG")
    return file.getvalue()
