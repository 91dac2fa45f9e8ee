"""Order: whether two descriptions of the same rows belong together, and if not, how the rows of one were moved.

Enters: two kernels over the same rows, of what predicts (responses) and of what is predicted (features of the stimuli).
Leaves: whether the rows fit as they are, or moved by some places, reversed, with their halves swapped, or not at all.

Kernel ridge predicts each row's features from the other blocks of rows. What it predicts is linear in the features, so
that its score under any order of them is the sum of H * G[order][:, order], with the hat matrix H and the features'
kernel G: a quadratic assignment (Hubert & Schultz 1976). Nothing is fitted again for another order, and all cyclic
shifts together are one Fourier transform along the matrices' diagonals. How high chance goes is read off the shifts of
randomly permuted rows.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

Kind = Literal["own", "shift", "halves", "reversed", "none"]
LEAST_ROWS = 40  # with fewer, no order can be told from chance
FITS = 4.0  # standard deviations above chance from which rows are said to fit: 1 in 30,000 if normal
FOUND = 6.5  # ... from which another order is said to be the right one: thousands of them are tried
BETTER = 2.0  # ... and how many times better than the given one it has to fit
AMONG = 0.6  # the most that other orders may reach of the best one
NEAR = 2  # places; stimuli that change slowly fit, shifted by few places, almost as well
WITHIN = 10  # places by which ids are shifted within sessions or splits
SHOWN = 12  # places to either side, for a figure
BLOCKS = 5
DRAWS = 3  # random permutations, of which each gives as many orders as there are rows


# N rows
class Fit(NamedTuple):
    """How rows fit. kind: "own" as they are, "none" in no order that was tried.

    shift: places by which the features that belong to a row stand after it (before it if negative). within: what rows
    were moved within: "" (all), "session" or "split". z: standard deviations above chance, of the given order and of
    the best one. r: correlation of predicted and true features, the same way. by_shift: (places, z).
    """

    kind: Kind
    shift: int
    within: str
    own: float
    best: float
    own_r: float
    best_r: float
    num_rows: int
    by_shift: list[tuple[int, float]]

    @property
    def meaning(self) -> str:
        """Where a row's features are, for a sentence."""
        inside = f" within each {self.within}" if self.within else ""
        if self.kind == "halves":
            return "in the other half: the two halves are swapped"
        if self.kind == "reversed":
            return f"at the same place counted from the end{inside}: the order is reversed"
        places = abs(self.shift)
        way = "later" if self.shift > 0 else "earlier"
        return f"{places} {'place' if places == 1 else 'places'} {way}{inside}"


def kernel(values: Float[np.ndarray, "n v"]) -> Float[np.ndarray, "n n"]:
    """Inner products of rows whose columns were standardised; columns that never vary count nothing."""
    values = values.astype(np.float64)
    values = values - values.mean(axis=0)
    spread = values.std(axis=0)
    values = np.divide(
        values, spread, out=np.zeros_like(values), where=spread > 1e-9 * max(spread.max(initial=0), 1e-30)
    )
    return (values @ values.T / max(values.shape[1], 1)).astype(np.float32)


def hat_matrix(sources: Float[np.ndarray, "n n"], blocks: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n n"]:
    """What kernel ridge makes of the targets of the rows in other blocks: `predicted = hat @ targets`."""
    hat = np.zeros_like(sources, dtype=np.float32)
    for block in np.unique(blocks):
        held, seen = np.flatnonzero(blocks == block), np.flatnonzero(blocks != block)
        inner = sources[np.ix_(seen, seen)].astype(np.float64)
        inner[np.diag_indices(len(seen))] += max(float(np.trace(inner)) / len(seen), 1e-12)
        hat[np.ix_(held, seen)] = np.linalg.solve(inner, sources[np.ix_(seen, held)].astype(np.float64)).T
    return hat


def cut(num_rows: int, groups: Int[np.ndarray, "n"] | None = None) -> Int[np.ndarray, "n"]:
    """Blocks of rows that are predicted from the others: whole sessions where there are enough, else neighbours."""
    if groups is not None:
        names, where = np.unique(groups, return_inverse=True)
        if len(names) >= 3:
            return where * min(len(names), 2 * BLOCKS) // len(names)
    return np.arange(num_rows) * BLOCKS // max(num_rows, 1)


def best_order(
    hat: Float[np.ndarray, "n n"],
    targets: Float[np.ndarray, "n n"],
    groups: dict[str, Int[np.ndarray, "n"]] | None = None,
    largest_shift: int | None = None,
) -> Fit | None:
    """In which order the rows of the targets fit. None with fewer than LEAST_ROWS rows, or nothing that varies.

    groups: name -> of each row, its session or split, within which ids may have been moved, too. largest_shift: places;
    default: any.
    """
    num = len(hat)
    if num < LEAST_ROWS or not np.abs(targets).max(initial=0) > 1e-9 or not np.abs(hat).max() > 1e-12:
        return None
    turned = _turned(hat)
    shifts = _all_shifts(turned, targets)
    rng = np.random.default_rng(0)
    chance = np.concatenate(
        [_all_shifts(turned, targets[np.ix_(p, p)]) for p in (rng.permutation(num) for _ in range(DRAWS))]
    )
    mean, spread = float(chance.mean()), max(float(chance.std()), 1e-30)
    z = (shifts - mean) / spread
    own = float(z[0])
    by_shift = [(k, float(z[k % num])) for k in range(-min(SHOWN, num // 3), min(SHOWN, num // 3) + 1)]

    every = np.arange(num)
    tried: list[tuple[float, Kind, int, str, np.ndarray]] = []
    for k in range(1, num):
        places = k if k <= num // 2 else k - num
        halves = k in (num // 2, num - num // 2)
        if halves or largest_shift is None or abs(places) <= largest_shift:
            tried.append((float(z[k]), "halves" if halves else "shift", places, "", (every + k) % num))
    for kind, places, within, order in _moved(groups or {}, every):
        score = (float((hat * targets[np.ix_(order, order)]).sum()) - mean) / spread
        tried.append((score, kind, places, within, order))
    # of orders that fit alike, the first, which is the simplest
    top = max(one[0] for one in tried)
    best, kind, places, within, order = next(one for one in tried if one[0] >= min(0.97 * top, top))
    lengths = np.minimum(every, num - every)
    apart = np.minimum((every - places) % num, (places - every) % num) if kind == "shift" else lengths
    others = z[(apart > NEAR) & (lengths > NEAR)] if kind in ("shift", "halves") else z[lengths > NEAR]
    if kind == "halves":
        others = others[others < best - 1e-6]
    stands_out = best > FOUND and float(np.quantile(others, 0.995)) < AMONG * best
    if stands_out and best > BETTER * max(own, 0.0):
        found = Fit(kind, places, within, own, best, 0.0, 0.0, num, by_shift)
    else:
        kind, order, best = ("own" if own >= FITS else "none"), every, own
        found = Fit(kind, 0, "", own, own, 0.0, 0.0, num, by_shift)
    return found._replace(own_r=_correlation(hat, targets), best_r=_correlation(hat, targets[np.ix_(order, order)]))


class PartFit(NamedTuple):
    """How one session fits what was learnt from the others. z: of its given order; best: of `shift` places."""

    part: int
    num_rows: int
    own: float
    best: float
    shift: int
    reversed: bool


def parts_fit(
    hat: Float[np.ndarray, "n n"], targets: Float[np.ndarray, "n n"], parts: Int[np.ndarray, "n"]
) -> list[PartFit]:
    """For each session, in which cyclic shift its features fit those predicted from the other sessions."""
    found = []
    for part in np.unique(parts).tolist():
        here, others = np.flatnonzero(parts == part), np.flatnonzero(parts != part)
        num = len(here)
        if num < 12 or len(others) < LEAST_ROWS:
            continue
        scores = (hat[np.ix_(here, others)] @ targets[np.ix_(others, here)]).astype(np.float64)
        scores = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
        spread = max(float(np.sqrt((scores**2).sum() / (num - 1))), 1e-30)  # of a random order (Hoeffding 1951)
        every = np.arange(num)
        z = np.array([scores[every, (every + k) % num].sum() for k in range(num)]) / spread
        back = float(scores[every, every[::-1]].sum()) / spread
        best = int(np.argmax(z))
        turned_round = bool(back > z[best])
        places = best if best <= num // 2 else best - num
        found.append(
            PartFit(int(part), num, float(z[0]), max(float(z[best]), back), 0 if turned_round else places, turned_round)
        )
    return found


def _moved(groups: dict[str, np.ndarray], every: np.ndarray) -> Iterator[tuple[Kind, int, str, np.ndarray]]:
    """Orders that move rows within their session or split, and the reverse of all."""
    yield "reversed", 0, "", every[::-1].copy()
    for name, groups_of_rows in groups.items():
        members = [np.flatnonzero(groups_of_rows == group) for group in np.unique(groups_of_rows)]
        if len(members) < 2:
            continue
        for places in (*range(1, WITHIN + 1), *range(-1, -WITHIN - 1, -1)):
            order = every.copy()
            for rows in members:
                order[rows] = np.roll(rows, -places)
            yield "shift", places, name, order
        order = every.copy()
        for rows in members:
            order[rows] = rows[::-1]
        yield "reversed", 0, name, order


def _turned(matrix: Float[np.ndarray, "n n"]) -> np.ndarray:
    """The Fourier transform along each cyclic diagonal."""
    num = len(matrix)
    rows = np.arange(num)
    return np.fft.rfft(matrix[rows[None], (rows[None] + rows[:, None]) % num], axis=1).astype(np.complex64)


def _all_shifts(turned: np.ndarray, targets: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n"]:
    """The sum of hat * targets[order][:, order] for order = rows + k, for all k at once."""
    spectrum = (turned.conj() * _turned(targets)).sum(axis=0, dtype=np.complex128)
    return np.fft.irfft(spectrum, n=len(targets))


def _correlation(hat: np.ndarray, targets: np.ndarray) -> float:
    """Of predicted and true features over all rows and features, which are centred."""
    product = hat @ targets
    power = float((product * hat).sum()) * float(np.trace(targets))
    return float((hat * targets).sum() / np.sqrt(power)) if power > 0 else 0.0


def rows_to_look_at(num_rows: int, most: int) -> Int[np.ndarray, "n"]:
    """All rows, or four stretches of them that a reversal, swapped halves and short shifts take to one another."""
    if num_rows <= most:
        return np.arange(num_rows)
    length, half = most // 4, num_rows // 2
    starts: Sequence[int] = (0, half - length, half, num_rows - length)
    return np.concatenate([np.arange(start, start + length) for start in starts])
