"""Models of one channel or of BGR as models of RGB, exactly: every artifact takes RGB pixels."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from vitedge.data.preprocess import Preprocess
from vitedge.errors import VitedgeError
from vitedge.vit.config import ViTConfig


def in_rgb(
    config: ViTConfig, state: dict[str, Tensor], prep: Preprocess
) -> tuple[ViTConfig, dict[str, Tensor], Preprocess]:
    """The same function of RGB images.

    BGR: the patch embedding's channels, mean and std are reversed. One channel: a third of its weight on each of
    three channels that preprocessing makes equal (Pillow's `convert("L")`). Of other numbers of channels nothing is
    changed: such images are given as ready pixels.

    Raises VitedgeError where nothing says how images become grey, or of mean and std there are others than channels.
    """
    first = config.pixels_weight
    if config.channels == 1 and prep.channels == "grey":
        return replace(config, channels=3), state | {first: state[first].repeat(1, 3, 1, 1) / 3}, prep
    if config.channels == 1:
        raise VitedgeError(
            "The model takes 1 channel; vitedge takes RGB images.",
            "Every artifact takes uint8 pixels of three channels.",
            'Say in a preprocess.json that images are to become grey, as Pillow\'s convert("L") does it: '
            '"channels": "grey", with one mean and one std. That is exact.',
        )
    if config.channels != 3:
        return config, state, prep.with_bands(config.channels)
    if prep.channels == "bgr":
        return config, state | {first: state[first].flip(1)}, prep.as_rgb()
    return config, state, prep
