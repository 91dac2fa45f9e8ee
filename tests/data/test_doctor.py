"""Order of rows by kernel ridge, and pictures that are one picture twice."""

import io

import numpy as np
import pytest
from PIL import Image

from brainjanus.data.lookalikes import lookalikes, small
from brainjanus.data.order import best_order, cut, hat_matrix, kernel, parts_fit, rows_to_look_at

N = 160


@pytest.fixture(scope="module")
def recording():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((N, 30))
    return features @ rng.standard_normal((30, 50)) + 6 * rng.standard_normal((N, 50)), features


def fit(responses, features, order=None, **groups):
    order = np.arange(len(features)) if order is None else order
    return best_order(hat_matrix(kernel(responses), cut(len(responses))), kernel(features[order]), groups)


@pytest.mark.parametrize(("weight", "kind"), [(1.2, "own"), (1.5, "shift")])
def test_another_order_has_to_fit_twice_as_well(weight, kind):
    """What was shown five places before lingers: its fit grows with the square of its weight."""
    responses = np.random.default_rng(0).standard_normal((300, 12))
    found = fit(responses, responses + weight * np.roll(responses, 5, axis=0))
    assert (found.kind, found.shift) == (kind, 5 if kind == "shift" else 0)


def test_all_shifts_are_those_of_moved_matrices(recording):
    """The Fourier transform along diagonals against plain sums."""
    from brainjanus.data.order import _all_shifts, _turned

    rng = np.random.default_rng(1)
    hat, targets = rng.standard_normal((2, 21, 21))
    rows = np.arange(21)
    plain = [(hat * targets[np.ix_((rows + k) % 21, (rows + k) % 21)]).sum() for k in range(21)]
    np.testing.assert_allclose(_all_shifts(_turned(hat), targets), plain, rtol=1e-4, atol=1e-4)


def test_the_hat_is_ridge_regression():
    from sklearn.kernel_ridge import KernelRidge

    rng = np.random.default_rng(2)
    inner, targets = kernel(rng.standard_normal((40, 9))), rng.standard_normal((40, 3))
    blocks = cut(40)
    seen, held = blocks != 1, blocks == 1
    ridge = KernelRidge(alpha=float(np.trace(inner[np.ix_(seen, seen)])) / seen.sum(), kernel="precomputed")
    expected = ridge.fit(inner[np.ix_(seen, seen)], targets[seen]).predict(inner[np.ix_(held, seen)])
    np.testing.assert_allclose((hat_matrix(inner, blocks) @ targets)[held], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (np.arange(N), ("own", 0)),
        (np.roll(np.arange(N), 1), ("shift", 1)),
        (np.roll(np.arange(N), -7), ("shift", -7)),
        (np.roll(np.arange(N), N // 2), ("halves", N // 2)),
        (np.arange(N)[::-1], ("reversed", 0)),
        (np.random.default_rng(5).permutation(N), ("none", 0)),
    ],
)
def test_an_order_is_named(recording, order, expected):
    found = fit(*recording, order)
    assert (found.kind, found.shift) == expected


def test_ids_reversed_within_sessions_are_named(recording):
    sessions = np.arange(N) // 40
    order = np.concatenate([np.arange(s, s + 40)[::-1] for s in range(0, N, 40)])
    found = fit(*recording, order, session=sessions)
    assert (found.kind, found.within) == ("reversed", "session")


def test_noise_fits_in_no_order():
    rng = np.random.default_rng(3)
    kinds = [fit(rng.standard_normal((80, 30)), rng.standard_normal((80, 10))).kind for _ in range(30)]
    assert set(kinds) == {"none"}


def test_where_every_order_fits_worse_than_chance_none_is_named():
    """Stimuli of two kinds in turn: moved by any places, they agree as badly."""
    kinds = np.where(np.arange(40) % 2 == 0, 1.0, -1.0)
    seen = np.random.default_rng(0).normal(size=40)
    seen -= kinds * (kinds @ seen) / 40
    fit = best_order(np.outer(seen, seen), np.outer(kinds, kinds))
    assert fit is not None and fit.kind == "none" and fit.own < 0


def test_slow_noise_is_no_shift():
    """Responses and stimuli that both change slowly, and have nothing to do with one another."""
    rng = np.random.default_rng(4)
    kinds = []
    for _ in range(20):
        slow = np.cumsum(rng.standard_normal((2, 120, 8)), axis=1)
        kinds.append(fit(slow[0], slow[1]).kind)
    assert not {"shift", "reversed", "halves"} & set(kinds)


def test_one_session_that_is_shifted_is_found(recording):
    responses, features = recording
    sessions, order = np.arange(N) // 40, np.arange(N)
    order[80:120] = np.roll(order[80:120], -3)
    hat = hat_matrix(kernel(responses), cut(N, sessions))
    fits = parts_fit(hat, kernel(features[order]), sessions)
    assert [one.shift for one in fits] == [0, 0, -3, 0]
    assert fits[2].own < 3 < 6 < fits[2].best


def test_stretches_of_many_rows_are_closed_under_what_is_tried():
    rows = rows_to_look_at(1000, 80)
    assert len(rows) == 80
    assert set(999 - rows) == set(rows)
    assert set((rows + 500) % 1000) == set(rows)
    assert (rows_to_look_at(50, 80) == np.arange(50)).all()


# ---------------------------------------------------------------------------------------------------- pictures


def photograph(rng: np.random.Generator) -> Image.Image:
    """Something with the spectrum of photographs (1/f) in colours."""
    frequency = np.hypot(np.fft.fftfreq(160)[:, None], np.fft.fftfreq(160)[None])
    frequency[0, 0] = 1
    grey = np.fft.ifft2(np.fft.fft2(rng.standard_normal((160, 160))) / frequency).real
    tint = np.fft.ifft2(np.fft.fft2(rng.standard_normal((160, 160))) / frequency**1.5).real
    pixels = np.stack([grey, grey + 0.4 * tint / tint.std() * grey.std(), grey * 0.8], axis=-1)
    return Image.fromarray((128 + 50 * (pixels - pixels.mean()) / pixels.std()).clip(0, 255).astype(np.uint8))


def resized(picture):
    return picture.resize((90, 90))


def encoded(picture):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=35)
    return Image.open(file).convert("RGB")


def cropped(picture):
    return picture.crop((3, 8, 149, 154))


def mirrored(picture):
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def brighter(picture):
    return picture.point(lambda value: int(0.8 * value + 35))


@pytest.fixture(scope="module")
def photographs():
    rng = np.random.default_rng(6)
    return [photograph(rng) for _ in range(24)]


@pytest.mark.parametrize("change", [resized, encoded, cropped, mirrored, brighter])
def test_a_changed_copy_is_found_and_others_are_not(photographs, change):
    first = np.stack([small(np.asarray(picture)) for picture in photographs])
    second = np.stack([small(np.asarray(change(picture).resize((160, 160)))) for picture in photographs[:5]])
    found = lookalikes(first, second)
    assert {(pair.first, pair.second) for pair in found} == {(row, row) for row in range(5)}
    assert all(pair.mirrored == (change is mirrored) for pair in found)


def test_different_photographs_are_not_alike(photographs):
    pixels = np.stack([small(np.asarray(picture)) for picture in photographs])
    assert lookalikes(pixels[:12], pixels[12:]) == []


def test_flat_pictures_are_not_alike():
    flat = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (10, 200, 90)])
    assert lookalikes(flat[:2], flat[2:]) == []


MARKS = ((10, 22, 20, 2), (34, 22, 3, 20), (44, 30, 8, 8))


def thing(marks, tint=(0, 0, 0)) -> np.ndarray:
    """A dark box on a plain ground, with marks on it, under light that changes slowly from top to bottom."""
    picture = np.full((64, 64, 3), 250.0)
    picture[6:58, 18:46] = (60, 60, 70)
    picture[6:58, 18:20] = 20
    for top, left, high, wide in marks:
        picture[top : top + high, left : left + wide] = 150
    return (picture + np.linspace(-1, 1, 64)[:, None, None] * np.array(tint)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("limit", "other"), [("SAME_DETAILS", thing(())), ("SAME_COLOURS", thing(MARKS, tint=(0, 0, -60)))]
)
def test_things_that_share_an_outline_alone_are_not_alike(limit, other, monkeypatch):
    box = thing(MARKS)[None]
    assert lookalikes(box, box)[0].alike == pytest.approx(1, abs=1e-3)
    assert lookalikes(box, other[None]) == []
    monkeypatch.setattr(f"brainjanus.data.lookalikes.{limit}", -1.0)
    assert len(lookalikes(box, other[None])) == 1
