"""An `.onnx` in int8 for OpenVINO, by NNCF; runs in `.venv-openvino`, a program of `benchmarks.engines`.

`python -m benchmarks.nncf_int8 PLAIN.onnx QUANTIZED.xml ARRAYS.npz`: post-training quantisation for
transformers with NNCF's own settings, calibrated on `calibrating` of the arrays.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def quantize(plain: str, quantized: str, arrays: str) -> None:
    """Writes `quantized`."""
    import nncf
    import openvino

    model = openvino.Core().read_model(plain)
    calibrating = np.load(arrays)["calibrating"]
    names = [port.any_name for port in model.inputs]

    def given(one: Any) -> dict[str, Any]:
        # A picture's pixels, or a text's tokens, all of which count.
        values = [one[None], np.ones_like(one)[None]]
        return dict(zip(names, values, strict=False))

    dataset = nncf.Dataset(list(calibrating), given)
    made = nncf.quantize(model, dataset, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calibrating))
    target = Path(quantized)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        openvino.save_model(made, Path(folder) / target.name)
        # The description last: with it the model is there.
        for path in (target.with_suffix(".bin"), target):
            (Path(folder) / path.name).replace(path)


if __name__ == "__main__":
    quantize(*sys.argv[1:])
