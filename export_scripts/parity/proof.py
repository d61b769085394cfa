"""Measures how far an exported encoder is from its original, and holds it to its bound."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipserve.certificate import Golden, ParityBound, ParityCase, ParityCertificate
from clipserve.encoder_spec import (
    Device,
    EncoderSpec,
    FloatArray,
    Precision,
    encode_vector,
    parity_bound,
)
from clipserve.errors import ExportError, ParityError
from clipserve.hardware import int8_levels
from clipserve.loading import Module, load_for_inference, load_torchscript
from clipserve.similarity import unit_vectors
from export_scripts.encoders.int8 import COARSE_LEVELS, WEIGHT_LEVELS
from export_scripts.formats.base import EncoderFormat
from export_scripts.parity.subjects import Comparison, Run, Subject


def certify(
    subject: Subject, runs: Mapping[str, Run], bound: ParityBound, normalized: bool
) -> ParityCertificate:
    """Compares an exported encoder with its original, case by case; whether the bound holds is not asked.

    Args:
        runs: every way to run it, see `runners`.
        bound: that the certificate names.
        normalized: whether the exported encoder normalises.
    """
    golden = _as(normalized, subject.golden_reference())
    comparisons: list[Comparison] = [
        *subject.comparisons,
        ("golden input", lambda run: run(*subject.golden_tensors), lambda: golden),
    ]
    cases, cosines = [], []
    for name, exported, original in comparisons:
        expected = _as(normalized, original())
        for how, run in runs.items():
            case, of_rows = _compare(name + how, exported(run), expected)
            cases.append(case)
            cosines.append(of_rows)
    return ParityCertificate(
        bound=bound,
        max_abs_diff=max(case.max_abs_diff for case in cases),
        min_cosine=min(case.min_cosine for case in cases),
        mean_cosine=float(np.concatenate(cosines).mean()),
        cases=tuple(cases),
        golden=Golden(subject.golden_input, encode_vector(golden[0])),
    )


def recheck(subject: Subject, form: EncoderFormat, path: Path, spec: EncoderSpec) -> ParityCertificate:
    """Recomputes the certificate of a published encoder against its checkpoint.

    Args:
        form: of the file.

    Raises:
        ExportError: the encoder was made from another checkpoint than the subject's.
    """
    if subject.checkpoint.checkpoint_sha256 != spec.checkpoint_sha256:
        raise ExportError(
            f"{path}: made from a checkpoint with weights and settings {spec.checkpoint_sha256[:12]}…, MODEL "
            f"has {subject.checkpoint.checkpoint_sha256[:12]}…; run 'make export' again"
        )
    bound = parity_bound(spec.format, spec.device, spec.precision)
    return certify(subject, runners(form, path, spec.device, spec.precision), bound, spec.normalized)


def runners(form: EncoderFormat, path: Path, device: Device, precision: Precision) -> dict[str, Run]:
    """Every way in which a worker may run a file that gives vectors of its own, by what is told of it.

    That is one, but for int8: how many levels an activation has is up to the CPU.
    """
    on = torch.device(device)
    if precision != "int8":
        return {"": runner(form.load(path, on), device)}
    coarse = load_for_inference(path, on, int8_levels=COARSE_LEVELS)
    # What adds bytes exactly runs the packed layers with all levels, as the file itself does.
    exact = form.load(path, on) if int8_levels() == WEIGHT_LEVELS else load_torchscript(path, on)
    return {", 7 bits": runner(coarse, device), ", 8 bits": runner(exact, device)}


def runner(module: Module, device: Device) -> Run:
    """A loaded encoder as a function of its inputs, wherever they are, to embeddings float32 `[N, D]`."""

    def run(*inputs: Tensor) -> FloatArray:
        with torch.inference_mode():
            output = module(*(i.to(device) for i in inputs))
        array: FloatArray = output.cpu().numpy()
        return array

    return run


def _as(normalized: bool, embeddings: FloatArray) -> FloatArray:
    return unit_vectors(embeddings) if normalized else embeddings


def _compare(
    name: str, exported: FloatArray, original: FloatArray
) -> tuple[ParityCase, npt.NDArray[np.float64]]:
    """One case, and the cosine of each of its rows."""
    if exported.shape != original.shape:
        raise ParityError(f"{name}: the export gives {exported.shape}, the original {original.shape}")
    a, b = exported.astype(np.float64), original.astype(np.float64)
    # In units of the original's length: the bound means the same for un-normalised embeddings.
    norms = np.linalg.norm(b, axis=1, keepdims=True)
    a, b = a / norms, b / norms
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    # NaN compares false with everything; it must not pass for parity.
    if not np.isfinite(cosines).all():
        return ParityCase(name, float("inf"), -1.0), np.full(len(b), -1.0)
    return ParityCase(name, float(np.abs(a - b).max()), float(cosines.min())), cosines
