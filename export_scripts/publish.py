"""Trace or compile, reload, compare with the eager original, publish; only if every step holds.

What is bound to one file format stands in `export_scripts.formats`; the proof is the same for all.
"""

from __future__ import annotations

import base64
import io
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from clipserve.encoder import cpu_has_native_bf16
from clipserve.encoder_spec import (
    PARITY_BOUNDS,
    SCHEMA_VERSION,
    SPEC_FILE,
    SUFFIXES,
    TOKENIZER_FILE,
    Device,
    EncoderSpec,
    FloatArray,
    Format,
    Golden,
    Modality,
    ParityCase,
    ParityCertificate,
    Precision,
    description_path,
    encode_vector,
    encoder_stem,
)
from clipserve.errors import ExportError, ParityError
from clipserve.images import ImageLimits, decode_image, preprocess
from clipserve.settings import Settings
from clipserve.tokens import Tokenizer
from export_scripts.checkpoints.pair import CheckpointPair, ImageCheckpoint, TextCheckpoint
from export_scripts.formats import FORMATS, EncoderFormat, Inputs
from export_scripts.formats import Run as Module
from export_scripts.packages.folders import publish_files
from export_scripts.parity.inputs import (
    GOLDEN_SENTENCE,
    SENTENCES,
    PictureFile,
    cropped_noise,
    golden_png,
    picture_files,
    pictures,
    random_tokens,
)

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

# Batch and length of the trace. Parity is checked at others, so that a baked-in shape shows.
TRACE_BATCH = 2
TRACE_LENGTH = 9

TIMED_BATCH = 8
TIMED_RUNS = 7

RECORDED_LIBRARIES = ("torch", "transformers", "sentence-transformers", "tokenizers", "pillow", "numpy")

Run = Callable[..., FloatArray]
Comparison = tuple[str, Callable[[Run], FloatArray], Callable[[], FloatArray]]


@dataclass(frozen=True)
class _Subject:
    """One encoder to be exported, whatever its modality.

    Attributes:
        build: makes the traceable encoder, float32.
        inputs: what it is traced with.
        comparisons: a name, the exported encoder's answer given a way to run it, the original's answer.
        golden: see `Golden.input`.
        extra_files: put into the file beside the spec.
    """

    modality: Modality
    checkpoint: ImageCheckpoint | TextCheckpoint
    build: Callable[[bool], nn.Module]
    inputs: Inputs
    comparisons: list[Comparison]
    golden_input: str
    golden_tensors: tuple[Tensor, ...]
    golden_reference: Callable[[], FloatArray]
    extra_files: dict[str, str]


def export_encoder(
    pair: CheckpointPair,
    modality: Modality,
    device: Device,
    precision: Precision | None,
    folder: Path,
    *,
    format: Format = "torchscript",
    normalized: bool = True,
) -> EncoderSpec:
    """Exports one encoder of a pair; see `export_encoders`."""
    (spec,) = export_encoders(
        pair, [modality], device, precision, folder, format=format, normalized=normalized
    )
    return spec


def export_encoders(
    pair: CheckpointPair,
    modalities: Sequence[Modality],
    device: Device,
    precision: Precision | None,
    folder: Path,
    *,
    format: Format = "torchscript",
    normalized: bool = True,
    tell: Callable[[Modality, Path, EncoderSpec | None], None] = lambda modality, made, spec: None,
) -> list[EncoderSpec]:
    """Exports encoders of a pair and publishes their files and descriptions in `folder`: all or none.

    Args:
        precision: None times every precision of this format and device that the hardware supports natively,
            and takes the fastest that keeps its parity bound.
        tell: is told of each encoder before it is made (without a spec) and after (with the spec), and where
            it is made; nothing is published yet.

    Returns:
        The published specs, in the order of `modalities`.

    Raises:
        ExportError: format, device or precision are not to be had here, or a trace is bound to its device.
        ParityError: beyond the bound; nothing is published.
    """
    check_device(device, precision, format)
    subjects = [_image_subject(pair.image) if m == "image" else _text_subject(pair.text) for m in modalities]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as name:
        work = Path(name)
        specs = []
        for subject in subjects:
            tell(subject.modality, work, None)
            if precision is not None:
                spec = _make(pair, subject, format, device, precision, normalized, work)
            else:
                spec = _make_fastest(pair, subject, format, device, normalized, work)
            description_path(work / spec.file_name).write_text(spec.to_json(), encoding="utf-8")
            tell(subject.modality, work, spec)
            specs.append(spec)
        files = [work / spec.file_name for spec in specs]
        # Descriptions first among those that go: never a spec beside a file it is not of.
        publish_files([*map(description_path, files), *files], folder)
    return specs


def check_device(device: Device, precision: Precision | None, format: Format = "torchscript") -> None:
    """Checks that this machine can export for `device` in `precision`, in this format.

    Raises:
        ExportError: it cannot.
    """
    allowed = FORMATS[format].precisions[device]
    if not allowed:
        raise ExportError(
            f"FORMAT={format}: DEVICE={device} is not supported, DEVICE=cpu is; or run 'make export "
            f"DEVICE={device}' for TorchScript"
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise ExportError(
            "DEVICE=cuda: this PyTorch sees no CUDA device; run 'make export DEVICE=cpu', or run it on "
            "a machine with a GPU and a CUDA build of PyTorch"
        )
    if precision is not None and precision not in allowed:
        with_format = "" if format == "torchscript" else f" with FORMAT={format}"
        raise ExportError(
            f"PRECISION={precision}: DEVICE={device}{with_format} takes auto, {', '.join(allowed)}"
        )
    FORMATS[format].check()


def recheck(pair: CheckpointPair, path: Path, spec: EncoderSpec) -> ParityCertificate:
    """Recomputes the certificate of a published encoder against its checkpoint.

    Raises:
        ExportError: the encoder was made from another checkpoint than `pair` is.
    """
    subject = _image_subject(pair.image) if spec.modality == "image" else _text_subject(pair.text)
    if subject.checkpoint.checkpoint_sha256 != spec.checkpoint_sha256:
        raise ExportError(
            f"{path}: made from a checkpoint with weights and settings {spec.checkpoint_sha256[:12]}…, MODEL "
            f"has {subject.checkpoint.checkpoint_sha256[:12]}…; run 'make export' again"
        )
    module = FORMATS[spec.format].load(path, torch.device(spec.device))
    return _certify(subject, module, spec.device, spec.precision, spec.normalized)


def native_precisions(device: Device, format: Format = "torchscript") -> list[Precision]:
    """The precisions of a format that this hardware multiplies natively."""
    native = {"fp32", "fp16"} if device == "cuda" else {"fp32", "bf16"} if cpu_has_native_bf16() else {"fp32"}
    return [p for p in FORMATS[format].precisions[device] if p in native]


def _make_fastest(
    pair: CheckpointPair,
    subject: _Subject,
    format: Format,
    device: Device,
    normalized: bool,
    work: Path,
) -> EncoderSpec:
    timed: list[tuple[float, EncoderSpec]] = []
    for precision in native_precisions(device, format):
        try:
            spec = _make(pair, subject, format, device, precision, normalized, work)
        except ParityError:
            # A half precision that costs this checkpoint too much is no candidate; float32 must hold.
            if precision == "fp32":
                raise
            continue
        timed.append((_seconds(work / spec.file_name, subject, FORMATS[format], device), spec))
    return min(timed, key=lambda pair: pair[0])[1]


def _seconds(path: Path, subject: _Subject, format: EncoderFormat, device: Device) -> float:
    """Median time of a batch of `TIMED_BATCH`, in seconds."""
    module = format.load(path, torch.device(device))
    inputs = [i[:1].expand(TIMED_BATCH, *i.shape[1:]).contiguous() for i in subject.inputs.example]
    times = []
    for _ in range(TIMED_RUNS + 2):
        start = time.perf_counter()
        _run(module, device, *inputs)
        times.append(time.perf_counter() - start)
    # The first two runs are the profiling executor's.
    return statistics.median(times[2:])


def _make(
    pair: CheckpointPair,
    subject: _Subject,
    format: Format,
    device: Device,
    precision: Precision,
    normalized: bool,
    work: Path,
) -> EncoderSpec:
    """Exports into `work`, reloads, compares; returns the spec that the file carries."""
    encoder = subject.build(normalized)
    form = FORMATS[format]
    inputs = replace(subject.inputs, example=tuple(i.to(device) for i in subject.inputs.example))
    stem = encoder_stem(pair.model_id, subject.modality, device, precision)
    made = work / f"{stem}{SUFFIXES[format]}"
    # state_dict tensors may be shared with the original, which must stay as it is.
    with torch.inference_mode(False), torch.no_grad():
        try:
            form.make(_copy(encoder).to(device=device, dtype=DTYPES[precision]).eval(), inputs, made)
        except ExportError as error:
            raise ExportError(f"{subject.modality} encoder: {error}") from error
    module = form.load(made, torch.device(device))
    certificate = _certify(subject, module, device, precision, normalized)
    if not certificate.bound.holds(certificate.max_abs_diff, certificate.min_cosine):
        worst = min(certificate.cases, key=lambda case: (case.min_cosine, -case.max_abs_diff))
        raise ParityError(
            f"{subject.modality} encoder in {precision} on {device}: max-abs "
            f"{certificate.max_abs_diff:.3g}, min cosine {certificate.min_cosine:.6f} "
            f"(worst: {worst.name}), the bound is {certificate.bound}; nothing was published"
        )
    checkpoint = subject.checkpoint
    spec = EncoderSpec(
        schema_version=SCHEMA_VERSION,
        format=format,
        cpu_capability=form.cpu_capability(),
        model_id=pair.model_id,
        checkpoint=checkpoint.name,
        modality=subject.modality,
        embedding_dim=checkpoint.embedding_dim,
        normalized=normalized,
        device=device,
        precision=precision,
        image=checkpoint.preprocessing if isinstance(checkpoint, ImageCheckpoint) else None,
        text=checkpoint.preprocessing if isinstance(checkpoint, TextCheckpoint) else None,
        logit_scale=pair.image.logit_scale,
        checkpoint_sha256=checkpoint.checkpoint_sha256,
        artifact_sha256=form.sha256(made),
        space_id=pair.space_id,
        versions={name: metadata.version(name) for name in (*RECORDED_LIBRARIES, *form.libraries)}
        | {"python": platform.python_version()},
        certificate=certificate,
    )
    form.add_extra_files(made, {SPEC_FILE: spec.to_json(), **subject.extra_files})
    return spec


def _copy(encoder: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(encoder, buffer)
    buffer.seek(0)
    # Our own module, written a line above: nothing foreign is unpickled.
    copy: nn.Module = torch.load(buffer, weights_only=False)
    return copy


def _run(module: Module, device: Device, *inputs: Tensor) -> FloatArray:
    with torch.inference_mode():
        output = module(*(i.to(device) for i in inputs))
    array: FloatArray = output.cpu().numpy()
    return array


def _certify(
    subject: _Subject, module: Module, device: Device, precision: Precision, normalized: bool
) -> ParityCertificate:
    def run(*inputs: Tensor) -> FloatArray:
        return _run(module, device, *inputs)

    cases = [
        _compare(name, exported(run), _as(normalized, original()))
        for name, exported, original in subject.comparisons
    ]
    golden = _as(normalized, subject.golden_reference())
    cases.append(_compare("golden input", run(*subject.golden_tensors), golden))
    return ParityCertificate(
        bound=PARITY_BOUNDS[precision],
        max_abs_diff=max(case.max_abs_diff for case in cases),
        min_cosine=min(case.min_cosine for case in cases),
        cases=tuple(cases),
        golden=Golden(subject.golden_input, encode_vector(golden[0])),
    )


def _as(normalized: bool, embeddings: FloatArray) -> FloatArray:
    if not normalized:
        return embeddings
    unit: FloatArray = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return unit


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


def _image_subject(checkpoint: ImageCheckpoint) -> _Subject:
    limits = ImageLimits()

    def pixels(images: list[Image.Image]) -> Tensor:
        arrays = [preprocess(image, checkpoint.preprocessing, limits) for image in images]
        return torch.from_numpy(np.stack(arrays))

    def comparison(name: str, images: list[Image.Image]) -> Comparison:
        return name, lambda run: run(pixels(images)), lambda: checkpoint.reference(images)

    served = Settings()
    edge = checkpoint.preprocessing.shortest_edge

    def from_bytes(file: PictureFile) -> Comparison:
        def pixels_of() -> Tensor:
            image = decode_image(
                file.data, served.images, shortest_edge=edge, draft_factor=served.draft_factor
            )
            return torch.from_numpy(preprocess(image, checkpoint.preprocessing, served.images)[None])

        return (
            f"file: {file.name}",
            lambda run: run(pixels_of()),
            lambda: checkpoint.reference([file.original]),
        )

    noise = cropped_noise(2, 8, checkpoint.preprocessing)
    png = golden_png()
    golden = decode_image(png, limits)
    return _Subject(
        modality="image",
        checkpoint=checkpoint,
        build=checkpoint.build,
        inputs=Inputs(
            example=(pixels(cropped_noise(1, TRACE_BATCH, checkpoint.preprocessing)),),
            names=("pixel_values",),
            varying=({0: ("batch", None)},),
        ),
        comparisons=[
            comparison("noise, batch 1", noise[:1]),
            comparison("noise, batch 3", noise[1:4]),
            comparison("noise, batch 8", noise),
            comparison("photograph-like pictures of 4 sizes", pictures(3)),
            *map(from_bytes, picture_files(8, edge, served.draft_factor)),
        ],
        golden_input=base64.b64encode(png).decode("ascii"),
        golden_tensors=(pixels([golden]),),
        golden_reference=lambda: checkpoint.reference([golden]),
        extra_files={},
    )


def _text_subject(checkpoint: TextCheckpoint) -> _Subject:
    tokenizer = Tokenizer(checkpoint.tokenizer, checkpoint.preprocessing)
    longest = checkpoint.preprocessing.context_length

    def tokens(seed: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
        return random_tokens(tokenizer, checkpoint.tokenizer, seed, lengths)

    def comparison(name: str, seed: int, lengths: list[int]) -> Comparison:
        inputs = tokens(seed, lengths)
        return name, lambda run: run(*inputs), lambda: checkpoint.reference(*inputs)

    def tensors(texts: list[str]) -> tuple[Tensor, ...]:
        padded = tokenizer.pad([tokenizer.tokenize(text).ids for text in texts])
        return tuple(torch.from_numpy(array) for array in padded)

    return _Subject(
        modality="text",
        checkpoint=checkpoint,
        build=checkpoint.build,
        inputs=Inputs(
            example=tokens(1, [TRACE_LENGTH - 2, TRACE_LENGTH]),
            names=("input_ids", "attention_mask"),
            varying=({0: ("batch", None), 1: ("length", longest)},) * 2,
        ),
        comparisons=[
            comparison("random tokens, 1 x 5", 2, [5]),
            comparison("random tokens, 3 x 17, padded", 3, [17, 4, 11]),
            comparison("random tokens, 8 x 12", 4, [12] * 8),
            comparison(f"random tokens, 2 x {longest}, padded", 5, [longest, 3]),
            (
                "sentences in many scripts, in one batch",
                lambda run: run(*tensors(list(SENTENCES))),
                lambda: checkpoint.reference_encode(SENTENCES),
            ),
        ],
        golden_input=GOLDEN_SENTENCE,
        golden_tensors=tensors([GOLDEN_SENTENCE]),
        golden_reference=lambda: checkpoint.reference_encode([GOLDEN_SENTENCE]),
        extra_files={TOKENIZER_FILE: checkpoint.tokenizer},
    )
