"""What an exported encoder is, in a form that travels with it.

An `EncoderSpec` stands as `STEM.json` beside `STEM.pt` (see `description_path` for the other formats), and
inside `STEM.pt` as the extra file `spec.json`, so that the one file is enough. Nothing else in the project
knows an image size, a mean, a context length or a logit scale.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from clipserve.certificate import ParityBound, ParityCertificate
from clipserve.errors import SpecError
from clipserve.preprocessing import ImagePreprocessing, TextPreprocessing
from clipserve.strict_json import build

SCHEMA_VERSION = 5

SPEC_FILE = "spec.json"
TOKENIZER_FILE = "tokenizer.json"


Modality = Literal["image", "text"]
Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
Format = Literal["torchscript", "aoti", "onnx"]
ScoreKind = Literal["softmax", "sigmoid"]

SUFFIXES: dict[Format, str] = {"torchscript": ".pt", "aoti": ".pt2", "onnx": ".onnx"}

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """How a pair was trained to make probabilities of cosines.

    Attributes:
        kind: `softmax` of `scale` · cosine over a picture's texts, or `sigmoid` of `scale` · cosine + `bias`
            of each text by itself.
        scale: exponentiated, about 100 for CLIP.
        bias: 0 for a pair that was trained with softmax, which no bias changes.
    """

    kind: ScoreKind
    scale: float
    bias: float = 0.0

    def rules(self) -> Iterator[tuple[str, bool]]:
        """Each field whose type says too little, and whether its value makes sense."""
        yield "score.scale", math.isfinite(self.scale) and self.scale > 0
        yield "score.bias", math.isfinite(self.bias)


# fp32 differs from its original by the order of float additions only; the others round weights and what is
# computed with them.
PARITY_BOUNDS: dict[Precision, ParityBound] = {
    "fp32": ParityBound(max_abs_diff=1e-5, min_cosine=None),
    "bf16": ParityBound(max_abs_diff=None, min_cosine=0.999),
    "fp16": ParityBound(max_abs_diff=None, min_cosine=0.999),
    "int8": ParityBound(max_abs_diff=None, min_cosine=0.99, mean_cosine=0.995),
}

# Of weights in half precision with arithmetic in float32.
HALF_WEIGHTS_BOUND = ParityBound(max_abs_diff=5e-4, min_cosine=0.99999)


def golden_min_cosine(precision: Precision) -> float:
    """What the golden embedding must keep to wherever a worker runs.

    That may be another CPU or GPU model than the export's, whose kernels add in another order, or round
    int8's activations to another number of levels.
    """
    return 0.985 if precision == "int8" else 0.999


def has_half_weights(file_format: str, device: Device, precision: Precision) -> bool:
    """Whether only the weights of a variant are in half precision, and it computes in float32."""
    return (file_format, device, precision) == ("torchscript", "cpu", "fp16")


def parity_bound(file_format: str, device: Device, precision: Precision) -> ParityBound:
    """What a variant must keep to."""
    if has_half_weights(file_format, device, precision):
        return HALF_WEIGHTS_BOUND
    return PARITY_BOUNDS[precision]


@dataclass(frozen=True)
class Quantization:
    """How an int8 encoder came to its precision, found by `export_scripts.quantization`.

    Attributes:
        smoothing: exponent of the scales that were moved from activations into weights; 0 for none.
        half: names of the layers that were left in half precision, because int8 cost too much there.
        int8_share: of the multiplications in all layers that may be in int8, those that are.
        min_cosine, mean_cosine: to float32, over the calibration inputs, at 7 bits.
    """

    smoothing: float
    half: tuple[str, ...]
    int8_share: float
    min_cosine: float
    mean_cosine: float


@dataclass(frozen=True)
class EncoderSpec:
    """The spec of one exported encoder.

    Attributes:
        format: one of `SUFFIXES`, or another program's name, which nothing here loads but `make verify`.
        cpu_capability: what the CPU must have that runs machine code in the file, as `cpu_capability` of
            `clipserve.hardware` puts it; None where the file holds none.
        model_id: name of the pair, as in the endpoint's `model` field and the file's stem.
        checkpoint: name or folder name of the checkpoint this encoder came from.
        license: of that checkpoint's weights, as its model card or `make models` says it, such as
            `apache-2.0`; None where neither does. No vector depends on it, and so no identity.
        embedding_dim: length of an embedding.
        normalized: whether the graph L2-normalises its output.
        precision: of weights and arithmetic, see `has_half_weights`; the output is float32 always.
        score: how cosines of the pair become probabilities.
        checkpoint_sha256: of everything that this encoder's vectors depend on: the eager encoder's weights
            (names, shapes and values), its heads, activation, layer norms' eps, pooling and position rule,
            preprocessing, and for texts the tokenizer. Not of how the checkpoint's files are laid out, nor of
            weights that are not read. See `export_scripts.identity`.
        artifact_sha256: of the encoder file's code and weights, see `artifact_sha256`.
        space_id: hash of both encoders' `checkpoint_sha256`; embeddings may be compared, by their cosine,
            only where theirs are equal. Independent of device, precision and `normalized`.
        versions: of the libraries that made the file.
        quantization: None but for int8.
    """

    schema_version: int
    format: str
    cpu_capability: str | None
    model_id: str
    checkpoint: str
    license: str | None
    modality: Modality
    embedding_dim: int
    normalized: bool
    device: Device
    precision: Precision
    image: ImagePreprocessing | None
    text: TextPreprocessing | None
    score: Score
    checkpoint_sha256: str
    artifact_sha256: str
    space_id: str
    versions: dict[str, str]
    certificate: ParityCertificate
    quantization: Quantization | None = None

    @property
    def preprocessing(self) -> ImagePreprocessing | TextPreprocessing:
        """The section of its modality."""
        return cast("ImagePreprocessing | TextPreprocessing", getattr(self, self.modality))

    @property
    def extra_files(self) -> tuple[str, ...]:
        """Names of the texts that its file carries."""
        return (SPEC_FILE,) if self.text is None else (SPEC_FILE, TOKENIZER_FILE)

    @property
    def stem(self) -> str:
        """File name without ending, such as `clip-ViT-B-32-image-cpu-bf16`."""
        return encoder_stem(self.model_id, self.modality, self.device, self.precision)

    @property
    def file_name(self) -> str:
        """Name of the encoder file, such as `clip-ViT-B-32-image-cpu-bf16.pt`."""
        return self.stem + SUFFIXES[cast("Format", self.format)]

    def to_json(self) -> str:
        """The spec as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> EncoderSpec:
        """Reads a spec back, strictly.

        Args:
            text: what `to_json` wrote.
            source: names the file in error messages.

        Raises:
            SpecError: not JSON, another schema version, or a field missing, unknown or of another type.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"{source}: not a spec ({error}); run 'make export' again") from error
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise SpecError(
                f"{source}: schema_version {version!r}, this clipserve reads {SCHEMA_VERSION}; "
                "run 'make export' again"
            )
        spec = build(cls, data, source)
        if getattr(spec, spec.modality) is None:
            raise SpecError(f"{source}: modality {spec.modality!r} without its {spec.modality!r} section")
        for name, holds in spec._rules():
            if not holds:
                raise SpecError(f"{source}: {name} has a value that no encoder has; run 'make export' again")
        return spec

    def _rules(self) -> Iterator[tuple[str, bool]]:
        """Each field whose type says too little, and whether its value makes sense."""
        yield "cpu_capability", (self.cpu_capability is not None) == (self.format == "aoti")
        yield "embedding_dim", self.embedding_dim > 0
        yield "quantization", (self.quantization is not None) == (self.precision == "int8")
        yield from self.score.rules()
        for section in (self.image, self.text):
            if section is not None:
                yield from section.rules()


def encode_vector(vector: FloatArray) -> str:
    """Base64 of little-endian float32."""
    return base64.b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")


def decode_vector(text: str) -> FloatArray:
    """The float32 array `[D]` behind `encode_vector`'s text."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def encoder_stem(model_id: str, modality: Modality, device: Device, precision: Precision) -> str:
    """See `EncoderSpec.stem`."""
    return f"{model_id}-{modality}-{device}-{precision}"


def description_path(path: Path) -> Path:
    """Where the spec of the encoder file `path` stands to be read: `STEM.json`, `STEM.pt2.json`.

    Several formats of one encoder may lie in one folder; TorchScript has the plain name.
    """
    return path.with_suffix(".json") if path.suffix == SUFFIXES["torchscript"] else Path(f"{path}.json")


def artifact_sha256(path: Path) -> str:
    """SHA-256 over the names and contents of the records of a `.pt` or `.pt2`.

    Left out are the extra files, which hold the spec and so this very hash (the tokenizer has its own), and
    what differs when PyTorch saves a file again: its serialization id, and where each operator stands.

    Raises:
        SpecError: no such file, or no zip file.
    """
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                record = name.partition("/")[2]
                if record.startswith("extra/") or record.endswith((".debug_pkl", "/serialization_id")):
                    continue
                digest.update(record.encode() + b"\0")
                with archive.open(name) as stream:
                    while chunk := stream.read(1 << 20):
                        digest.update(chunk)
    except (OSError, zipfile.BadZipFile) as error:
        raise SpecError(f"{path}: not a readable encoder ({error}); run 'make export'") from error
    return digest.hexdigest()


def read_extra_file(path: Path, name: str) -> bytes:
    """Reads one extra file of a `.pt` or `.pt2` without loading the weights.

    Raises:
        SpecError: no such file, or no such record in it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = [n for n in archive.namelist() if n.partition("/")[2] == f"extra/{name}"]
            if not records:
                raise SpecError(
                    f"{path}: carries no {name}, so it was not written by clipserve; run 'make export'"
                )
            return archive.read(records[0])
    except (OSError, zipfile.BadZipFile) as error:
        raise SpecError(f"{path}: not a readable encoder ({error}); run 'make export'") from error


def read_spec(path: Path, extra_file: Callable[[Path, str], bytes] = read_extra_file) -> EncoderSpec:
    """The spec inside an encoder file.

    Args:
        extra_file: what reads a record of this format by its name.

    Raises:
        SpecError: the file is missing, damaged or of another version.
    """
    try:
        text = extra_file(path, SPEC_FILE).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: its spec is not UTF-8; run 'make export' again") from error
    return EncoderSpec.from_json(text, str(path))
