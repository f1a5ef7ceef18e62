"""Drawn images with the statistics of photographs: what models are calibrated on where no images are given.

Dead leaves: opaque shapes that hide each other, their radii with a density of r^-3, which gives the edges, the scale
invariance and the 1/f spectrum of natural images (Lee, Mumford and Huang, IJCV 2001). Among drawn images, they teach
vision models most (Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021, arXiv 2106.05963). Here each
leaf has a texture with a spectrum of 1/f^a, mostly dull colours, and in most images an object of a few leaves lies
before the rest.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from vitedge.data.dataset import Dataset

NAME = "drawn:textures"
_POOL = 40  # textures that the leaves are cut from
_SIDE = 256  # of a texture, in pixels


def draw_textures(count: int, seed: int = 0, side: int = 256) -> Dataset:
    """`count` drawn images of `side` pixels, without labels. Image i is the same for every `count`."""
    names = tuple(f"{index:05}" for index in range(count))
    origin = f"{NAME}:{count}:{seed}:{side}"
    return Dataset(Path(NAME), names, contents=Textures(seed, side), rows=np.arange(count), origin=origin)


def open_textures(origin: str) -> Dataset | None:
    """The drawn images that `origin` of such a set names; None where it names none."""
    found = re.fullmatch(NAME + r":([1-9][0-9]{0,5}):([0-9]{1,10}):([1-9][0-9]{1,3})", origin)
    return draw_textures(*map(int, found.groups())) if found else None


class Textures:
    """Draws image number `row` when it is asked for: uint8 [side, side, 3]."""

    def __init__(self, seed: int, side: int) -> None:
        self.seed, self.side = seed, side
        self.key = f"{NAME}:{seed}:{side}"

    def __getitem__(self, row: int) -> np.ndarray:
        return _draw(self.side, np.random.default_rng([self.seed, row]), self._pool)

    @cached_property
    def _pool(self) -> list[Image.Image]:
        return [_texture(np.random.default_rng([self.seed, 2**31, number])) for number in range(_POOL)]


def _texture(rng: np.random.Generator) -> Image.Image:
    """A grey texture: noise with a spectrum of 1/f^a, some of it stretched, some in bands or spots."""
    frequency = np.fft.fftfreq(_SIDE)
    angle, stretch = rng.uniform(0, np.pi), rng.choice([0.0, 0.0, rng.uniform(1, 8)])
    across = (frequency * np.cos(angle) + frequency[:, None] * np.sin(angle)) * (1 + stretch)
    radius = np.hypot(across, frequency[:, None] * np.cos(angle) - frequency * np.sin(angle))
    radius[0, 0] = np.inf
    phases = np.exp(2j * np.pi * rng.random((_SIDE, _SIDE)))
    noise = np.fft.ifft2(radius ** -rng.uniform(0.6, 2.0) * phases).real
    noise /= noise.std()
    kind = rng.integers(4)
    if kind == 1:
        noise = np.sign(noise) * np.abs(noise) ** 0.5
    elif kind == 2:
        noise = np.sin(noise * rng.uniform(2, 8)) * 1.3
    elif kind == 3:
        noise = np.tanh(noise * 3)
    return Image.fromarray(np.clip(128 + 50 * noise, 0, 255).astype(np.uint8))


def _colour(rng: np.random.Generator) -> np.ndarray:
    """RGB in [0, 1]: any lightness, mostly little saturation, along blue-yellow and green-magenta."""
    yellow, magenta = rng.laplace(0, 0.09, 2)
    hue = yellow * np.array([1.0, 0.3, -1.1]) + magenta * np.array([0.4, -0.8, 0.4])
    return np.clip(rng.beta(1.3, 1.6) + hue, 0, 1)


def _fill(size: tuple[int, int], colour: np.ndarray, rng: np.random.Generator, pool: list[Image.Image]) -> Image.Image:
    """A rectangle of that colour with a texture, its light and dark parts of slightly other hues."""
    contrast, hue = 2.5 * rng.gamma(1.5, 0.06), rng.normal(0, 0.05, 3)
    low, high = (tuple(np.clip(255 * (colour + sign * contrast + sign * hue), 0, 255).astype(int)) for sign in (-1, 1))
    texture = pool[rng.integers(len(pool))]
    left, top = rng.integers(0, _SIDE, 2)
    if max(size) > _SIDE or rng.random() < 0.3:  # at another scale
        scale = max(*size, 1) / _SIDE * rng.uniform(1, 2)
        part = max(8, int(max(size) / scale))
        texture = texture.crop((0, 0, part, part)).resize((max(size),) * 2, Image.Resampling.BILINEAR)
        left = top = 0
    tile = texture.crop((left, top, min(left + size[0], texture.width), min(top + size[1], texture.height)))
    tile = tile if tile.size == size else texture.crop((0, 0, *size))
    return ImageOps.colorize(tile, low, high)


def _outline(radius: float, rng: np.random.Generator) -> np.ndarray:
    """A leaf's corners around its centre [n, 2]: an ellipse, a bar, a polygon or a blob, turned at random."""
    kind = rng.integers(5)
    count = (24, 4, rng.integers(3, 8), 32, 32)[kind]
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False) + (np.pi / 4 if kind == 1 else 0)
    length = np.full(count, radius)
    if kind == 2:
        angles, length = np.sort(rng.uniform(0, 2 * np.pi, count)), radius * rng.uniform(0.6, 1.3, count)
    elif kind > 2:
        waves = [rng.normal(0, 0.35 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k in range(1, 6)]
        length = radius * np.clip(1 + np.sum(waves, 0), 0.2, 1.9)
    flat = rng.uniform(0.1, 1) if kind < 2 else 1.0
    x, y = length * np.cos(angles), length * np.sin(angles) * flat
    turn = rng.uniform(0, 2 * np.pi)
    return np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], 1)


def _leaf(
    canvas: Image.Image,
    centre: np.ndarray,
    radius: float,
    colour: np.ndarray,
    rng: np.random.Generator,
    pool: list[Image.Image],
) -> None:
    corners = _outline(radius, rng) + centre
    low = np.maximum(np.floor(corners.min(0)), 0).astype(int)
    high = np.minimum(np.ceil(corners.max(0)), canvas.width).astype(int)
    if (high <= low).any():
        return
    size = (int(high[0] - low[0]), int(high[1] - low[1]))
    mask = Image.new("L", (2 * size[0], 2 * size[1]))  # twice as large: antialiased when it is made smaller
    ImageDraw.Draw(mask).polygon([tuple(point) for point in (corners - low) * 2], fill=255)
    canvas.paste(_fill(size, colour, rng, pool), tuple(low), mask.resize(size, Image.Resampling.BOX))


def _draw(side: int, rng: np.random.Generator, pool: list[Image.Image]) -> np.ndarray:
    canvas = _fill((side, side), _colour(rng), rng, pool)
    count = int(rng.choice([15, 40, 120, 300]))
    least, most = side * rng.uniform(0.01, 0.03), side * rng.uniform(0.2, 0.5)
    radii = (least**-2 + (most**-2 - least**-2) * rng.random(count)) ** -0.5
    palette = [_colour(rng) for _ in range(rng.integers(3, 12))]
    for radius in radii:
        colour = np.clip(palette[rng.integers(len(palette))] + rng.normal(0, 0.03, 3), 0, 1)
        _leaf(canvas, rng.uniform(0, side, 2), radius, colour, rng, pool)
    if rng.random() < 0.7:  # an object before the scene
        centre, extent = rng.normal(side / 2, side * 0.1, 2), side * rng.uniform(0.15, 0.4)
        palette = [_colour(rng) for _ in range(3)]
        for _ in range(rng.integers(1, 14)):
            place = centre + rng.normal(0, extent / 2, 2)
            _leaf(canvas, place, extent * rng.uniform(0.15, 0.9), palette[rng.integers(3)], rng, pool)
    if rng.random() < 0.5:
        canvas = canvas.filter(ImageFilter.GaussianBlur(side / 256 * rng.uniform(0.3, 1.2)))
    slope = rng.normal(0, 0.15, 2)  # light that falls off across the image
    across, along = np.ogrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    lit = np.asarray(canvas, np.float32) * (1 + slope[0] * across + slope[1] * along)[..., None].astype(np.float32)
    return np.clip(lit, 0, 255).astype(np.uint8)
