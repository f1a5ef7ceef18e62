"""A small ViT trained from nothing on small pictures: the model of `vitedge demo`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitedge.data.dataset import Dataset
from vitedge.data.folder import open_dataset
from vitedge.data.preprocess import Preprocess
from vitedge.train.augment import AugmentOptions, make_augment
from vitedge.train.classify import Classification, Holdout
from vitedge.train.feed import Samples
from vitedge.train.loop import Row, fit, make_accelerator
from vitedge.train.options import LoopOptions
from vitedge.train.output import save_folder
from vitedge.train.pictures import Pictures
from vitedge.train.schedule import parameter_groups
from vitedge.train.split import split
from vitedge.vit.config import uniform
from vitedge.vit.model import VisionTransformer, init_weights
