"""The encoders alone, in our engine and in others, in turns: where servers differ only by what multiplies.

Each engine is a process of its own that is stopped while it is not its turn, since idle threads of one double
the times of another. In one thread what counts is CPU time, on which other programs weigh on all alike; on
all cores it is the clock. Beside each speed stands how near its vectors are to the original's, and how far a
batch moves them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
import torch

from benchmarks.child import OFFLINE, Child, Job, PeerError, say
from benchmarks.engine_kinds import BATCH
from benchmarks.ratios import AS_IF_AVX2, ONNX_RUNTIME, OPENVINO, OURS, PRODUCTS, ST_OPENVINO
from benchmarks.usage import Machine, Quiet
from benchmarks.workloads import SMALLEST, WORKLOADS, labels, sentences
from clipserve.encoder_spec import TOKENIZER_FILE, FloatArray, Modality, Precision
from clipserve.errors import ClipServeError
from clipserve.hardware import cpu_has_native_bf16
from clipserve.images import ImageLimits, decode_image, preprocess
from clipserve.store import EncoderFile, Store
from clipserve.tokens import Tokenizer
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.publish import export_encoder

ROOT = Path(__file__).parents[1]
OPENVINO_ENVIRONMENT = ROOT / ".venv-openvino"

TOKENS = 24  # of a text that is timed
PICTURES_JUDGED = 16  # the others calibrate
TEXTS_CALIBRATING = 64
SLICE_SECONDS = 0.3

MODALITIES: tuple[Modality, ...] = get_args(Modality)

# What PyTorch's own kernels, oneDNN and MKL obey; FBGEMM is told by the child.
AVX2_ALONE = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}

Figures = dict[str, Any]


@dataclass(frozen=True)
class Engine:
    """One row.

    Attributes:
        kind: of `benchmarks.engine_kinds.KINDS`.
        path: of what it loads.
        options: of its first job.
        environment: of its process.
        python: that runs it, where not this one.
        once: measured in the first round only, in one thread: no other program, but a ceiling or another CPU.
        judged: whether vectors come out.
        any_length: whether it takes texts of any length without being compiled for each.
    """

    kind: str
    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    python: Path | None = None
    once: bool = False
    judged: bool = True
    any_length: bool = False


class Engines:
    """All that can be measured of a store's encoders.

    Args:
        pair: the checkpoints.
        store: with our encoder files of them.
        checkpoints: folder of each modality's checkpoint, for sentence-transformers.
        pictures: JPEG files by size.
        tokens: of one picture.
        references: the original's normalised vectors of `judged_pictures` and of `sentences`, `[N, D]`.
        work: folder for what the peers run; what quantising has made is kept there.
        seconds: of a slice.
    """

    def __init__(
        self,
        pair: CheckpointPair,
        store: Path,
        checkpoints: Mapping[Modality, Path],
        pictures: Mapping[str, Sequence[Path]],
        tokens: int,
        references: Mapping[Modality, FloatArray],
        work: Path,
        seconds: float,
    ):
        self._seconds = seconds
        self._work = work
        self._store = Store.read(store).where(
            lambda spec: spec.device == "cpu" and spec.space_id == pair.space_id
        )
        self._checkpoints = checkpoints
        # Why an engine does not run here, by modality and name.
        self._notes: dict[Modality, dict[str, str]] = {modality: {} for modality in MODALITIES}
        work.mkdir(parents=True, exist_ok=True)
        self._write_image_inputs(pair, pictures[SMALLEST], tokens, references["image"])
        self._write_text_inputs(references["text"])
        self._tables = {modality: self._table(pair, modality) for modality in MODALITIES}

    def turn(self, number: int, quiet: Quiet) -> Figures:
        """One round of all engines: modality -> engine -> what was timed, or `note`: why it was not.

        Args:
            number: of the round, from 1; the order is another one in each.

        Raises:
            PeerError: ours does not run.
        """
        found: Figures = {}
        for modality, table in self._tables.items():
            engines = {
                name: engine
                for name, engine in table.items()
                if name not in self._notes[modality] and (number == 1 or not engine.once)
            }
            found[modality] = self._turn(modality, engines, number, quiet)
            found[modality] |= {name: {"note": note} for name, note in self._notes[modality].items()}
        return found

    def _turn(self, modality: Modality, engines: Mapping[str, Engine], number: int, quiet: Quiet) -> Figures:
        cores = psutil.cpu_count() or 1
        found: Figures = {name: {} for name in engines}
        with contextlib.ExitStack() as stack:
            running: dict[str, Child] = {}
            for name, engine in engines.items():
                python = None if engine.python is None else str(engine.python)
                running[name] = stack.enter_context(
                    Child("benchmarks.engine", cores, engine.environment, python)
                )
            for threads, label in ((1, "one"), (cores, "all")):
                here = {n: e for n, e in engines.items() if n in running and (threads == 1 or not e.once)}
                for name, engine in here.items():
                    job = self._job(engine, modality, threads)
                    loaded = self._or_note(modality, name, running, job)
                    found[name] |= {} if loaded is None else {f"{label}_settings": loaded["settings"]}
                order = sorted((n for n in here if n in running), reverse=number % 2 == 0)
                for what in (1, BATCH, *(("sentences",) if label == "all" and modality == "text" else ())):
                    for name in order:
                        if name in running and (what != "sentences" or here[name].any_length):
                            timed = self._slice(modality, name, running, what, quiet)
                            found[name] |= {} if timed is None else {f"{label}_{_key(what)}": timed}
                if threads == 1 and number == 1:
                    for name in order:
                        if here[name].judged and name in running:
                            judged = self._or_note(modality, name, running, {"judge": True})
                            found[name] |= {} if judged is None else {"fidelity": judged}
        return found

    def _slice(
        self, modality: Modality, name: str, running: dict[str, Child], what: int | str, quiet: Quiet
    ) -> Figures | None:
        """A timed slice; None, and a note, where the engine has ended."""
        job = {"time": what, "seconds": self._seconds}

        def measure() -> Figures:
            machine = Machine()
            figures = self._or_note(modality, name, running, job) if name in running else None
            if figures is None:
                return {"other_cores": 0.0}
            return {**figures, "other_cores": machine.other_cores(figures.pop("cpu_s"))}

        found = quiet.measure(f"{name}, {modality}: {_key(what)}", measure)
        return found if "ms" in found else None

    def _or_note(self, modality: Modality, name: str, running: dict[str, Child], job: Job) -> Figures | None:
        child = running[name]
        child.resume()
        try:
            return child.ask(job)
        except PeerError as error:
            if self._tables[modality][name].kind == OURS:
                raise
            say(f"  {name}, {modality}: not measured: {error}")
            self._notes[modality][name] = str(error)
            del running[name]
            return None
        finally:
            child.suspend()

    def _job(self, engine: Engine, modality: Modality, threads: int) -> Job:
        return {
            "load": engine.kind,
            "path": str(engine.path),
            "modality": modality,
            "threads": threads,
            "inputs": str(self._work / modality),
            **engine.options,
        }

    def _table(self, pair: CheckpointPair, modality: Modality) -> dict[str, Engine]:
        files = {
            file.spec.precision: file
            for file in self._store.encoders
            if file.spec.modality == modality and file.spec.format == "torchscript" and file.runs_here()
        }
        table = dict(_ours(files))
        try:
            base, plain, runtime, openvino = self._peer_files(pair, modality)
        except (ClipServeError, ImportError) as error:
            self._notes[modality] |= dict.fromkeys((ONNX_RUNTIME, OPENVINO), str(error))
            return table
        for precision, path in (("fp32", plain), ("int8", runtime)):
            table[f"{ONNX_RUNTIME} {precision}"] = Engine("onnxruntime", path, any_length=True)
        hints = {"fp32": "f32", **({"bf16": "bf16"} if cpu_has_native_bf16() else {})}
        for precision, hint in hints.items():
            table[f"{OPENVINO} {precision}"] = Engine("openvino", plain, {"hint": hint})
        if openvino is not None:
            table[f"{OPENVINO} int8"] = Engine("openvino", openvino)
        python = OPENVINO_ENVIRONMENT / "bin" / "python"
        if python.is_file():
            keep = {"keep": f"{base}-sentence-transformers"}
            table[ST_OPENVINO] = Engine(
                "sentence-transformers", self._checkpoints[modality], keep, python=python
            )
        else:
            self._notes[modality][ST_OPENVINO] = f"not installed: {python.relative_to(ROOT)} is missing"
        return table

    def _peer_files(self, pair: CheckpointPair, modality: Modality) -> tuple[Path, Path, Path, Path | None]:
        """How others' files of this encoder begin; our `.onnx`, what ONNX Runtime and NNCF make of it."""
        spec = export_encoder(pair, modality, "cpu", "fp32", self._work, file_format="onnx")
        plain = self._work / spec.file_name
        # Quantising takes a minute; the same file gives the same again.
        base = self._work / f"{modality}-{spec.artifact_sha256[:12]}"
        runtime, openvino = Path(f"{base}-onnxruntime.onnx"), Path(f"{base}-nncf.xml")
        if not runtime.is_file():
            # All that was made of an earlier encoder.
            for path in self._work.glob(f"{modality}-*-*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            quantize_for_onnx_runtime(plain, runtime)
        if not openvino.is_file():
            try:
                quantize_for_openvino(plain, openvino, self._work / modality)
            except PeerError as error:
                self._notes[modality][f"{OPENVINO} int8"] = str(error)
                return base, plain, runtime, None
        return base, plain, runtime, openvino

    def _write_image_inputs(
        self, pair: CheckpointPair, paths: Sequence[Path], tokens: int, reference: FloatArray
    ) -> None:
        limits, wanted = ImageLimits(), pair.image.preprocessing
        pixels = np.stack([preprocess(decode_image(p.read_bytes(), limits), wanted, limits) for p in paths])
        judged = pixels[: len(reference)]
        raw = [str(path.resolve()) for path in paths[: len(reference)]]
        _write_inputs(
            self._work / "image",
            {
                "timed": judged[:BATCH],
                "judged": judged,
                "reference": reference,
                "calibrating": pixels[len(reference) :],
                "tokens": np.array(tokens),
            },
            {"timed": raw[:BATCH], "judged": raw},
        )

    def _write_text_inputs(self, reference: FloatArray) -> None:
        file = self._store.best("text", "cpu")
        assert file.spec.text is not None
        tokenizer = Tokenizer(file.extra_file(TOKENIZER_FILE).decode("utf-8"), file.spec.text)
        everything = sentences()
        ids = [tokenizer.tokenize(text).ids for text in everything]
        fitting = [number for number, of in enumerate(ids) if len(of) <= TOKENS]
        if len(fitting) < BATCH:
            fitting = sorted(range(len(ids)), key=lambda number: len(ids[number]))[:BATCH]
        length = max(TOKENS, *(len(ids[number]) for number in fitting))
        long = [" ".join(everything[n] for n in range(first, first + 6)) for first in range(BATCH)]
        timed = np.array([tokenizer.tokenize(text).ids[:length] for text in long], np.int64)
        # With one that is as long as all are to be.
        padded, mask = (of[:-1] for of in tokenizer.pad([*(ids[n] for n in fitting), timed[0].tolist()]))
        of_http, of_http_mask = tokenizer.pad(ids)
        known = labels(WORKLOADS["similarity_1000_known"])
        words = [" ".join(known[first :: len(known) // length]) for first in range(TEXTS_CALIBRATING)]
        _write_inputs(
            self._work / "text",
            {
                "timed": timed,
                "timed_mask": np.ones_like(timed),
                "judged": padded,
                "judged_mask": mask,
                "reference": reference[fitting],
                "sentences": of_http,
                "lengths": of_http_mask.sum(1),
                "calibrating": np.array([tokenizer.tokenize(text).ids[:length] for text in words], np.int64),
            },
            {"timed": long, "judged": [everything[number] for number in fitting]},
        )


def _key(what: int | str) -> str:
    return f"b{what}" if isinstance(what, int) else what


def _ours(files: Mapping[Precision, EncoderFile]) -> Iterator[tuple[str, Engine]]:
    for precision, file in files.items():
        yield f"{OURS} {precision}", Engine(OURS, file.path, any_length=True)
    if torch.cpu.get_capabilities().get("avx512_f"):
        emulated: tuple[Precision, ...] = ("fp32", "fp16", "int8")
        for precision in emulated:
            if precision in files:
                name = f"{OURS} {precision}{AS_IF_AVX2}"
                yield name, Engine(OURS, files[precision].path, {"avx2": True}, AVX2_ALONE, once=True)
    if {"fp32", "int8"} <= set(files):
        for name, file, bare in (
            ("fp32", files["fp32"], False),
            ("int8", files["int8"], True),
            ("passes", files["int8"], False),
        ):
            options = {"quantized": str(files["int8"].path), "bare": bare}
            yield PRODUCTS[name], Engine("products", file.path, options, once=True, judged=False)


def judged_pictures(pictures: Mapping[str, Sequence[Path]]) -> Sequence[Path]:
    """Those whose vectors are compared with the original's."""
    return pictures[SMALLEST][:PICTURES_JUDGED]


def quantize_for_onnx_runtime(plain: Path, quantized: Path) -> None:
    """ONNX Runtime's own dynamic quantisation, weights by channel: what its documentation gives transformers.

    Raises:
        ImportError: it is not installed.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    half = quantized.with_suffix(".part")
    # It warns of what it leaves as it is, by the root logger.
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(plain, half, per_channel=True, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)
    half.replace(quantized)


def quantize_for_openvino(plain: Path, quantized: Path, inputs: Path) -> None:
    """NNCF's post-training quantisation, which OpenVINO's documentation gives transformers.

    Args:
        inputs: see `benchmarks.engine.Inputs`; `calibrating` judges nothing.

    Raises:
        PeerError: it is not installed, or does not take this encoder.
    """
    python = OPENVINO_ENVIRONMENT / "bin" / "python"
    if not python.is_file():
        raise PeerError(f"NNCF is not installed: {python.relative_to(ROOT)} is missing")
    command = [
        str(python),
        "-m",
        "benchmarks.nncf_int8",
        *map(str, (plain, quantized, inputs / "arrays.npz")),
    ]
    environment = {**os.environ, **OFFLINE}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise PeerError(f"NNCF: {said[-1]}")


def _write_inputs(folder: Path, arrays: Mapping[str, Any], raw: Mapping[str, Sequence[str]]) -> None:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "arrays.npz", **arrays)
    (folder / "raw.json").write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
