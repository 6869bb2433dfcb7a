"""Draws one speaker: a cartoon face and upper body that show the four visual cues.

The encoder sees only the first and the last frame of a window, so every cue is a pose that holds for the whole clip;
what moves (a talking mouth, a slight sway) carries no cue. Everything that matters lies inside the central square, so that
the centre crop of any aspect ratio shows it. Left and right mean nothing: which way a gaze or a hand goes is drawn by lot.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]
Colour = tuple[int, int, int]
PHASES = 4  # distinct frames of the idle motion
SUPERSAMPLE = 2
SKINS: tuple[Colour, ...] = ((255, 219, 172), (241, 194, 125), (224, 172, 105), (198, 134, 66), (141, 85, 36), (255, 205, 185))
HAIRS: tuple[Colour, ...] = ((35, 28, 25), (90, 56, 37), (140, 85, 45), (205, 160, 85), (150, 150, 155), (120, 35, 25))
SHIRTS: tuple[Colour, ...] = (
    *((52, 90, 160), (170, 50, 60), (60, 130, 80), (120, 80, 150), (230, 170, 60), (70, 75, 85)),
    *((235, 235, 230), (45, 140, 150)),
)
WALLS: tuple[Colour, ...] = (
    (214, 226, 232),
    (238, 226, 205),
    (204, 220, 200),
    (226, 208, 220),
    (180, 190, 205),
    (150, 165, 160),
)
INK, WHITE, LIP, MOUTH = (40, 32, 34), (252, 252, 250), (190, 80, 80), (110, 35, 40)


@dataclass(frozen=True)
class Look:
    """What differs between speakers and says nothing about the intent. Lengths in units of the picture's short side."""

    skin: Colour
    hair: Colour
    shirt: Colour
    wall: Colour
    hair_style: int
    glasses: bool
    stripes: bool
    room: tuple[tuple[float, float, float, float, int], ...]  # rectangles on the wall: x0 y0 x1 y1, shade
    sides: tuple[int, int, int]  # -1 or 1 for gaze, tilt, gesture
    shift: Point
    scale: float
    light: float
    rhythm: float  # seconds of one cycle of the idle motion


def draw_look(rng: np.random.Generator) -> Look:
    """Draw a speaker and a room."""

    def pick(colours: Sequence[Colour]) -> Colour:
        base = np.array(colours[int(rng.integers(len(colours)))]) + rng.integers(-14, 15) + rng.integers(-6, 7, 3)
        red, green, blue = np.clip(base, 0, 255).tolist()
        return red, green, blue

    boxes = []
    for _ in range(rng.integers(1, 5)):
        x, y, w, h = rng.uniform(-1, 0.8), rng.uniform(-0.5, 0.3), rng.uniform(0.1, 0.5), rng.uniform(0.1, 0.6)
        boxes.append((float(x), float(y), float(x + w), float(y + h), int(rng.integers(-45, 30))))
    gaze, tilt, gesture = (rng.integers(0, 2, 3) * 2 - 1).tolist()
    return Look(
        skin=pick(SKINS),
        hair=pick(HAIRS),
        shirt=pick(SHIRTS),
        wall=pick(WALLS),
        hair_style=int(rng.integers(4)),
        glasses=bool(rng.random() < 0.25),
        stripes=bool(rng.random() < 0.3),
        room=tuple(boxes),
        sides=(gaze, tilt, gesture),
        shift=(float(rng.uniform(-0.03, 0.03)), float(rng.uniform(-0.02, 0.02))),
        scale=float(rng.uniform(0.94, 1.06)),
        light=float(rng.uniform(0.85, 1.1)),
        rhythm=float(rng.uniform(0.3, 0.5)),
    )


class Pen:
    """Draws in its own units: the point `pivot` lies at the pixel `anchor`, y down, everything turned by `angle` about it."""

    def __init__(self, draw: ImageDraw.ImageDraw, anchor: Point, unit: float, angle: float = 0.0, pivot: Point = (0, 0)):
        self.draw, self.anchor, self.unit, self.pivot = draw, anchor, unit, pivot
        self.cos, self.sin = math.cos(angle), math.sin(angle)

    def turned(self, angle: float, pivot: Point, larger: float) -> "Pen":
        """The pen of an upright one's part that is turned and enlarged about `pivot`."""
        return Pen(self.draw, self.at(*pivot), self.unit * larger, angle, pivot)

    def at(self, x: float, y: float) -> Point:
        dx, dy = (x - self.pivot[0]) * self.unit, (y - self.pivot[1]) * self.unit
        return self.anchor[0] + self.cos * dx - self.sin * dy, self.anchor[1] + self.sin * dx + self.cos * dy

    def shape(self, points: Sequence[Point], fill: Colour, edge: bool = True) -> None:
        corners = [self.at(x, y) for x, y in points]
        self.draw.polygon(corners, fill=fill)
        if edge:
            self.draw.line([*corners, corners[0]], fill=INK, width=max(1, round(0.008 * self.unit)), joint="curve")

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour, edge: bool = True) -> None:
        self.shape(arc(x, y, rx, ry, 0, 360), fill, edge)

    def stroke(self, points: Sequence[Point], width: float, fill: Colour = INK) -> None:
        """A thick line with round ends."""
        corners = [self.at(x, y) for x, y in points]
        self.draw.line(corners, fill=fill, width=max(1, round(width * self.unit)), joint="curve")
        radius = width * self.unit / 2
        for x, y in (corners[0], corners[-1]):
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)

    def limb(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A thick line with a dark edge."""
        self.stroke(points, width + 0.016, INK)
        self.stroke(points, width, fill)


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> list[Point]:
    """Points of an elliptic arc; degrees clockwise from the right, y down."""
    angles = np.radians(np.linspace(start, end, 25))
    return list(zip((x + rx * np.cos(angles)).tolist(), (y + ry * np.sin(angles)).tolist(), strict=True))


def frame(cues: dict[str, str], look: Look, size: tuple[int, int], phase: int) -> Image.Image:
    """One RGB picture of `size` (width, height); `phase` (0..PHASES-1) is the step of the idle motion."""
    width, height = size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE
    image = Image.new("RGB", (width, height), _lit(look.wall, look))
    unit = min(width, height) * look.scale
    swing = math.sin(2 * math.pi * phase / PHASES)
    centre = (width / 2 + look.shift[0] * unit, height / 2 + (look.shift[1] + 0.006 * swing) * unit)
    draw = ImageDraw.Draw(image)
    _room(Pen(draw, (width / 2, height / 2), unit), look)
    pen = Pen(draw, centre, unit)
    _body(pen, look)
    _head(pen, cues, look, swing)
    _gesture(pen, cues["gesture"], look, swing)
    return image.reduce(SUPERSAMPLE)


def _lit(colour: Colour, look: Look, add: int = 0) -> Colour:
    red, green, blue = (max(0, min(255, round((part + add) * look.light))) for part in colour)
    return red, green, blue


def _room(pen: Pen, look: Look) -> None:
    for x0, y0, x1, y1, shade in look.room:
        pen.shape([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], _lit(look.wall, look, shade), edge=False)
    pen.shape([(-3, 0.36), (3, 0.36), (3, 2), (-3, 2)], _lit(look.wall, look, -60), edge=False)


def _body(pen: Pen, look: Look) -> None:
    """Neck and torso."""
    pen.shape([(-0.07, 0.0), (0.07, 0.0), (0.08, 0.2), (-0.08, 0.2)], _lit(look.skin, look, -15))
    sides = [(-0.12, 0.17), (0.12, 0.17), (0.26, 0.22), (0.31, 0.32), (0.33, 2), (-0.33, 2), (-0.31, 0.32), (-0.26, 0.22)]
    pen.shape(sides, _lit(look.shirt, look))
    if look.stripes:
        for y in (0.3, 0.38, 0.46):
            pen.stroke([(-0.29, y), (0.29, y)], 0.018, _lit(look.shirt, look, -40))


def _head(pen: Pen, cues: dict[str, str], look: Look, swing: float) -> None:
    """The head in its pose, with the face's features where the pose puts them."""
    pose = cues["head"]
    angle = math.radians(24) * look.sides[1] if pose == "tilted" else 0.0
    rise = {"raised": -0.04, "lowered": 0.05}.get(pose, 0.0)  # of the whole head
    turn = {"raised": -0.075, "lowered": 0.07}.get(pose, 0.0)  # of the features upon it
    pen = pen.turned(angle, (0, 0.1), larger=1.12)
    x, y = 0.0, -0.15 + rise
    skin, hair = _lit(look.skin, look), _lit(look.hair, look)
    if look.hair_style == 1:  # long
        pen.oval(x, y, 0.23, 0.245, hair)
        for side in (-1, 1):
            pen.limb([(x + side * 0.195, y), (x + side * 0.2, y + 0.24)], 0.06, hair)
    pen.oval(x - 0.19, y + turn * 0.6, 0.035, 0.05, skin)
    pen.oval(x + 0.19, y + turn * 0.6, 0.035, 0.05, skin)
    pen.oval(x, y, 0.19, 0.225, skin)
    if pose == "raised":  # the underside of the chin
        pen.shape([*arc(x, y, 0.15, 0.222, 140, 40), *arc(x, y + 0.12, 0.12, 0.05, 10, 170)], _lit(look.skin, look, -40))
    line = y - 0.1 + turn * 1.2  # where the hair ends
    crown = [*arc(x, y - 0.01, 0.2, 0.235, 200, 340), (x + 0.13, line - 0.01), (x, line - 0.03), (x - 0.13, line - 0.01)]
    if look.hair_style != 3:  # 3: bald
        pen.shape(crown, hair)
    if look.hair_style == 2 and pose != "raised":  # a bun
        pen.oval(x, y - 0.24, 0.06, 0.05, hair)
    _eyes(pen, cues, look, x, y - 0.01 + turn)
    pen.stroke(
        [(x, y + 0.03 + turn), (x + 0.02, y + 0.065 + turn), (x - 0.005, y + 0.07 + turn)], 0.011, _lit(look.skin, look, -70)
    )
    _mouth(pen, cues["expression"], look, x, y + 0.125 + turn * 0.85, swing)


def _eyes(pen: Pen, cues: dict[str, str], look: Look, x: float, y: float) -> None:
    """Eyes with the gaze, brows with the expression."""
    expression, gaze = cues["expression"], cues["gaze"]
    opening = 0.068 if expression == "surprised" else 0.054
    dx = {"aside": 0.04 * look.sides[0]}.get(gaze, 0.0)
    dy = {"down": 0.03}.get(gaze, 0.0)
    for side in (-1, 1):
        eye = x + side * 0.09
        pen.oval(eye, y, 0.068, opening, WHITE)
        pen.oval(eye + dx, y + dy, 0.028, 0.03, (35, 45, 70), edge=False)
        if gaze == "down":  # the upper lid comes down too
            lid = [*arc(eye, y, 0.07, opening + 0.004, 180, 360), (eye, y + 0.008)]
            pen.shape(lid, _lit(look.skin, look, -25))
        if look.glasses:
            pen.stroke(arc(eye, y, 0.082, 0.076, 0, 360), 0.008, (60, 60, 75))
        _brow(pen, expression, eye, y, side)


def _brow(pen: Pen, expression: str, eye: float, y: float, side: int) -> None:
    """One brow: where it sits above the eye's middle, and how its inner end differs from the outer."""
    height, slope = {
        "neutral": (0.08, 0.0),
        "smile": (0.09, 0.0),
        "frown": (0.056, -0.038),
        "sad": (0.084, 0.036),
        "surprised": (0.125, 0.0),
    }[expression]
    inner, outer = (eye - side * 0.05, y - height - slope), (eye + side * 0.055, y - height + slope)
    bend = 0.022 if expression in ("smile", "surprised") else 0.0
    middle = ((inner[0] + outer[0]) / 2, (inner[1] + outer[1]) / 2 - bend)
    pen.stroke([inner, middle, outer], 0.03 if expression == "frown" else 0.018)


def _mouth(pen: Pen, expression: str, look: Look, x: float, y: float, swing: float) -> None:
    """The mouth; `swing` moves it a little, as if talking."""
    talk = 0.006 * (1 + swing)
    if expression == "smile":
        pen.shape([*arc(x, y - 0.025, 0.105, 0.075 + talk, 0, 180)], MOUTH)
        pen.shape([(x - 0.095, y - 0.024), (x + 0.095, y - 0.024), (x + 0.08, y), (x - 0.08, y)], WHITE, edge=False)
        for side in (-1, 1):
            pen.oval(x + side * 0.14, y - 0.045, 0.032, 0.022, _lit((240, 130, 120), look), edge=False)
    elif expression == "surprised":
        pen.oval(x, y + 0.012, 0.042, 0.056 + talk, MOUTH)
    elif expression == "sad":
        pen.stroke(arc(x, y + 0.05, 0.08, 0.06 + talk, 200, 340), 0.022, MOUTH)
        pen.oval(x + 0.115, y - 0.045, 0.018, 0.034, (120, 180, 235))
    elif expression == "frown":
        lower = y + 0.034 + talk
        pen.shape([(x - 0.085, y - 0.016), (x + 0.085, y - 0.016), (x + 0.095, lower), (x - 0.095, lower)], WHITE)
        for tooth in (-0.04, 0.0, 0.04):
            pen.stroke([(x + tooth, y - 0.01), (x + tooth, y + 0.032 + talk)], 0.008)
    else:
        pen.stroke([(x - 0.05, y), (x + 0.05, y)], 0.014 + talk, LIP)


def _hand(pen: Pen, x: float, y: float, look: Look, fingers: Sequence[float], reach: float, palm: float = 0.05) -> None:
    """A palm with fingers at the given angles (degrees from straight up, clockwise), `reach` beyond the palm's middle."""
    skin = _lit(look.skin, look)
    for angle in fingers:
        dx, dy = math.sin(math.radians(angle)), -math.cos(math.radians(angle))
        pen.limb([(x + dx * 0.03, y + dy * 0.03), (x + dx * reach, y + dy * reach)], palm * 0.5, skin)
    pen.oval(x, y, palm, palm, skin)


def _gesture(pen: Pen, gesture: str, look: Look, swing: float) -> None:
    """Arms and hands, in front of the body."""
    sleeve, side, sway = _lit(look.shirt, look, -22), look.sides[2], 0.006 * swing
    resting = [(0.28, 0.27), (0.33, 0.55)]

    def arm(points: Sequence[Point], mirror: int) -> None:
        pen.limb([(mirror * x, y) for x, y in points], 0.09, sleeve)

    if gesture in ("at rest", "pointing finger", "raised palm", "hand on heart"):
        for mirror in (-1, 1) if gesture == "at rest" else (-side,):
            arm(resting, mirror)
    if gesture == "open palms":
        for mirror in (-1, 1):
            arm([(0.27, 0.28), (0.33, 0.42), (0.38, 0.27)], mirror)
            _hand(pen, mirror * 0.385, 0.22 + sway, look, [mirror * a for a in (-40, 5, 35, 62, 90)], 0.105)
    elif gesture == "pointing finger":
        arm([(0.27, 0.28), (0.3, 0.48), (0.2, 0.43)], side)
        _hand(pen, side * 0.16, 0.4 + sway, look, [-side * 60], 0.27, 0.068)
    elif gesture == "raised palm":
        arm([(0.27, 0.28), (0.38, 0.3), (0.365, 0.06)], side)
        _hand(pen, side * 0.37, -0.03 + sway, look, [side * a for a in (-55, -22, -7, 8, 24)], 0.14, 0.06)
    elif gesture == "hand on heart":
        arm([(0.27, 0.28), (0.31, 0.45), (0.14, 0.38)], side)
        _hand(pen, side * 0.08, 0.34 + sway, look, [-side * a for a in (48, 70, 90, 112)], 0.13, 0.066)
    elif gesture == "crossed arms":
        for mirror in (side, -side):
            arm([(0.29, 0.27), (0.3, 0.43), (-0.17, 0.35)], mirror)
            pen.oval(-mirror * 0.2, 0.335 + sway, 0.045, 0.04, _lit(look.skin, look))
