"""Makes encoder files, has each compared with its original, and publishes them; only if every step holds."""

from __future__ import annotations

import io
import math
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import cast

import torch
from torch import nn

from clipserve.encoder_spec import (
    SCHEMA_VERSION,
    SPEC_FILE,
    SUFFIXES,
    Device,
    EncoderSpec,
    Format,
    Modality,
    Precision,
    description_path,
    encoder_stem,
    has_half_weights,
    parity_bound,
)
from clipserve.errors import ExportError, ParityError
from clipserve.hardware import int8_levels, native_precisions
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.encoders.int8 import quantize
from export_scripts.formats import FORMATS
from export_scripts.formats.base import EncoderFormat, Inputs
from export_scripts.packages.folders import publish_files
from export_scripts.parity.proof import certify, runner, runners
from export_scripts.parity.subjects import SUBJECTS, Run, Subject
from export_scripts.quantization import find_quantization, peaks

# A lone input, for which somebody waits, and what comes together under load: neither tells of the other.
TIMED_BATCHES = (1, 8)
TIMED_RUNS = 7
WARM_UP_RUNS = 2  # the profiling executor's

# By how much times of equal work differ where other programs run. A larger file must be faster by more.
WORTH = 0.05

RECORDED_LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers", "pillow", "numpy")


@dataclass(frozen=True)
class Made:
    """An encoder that has kept its bound, not published yet.

    Attributes:
        path: of the file, where it was made.
        spec: that the file carries.
        seconds: of each of `TIMED_BATCHES`, by precision; empty where one was asked for.
    """

    path: Path
    spec: EncoderSpec
    seconds: dict[Precision, tuple[float, ...]] = field(default_factory=dict)


def export_encoder(
    pair: CheckpointPair,
    modality: Modality,
    device: Device,
    precision: Precision | None,
    folder: Path,
    *,
    file_format: Format = "torchscript",
    normalized: bool = True,
) -> EncoderSpec:
    """Exports one encoder of a pair; see `export_encoders`."""
    (spec,) = export_encoders(
        pair, [modality], device, precision, folder, file_format=file_format, normalized=normalized
    )
    return spec


def export_encoders(
    pair: CheckpointPair,
    modalities: Sequence[Modality],
    device: Device,
    precision: Precision | None,
    folder: Path,
    *,
    file_format: Format = "torchscript",
    normalized: bool = True,
    packed: bool = True,
    allow_int8: bool = False,
    tell: Callable[[Modality, Made | None], None] = lambda modality, made: None,
) -> list[EncoderSpec]:
    """Exports encoders of a pair and publishes their files and descriptions in `folder`: all or none.

    Args:
        precision: None times every candidate of this format and device that the hardware multiplies, and
            takes the fastest that keeps its parity bound.
        packed: whether what will run the files packs weights after loading, as workers do. Where not, None
            passes over half weights, which are cast at every call.
        allow_int8: whether None may take int8 too, which loses more than the others.
        tell: is told of each encoder before it is made (None) and after.

    Returns:
        The published specs, in the order of `modalities`.

    Raises:
        ExportError: format, device or precision are not to be had here, or a trace is bound to its device.
        ParityError: beyond the bound; nothing is published.
    """
    check_device(device, precision, file_format)
    form = FORMATS[file_format]
    subjects = [SUBJECTS[modality](pair) for modality in modalities]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as work:
        export = Export(pair, file_format, device, normalized, Path(work))
        all_made = []
        for subject in subjects:
            tell(subject.modality, None)
            made = (
                export.fastest(subject, form, packed=packed, allow_int8=allow_int8)
                if precision is None
                else export.make(subject, form, precision)
            )
            description_path(made.path).write_text(made.spec.to_json(), encoding="utf-8")
            tell(subject.modality, made)
            all_made.append(made)
        files = [made.path for made in all_made]
        # Descriptions first among those that go: never a spec beside a file it is not of.
        publish_files([*map(description_path, files), *files], folder)
    return [made.spec for made in all_made]


def check_device(device: Device, precision: Precision | None, file_format: Format = "torchscript") -> None:
    """Checks that this machine can export for `device` in `precision`, in this format.

    Raises:
        ExportError: it cannot.
    """
    check_precision(device, precision, file_format, FORMATS[file_format].precisions[device])
    FORMATS[file_format].check()


def check_precision(
    device: Device, precision: Precision | None, file_format: str, allowed: Sequence[Precision]
) -> None:
    """Checks that this machine can export for `device` in `precision`.

    Args:
        allowed: what the format takes on that device.

    Raises:
        ExportError: it cannot.
    """
    if not allowed:
        raise ExportError(
            f"FORMAT={file_format}: DEVICE={device} is not supported, DEVICE=cpu is; or run 'make export "
            f"DEVICE={device}' for TorchScript"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ExportError(
            "DEVICE=cuda: this PyTorch sees no CUDA device; run 'make export DEVICE=cpu', or run it on "
            "a machine with a GPU and a CUDA build of PyTorch"
        )
    if precision is not None and precision not in allowed:
        with_format = "" if file_format == "torchscript" else f" with FORMAT={file_format}"
        raise ExportError(
            f"PRECISION={precision}: DEVICE={device}{with_format} takes auto, {', '.join(allowed)}"
        )


@dataclass(frozen=True)
class Export:
    """What encoders that are exported together have in common.

    Attributes:
        file_format: see `EncoderSpec.format`.
        work: where they are made.
    """

    pair: CheckpointPair
    file_format: str
    device: Device
    normalized: bool
    work: Path

    def fastest(self, subject: Subject, form: EncoderFormat, *, packed: bool, allow_int8: bool) -> Made:
        """The fastest of what this hardware multiplies and what keeps its bound; the smallest of equals.

        Args:
            packed, allow_int8: see `export_encoders`.
        """
        native = native_precisions(self.device)
        if allow_int8 and packed and int8_levels() is not None:
            native = "int8", *native
        made: list[Made] = []
        for precision in form.candidates[self.device]:
            unpacked = not packed and has_half_weights(self.file_format, self.device, precision)
            if precision not in native or unpacked:
                continue
            try:
                made.append(self.make(subject, form, precision))
            except ParityError:
                # A half precision that costs this checkpoint too much is no candidate; float32 must hold.
                if precision == "fp32":
                    raise
                continue
        times = self._times(made, subject, form)
        seconds = {one.spec.precision: spent for one, spent in zip(made, times, strict=True)}
        # As many of each batch come: what is the least in the product of their times is in their mean ratio.
        products = [math.prod(spent) ** (1 / len(spent)) for spent in times]
        enough = (1 + WORTH) * min(products)
        alike = [one for one, product in zip(made, products, strict=True) if product <= enough]
        return replace(min(alike, key=lambda one: one.path.stat().st_size), seconds=seconds)

    def make(self, subject: Subject, form: EncoderFormat, precision: Precision) -> Made:
        """Makes the file, loads it again, compares, and puts the spec inside.

        Raises:
            ParityError: beyond the bound.
        """
        stem = encoder_stem(self.pair.model_id, subject.modality, self.device, precision)
        # What is wrapped for another program is TorchScript.
        suffix = SUFFIXES.get(cast("Format", self.file_format), SUFFIXES["torchscript"])
        path = self.work / f"{stem}{suffix}"
        inputs = Inputs(
            subject.checkpoint.preprocessing.inputs, tuple(i.to(self.device) for i in subject.example)
        )
        quantization = None
        with torch.inference_mode(False), torch.no_grad():
            # state_dict tensors may be shared with the original, which must stay as it is.
            encoder = _copy(subject.checkpoint.build(self.normalized)).to(self.device).eval()
            try:
                if precision == "int8":
                    quantization, layers = find_quantization(encoder, subject.calibration())
                    quantize(encoder, quantization, peaks(layers))
                form.make(encoder, precision, inputs, path)
            except ParityError as error:
                raise ParityError(f"{subject.modality} encoder: {error}") from error
            except ExportError as error:
                raise ExportError(f"{subject.modality} encoder: {error}") from error
        bound = parity_bound(self.file_format, self.device, precision)
        runs = runners(form, path, self.device, precision)
        certificate = certify(subject, runs, bound, self.normalized)
        if not certificate.holds:
            worst = min(certificate.cases, key=lambda case: (case.min_cosine, -case.max_abs_diff))
            raise ParityError(
                f"{subject.modality} encoder in {precision} on {self.device}: {certificate} "
                f"(worst: {worst.name}), the bound is {certificate.bound}; nothing was published"
            )
        spec = EncoderSpec(
            schema_version=SCHEMA_VERSION,
            format=self.file_format,
            cpu_capability=form.cpu_capability(),
            model_id=self.pair.model_id,
            checkpoint=subject.checkpoint.name,
            license=subject.checkpoint.license,
            modality=subject.modality,
            embedding_dim=subject.checkpoint.embedding_dim,
            normalized=self.normalized,
            device=self.device,
            precision=precision,
            image=subject.image,
            text=subject.text,
            score=self.pair.image.score,
            checkpoint_sha256=subject.checkpoint.checkpoint_sha256,
            artifact_sha256=form.sha256(path),
            space_id=self.pair.space_id,
            versions={name: metadata.version(name) for name in (*RECORDED_LIBRARIES, *form.libraries)}
            | {"python": platform.python_version()},
            certificate=certificate,
            quantization=quantization,
        )
        form.add_extra_files(path, {SPEC_FILE: spec.to_json(), **subject.extra_files})
        return Made(path, spec)

    def _times(
        self, all_made: Sequence[Made], subject: Subject, form: EncoderFormat
    ) -> list[tuple[float, ...]]:
        """Least seconds of each of `TIMED_BATCHES` for each file: whatever else runs here only adds to them.

        In turns, so that what lasts longer than a turn weighs on all alike.
        """
        runs = [self._load(made.path, form) for made in all_made]
        least: list[list[float]] = [[] for _ in runs]
        for batch in TIMED_BATCHES:
            inputs = [i[:1].expand(batch, *i.shape[1:]).contiguous() for i in subject.example]
            times: list[list[float]] = [[] for _ in runs]
            for _ in range(WARM_UP_RUNS + TIMED_RUNS):
                for run, spent in zip(runs, times, strict=True):
                    start = time.perf_counter()
                    run(*inputs)
                    spent.append(time.perf_counter() - start)
            for of_file, spent in zip(least, times, strict=True):
                of_file.append(min(spent[WARM_UP_RUNS:]))
        return [tuple(of_file) for of_file in least]

    def _load(self, path: Path, form: EncoderFormat) -> Run:
        return runner(form.load(path, torch.device(self.device)), self.device)


def _copy(encoder: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(encoder, buffer)
    buffer.seek(0)
    # Our own module, written a line above: nothing foreign is unpickled.
    copy: nn.Module = torch.load(buffer, weights_only=False)
    return copy
