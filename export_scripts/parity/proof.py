"""Measures how far an exported encoder is from its original, and holds it to its bound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipserve.certificate import Golden, ParityBound, ParityCase, ParityCertificate
from clipserve.encoder_spec import Device, EncoderSpec, FloatArray, encode_vector, parity_bound
from clipserve.errors import ExportError, ParityError
from clipserve.loading import Module
from clipserve.similarity import unit_vectors
from export_scripts.formats.base import EncoderFormat
from export_scripts.parity.subjects import Run, Subject


def certify(subject: Subject, run: Run, bound: ParityBound, normalized: bool) -> ParityCertificate:
    """Compares an exported encoder with its original, case by case; whether the bound holds is not asked.

    Args:
        run: see `runner`.
        bound: that the certificate names.
        normalized: whether the exported encoder normalises.
    """
    cases = [
        _compare(name, exported(run), _as(normalized, original()))
        for name, exported, original in subject.comparisons
    ]
    golden = _as(normalized, subject.golden_reference())
    cases.append(_compare("golden input", run(*subject.golden_tensors), golden))
    return ParityCertificate(
        bound=bound,
        max_abs_diff=max(case.max_abs_diff for case in cases),
        min_cosine=min(case.min_cosine for case in cases),
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
    module = form.load(path, torch.device(spec.device))
    bound = parity_bound(spec.format, spec.device, spec.precision)
    return certify(subject, runner(module, spec.device), bound, spec.normalized)


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


def _compare(name: str, exported: FloatArray, original: FloatArray) -> ParityCase:
    if exported.shape != original.shape:
        raise ParityError(f"{name}: the export gives {exported.shape}, the original {original.shape}")
    a, b = exported.astype(np.float64), original.astype(np.float64)
    # In units of the original's length: the bound means the same for un-normalised embeddings.
    norms = np.linalg.norm(b, axis=1, keepdims=True)
    a, b = a / norms, b / norms
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    # NaN compares false with everything; it must not pass for parity.
    if not np.isfinite(cosines).all():
        return ParityCase(name, float("inf"), -1.0)
    return ParityCase(name, float(np.abs(a - b).max()), float(cosines.min()))
