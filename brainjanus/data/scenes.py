"""The stimuli of the simulated cortex: small colour scenes whose content is known, and what people would say of them.

Enters: a random generator. Leaves: a `Scene` (setting, and one to three objects with colour, size and place), its
picture (64 x 64, drawn four times larger and averaged down), and five captions from a grammar with synonyms and
varying order. Captions follow COCO in number (Chen et al. 2015, "Microsoft COCO Captions"); their agreement is set by
`DOMINANT`, the share of speakers who take the usual word.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

IMAGE_SIZE = 64
OVERSAMPLING = 4
CANVAS = IMAGE_SIZE * OVERSAMPLING
CAPTIONS_PER_SCENE = 5
DOMINANT = 0.72  # how often the first word of a list of synonyms is taken

RGB = tuple[int, int, int]
COLOURS: dict[str, RGB] = {
    "red": (214, 38, 38),
    "orange": (246, 136, 20),
    "yellow": (248, 218, 48),
    "green": (40, 150, 60),
    "blue": (38, 84, 214),
    "purple": (138, 58, 176),
    "white": (244, 244, 244),
    "black": (34, 34, 40),
    "brown": (124, 76, 40),
}
# category -> (nouns, the usual one first; colours it comes in)
CATEGORIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "face": (("face", "head"), ("black", "brown", "red", "yellow", "white")),
    "person": (("person", "man", "figure"), ("red", "yellow", "green", "blue", "purple", "white", "black")),
    "dog": (("dog", "puppy"), ("black", "brown", "white", "yellow")),
    "bird": (("bird", "sparrow"), ("red", "yellow", "green", "blue", "white", "black")),
    "fish": (("fish", "carp"), ("red", "orange", "yellow", "blue", "purple")),
    "car": (("car", "vehicle"), ("red", "orange", "yellow", "green", "blue", "white", "black")),
    "boat": (("boat", "ship"), ("red", "green", "blue", "yellow", "brown")),
    "house": (("house", "cottage", "home"), ("red", "yellow", "blue", "white", "brown")),
    "tree": (("tree", "oak"), ("red", "orange", "yellow", "green")),
    "cup": (("cup", "mug"), ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")),
    "chair": (("chair", "seat"), ("red", "green", "blue", "purple", "white", "black", "brown")),
    "clock": (("clock", "watch"), ("red", "yellow", "green", "blue", "black", "brown")),
    "ball": (("ball", "football"), ("red", "orange", "yellow", "green", "blue", "purple")),
    "sign": (("sign", "placard"), ("red", "yellow", "green", "blue", "black")),
}
AIRBORNE = ("face", "bird", "clock", "ball", "sign")  # what may hang or fly at the top
# setting -> (phrases, the usual one first; colours that would drown in it)
SETTINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "beach": (("on the beach", "on the shore"), ("yellow",)),
    "street": (("on the street", "on the road"), ("black",)),
    "forest": (("in the forest", "in the woods"), ("green",)),
    "field": (("in the field", "in the meadow"), ("green",)),
    "room": (("in the room", "in the kitchen"), ("brown",)),
    "snow": (("in the snow", "in the cold"), ("white",)),
    "desert": (("in the desert", "in the dunes"), ("yellow", "orange", "brown")),
    "night": (("at night", "in the dark"), ("black",)),
}
SIZES = {"small": ("small", "tiny"), "big": ("big", "large")}
PLACES: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "at left"),
    "right": ("on the right", "at right"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    "middle": ("in the middle", "in the centre"),
}
CENTRES = {
    "left": (0.25, 0.58),
    "right": (0.75, 0.58),
    "top": (0.5, 0.25),
    "bottom": (0.5, 0.76),
    "middle": (0.5, 0.54),
}
NUMBER_OF_OBJECTS = (0.45, 0.4, 0.15)  # how many scenes have one, two, three


class Item(NamedTuple):
    """One object: `x`, `y` its centre and `extent` its width, in picture widths from the top left."""

    category: str
    colour: str
    size: str
    place: str
    x: float
    y: float
    extent: float


class Scene(NamedTuple):
    """What there is to see; captions and category areas know nothing else."""

    setting: str
    items: tuple[Item, ...]


# --- composing ------------------------------------------------------------------------------------------------------


def compose(rng: np.random.Generator) -> Scene:
    """Draw a scene at random: a setting, and one to three different objects that do not hide each other."""
    setting = str(rng.choice(list(SETTINGS)))
    count = 1 + int(rng.choice(3, p=NUMBER_OF_OBJECTS))
    if count == 1:
        places, extents = [str(rng.choice(list(PLACES)))], {"small": (0.26, 0.32), "big": (0.46, 0.54)}
    elif count == 2:
        places = ["left", "right"] if rng.random() < 0.65 else ["top", "bottom"]
        extents = {"small": (0.27, 0.32), "big": (0.37, 0.43)}
    else:
        places, extents = ["left", "middle", "right"], {"small": (0.25, 0.29), "big": (0.25, 0.29)}  # size untold
    used: list[str] = []
    items = []
    for place in places:
        able = AIRBORNE if place == "top" else tuple(CATEGORIES)
        category = str(rng.choice([name for name in able if name not in used]))
        used.append(category)
        colour = str(rng.choice([c for c in CATEGORIES[category][1] if c not in SETTINGS[setting][1]]))
        size = str(rng.choice(list(SIZES)))
        extent = rng.uniform(*extents[size])
        margin = extent / 2 + 0.01
        jitter = 0.02 if count == 3 else 0.04
        wide = 1.25 if count == 3 else 1.0  # three stand farther apart
        centre = (0.5 + (CENTRES[place][0] - 0.5) * wide, CENTRES[place][1])
        x, y = np.clip(np.array(centre) + rng.uniform(-jitter, jitter, 2), margin, 1 - margin)
        items.append(Item(category, colour, size, place, float(x), float(y), float(extent)))
    return Scene(setting, tuple(items))


# --- captions -------------------------------------------------------------------------------------------------------


def captions(scene: Scene, rng: np.random.Generator, count: int = CAPTIONS_PER_SCENE) -> tuple[str, ...]:
    """`count` independent descriptions of a scene: lower case, ASCII, at most 15 words.

    One object is named with size, colour and place; two with colours and how they lie; three with colours.
    """
    return tuple(_caption(scene, rng) for _ in range(count))


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    where = _word(SETTINGS[scene.setting][0], rng)
    if len(scene.items) == 1:
        item = scene.items[0]
        what = f"{_phrase(item, rng, with_size=True)} {_word(PLACES[item.place], rng)}"
    elif len(scene.items) == 2:
        first, second = (_phrase(item, rng) for item in scene.items)
        near, far = ("left of", "right of") if scene.items[0].place == "left" else ("above", "below")
        what = f"{first} {near} {second}" if rng.random() < DOMINANT else f"{second} {far} {first}"
    else:
        first, *others = (_phrase(scene.items[i], rng) for i in rng.permutation(3))
        what = " and ".join([first, *(phrase.split(" ", 1)[1] for phrase in others)])  # one article, to be short
    return f"{what} {where}" if rng.random() < DOMINANT else f"{where} {what}"


def _phrase(item: Item, rng: np.random.Generator, with_size: bool = False) -> str:
    noun = _word(CATEGORIES[item.category][0], rng)
    words = [_word(SIZES[item.size], rng)] if with_size else []
    if item.category == "face":
        words += [noun, "with", item.colour, "hair"]
    elif item.category == "person":
        words += [noun, "in", item.colour]
    else:
        words += [item.colour, noun]
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _word(synonyms: tuple[str, ...], rng: np.random.Generator) -> str:
    """The usual word, or one of the others."""
    if len(synonyms) == 1 or rng.random() < DOMINANT:
        return synonyms[0]
    return synonyms[int(rng.integers(1, len(synonyms)))]


# --- drawing --------------------------------------------------------------------------------------------------------

INK: RGB = (24, 22, 28)
SKIN: tuple[RGB, ...] = ((250, 214, 180), (228, 180, 140), (168, 116, 80), (112, 74, 52))
GLASS: RGB = (176, 218, 240)
WOOD: RGB = (104, 66, 38)


def shade(colour: RGB, factor: float) -> RGB:
    """A darker (factor < 1) or paler (factor > 1) version of a colour."""
    if factor <= 1:
        return tuple(int(c * factor) for c in colour)  # type: ignore[return-value]
    return tuple(int(255 - (255 - c) / factor) for c in colour)  # type: ignore[return-value]


class Pen:
    """Draws shapes given in the unit square of one object (y downwards) onto the large canvas."""

    def __init__(self, draw: ImageDraw.ImageDraw, item: Item, rng: np.random.Generator):
        self.draw, self.rng = draw, rng
        self.colour = COLOURS[item.colour]
        self.side = item.extent * CANVAS
        self.x0, self.y0 = item.x * CANVAS - self.side / 2, item.y * CANVAS - self.side / 2
        self.flip = bool(rng.random() < 0.5) and item.category != "sign"
        self.width = max(3, round(self.side * 0.025))

    def at(self, *numbers: float) -> list[tuple[float, float]]:
        """Unit-square numbers x, y, x, y, ... as canvas points."""
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        return [(self.x0 + (1 - x if self.flip else x) * self.side, self.y0 + y * self.side) for x, y in pairs]

    def _box(self, *corners: float) -> list[tuple[float, float]]:
        (xa, ya), (xb, yb) = self.at(*corners)
        return [(min(xa, xb), min(ya, yb)), (max(xa, xb), max(ya, yb))]

    def oval(self, *corners: float, fill: RGB, outline: RGB | None = INK) -> None:
        self.draw.ellipse(self._box(*corners), fill=fill, outline=outline, width=self.width)

    def box(self, *corners: float, fill: RGB, outline: RGB | None = INK) -> None:
        self.draw.rectangle(self._box(*corners), fill=fill, outline=outline, width=self.width)

    def shape(self, *corners: float, fill: RGB, outline: RGB | None = INK) -> None:
        points = self.at(*corners)
        self.draw.polygon(points, fill=fill)
        if outline is not None:
            self.draw.line([*points, points[0], points[1]], fill=outline, width=self.width, joint="curve")

    def line(self, *points: float, fill: RGB = INK, thick: float = 0.05) -> None:
        self.draw.line(self.at(*points), fill=fill, width=max(2, round(self.side * thick)), joint="curve")

    def arc(self, *corners: float, start: int, end: int, fill: RGB = INK, thick: float = 0.05) -> None:
        if self.flip:
            start, end = 180 - end, 180 - start
        self.draw.arc(self._box(*corners), start, end, fill=fill, width=max(2, round(self.side * thick)))

    def write(self, text: str, x: float, y: float, height: float, fill: RGB) -> None:
        font = ImageFont.load_default(size=height * self.side)
        self.draw.text(self.at(x, y)[0], text, fill=fill, font=font, anchor="mm", stroke_width=1, stroke_fill=fill)


def _face(p: Pen) -> None:
    skin = SKIN[int(p.rng.integers(len(SKIN)))]
    p.oval(0.08, 0.0, 0.92, 0.84, fill=p.colour)
    p.box(0.08, 0.4, 0.92, 0.72, fill=p.colour, outline=None)
    p.oval(0.17, 0.16, 0.83, 1.0, fill=skin)
    for x in (0.36, 0.64):
        p.oval(x - 0.1, 0.43, x + 0.1, 0.57, fill=(255, 255, 255))
        p.oval(x - 0.045, 0.45, x + 0.045, 0.56, fill=INK)
    p.line(0.5, 0.54, 0.46, 0.68, 0.53, 0.69, fill=shade(skin, 0.6), thick=0.03)
    p.arc(0.33, 0.6, 0.67, 0.86, start=20, end=160, fill=(176, 30, 44), thick=0.06)


def _person(p: Pen) -> None:
    skin = SKIN[int(p.rng.integers(len(SKIN)))]
    for x in (0.4, 0.6):
        p.line(x, 0.6, x + (x - 0.5) * 0.35, 0.98, fill=(58, 58, 92), thick=0.13)
    for side in (-1, 1):
        p.line(0.5 + side * 0.16, 0.32, 0.5 + side * 0.33, 0.56, fill=shade(p.colour, 0.75), thick=0.1)
        p.oval(0.5 + side * 0.34 - 0.06, 0.53, 0.5 + side * 0.34 + 0.06, 0.65, fill=skin, outline=None)
    p.shape(0.3, 0.27, 0.7, 0.27, 0.66, 0.66, 0.34, 0.66, fill=p.colour)
    p.oval(0.37, 0.0, 0.63, 0.27, fill=skin)
    p.arc(0.37, 0.0, 0.63, 0.26, start=180, end=360, fill=(60, 40, 30), thick=0.07)


def _dog(p: Pen) -> None:
    dark = shade(p.colour, 0.7) if max(p.colour) > 60 else (84, 84, 92)
    p.line(0.84, 0.5, 0.96, 0.22, fill=dark, thick=0.08)
    for x in (0.34, 0.47, 0.7, 0.82):
        p.box(x - 0.05, 0.62, x + 0.05, 0.97, fill=p.colour if x in (0.34, 0.82) else dark)
    p.oval(0.24, 0.4, 0.9, 0.76, fill=p.colour)
    p.oval(0.13, 0.12, 0.49, 0.52, fill=p.colour)
    p.oval(0.0, 0.28, 0.28, 0.5, fill=shade(p.colour, 1.3))
    p.oval(0.0, 0.28, 0.09, 0.38, fill=INK)
    p.oval(0.36, 0.12, 0.52, 0.48, fill=dark)
    p.oval(0.2, 0.21, 0.29, 0.31, fill=(255, 255, 255), outline=None)
    p.oval(0.21, 0.23, 0.27, 0.3, fill=INK, outline=None)


def _bird(p: Pen) -> None:
    for x in (0.46, 0.56):
        p.line(x, 0.72, x, 0.96, x + 0.08, 0.97, fill=(214, 120, 20), thick=0.04)
    p.shape(0.26, 0.5, 0.0, 0.34, 0.04, 0.58, 0.28, 0.66, fill=shade(p.colour, 0.7))
    p.oval(0.18, 0.34, 0.78, 0.78, fill=p.colour)
    p.shape(0.86, 0.22, 1.0, 0.3, 0.86, 0.36, fill=(250, 170, 30))
    p.oval(0.57, 0.1, 0.91, 0.46, fill=p.colour)
    p.oval(0.24, 0.42, 0.6, 0.66, fill=shade(p.colour, 0.68) if max(p.colour) > 60 else (92, 92, 104))
    p.oval(0.72, 0.19, 0.82, 0.29, fill=(255, 255, 255), outline=None)
    p.oval(0.75, 0.21, 0.81, 0.28, fill=INK, outline=None)


def _fish(p: Pen) -> None:
    p.shape(0.66, 0.5, 1.0, 0.2, 0.92, 0.5, 1.0, 0.8, fill=shade(p.colour, 0.8))
    p.shape(0.26, 0.3, 0.46, 0.08, 0.62, 0.32, fill=shade(p.colour, 0.8))
    p.shape(0.34, 0.7, 0.46, 0.9, 0.56, 0.7, fill=shade(p.colour, 0.8))
    p.oval(0.0, 0.22, 0.78, 0.78, fill=p.colour)
    for x in (0.3, 0.46):
        p.arc(x - 0.06, 0.3, x + 0.12, 0.7, start=-70, end=70, fill=shade(p.colour, 1.9), thick=0.04)
    p.oval(0.1, 0.34, 0.24, 0.48, fill=(255, 255, 255))
    p.oval(0.13, 0.37, 0.2, 0.45, fill=INK, outline=None)


def _car(p: Pen) -> None:
    p.shape(0.2, 0.5, 0.32, 0.22, 0.7, 0.22, 0.86, 0.5, fill=p.colour)
    p.shape(0.28, 0.48, 0.36, 0.28, 0.49, 0.28, 0.49, 0.48, fill=GLASS)
    p.shape(0.54, 0.48, 0.54, 0.28, 0.67, 0.28, 0.77, 0.48, fill=GLASS)
    p.shape(0.02, 0.56, 0.1, 0.48, 0.92, 0.48, 0.99, 0.58, 0.99, 0.74, 0.02, 0.74, fill=p.colour)
    p.box(0.0, 0.53, 0.07, 0.6, fill=(255, 240, 150))
    for x in (0.24, 0.76):
        p.oval(x - 0.14, 0.6, x + 0.14, 0.88, fill=INK)
        p.oval(x - 0.06, 0.68, x + 0.06, 0.8, fill=(190, 190, 196), outline=None)


def _boat(p: Pen) -> None:
    p.line(0.48, 0.04, 0.48, 0.72, fill=WOOD, thick=0.05)
    p.shape(0.52, 0.06, 0.52, 0.62, 0.94, 0.62, fill=(250, 248, 240))
    p.shape(0.44, 0.16, 0.44, 0.62, 0.12, 0.62, fill=(228, 226, 220))
    p.shape(0.0, 0.68, 1.0, 0.68, 0.82, 0.96, 0.18, 0.96, fill=p.colour)
    p.line(0.06, 0.75, 0.94, 0.75, fill=shade(p.colour, 1.8), thick=0.035)


def _house(p: Pen) -> None:
    p.box(0.68, 0.06, 0.8, 0.36, fill=(130, 74, 60))
    p.box(0.1, 0.42, 0.9, 0.98, fill=p.colour)
    p.shape(0.0, 0.45, 0.5, 0.04, 1.0, 0.45, fill=(92, 58, 58))
    p.box(0.41, 0.64, 0.6, 0.98, fill=WOOD)
    for x in (0.25, 0.75):
        p.box(x - 0.09, 0.54, x + 0.09, 0.74, fill=GLASS)
        p.line(x, 0.54, x, 0.74, thick=0.025)


def _tree(p: Pen) -> None:
    p.shape(0.42, 0.55, 0.58, 0.55, 0.62, 1.0, 0.38, 1.0, fill=WOOD)
    crown = ((0.06, 0.26, 0.54, 0.7), (0.46, 0.26, 0.94, 0.7), (0.2, 0.0, 0.8, 0.52))
    for corners in crown:
        p.oval(*corners, fill=p.colour)
    p.oval(0.24, 0.2, 0.76, 0.62, fill=p.colour, outline=None)
    for x, y in ((0.3, 0.4), (0.5, 0.2), (0.62, 0.46), (0.74, 0.36), (0.42, 0.54)):
        p.oval(x - 0.06, y - 0.05, x + 0.06, y + 0.05, fill=shade(p.colour, 0.75), outline=None)


def _cup(p: Pen) -> None:
    p.arc(0.6, 0.36, 1.0, 0.76, start=-110, end=110, thick=0.15)
    p.arc(0.63, 0.39, 0.97, 0.73, start=-115, end=115, fill=p.colour, thick=0.08)
    p.shape(0.08, 0.24, 0.78, 0.24, 0.7, 0.94, 0.16, 0.94, fill=p.colour)
    p.oval(0.08, 0.13, 0.78, 0.36, fill=shade(p.colour, 1.5))
    p.oval(0.16, 0.18, 0.7, 0.33, fill=(96, 58, 34), outline=None)
    p.line(0.22, 0.42, 0.26, 0.8, fill=shade(p.colour, 1.8), thick=0.05)


def _chair(p: Pen) -> None:
    dark = shade(p.colour, 0.65) if max(p.colour) > 60 else (88, 88, 96)
    for x in (0.3, 0.82):
        p.line(x, 0.56, x, 0.86, fill=dark, thick=0.07)
    p.line(0.2, 0.04, 0.2, 0.98, fill=INK, thick=0.12)
    p.line(0.2, 0.05, 0.2, 0.97, fill=p.colour, thick=0.08)
    p.shape(0.18, 0.04, 0.56, 0.0, 0.56, 0.46, 0.18, 0.5, fill=p.colour)
    for x in (0.3, 0.42):
        p.line(x, 0.08, x, 0.42, fill=dark, thick=0.03)
    p.shape(0.16, 0.56, 0.36, 0.46, 0.92, 0.46, 0.78, 0.6, fill=shade(p.colour, 1.2))
    p.shape(0.16, 0.56, 0.78, 0.6, 0.78, 0.67, 0.16, 0.63, fill=dark)
    p.line(0.73, 0.64, 0.73, 0.98, fill=INK, thick=0.11)
    p.line(0.73, 0.64, 0.73, 0.97, fill=p.colour, thick=0.07)


def _clock(p: Pen) -> None:
    p.oval(0.02, 0.02, 0.98, 0.98, fill=p.colour)
    p.oval(0.16, 0.16, 0.84, 0.84, fill=(252, 250, 240))
    for angle in np.arange(12) * np.pi / 6:
        c, s = float(np.cos(angle)), float(np.sin(angle))
        p.line(0.5 + 0.26 * c, 0.5 + 0.26 * s, 0.5 + 0.31 * c, 0.5 + 0.31 * s, thick=0.04)
    for length, thick in ((0.17, 0.08), (0.26, 0.05)):
        angle = float(p.rng.uniform(0, 2 * np.pi))
        p.line(0.5, 0.5, 0.5 + length * float(np.cos(angle)), 0.5 + length * float(np.sin(angle)), thick=thick)


def _ball(p: Pen) -> None:
    p.oval(0.05, 0.05, 0.95, 0.95, fill=p.colour)
    corners = p._box(0.05, 0.05, 0.95, 0.95)
    for start in (20, 140, 260):
        p.draw.pieslice(corners, start, start + 50, fill=(250, 250, 250), outline=INK, width=p.width)
    p.arc(0.05, 0.05, 0.95, 0.95, start=0, end=360, thick=0.025)
    p.oval(0.41, 0.41, 0.59, 0.59, fill=shade(p.colour, 1.3))


def _sign(p: Pen) -> None:
    p.box(0.45, 0.5, 0.55, 1.0, fill=(150, 150, 156))
    p.box(0.0, 0.08, 1.0, 0.62, fill=p.colour)
    ink = INK if sum(p.colour) > 480 else (255, 255, 255)
    p.box(0.05, 0.13, 0.95, 0.57, fill=p.colour, outline=ink)
    p.write(str(p.rng.choice(["STOP", "EXIT", "OPEN", "TAXI", "SALE"])), 0.5, 0.35, 0.36, fill=ink)


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "face": _face,
    "person": _person,
    "dog": _dog,
    "bird": _bird,
    "fish": _fish,
    "car": _car,
    "boat": _boat,
    "house": _house,
    "tree": _tree,
    "cup": _cup,
    "chair": _chair,
    "clock": _clock,
    "ball": _ball,
    "sign": _sign,
}

# setting -> colours of the sky from top to horizon, and of the ground from horizon to bottom
BACKDROPS: dict[str, tuple[RGB, RGB, RGB, RGB]] = {
    "beach": ((96, 180, 240), (196, 230, 248), (236, 214, 158), (222, 190, 128)),
    "street": ((150, 176, 204), (208, 214, 220), (112, 112, 116), (84, 84, 90)),
    "forest": ((38, 84, 48), (70, 124, 64), (76, 104, 48), (54, 76, 36)),
    "field": ((84, 158, 236), (206, 232, 250), (140, 200, 82), (92, 160, 56)),
    "room": ((228, 206, 176), (216, 190, 160), (172, 120, 76), (140, 92, 56)),
    "snow": ((166, 188, 212), (222, 230, 238), (246, 248, 252), (222, 232, 244)),
    "desert": ((240, 184, 110), (252, 226, 164), (226, 166, 92), (200, 134, 66)),
    "night": ((8, 10, 34), (26, 30, 76), (22, 34, 40), (12, 20, 26)),
}


def _backdrop(setting: str, rng: np.random.Generator) -> Image.Image:
    """Sky, ground and what belongs there, on the large canvas."""
    top, low, near, bottom = (np.array(c, float) for c in BACKDROPS[setting])
    horizon = rng.uniform(0.44, 0.56)
    y = (np.arange(IMAGE_SIZE) + 0.5) / IMAGE_SIZE
    sky = top + (low - top) * np.clip(y / horizon, 0, 1)[:, None]
    ground = near + (bottom - near) * np.clip((y - horizon) / (1 - horizon), 0, 1)[:, None]
    column = np.where((y < horizon)[:, None], sky, ground)
    small = np.repeat(column[:, None], IMAGE_SIZE, axis=1).round().astype(np.uint8)
    canvas = Image.fromarray(small).resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(canvas)
    h, u = horizon * CANVAS, CANVAS / 100  # horizon and one percent, in canvas pixels

    if setting == "beach":
        draw.rectangle((0, h - 12 * u, CANVAS, h), fill=(34, 122, 178))
        for x in rng.uniform(0, CANVAS, 6):
            draw.line((x, h - 6 * u, x + 12 * u, h - 6 * u), fill=(150, 206, 232), width=3)
        draw.line((0, h, CANVAS, h), fill=(250, 250, 250), width=5)
    elif setting == "street":
        edge = 0.0
        while edge < CANVAS:
            wide, tall = rng.uniform(14, 24) * u, rng.uniform(18, 38) * u
            wall = shade((176, 150, 136), float(rng.uniform(0.6, 1.0)))
            draw.rectangle((edge, h - tall, edge + wide, h), fill=wall)
            for wx in np.arange(edge + 3 * u, edge + wide - 4 * u, 7 * u):
                for wy in np.arange(h - tall + 4 * u, h - 5 * u, 8 * u):
                    draw.rectangle((wx, wy, wx + 3 * u, wy + 4 * u), fill=(226, 222, 180))
            edge += wide
        draw.rectangle((0, h, CANVAS, h + 4 * u), fill=(178, 176, 170))
        for x in np.arange(rng.uniform(-20, 0) * u, CANVAS, 22 * u):
            draw.rectangle((x, h + 26 * u, x + 12 * u, h + 28.5 * u), fill=(238, 230, 190))
    elif setting == "forest":
        for x in rng.uniform(0, CANVAS, 11):
            wide = rng.uniform(2, 6) * u
            draw.rectangle((x, 0, x + wide, h + 3 * u), fill=shade((70, 48, 32), float(rng.uniform(0.7, 1.1))))
        for x, z in zip(rng.uniform(0, CANVAS, 14), rng.uniform(0, 16 * u, 14), strict=True):
            draw.ellipse(
                (x - 11 * u, z - 10 * u, x + 11 * u, z + 8 * u), fill=shade((36, 92, 40), rng.uniform(0.7, 1.2))
            )
    elif setting == "field":
        hill = rng.uniform(0.2, 0.8) * CANVAS
        draw.ellipse((hill - 50 * u, h - 10 * u, hill + 50 * u, h + 14 * u), fill=(112, 178, 74))
        for x, z in zip(rng.uniform(0, CANVAS, 16), rng.uniform(h + 6 * u, CANVAS, 16), strict=True):
            draw.ellipse((x, z, x + 2.2 * u, z + 2.2 * u), fill=(250, 240, 250))
        x, z = rng.uniform(5, 75) * u, rng.uniform(4, 14) * u
        draw.ellipse((x, z, x + 20 * u, z + 8 * u), fill=(248, 250, 252))
    elif setting == "room":
        for z in np.linspace(h, CANVAS, 5):
            draw.line((0, z, CANVAS, z), fill=(116, 74, 44), width=4)
        draw.rectangle((0, h - 3 * u, CANVAS, h), fill=(246, 240, 228))
        x, z = rng.uniform(6, 66) * u, 8 * u
        draw.rectangle((x, z, x + 26 * u, z + 26 * u), fill=GLASS, outline=(250, 250, 246), width=8)
        draw.line((x + 13 * u, z, x + 13 * u, z + 26 * u), fill=(250, 250, 246), width=6)
    elif setting == "snow":
        for x in rng.uniform(0, CANVAS, 7):
            tall = rng.uniform(10, 22) * u
            draw.polygon([(x, h - tall), (x - tall / 3, h + u), (x + tall / 3, h + u)], fill=(84, 112, 120))
        for x, z in rng.uniform(0, CANVAS, (40, 2)):
            draw.ellipse((x, z, x + 2 * u, z + 2 * u), fill=(255, 255, 255))
    elif setting == "desert":
        for shift, tint in ((0, (236, 182, 108)), (14, (222, 160, 84))):
            x = np.linspace(0, CANVAS, 24)
            z = h + shift * u + 4 * u * np.sin(x / CANVAS * 2 * np.pi * rng.uniform(0.8, 1.6) + rng.uniform(0, 6))
            draw.polygon([(0, CANVAS), *zip(x, z, strict=True), (CANVAS, CANVAS)], fill=tint)
        x, z = rng.uniform(6, 84) * u, rng.uniform(4, 16) * u
        draw.ellipse((x, z, x + 11 * u, z + 11 * u), fill=(255, 250, 214))
    else:
        for x, z in rng.uniform(0, 1, (26, 2)) * (CANVAS, h):
            draw.ellipse((x, z, x + 1.6 * u, z + 1.6 * u), fill=(240, 240, 210))
        x, z = rng.uniform(6, 80) * u, rng.uniform(4, 14) * u
        draw.ellipse((x, z, x + 13 * u, z + 13 * u), fill=(250, 246, 206))
        draw.ellipse((x + 4 * u, z - 1 * u, x + 15 * u, z + 11 * u), fill=(14, 16, 46))
    return canvas


def render(scene: Scene, rng: np.random.Generator) -> UInt8[np.ndarray, "64 64 3"]:
    """Draw a scene. Details that no caption names (light, texture, backdrop, pose) come from `rng`."""
    canvas = _backdrop(scene.setting, rng)
    draw = ImageDraw.Draw(canvas)
    for item in scene.items:
        DRAWINGS[item.category](Pen(draw, item, rng))
    pixels = np.asarray(canvas.reduce(OVERSAMPLING), np.float32)
    across, down = np.meshgrid(np.linspace(-1, 1, IMAGE_SIZE), np.linspace(-1, 1, IMAGE_SIZE))
    direction = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0.88, 1.06) + 0.09 * (np.cos(direction) * across + np.sin(direction) * down)
    tint = 1 + rng.normal(0, 0.02, 3)
    grain = rng.normal(0, 3.5, (IMAGE_SIZE, IMAGE_SIZE, 1))
    return np.clip(pixels * light[..., None] * tint + grain, 0, 255).round().astype(np.uint8)
