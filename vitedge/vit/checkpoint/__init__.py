"""Checkpoints in (torchvision, timm, Hugging Face, vitedge) and out."""

from vitedge.vit.checkpoint.load import LoadedModel, load_model
from vitedge.vit.checkpoint.save import read_model, save_model, to_torchvision

__all__ = ["LoadedModel", "load_model", "read_model", "save_model", "to_torchvision"]
