"""Simulated EEG and MEG: subjects whose every source, topography, time course and noise is known.

Enters: a `SensorSimulationConfig`. Leaves: under `out`, `dataset/` in the form of real data (sensors x times), and
apart from it `truth/`, which no Dataset reads: noise-free responses, sources, what drives them, ceilings.

Dimensions of THINGS-EEG2 (Gifford et al. 2022: 63 channels, 250 times at 250 Hz) and THINGS-MEG (Hebart et al. 2023:
271 gradiometers, 201 times at 200 Hz). A source is a current dipole in a spherical head. EEG: the potential on a
homogeneous sphere (Mosher, Leahy & Lewis 1999), against the average of all channels; the sources are drawn inwards,
which stands for the skull (Berg & Scherg 1994). MEG: the field along the radius, which no volume current changes
(Sarvas 1987), as the difference of two coils. Evoked responses: P1 (contrast, of the other half of the picture), N170
(faces, bodies and words), P2 (settings and places), P3 (how much there is to see, animals and people). Noise: 1/f from
everywhere in the head, alpha, and the sensors' own.

Differs from a real head: a sphere; evoked responses add to the noise and change nothing of it; no eye movements or
blinks; single trials are more reliable than real ones, so that a few repeats do.
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from brainjanus.core.errors import UserError, written_beside
from brainjanus.core.space import BrainSpace
from brainjanus.data.dataset import Dataset, Stimuli, Subject, Trials
from brainjanus.data.scenes import Scene, captions, compose, render
from brainjanus.data.simulate import LAYOUT, MEANING, SimulationConfig, energy_maps, schedule
from brainjanus.data.truth import save_truth
from brainjanus.data.write import refuse_existing, write_dataset


@dataclass(frozen=True)
class SensorSimulationConfig:
    """How much is simulated. modality: "eeg" or "meg". num_subjects: whose heads. num_train, num_test: stimuli of each
    split, the same for all. repeats: trials of each stimulus. trials_per_session, runs_per_session: how the recording
    is parted. reliability: the share of a single trial's variance that is signal, at the best sites (the 95th
    percentile over sensors and times). seed: of everything that is drawn.
    """

    modality: Literal["eeg", "meg"] = "eeg"
    num_subjects: int = 2
    num_train: int = 300
    num_test: int = 50
    repeats: int = 3
    trials_per_session: int = 525
    runs_per_session: int = 6
    reliability: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        self.design()
        if self.modality not in ("eeg", "meg") or not 0 < self.reliability < 1:
            raise UserError(
                f"simulated sensors: expected modality eeg or meg and a reliability between 0 and 1, got "
                f"'{self.modality}' and {self.reliability}. Change these."
            )

    def design(self) -> SimulationConfig:
        """Subjects, stimuli, repeats, sessions and runs, which are those of the simulated cortex."""
        shared = asdict(self).keys() & SimulationConfig.__dataclass_fields__.keys()
        return SimulationConfig(**{name: getattr(self, name) for name in shared})


class SensorTruth(NamedTuple):
    """What one subject's data were made from; V sites (sensor * T + time), S sensors, K sources, N stimuli.

    responses: noise-free, in the units of the z-scored dataset. amplitude: of each source for each stimulus, the mean
    over training stimuli taken off, before the z-scoring: signal = amplitude @ (topography x time_course). Variances:
    of one trial, z-scored.
    """

    stimulus_ids: list[str]
    responses: Float[np.ndarray, "n v"]
    amplitude: Float[np.ndarray, "n k"]
    topography: Float[np.ndarray, "k s"]
    time_course: Float[np.ndarray, "k t"]
    position_mm: Float[np.ndarray, "k 3"]
    latency_sec: Float[np.ndarray, "k"]
    signal_variance: Float[np.ndarray, "v"]
    noise_variance: Float[np.ndarray, "v"]
    noise_ceiling: Float[np.ndarray, "v"]


# --- sensors --------------------------------------------------------------------------------------------------------

HEAD_MM = 95.0  # radius of the head; its centre is the origin; x to the right, y to the front, z upwards
COIL_MM, BASELINE_MM = 115.0, 50.0  # where a gradiometer's inner coil is, and how far behind it the outer one
HELMET = 0.62 * np.pi  # how far down from the vertex the helmet reaches
NUM_COILS = 271
TIMES = {"eeg": (250, 250.0), "meg": (201, 200.0)}  # number, rate in Hz; the first is 0, when the picture comes
# The channels of THINGS-EEG2: a 64-channel 10-10 cap without Fz, which was the reference
EEG_CHANNELS = [
    "Fp1", "Fp2", "AF7", "AF3", "AFz", "AF4", "AF8", "F7", "F5", "F3", "F1", "F2", "F4", "F6", "F8", "FT9",
    "FT7", "FC5", "FC3", "FC1", "FCz", "FC2", "FC4", "FC6", "FT8", "FT10", "T7", "C5", "C3", "C1", "Cz", "C2",
    "C4", "C6", "T8", "TP9", "TP7", "CP5", "CP3", "CP1", "CPz", "CP2", "CP4", "CP6", "TP8", "TP10", "P7",
    "P5", "P3", "P1", "Pz", "P2", "P4", "P6", "P8", "PO7", "PO3", "POz", "PO4", "PO8", "O1", "Oz", "O2",
]  # fmt: skip
# Rows of the 10-10 system by how many tenths of the arc from inion to nasion they lie in front of the vertex
ROWS = {"Fp": 4, "AF": 3, "F": 2, "FC": 1, "FT": 1, "C": 0, "T": 0, "CP": -1, "TP": -1, "P": -2, "PO": -3, "O": -4}
REGIONS: dict[str, dict[str, tuple[str, ...]]] = {  # ROIs: rows of electrodes; lobes of a helmet's names (MLO12)
    "eeg": {
        "frontal": ("Fp", "AF", "F"),
        "central": ("FC", "C", "CP"),
        "temporal": ("FT", "T", "TP"),
        "parietal": ("P",),
        "occipital": ("PO", "O"),
    },
    "meg": {"frontal": ("F",), "central": ("C",), "temporal": ("T",), "parietal": ("P",), "occipital": ("O",)},
}
WINDOWS_SEC = {"P1": (0.08, 0.13), "N170": (0.14, 0.2), "P2": (0.2, 0.28), "P3": (0.3, 0.6)}


def ten_ten_mm(name: str) -> Float[np.ndarray, "3"]:
    """Where an electrode of the 10-10 system lies on a spherical head: tenths of 180 degrees (Oostenveld & Praamstra
    2001). Raises UserError for a name that it does not have.
    """
    parts = re.fullmatch(r"([A-Z][A-Zp]?)(z|10|[1-9])", name)
    if parts is None or parts[1] not in ROWS:
        raise UserError(f"electrode '{name}': expected a name of the 10-10 system, as PO7 or Cz, got this. Correct it.")
    tenths, number = ROWS[parts[1]], 0 if parts[2] == "z" else int(parts[2])
    side = -1 if number % 2 else 1
    outwards = (number + 1) // 2 / 4  # 1 is a quarter of the way to the ring, 7 is on it, 9 is below
    # along the ring, a tenth from Fpz to Oz for each row: the end of the row
    ring = _on_sphere(0.4 * np.pi, np.pi / 2 - side * np.pi * (0.5 - tenths / 10))
    if abs(tenths) == 4 and number:
        tip = _on_sphere(0.4 * np.pi, np.pi / 2 - side * np.pi * (0.1 if tenths > 0 else 0.9))
        return HEAD_MM * tip
    if number > 8:
        return HEAD_MM * _on_sphere(0.5 * np.pi, np.pi / 2 - side * np.pi * (0.5 - tenths / 10))
    middle = _on_sphere(abs(tenths) * np.pi / 10, np.pi / 2 if tenths > 0 else -np.pi / 2)
    angle = np.arccos(np.clip(middle @ ring, -1, 1))
    return HEAD_MM * (np.sin((1 - outwards) * angle) * middle + np.sin(outwards * angle) * ring) / np.sin(angle)


def _on_sphere(down: float, around: float) -> Float[np.ndarray, "3"]:
    return np.array([np.sin(down) * np.cos(around), np.sin(down) * np.sin(around), np.cos(down)])


def helmet() -> tuple[list[str], Float[np.ndarray, "s 3"]]:
    """Coils spread evenly over a helmet (a Fibonacci spiral), named by side and lobe, and in order of their names."""
    at = (np.arange(NUM_COILS) + 0.5) / NUM_COILS
    z = 1 - at * (1 - np.cos(HELMET))
    around = np.arange(NUM_COILS) * np.pi * (3 - np.sqrt(5))
    points = np.stack([np.sqrt(1 - z**2) * np.cos(around), np.sqrt(1 - z**2) * np.sin(around), z], axis=1)
    named: list[tuple[str, np.ndarray]] = []
    counts: dict[str, int] = {}
    for x, y, z in points:
        side = "Z" if abs(x) < 0.08 else "L" if x < 0 else "R"
        lobe = "F" if y > 0.45 else "T" if z < 0.35 and y > -0.5 else "C" if y > -0.2 else "P" if z > 0.3 else "O"
        group = f"M{side}{lobe}"
        counts[group] = counts.get(group, 0) + 1
        named.append((f"{group}{counts[group]:02}", COIL_MM * np.array([x, y, z])))
    named.sort(key=lambda sensor: sensor[0])
    return [name for name, _ in named], np.stack([place for _, place in named])


def sensors_of(modality: str) -> tuple[list[str], Float[np.ndarray, "s 3"]]:
    """Names and places (mm) of the sensors, in the order in which they are stored."""
    if modality == "meg":
        return helmet()
    return list(EEG_CHANNELS), np.stack([ten_ten_mm(name) for name in EEG_CHANNELS])


def times_of(modality: str) -> Float[np.ndarray, "t"]:
    """Seconds after the picture came."""
    count, rate = TIMES[modality]
    return np.arange(count) / rate


# --- the head -------------------------------------------------------------------------------------------------------

SKULL = 0.65  # EEG: the skull blurs; so do sources that are this much nearer to the centre
CORTEX_MM = 75.0  # how far from the centre sources lie


def potential(
    sensors_mm: Float[np.ndarray, "s 3"], place_mm: Float[np.ndarray, "k 3"], moment: Float[np.ndarray, "k 3"]
) -> Float[np.ndarray, "k s"]:
    """What dipoles in a homogeneous sphere give at electrodes on its surface, times 4 pi conductivity.

    Source: Mosher, Leahy & Lewis 1999, "EEG and MEG: forward solutions for inverse methods", equations for one shell.
    """
    r, q = sensors_mm[None], place_mm[:, None]
    apart = r - q
    d, radius = np.linalg.norm(apart, axis=2), np.linalg.norm(r, axis=2)
    depth = (q**2).sum(axis=2)
    f = d * (radius * d + radius**2 - (r * q).sum(axis=2))
    c1 = (2 * (apart * q).sum(axis=2) / d**3 + 1 / d - 1 / radius) / depth
    c2 = (2 / d**3 + (d + radius) / (radius * f)) / depth
    along_q, along_r = (moment * place_mm).sum(axis=1)[:, None], (moment[:, None] * r).sum(axis=2)
    return (c1 - c2 * (r * q).sum(axis=2)) * along_q + c2 * depth * along_r


def radial_field(
    sensors_mm: Float[np.ndarray, "s 3"], place_mm: Float[np.ndarray, "k 3"], moment: Float[np.ndarray, "k 3"]
) -> Float[np.ndarray, "k s"]:
    """What dipoles in a sphere give in magnetometers along the radius, times 4 pi over the magnetic constant.

    Source: Sarvas 1987: the radial component is that of the dipole alone.
    """
    d = np.linalg.norm(sensors_mm[None] - place_mm[:, None], axis=2)
    outwards = sensors_mm / np.linalg.norm(sensors_mm, axis=1, keepdims=True)
    return -(np.cross(moment, place_mm) @ outwards.T) / d**3


def topographies(
    modality: str,
    sensors_mm: Float[np.ndarray, "s 3"],
    place_mm: Float[np.ndarray, "k 3"],
    moment: Float[np.ndarray, "k 3"],
) -> Float[np.ndarray, "k s"]:
    """What each source gives in each sensor; the strongest sensor of a source of usual direction has about 1."""
    if modality == "eeg":
        raw = potential(sensors_mm, SKULL * place_mm, moment)
        raw -= raw.mean(axis=1, keepdims=True)
        return raw * HEAD_MM**2 / 8
    inner = radial_field(sensors_mm, place_mm, moment)
    outer = radial_field(sensors_mm * (COIL_MM + BASELINE_MM) / COIL_MM, place_mm, moment)
    return (inner - outer) * COIL_MM**2 / 6


# --- sources and what drives them -----------------------------------------------------------------------------------


class Area(NamedTuple):
    """A group of sources: where (a direction; mirrored for the left), when, and what drives it.

    drives: features by the beginning of their names, with weights. strength: of the right and the left hemisphere.
    """

    direction: tuple[float, float, float]
    latency_sec: float
    width_sec: float
    strength: tuple[float, float]
    drives: dict[str, float]


AREAS = {
    "P1": Area((0.25, -0.9, 0.05), 0.105, 0.016, (1.0, 1.0), {"contrast": 1.0, "colour": 0.5}),
    "N170": Area((0.62, -0.62, -0.15), 0.168, 0.02, (1.0, 0.7), {"face": 1.0, "body": 0.5, "word": 0.5, "animal": 0.4}),
    "P2": Area((0.3, -0.6, 0.3), 0.225, 0.028, (0.8, 0.8), {"place": 0.7, "large": 0.4, "setting": 0.8}),
    "P3": Area((0.22, -0.35, 0.75), 0.38, 0.075, (0.8, 0.8), {"count": 0.6, "body": 0.5, "animal": 0.5, "tool": 0.4}),
}
SOURCES_PER_AREA = 6  # in each hemisphere
QUARTERS = ("left up", "left down", "right up", "right down")  # of the picture


def features_of(
    scenes: list[Scene], pixels: UInt8[np.ndarray, "n h w 3"], num_train: int
) -> dict[str, Float[np.ndarray, "n"]]:
    """What sources may be driven by: standardised on the first `num_train` stimuli.

    Contrast and colour of each quarter of the picture, as early visual cortex sees them; meaning of the objects, by
    size; setting; how many objects there are.
    """
    batches = np.array_split(pixels, -(-len(pixels) // 256))
    maps = np.concatenate([energy_maps(batch).numpy().astype(np.float64) for batch in batches])
    grid = maps.reshape(*maps.shape[:2], *[round(maps.shape[2] ** 0.5)] * 2)
    half = grid.shape[-1] // 2
    found: dict[str, np.ndarray] = {}
    for name in QUARTERS:
        rows = slice(0, half) if "up" in name else slice(half, None)
        columns = slice(0, half) if "left" in name else slice(half, None)
        quarter = np.sqrt(grid[:, :, rows, columns].mean(axis=(2, 3)))
        found[f"contrast {name}"] = quarter[:, :-6].mean(axis=1)
        for hue, channel in zip(("red", "yellow", "green", "blue"), range(-6, -2), strict=True):
            found[f"colour {hue} {name}"] = quarter[:, channel]
    for dim in dict.fromkeys(dim for row in MEANING.values() for dim in row):
        found[dim] = np.array([sum(MEANING[i.category].get(dim, 0) * i.extent for i in s.items) for s in scenes])
    for dim in dict.fromkeys(dim for row in LAYOUT.values() for dim in row):
        found[f"setting {dim}"] = np.array([LAYOUT[scene.setting].get(dim, 0) for scene in scenes])
    found["count"] = np.array([float(len(scene.items)) for scene in scenes])
    for name, values in found.items():
        spread = values[:num_train].std()
        found[name] = (values - values[:num_train].mean()) / (spread if spread > 0 else 1)
    return found


class Sources(NamedTuple):
    """K sources: where, which way, how each goes over time, and how much of each feature drives it."""

    place_mm: Float[np.ndarray, "k 3"]
    moment: Float[np.ndarray, "k 3"]
    latency_sec: Float[np.ndarray, "k"]
    time_course: Float[np.ndarray, "k t"]
    weights: Float[np.ndarray, "k f"]


def draw_sources(features: list[str], times: Float[np.ndarray, "t"], rng: np.random.Generator) -> Sources:
    """One subject's sources: scattered around their area, partly outwards and partly along the surface.

    A time course is a wave with a weaker one of the other sign after it, and, for some, a slow one.
    """
    parts: list[tuple[np.ndarray, ...]] = []
    for area in AREAS.values():
        for side in (1, -1):
            for _ in range(SOURCES_PER_AREA):
                direction = np.array([side * area.direction[0], *area.direction[1:]]) + rng.normal(0, 0.12, 3)
                place = CORTEX_MM * direction / np.linalg.norm(direction)
                along = np.cross(direction / np.linalg.norm(direction), rng.normal(size=3))
                moment = rng.normal(0.5, 0.5) * place / CORTEX_MM + along / np.linalg.norm(along)
                strength = area.strength[0 if side > 0 else 1] * np.exp(rng.normal(0, 0.3))
                latency = area.latency_sec * np.exp(rng.normal(0, 0.06))
                width = area.width_sec * np.exp(rng.normal(0, 0.15))
                course = _wave(times, latency, width) - 0.5 * _wave(times, latency + 2.6 * width, 1.4 * width)
                course += rng.uniform(0, 0.25) * _wave(times, latency + 0.2, 0.12)
                weights = np.zeros(len(features))
                for i, feature in enumerate(features):
                    kind = feature.split()[0]
                    crossed = ("left" if side > 0 else "right") in feature or kind not in ("contrast", "colour")
                    weights[i] = area.drives.get(kind, 0.0) * crossed * (1 + 0.7 * rng.normal()) + 0.03 * rng.normal()
                weights *= strength / np.linalg.norm(weights)
                parts.append((place, moment, np.array(latency), course, weights))
    return Sources(*(np.stack(column) for column in zip(*parts, strict=True)))


def _wave(times: Float[np.ndarray, "t"], latency: float, width: float) -> Float[np.ndarray, "t"]:
    return np.exp(-(((times - latency) / width) ** 2) / 2)


# --- noise ----------------------------------------------------------------------------------------------------------

NOISE_SOURCES = 400  # everywhere in the head
ALPHA_HZ, ALPHA_WIDTH_HZ = 10.0, 1.2
NOISE_PARTS = {"brain": 0.65, "alpha": 0.25, "sensor": 0.10}  # of the noise variance, mean over sensors
TRIALS_AT_ONCE = 128


class Noise(NamedTuple):
    """Spatial patterns [k, s] of the noise, scaled, for each of its parts; `sensor`: standard deviation of each."""

    brain: Float[np.ndarray, "k s"]
    alpha: Float[np.ndarray, "a s"]
    sensor: float

    def variance(self) -> Float[np.ndarray, "s"]:
        """Of each sensor, at any time."""
        return (self.brain**2).sum(axis=0) + (self.alpha**2).sum(axis=0) + self.sensor**2


def draw_noise(modality: str, sensors_mm: Float[np.ndarray, "s 3"], rng: np.random.Generator) -> Noise:
    """Noise whose variance is 1 in the mean over sensors."""
    direction = rng.normal(size=(NOISE_SOURCES, 3))
    place = (
        CORTEX_MM
        * direction
        / np.linalg.norm(direction, axis=1, keepdims=True)
        * rng.uniform(0.5, 1, (NOISE_SOURCES, 1))
    )
    everywhere = topographies(modality, sensors_mm, place, rng.normal(size=place.shape))
    # the same covariance from as few patterns as hold all but a thousandth of it
    _, scale, patterns = np.linalg.svd(everywhere, full_matrices=False)
    kept = np.cumsum(scale**2) < 0.999 * (scale**2).sum()
    brain = scale[kept, None] * patterns[kept]
    behind = CORTEX_MM * np.array([[x, -0.85, 0.3] for x in (-0.4, -0.15, 0.15, 0.4)])
    alpha = topographies(modality, sensors_mm, behind, rng.normal(size=behind.shape))
    brain, alpha = (
        part * np.sqrt(NOISE_PARTS[name] / (part**2).sum(axis=0).mean())
        for name, part in (("brain", brain), ("alpha", alpha))
    )
    return Noise(brain, alpha, float(np.sqrt(NOISE_PARTS["sensor"])))


def sample_noise(
    noise: Noise, num_trials: int, times: Float[np.ndarray, "t"], rng: np.random.Generator
) -> Float[np.ndarray, "n s t"]:
    """Stationary in time: 1/f (amplitude as 1 / sqrt f), alpha of changing strength, and white noise."""
    frequency = np.fft.rfftfreq(2 * len(times), times[1] - times[0])  # twice as long, so that ends do not meet
    pink = 1 / np.sqrt(np.maximum(frequency, frequency[1]))
    pink[0] = 0
    peak = np.exp(-(((frequency - ALPHA_HZ) / ALPHA_WIDTH_HZ) ** 2) / 2)
    total = np.zeros((num_trials, noise.brain.shape[1], len(times)), np.float32)
    for patterns, shape in ((noise.brain, pink), (noise.alpha, peak)):
        white = rng.standard_normal((num_trials, len(patterns), 2 * len(times)), dtype=np.float32)
        unit = np.sqrt((shape[0] ** 2 + 2 * (shape[1:-1] ** 2).sum() + shape[-1] ** 2) / (2 * len(times)))
        course = np.fft.irfft(np.fft.rfft(white) * (shape / unit), n=2 * len(times))[..., : len(times)]
        total += np.einsum("ks,nkt->nst", patterns.astype(np.float32), course.astype(np.float32), optimize=True)
    return total + np.float32(noise.sensor) * rng.standard_normal(total.shape, dtype=np.float32)


# --- the whole ------------------------------------------------------------------------------------------------------


def simulate_sensors(
    out: Path | str, config: SensorSimulationConfig = SensorSimulationConfig(), *, overwrite: bool = False
) -> Dataset:
    """Simulate a study: write `out/dataset` and, apart from it, `out/truth`. The same config gives the same files.

    Training stimuli are each subject's own, test stimuli are shared. ROIs are groups of sensors and windows of time.
    Raises UserError if there is a dataset already and `overwrite` is False.
    """
    out = Path(out)
    refuse_existing(out / "dataset", overwrite)
    names = [f"subj{i + 1:02d}" for i in range(config.num_subjects)]
    shows = {name: [f"{name}-{i:05d}" for i in range(config.num_train)] for name in names}
    shared = [f"shared-{i:05d}" for i in range(config.num_test)]
    ids = [*shared, *(stimulus for own in shows.values() for stimulus in own)]
    rng = _generator(config, "scenes")
    scenes = [compose(rng) for _ in ids]
    pixels = np.stack([render(scene, rng) for scene in scenes])
    spoken = {stimulus: captions(scene, rng) for stimulus, scene in zip(ids, scenes, strict=True)}

    def subjects(truth_folder: Path) -> Iterator[Subject]:
        for number, (name, own) in enumerate(shows.items()):
            first = len(shared) + number * config.num_train
            rows = [*range(first, first + len(own)), *range(len(shared))]
            trials = schedule(config.design(), number, own, shared)
            features = features_of([scenes[i] for i in rows], pixels[rows], config.num_train)
            responses, truth = _record(config, number, trials, [ids[i] for i in rows], features)
            save_truth(truth_folder / f"{name}.safetensors", truth)
            yield Subject(space_of(config.modality, name), responses, trials)

    with written_beside(out / "truth") as truth_folder:
        truth_folder.mkdir()
        return write_dataset(
            out / "dataset",
            name=f"simulated {config.modality.upper()}",
            modality=f"{config.modality.upper()} (simulated)",
            subjects=subjects(truth_folder),
            stimuli=Stimuli(ids, pixels, captions=spoken),
            zscore="session",
            provenance={"simulation": asdict(config)},
            overwrite=overwrite,
        )


def space_of(modality: str, subject: str) -> BrainSpace:
    """The sensors x times of a subject, with regions of the head and windows of time as ROIs."""
    names, places = sensors_of(modality)
    times = times_of(modality)
    space = BrainSpace.of_sensors(subject, names, times, places.astype(np.float32))
    row = [re.sub(r"(z|\d+)$", "", name)[2 if modality == "meg" else 0 :] for name in names]
    rois = {region: np.repeat([of in rows for of in row], len(times)) for region, rows in REGIONS[modality].items()} | {
        window: np.tile((times >= start) & (times < stop), len(names)) for window, (start, stop) in WINDOWS_SEC.items()
    }
    return replace(space, rois=rois)


def _record(
    config: SensorSimulationConfig,
    number: int,
    trials: Trials,
    shown: list[str],
    features: dict[str, Float[np.ndarray, "n"]],
) -> tuple[Float[np.ndarray, "t v"], SensorTruth]:
    """One subject's raw responses (arbitrary unit), and the truth. Training stimuli come first in `shown`."""
    rng = _generator(config, "sources", number)
    _, sensors_mm = sensors_of(config.modality)
    times = times_of(config.modality)
    sources = draw_sources(list(features), times, rng)
    topography = topographies(config.modality, sensors_mm, sources.place_mm, sources.moment)
    amplitude = np.stack(list(features.values()), axis=1) @ sources.weights.T
    amplitude -= amplitude[: config.num_train].mean(axis=0)
    noise = draw_noise(config.modality, sensors_mm, rng)
    noise_variance = np.repeat(noise.variance(), len(times))
    evoked = (topography[:, :, None] * sources.time_course[:, None]).reshape(len(topography), -1)
    covariance = amplitude[: config.num_train].T @ amplitude[: config.num_train] / config.num_train
    signal_variance = np.einsum("kv,kv->v", evoked, covariance @ evoked)
    # as strong as makes the best sites as reliable as wanted
    gain = np.sqrt(config.reliability / (1 - config.reliability) / np.percentile(signal_variance / noise_variance, 95))
    amplitude *= gain
    signal_variance *= gain**2
    total = signal_variance + noise_variance

    rng = _generator(config, "noise", number)
    row_of = {stimulus: row for row, stimulus in enumerate(shown)}
    rows = np.array([row_of[stimulus] for stimulus in trials.stimulus_id])
    mean = sources.weights.std(axis=1) @ evoked * gain * 3  # the response that all pictures have in common
    louder = 1 + 0.05 * rng.normal(size=int(trials.session.max()) + 1)  # of each session
    responses = np.empty((len(rows), evoked.shape[1]), np.float32)
    for batch in np.array_split(np.arange(len(rows)), -(-len(rows) // TRIALS_AT_ONCE)):
        own = sample_noise(noise, len(batch), times, rng).reshape(len(batch), -1)
        own += (amplitude[rows[batch]] @ evoked + mean).astype(np.float32)
        responses[batch] = own * louder[trials.session[batch], None]
    truth = SensorTruth(
        stimulus_ids=shown,
        responses=(amplitude @ evoked / np.sqrt(total)).astype(np.float32),
        amplitude=amplitude,
        topography=topography,
        time_course=sources.time_course,
        position_mm=sources.place_mm,
        latency_sec=sources.latency_sec,
        signal_variance=signal_variance / total,
        noise_variance=noise_variance / total,
        noise_ceiling=np.sqrt(signal_variance / total),
    )
    return responses, truth


def _generator(config: SensorSimulationConfig, purpose: str, subject: int = 0) -> np.random.Generator:
    """A generator of its own for each purpose, so that a change in one leaves the others as they were."""
    return np.random.default_rng([config.seed, subject, *f"{config.modality} {purpose}".encode()])
