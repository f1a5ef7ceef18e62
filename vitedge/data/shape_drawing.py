"""Images of the `shapes` set, by signed distance: numpy alone, so the same pixels with every Pillow.

A figure is a function of coordinates [H, W] in units of its radius, and gives the signed distance to its
edge, negative inside. After Inigo Quilez, "2D distance functions", https://iquilezles.org/articles/distfunctions2d/.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Field = np.ndarray  # float64 [H, W]


def disc(x: Field, y: Field) -> Field:
    return np.hypot(x, y) - 0.9


def ring(x: Field, y: Field) -> Field:
    return np.abs(np.hypot(x, y) - 0.75) - 0.2


def square(x: Field, y: Field) -> Field:
    return np.maximum(np.abs(x), np.abs(y)) - 0.78


def triangle(x: Field, y: Field) -> Field:
    return np.maximum(np.maximum(0.866 * x + 0.5 * y, -0.866 * x + 0.5 * y), -y) - 0.55


def star(x: Field, y: Field) -> Field:
    # One of ten like halves of a point: the side of the line from the tip to the corner between two tips.
    angle = np.abs((np.arctan2(y, x) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    along, across = np.hypot(x, y) * np.cos(angle), np.hypot(x, y) * np.sin(angle)
    tip, corner = 1.1, 0.45 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    normal = np.array([corner[1], tip - corner[0]]) / np.hypot(corner[1], tip - corner[0])
    return (along - tip) * normal[0] + across * normal[1]


def cross(x: Field, y: Field) -> Field:
    x, y = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(x - 0.95, y - 0.28)


def crescent(x: Field, y: Field) -> Field:
    return np.maximum(np.hypot(x, y) - 0.95, 0.75 - np.hypot(x - 0.45, y))


# Textures: positive and negative where their two colours are, in periods of length 1.


def stripes(x: Field, y: Field) -> Field:
    return np.abs(x % 1 - 0.5) - 0.25


def checkers(x: Field, y: Field) -> Field:
    across, along = np.abs(x % 1 - 0.5) - 0.25, np.abs(y % 1 - 0.5) - 0.25
    return np.where(np.sign(across) == np.sign(along), 1, -1) * np.minimum(np.abs(across), np.abs(along))


def dots(x: Field, y: Field) -> Field:
    return np.hypot(x % 1 - 0.5, y % 1 - 0.5) - 0.3


FIGURES: tuple[Callable[[Field, Field], Field], ...] = (disc, ring, square, triangle, star, cross, crescent)
TEXTURES: tuple[Callable[[Field, Field], Field], ...] = (stripes, checkers, dots)


def draw(label: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """One image of class `label` (an index into FIGURES, then TEXTURES), uint8 [size, size, 3].

    Place, size, angle and colours vary; thin lines and specks lie around and over the figure; light falls off
    across the image, and noise lies over all. A texture fills a disc or a square, so that an outline alone
    does not tell the class.
    """
    y, x = np.mgrid[:size, :size] + 0.5
    ground, colour, second = _colours(rng)
    canvas = np.broadcast_to(ground, (size, size, 3)).copy()
    for _ in range(rng.integers(2, 6)):
        _clutter(canvas, x, y, rng)
    textured = label >= len(FIGURES)
    radius = size * rng.uniform(*((0.34, 0.46) if textured else (0.3, 0.44)))
    middle = size * rng.uniform(0.36, 0.64, 2)
    angle = rng.uniform(-0.35, 0.35)
    u = (np.cos(angle) * (x - middle[0]) + np.sin(angle) * (y - middle[1])) / radius
    v = (np.cos(angle) * (y - middle[1]) - np.sin(angle) * (x - middle[0])) / radius
    if textured:
        period = rng.uniform(0.5, 0.75)
        inside = TEXTURES[label - len(FIGURES)](u / period + rng.random(), v / period + rng.random())
        fill = _mix(np.broadcast_to(second, canvas.shape), colour, inside * period * radius)
        outline = (disc if rng.random() < 0.5 else square)(u, v)
    else:
        fill, outline = np.broadcast_to(colour, canvas.shape), FIGURES[label](u, v)
    canvas = _mix(canvas, fill, outline * radius)
    for _ in range(rng.integers(0, 3)):
        _clutter(canvas, x, y, rng)
    slope = rng.normal(0, 0.25, 2)
    light = 1 + (slope[0] * (x / size - 0.5) + slope[1] * (y / size - 0.5))[..., None]
    noisy = canvas * light + rng.normal(0, rng.uniform(2, 10), canvas.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _mix(under: np.ndarray, over: np.ndarray, distance: Field) -> np.ndarray:
    """`over` where `distance` (pixels) is negative, `under` elsewhere, with one pixel of antialiasing."""
    share = np.clip(0.5 - distance, 0, 1)[..., None]
    return under * (1 - share) + over * share


def _clutter(canvas: np.ndarray, x: Field, y: Field, rng: np.random.Generator) -> None:
    """Draws a thin line or a speck onto `canvas`."""
    size = len(canvas)
    colour = rng.uniform(0, 255, 3)
    start = rng.uniform(0, size, 2)
    angle, length = rng.uniform(0, 2 * np.pi), size * (rng.uniform(0.2, 0.7) if rng.random() < 0.5 else 0)
    along = (x - start[0]) * np.cos(angle) + (y - start[1]) * np.sin(angle)
    along = np.clip(along, 0, length)
    distance = np.hypot(x - start[0] - along * np.cos(angle), y - start[1] - along * np.sin(angle))
    thickness = size * (rng.uniform(0.008, 0.018) if length else rng.uniform(0.015, 0.05))
    canvas[:] = _mix(canvas, np.broadcast_to(colour, canvas.shape), distance - thickness)


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ground, figure and second texture colour (RGB, 0 to 255), of any hue: the figure is the lightest.

    Without that order a small ViT has to learn every edge in both signs and all pairs of colours, for which
    two minutes on two cores are too short.
    """
    while True:
        ground, figure, second = colours = rng.uniform(0, 255, (3, 3))
        light = colours @ (0.299, 0.587, 0.114)
        if light[1] > max(light[0], light[2]) + 70 and np.linalg.norm(ground - second) > 60:
            return ground, figure, second
