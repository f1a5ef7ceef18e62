"""Makes one peer's artifact in that peer's own environment, as its documentation says to.

    python convert.py RECIPE PLAIN_ONNX CALIB_NPY OUT      prints one line of JSON

CALIB_NPY holds normalised images, float32 [N, 3, H, W].
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np


class Reader:
    """ONNX Runtime's and its relatives' way to hand over calibration images."""

    def __init__(self, images: np.ndarray, name: str) -> None:
        self.images, self.name = images, name
        self.rewind()

    def rewind(self) -> None:
        self.rest = iter(self.images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.rest, None)
        return None if image is None else {self.name: image[None]}


def input_name(model: Path) -> str:
    import onnx

    return onnx.load(str(model), load_external_data=False).graph.input[0].name


def ort_dynamic(model: Path, images: np.ndarray, out: Path) -> Path:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(model, out / "model.onnx", per_channel=True)
    return out / "model.onnx"


def prepared(model: Path, out: Path) -> Path:
    """ONNX Runtime's pre-processing, which its documentation asks for before static quantisation."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(model), str(out / "prepared.onnx"), skip_symbolic_shape=True)
    return out / "prepared.onnx"


def ort_static(model: Path, images: np.ndarray, out: Path) -> Path:
    from onnxruntime.quantization import quantize_static

    ready = prepared(model, out)
    quantize_static(ready, out / "model.onnx", Reader(images, input_name(model)))
    return out / "model.onnx"


def ort_static_matmul(model: Path, images: np.ndarray, out: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_static

    ready = prepared(model, out)
    quantize_static(
        ready,
        out / "model.onnx",
        Reader(images, input_name(model)),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
    )
    return out / "model.onnx"


def optimum_static(model: Path, images: np.ndarray, out: Path) -> Path:
    from datasets import Dataset
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig

    quantizer = ORTQuantizer(onnx_model_path=model)
    config = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
    data = Dataset.from_dict({input_name(model): [image.tolist() for image in images]})
    calibration = AutoCalibrationConfig.minmax(data)
    ranges = quantizer.fit(data, calibration, operators_to_quantize=config.operators_to_quantize)
    quantizer.quantize(save_dir=out, calibration_tensors_range=ranges, quantization_config=config)
    return next(p for p in out.glob("*.onnx") if "quantized" in p.name)


def inc_static(model: Path, images: np.ndarray, out: Path) -> Path:
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import config, quantize

    class Images(Reader, data_reader.CalibrationDataReader):
        pass

    reader = Images(images, input_name(model))
    quantize(str(model), str(out / "model.onnx"), config.StaticQuantConfig(calibration_data_reader=reader))
    return out / "model.onnx"


def _nncf(model: Path, images: np.ndarray, out: Path, **options: object) -> Path:
    import nncf
    import openvino as ov

    data = nncf.Dataset(list(range(len(images))), lambda i: images[i : i + 1])
    quantized = nncf.quantize(ov.Core().read_model(str(model)), data, subset_size=len(images), **options)
    ov.save_model(quantized, str(out / "model.xml"), compress_to_fp16=False)
    return out / "model.xml"


def nncf_default(model: Path, images: np.ndarray, out: Path) -> Path:
    return _nncf(model, images, out)


def nncf_transformer(model: Path, images: np.ndarray, out: Path) -> Path:
    import nncf

    return _nncf(model, images, out, model_type=nncf.ModelType.TRANSFORMER)


# Shares of the held-out images that NNCF's search may lose the class of.
DROPS = (0.005, 0.02)


def _nncf_search(model: Path, images: np.ndarray, out: Path, drop: float) -> Path:
    """NNCF's own search: INT8, with layers put back to float until at most `drop` of the images lose FP32's class.

    A third of the images is judged on. Agreement stands for accuracy, as nobody gives labels to calibrate with.
    """
    import nncf
    import openvino as ov

    source = ov.Core().read_model(str(model))
    compiled, cut = ov.Core().compile_model(source, "CPU"), 2 * len(images) // 3
    classes = {i: int(compiled([images[i : i + 1]])[0].argmax()) for i in range(cut, len(images))}

    def judge(candidate: ov.CompiledModel, indices: object) -> tuple[float, list[float]]:
        same = [float(candidate([images[i : i + 1]])[0].argmax() == classes[i]) for i in indices]
        return float(np.mean(same)), same

    fitted = nncf.Dataset(list(range(cut)), lambda i: images[i : i + 1])
    held = nncf.Dataset(list(classes), lambda i: i)
    transformer = nncf.ModelType.TRANSFORMER
    quantized = nncf.quantize_with_accuracy_control(
        source, fitted, held, judge, max_drop=drop, subset_size=cut, model_type=transformer
    )
    ov.save_model(quantized, str(out / "model.xml"), compress_to_fp16=False)
    return out / "model.xml"


def nncf_search(model: Path, images: np.ndarray, out: Path) -> Path:
    """One model for each of `DROPS`, in a folder of its name; returns the first one's."""
    found = []
    for drop in DROPS:
        (out / f"{drop:g}").mkdir()
        found.append(_nncf_search(model, images, out / f"{drop:g}", drop))
    return found[0]


def peak_mib() -> float:
    """Most memory this process had. Not getrusage's: that counts what the parent had before exec."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    recipe, model, calibration, out = sys.argv[1], *map(Path, sys.argv[2:5])
    images = np.load(calibration)
    started = time.perf_counter()
    artifact = globals()[recipe](model, images, out)
    print(
        json.dumps(
            {
                "artifact": str(artifact),
                "seconds": time.perf_counter() - started,
                "peak_mib": peak_mib(),
            }
        )
    )


if __name__ == "__main__":
    main()
