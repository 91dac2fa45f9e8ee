"""Relay: a subject that a model was not trained on, spoken for by those that it was.

Enters: a request that names the new subject. Leaves: the answer, out of the model's answers for the subjects that it
knows. A response of the new subject becomes the response that each known subject is expected to have; what each known
subject is expected to have becomes the response of the new one. Both maps are linear; the model, and what it
answers for others, stays as it was.

A known subject's expected responses have few dimensions; z are their coordinates, x = mean + z axes.
Differs from hyperalignment (Haxby et al. 2011), which maps measured responses to shared stimuli: the known subjects
need not have seen any of the new one's stimuli, and what they are expected to have is free of noise.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from brainjanus.core.errors import UserError
from brainjanus.model.draft import Drafts
from brainjanus.model.sequence import subject_of


class Told(NamedTuple):
    """An answer; the fields of `brainjanus.generate.Generated`."""

    values: Any
    standard_error: Any = None
    samples: Any = None


Ask = Callable[[Mapping[str, object], str], Any]  # conditions, target -> what the model generates
See = Callable[[Any], Tensor]  # pictures -> their features [b, f]


# B rows, V sites of the new subject, W of a known one, R dimensions of its z
class Voice(nn.Module):
    """One known subject, as it speaks for a new one. told: z from a response of the new one."""

    mean: Tensor
    axes: Tensor
    told: Tensor
    told_offset: Tensor

    def __init__(self, num_sites: int, known_sites: int, rank: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(known_sites))
        self.register_buffer("axes", torch.zeros(rank, known_sites))  # orthonormal
        self.register_buffer("told", torch.zeros(num_sites, rank))
        self.register_buffer("told_offset", torch.zeros(rank))

    def coordinates(self, responses: Float[Tensor, "*b w"]) -> Float[Tensor, "*b r"]:
        return (responses.to(self.axes) - self.mean) @ self.axes.T

    def expected(self, responses: Float[Tensor, "b v"]) -> Float[Tensor, "b w"]:
        """The response that the known subject is expected to have where the new one had these."""
        return self.mean + (responses @ self.told + self.told_offset) @ self.axes


class Telling(nn.Module):
    """The new subject's response from z of all known ones, for one kind of stimulus, and from its features, if any.

    rank: dimensions that are read of a stimulus's features; told: those of z.
    """

    mean: Tensor
    axes: Tensor
    weights: Tensor
    offset: Tensor

    def __init__(self, num_sites: int, told: int, num_features: int = 0, rank: int = 0):
        super().__init__()
        self.size = (num_features, rank)
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("axes", torch.zeros(rank, num_features))
        self.register_buffer("weights", torch.zeros(told + rank, num_sites))  # from z, then from these features
        self.register_buffer("offset", torch.zeros(num_sites))

    def forward(self, z: Float[Tensor, "*b r"], features: Float[Tensor, "b f"] | None = None) -> Float[Tensor, "*b v"]:
        if features is not None and len(self.axes):
            read = (features.to(self.axes) - self.mean) @ self.axes.T
            if z.dim() == 3:  # several samples of z of the same stimulus
                read = read[:, None].expand(-1, z.shape[1], -1)
            z = torch.cat([z, read], dim=-1)
        return z @ self.weights + self.offset


class Relay(nn.Module):
    """One new subject. known: subject -> (sites, dimensions); the first of them speaks where only one can.

    kinds: of stimuli that tell of a response in a way of their own, "image" and "text" -> numbers of features, and
    dimensions that are read of them.
    """

    def __init__(
        self, num_sites: int, known: Mapping[str, Sequence[int]], kinds: Mapping[str, Sequence[int]] | None = None
    ):
        super().__init__()
        self.known = {subject: tuple(sizes) for subject, sizes in known.items()}
        self.num_sites = num_sites
        self.voices = nn.ModuleDict({f"brain:{s}": Voice(num_sites, *sizes) for s, sizes in self.known.items()})
        total = sum(rank for _, rank in self.known.values())
        self.telling = Telling(num_sites, total)
        self.by_kind = nn.ModuleDict({kind: Telling(num_sites, total, *size) for kind, size in (kinds or {}).items()})

    def voice(self, subject: str) -> Voice:
        found = self.voices[f"brain:{subject}"]
        assert isinstance(found, Voice)
        return found

    @property
    def kinds(self) -> dict[str, tuple[int, int]]:
        return {kind: telling.size for kind, telling in self.by_kind.items() if isinstance(telling, Telling)}

    def respond(
        self,
        known: Mapping[str, Float[Tensor, "*b _"]],
        kind: str | None = None,
        features: Float[Tensor, "b f"] | None = None,
    ) -> Float[Tensor, "*b v"]:
        """The new subject's expected responses, from those of all known ones.

        kind: of the stimulus, if it is of one kind alone. features: that are read of it, if any are.
        """
        z = torch.cat([self.voice(subject).coordinates(known[subject]) for subject in self.known], dim=-1)
        telling = self.by_kind[kind] if kind and kind in self.by_kind else self.telling
        return telling(z, features)


class Relays(nn.Module):
    """All new subjects of a model. sites, known, kinds: of each; see `Relay`."""

    def __init__(
        self,
        sites: Mapping[str, int],
        known: Mapping[str, Mapping[str, Sequence[int]]],
        kinds: Mapping[str, Mapping[str, Sequence[int]]],
    ):
        super().__init__()
        self.by_subject = nn.ModuleDict({f"brain:{s}": Relay(sites[s], known[s], kinds[s]) for s in sites})

    @property
    def subjects(self) -> tuple[str, ...]:
        return tuple(name.removeprefix("brain:") for name in self.by_subject)

    def relay(self, subject: str) -> Relay:
        found = self.by_subject[f"brain:{subject}"]
        assert isinstance(found, Relay)
        return found

    def facts(self) -> dict[str, Any]:
        """What makes the same module, without its weights."""
        every = {subject: self.relay(subject) for subject in self.subjects}
        return {
            "sites": {subject: relay.num_sites for subject, relay in every.items()},
            "known": {subject: relay.known for subject, relay in every.items()},
            "kinds": {subject: relay.kinds for subject, relay in every.items()},
        }

    def concern(self, names: Sequence[str]) -> bool:
        """Whether one of these conditions and targets is a new subject."""
        return any(subject_of(name) in self.subjects for name in names)

    def drawn(self, conditions: Iterable[str], target: str) -> bool:
        """Whether samples of the answer can be drawn, by the model; or it is told by linear maps alone."""
        subject, names = subject_of(target), set(conditions)
        if subject is None:
            return True
        if names and all(subject_of(name) in self.subjects for name in names):
            return False
        if subject not in self.subjects:
            return True
        return not names & {f"part:{subject}", *(f"brain:{known}" for known in self.relay(subject).known)}

    def answer(
        self, ask: Ask, see: See, drafts: Drafts, conditions: Mapping[str, Any], target: str, *, mean: bool
    ) -> Told:
        """What `ask` answers for known subjects, made the answer to a request that concerns a new one.

        see: the features of pictures. conditions: brains are tensors of the right length. mean: whether an expectation
        is asked for, in which all known subjects have a say, and no sample.
        Raises UserError if nobody can speak, or a brain is given both whole and in part.
        """
        subject = subject_of(target)
        if subject in self.subjects and f"part:{subject}" in conditions:
            return Told(self.completed(ask, see, drafts, conditions, str(subject)))
        given = {}
        for name, rows in conditions.items():
            own = subject_of(name)
            partly = own in self.subjects and name.startswith("part:")
            if partly and f"brain:{own}" in conditions:
                raise UserError(
                    f"generation: expected a response of {own} whole or in part, got both. Leave one of them out."
                )
            given[f"brain:{own}" if partly else name] = drafts.complete(rows, str(own)) if partly else rows
        if subject in self.subjects:
            return self.responded(ask, see, drafts, given, str(subject))
        if subject is not None and all(subject_of(name) in self.subjects for name in given):
            return Told(self.expected(given, subject))
        speakers = self.speakers(given, target)
        answers = [ask(self.spoken(given, speaker), target) for speaker in speakers[: None if mean else 1]]
        if not mean:
            return Told(*answers[0])
        errors = [answer.standard_error for answer in answers if answer.standard_error is not None]
        error = torch.stack(errors).mean(dim=0) if errors else None  # at most: all are drawn by the same numbers
        return Told(torch.stack([answer.values for answer in answers]).mean(dim=0), error)

    def completed(
        self, ask: Ask, see: See, drafts: Drafts, conditions: Mapping[str, Any], subject: str
    ) -> Float[Tensor, "b v"]:
        """A response of which a part is given, filled in; what else is given shifts what is to be expected."""
        known = conditions[f"part:{subject}"]
        others = {name: rows for name, rows in conditions.items() if name != f"part:{subject}"}
        if not others:
            return drafts.complete(known, subject)
        mean = drafts.gaussian(subject).mean
        told = self.answer(ask, see, drafts, others, f"brain:{subject}", mean=True).values.to(mean)
        return torch.where(known.isnan(), told - mean + drafts.complete(known - told + mean, subject), known)

    def responded(self, ask: Ask, see: See, drafts: Drafts, given: Mapping[str, Any], subject: str) -> Told:
        """The response of a new subject, from those of all known ones; a picture or a text alone tells of it in a
        way of its own."""
        relay, values, samples = self.relay(subject), {}, {}
        brains = [name for name in given if subject_of(name)]
        for known in relay.known:
            if f"brain:{known}" in given:  # measured, so noisy, which expected responses are not
                gaussian = drafts.gaussian(known)
                values[known] = gaussian.expected(gaussian.latents(given[f"brain:{known}"]))
            elif brains and all(subject_of(name) in self.subjects for name in given):
                values[known] = self.expected(given, known)
            else:
                answer = ask(self.spoken(given, self.speakers(given, f"brain:{known}")[0]), f"brain:{known}")
                values[known], samples[known] = answer.values, answer.samples
        kind = next(iter(given)) if len(given) == 1 else None
        features = see(given["image"]) if kind == "image" and relay.kinds.get("image", (0, 0))[0] else None
        if len(samples) < len(relay.known) or any(some is None for some in samples.values()):
            return Told(relay.respond(values, kind, features))
        drawn = relay.respond(samples, kind, features)
        return Told(drawn[:, 0], samples=drawn)

    def expected(self, given: Mapping[str, Tensor], known: str) -> Float[Tensor, "b w"]:
        """What a known subject is expected to have where new ones had these."""
        told = [self.relay(str(subject_of(name))).voice(known).expected(rows) for name, rows in given.items()]
        return torch.stack(told).mean(dim=0)

    def speakers(self, given: Mapping[str, object], target: str) -> list[str]:
        """The known subjects as whom the new ones among the conditions can speak; "" where there is no new one.

        Raises UserError if nobody is left.
        """
        new = [str(subject_of(name)) for name in given if subject_of(name) in self.subjects]
        if not new:
            return [""]
        able = [
            known for known in self.relay(new[0]).known if not {f"brain:{known}", f"part:{known}"} & {*given, target}
        ]
        if not able or len(new) > 1:
            raise UserError(
                f"generation: expected a request in which one new subject can be spoken for, got "
                f"{'+'.join(given)}->{target}. Leave out one of its brains."
            )
        return able

    def spoken(self, given: Mapping[str, Any], speaker: str) -> dict[str, object]:
        """The same conditions, with those of a new subject as its speaker is expected to have them."""
        spoken: dict[str, object] = {}
        for name, rows in given.items():
            new = subject_of(name) in self.subjects
            spoken[f"brain:{speaker}" if new else name] = self.expected({name: rows}, speaker) if new else rows
        return spoken
