"""What runs an encoder: our worker's code, its bare products, ONNX Runtime, OpenVINO, sentence-transformers.

Whatever one needs is imported where it is used: what else is loaded would count as its memory, and
sentence-transformers' OpenVINO back end has an environment of its own.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.child import Job

BATCH = 8  # inputs of a pass, where it is not one alone

# Of FBGEMM, `fbgemmForceIsa(inst_set_t::avx2)`: it multiplies as where there is AVX2 alone.
FORCE_ISA, AVX2 = "_ZN6fbgemm14fbgemmForceIsaENS_10inst_set_tE", 1
COARSE_LEVELS = 63  # what a worker takes there by itself, see `clipserve.hardware.int8_levels`

# Of one batch: `pixels`, or `ids` and `mask`, and what else an engine takes of it.
Arrays = dict[str, Any]


class Engine(Protocol):
    """An encoder as one engine runs it."""

    def embed(self, inputs: Arrays) -> Any:
        """Vectors `[N, D]` of pictures or texts."""

    def settings(self) -> str:
        """How it runs, where that is not seen from its name."""


class Ours:
    """Our encoder files, as a worker loads them."""

    def __init__(self, job: Job):
        import torch

        from clipserve import prepack
        from clipserve.encoder import ENCODERS
        from clipserve.memory import bound_free_memory

        bound_free_memory()
        self.use_threads(job["threads"])
        if job.get("avx2"):
            library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
            ctypes.CDLL(str(library))[FORCE_ISA](AVX2)
            vars(prepack)["int8_levels"] = lambda: COARSE_LEVELS
        self._encoder: Any = ENCODERS[job["modality"]](Path(job["path"]), torch.device("cpu"))

    def use_threads(self, threads: int) -> None:
        """Has as many for each operation; no other engine changes them without loading anew."""
        import torch

        torch.set_num_threads(threads)

    def embed(self, inputs: Arrays) -> Any:
        """See `Engine`."""
        if "pixels" in inputs:
            return self._encoder.embed(list(inputs["pixels"]))
        return self._encoder.embed(inputs["ids"], inputs["mask"])

    def settings(self) -> str:
        """See `Engine`."""
        return ""


class Products:
    """The matrix products of an encoder and nothing else; `bare`: of int8 not even what prepares their input.

    Rows are those of the encoder: of a layer that is pooled, all tokens meet keys and values only.
    """

    def __init__(self, job: Job):
        import torch

        from clipserve.loading import load_for_inference

        torch.set_num_threads(job["threads"])
        self._torch = torch
        path, quantized = Path(job["path"]), Path(job["quantized"])
        module: Any = load_for_inference(path, torch.device("cpu"))
        named = dict(load_for_inference(quantized, torch.device("cpu")).named_modules())
        names = [name for name, layer in named.items() if layer.original_name == "QuantizedLinear"]
        pooled = {name for name, layer in named.items() if layer.original_name == "PooledLayer"}
        here = dict(module.named_modules())
        self._layers: list[tuple[Callable[[Any], Any], int, bool]] = []
        for name in names:
            _, width = _int8_product(named[name])
            few = any(name.startswith(f"{of}.") for of in pooled) and not name.endswith("key_value")
            layer = here[name]
            if job["bare"] and layer.original_name == "QuantizedLinear":
                layer, _ = _int8_product(layer)
            self._layers.append((layer, width, few))
        self._in_bytes = bool(job["bare"]) and any(map(_is_in_tiles, here.values()))

    def embed(self, inputs: Arrays) -> Any:
        """See `Engine`; what comes out is no embedding."""
        torch = self._torch
        batch, tokens = inputs["shape"]
        found = None
        with torch.inference_mode():
            given: dict[tuple[int, int], Any] = {}
            for layer, width, few in self._layers:
                # One row has another product: those that are pooled go in twos.
                rows = batch * (2 if few else tokens)
                if (rows, width) not in given:
                    x = torch.linspace(-1, 1, rows * width).view(rows, width)
                    given[rows, width] = (127 * x).round().to(torch.int8) if self._in_bytes else x
                found = layer(given[rows, width])
        return found

    def settings(self) -> str:
        """See `Engine`."""
        return f"{len(self._layers)} layers"


def _is_in_tiles(layer: Any) -> bool:
    """Whether a worker has packed an int8 layer for oneDNN, as it does with AMX, and not for FBGEMM."""
    from clipserve.prepack import ZERO_POINTS

    return hasattr(layer, ZERO_POINTS)


def _int8_product(layer: Any) -> tuple[Callable[[Any], Any], int]:
    """The product of a packed int8 layer alone, and how wide its input is; oneDNN's takes bytes."""
    import torch

    from clipserve.prepack import PACKED_INT8, ZERO_POINTS

    if _is_in_tiles(layer):
        weight, scale, zeros = layer.weight, layer.scale, getattr(layer, ZERO_POINTS)
        in_tiles = torch.ops.onednn.qlinear_pointwise
        return (
            lambda x: in_tiles(x, 1.0, 0, weight, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""),
            weight.shape[0],
        )
    packed = getattr(layer, PACKED_INT8)
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return lambda x: product(x, 1 / 127, 128, packed), torch.ops.quantized.linear_unpack(packed)[0].shape[1]


class OnnxRuntime:
    """An `.onnx` in ONNX Runtime."""

    def __init__(self, job: Job):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = job["threads"], 1
        self._session = onnxruntime.InferenceSession(job["path"], options, providers=["CPUExecutionProvider"])

    def embed(self, inputs: Arrays) -> Any:
        """See `Engine`."""
        return self._session.run(None, _named(inputs))[0]

    def settings(self) -> str:
        """See `Engine`."""
        return ""


class OpenVino:
    """An `.onnx`, or what NNCF made of it, in OpenVINO: compiled for each shape, which is its fastest form.

    On all cores, eight inputs are one batch, or eight lone ones in throughput mode, whichever is faster.
    """

    def __init__(self, job: Job):
        import openvino

        self._openvino = openvino
        self._core = openvino.Core()
        self._path, self._threads = job["path"], job["threads"]
        self._hint = {"INFERENCE_PRECISION_HINT": job["hint"]} if job.get("hint") else {}
        self._requests: dict[tuple[int, ...], Any] = {}
        self._queues: dict[tuple[int, ...], Any] = {}
        self._in_flight: dict[tuple[int, ...], bool] = {}
        self._precision = ""

    def embed(self, inputs: Arrays) -> Any:
        """See `Engine`."""
        named = _named(inputs)
        shape = next(iter(named.values())).shape
        if shape not in self._requests:
            self._requests[shape] = self._compile(shape, "LATENCY").create_infer_request()
            if self._threads > 1 and shape[0] > 1:
                queue = self._openvino.AsyncInferQueue(self._compile((1, *shape[1:]), "THROUGHPUT"))
                self._queues[shape] = queue
                self._in_flight[shape] = _seconds(self._flight, named) < _seconds(self._batch, named)
        return (self._flight if self._in_flight.get(shape) else self._batch)(named)

    def _compile(self, shape: Sequence[int], mode: str) -> Any:
        model = self._core.read_model(self._path)
        # All inputs of an encoder have one shape.
        model.reshape({port.any_name: list(shape) for port in model.inputs})
        settings = {"PERFORMANCE_HINT": mode, "INFERENCE_NUM_THREADS": self._threads, **self._hint}
        compiled = self._core.compile_model(model, "CPU", settings)
        self._precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return compiled

    def _batch(self, named: Arrays) -> Any:
        shape = next(iter(named.values())).shape
        # Quantised by NNCF, an encoder gives `[1, N, D]`.
        return np.array(next(iter(self._requests[shape].infer(named).values()))).reshape(shape[0], -1)

    def _flight(self, named: Arrays) -> Any:
        shape = next(iter(named.values())).shape
        found: list[Any] = [None] * shape[0]

        def keep(request: Any, number: int) -> None:
            found[number] = np.array(request.get_output_tensor(0).data).reshape(-1)

        queue = self._queues[shape]
        queue.set_callback(keep)
        for number in range(shape[0]):
            queue.start_async({name: values[number : number + 1] for name, values in named.items()}, number)
        queue.wait_all()
        return np.stack(found)

    def settings(self) -> str:
        """See `Engine`."""
        flight = ", eight in flight" if any(self._in_flight.values()) else ""
        return f"computes in {self._precision}{flight}"


class SentenceTransformers:
    """The original in sentence-transformers with its OpenVINO back end: from pictures and texts on."""

    def __init__(self, job: Job):
        import logging

        from sentence_transformers import SentenceTransformer

        # Both warn of files that are as they should be.
        for name in ("sentence_transformers", "optimum"):
            logging.getLogger(name).setLevel(logging.ERROR)
        settings = {"ov_config": {"INFERENCE_NUM_THREADS": job["threads"], "PERFORMANCE_HINT": "LATENCY"}}
        kept = Path(job["keep"])
        self._model = SentenceTransformer(
            str(kept) if kept.is_dir() else job["path"],
            device="cpu",
            backend="openvino",
            local_files_only=True,
            model_kwargs=settings,
        )
        if not kept.is_dir():
            # Converted once for all rounds.
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                self._model.save_pretrained(str(Path(folder) / kept.name))
                (Path(folder) / kept.name).rename(kept)

    def embed(self, inputs: Arrays) -> Any:
        """See `Engine`."""
        if "tokens" in inputs:
            self._model.max_seq_length = inputs["tokens"]
        return self._model.encode(
            inputs["raw"], batch_size=BATCH, show_progress_bar=False, normalize_embeddings=True
        )

    def settings(self) -> str:
        """See `Engine`."""
        return "with preprocessing"


KINDS: dict[str, Callable[[Job], Engine]] = {
    "clipserve": Ours,
    "products": Products,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "sentence-transformers": SentenceTransformers,
}


def _named(inputs: Arrays) -> Arrays:
    if "pixels" in inputs:
        return {"pixel_values": inputs["pixels"]}
    return {"input_ids": inputs["ids"], "attention_mask": inputs["mask"]}


def _seconds(run: Callable[[Arrays], object], named: Arrays) -> float:
    """The shortest of three runs; none of the first."""
    run(named)
    spent = []
    for _ in range(3):
        start = time.perf_counter()
        run(named)
        spent.append(time.perf_counter() - start)
    return min(spent)
