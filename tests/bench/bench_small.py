"""A small real ONNX classifier and a small data set of images for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE, CLASSES = 16, 4


def write_classifier(path: Path, noise: float = 0.0, batch: int | str = 1) -> Path:
    """pixels uint8 [batch, 16, 16, 3] -> logits [batch, 4]: which quarter of the image is the brightest."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    quarters = np.zeros((CLASSES, 2, SIZE // 2, 2, SIZE // 2, 3), np.float32)
    for k in range(CLASSES):
        quarters[k, k // 2, :, k % 2] = 0.002
    weights = quarters.reshape(CLASSES, -1).T + np.random.default_rng(5).normal(0, noise, (768, CLASSES))
    nodes = [
        helper.make_node("Cast", ["pixels"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["real", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([-1, 768]), "shape"),
        numpy_helper.from_array(weights.astype(np.float32), "weights"),
    ]
    pixels = helper.make_tensor_value_info("pixels", TensorProto.UINT8, [batch, SIZE, SIZE, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])
    graph = helper.make_graph(nodes, "small", [pixels], [logits], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def write_images(folder: Path, count: int = 40) -> Path:
    """PNG images, one quarter of each brighter, with a labels.csv that is wrong for every tenth."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = ["file,label"]
    for number in range(count):
        label = int(rng.integers(CLASSES))
        pixels = rng.integers(0, 120, (SIZE, SIZE, 3), np.uint8)
        top, left = label // 2 * 8, label % 2 * 8
        pixels[top : top + 8, left : left + 8] += np.uint8(60)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
        lines.append(f"{number:03}.png,{(label + 1) % CLASSES if number % 10 == 9 else label}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder
