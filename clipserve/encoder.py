"""Loads an exported encoder, proves that it is the right one, and runs it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from clipserve.encoder_spec import (
    TOKENIZER_FILE,
    FloatArray,
    Modality,
    artifact_sha256,
    decode_vector,
    golden_min_cosine,
    read_extra_file,
    read_spec,
)
from clipserve.errors import RequestError, SpecError
from clipserve.hardware import check_cpu
from clipserve.images import ImageLimits, PixelArray, decode_image, preprocess
from clipserve.loading import LOADERS
from clipserve.similarity import cosine
from clipserve.store import check_format, check_unchanged
from clipserve.tokens import TokenArray, Tokenizer

# The golden picture is made by clipserve itself and tiny; no caller's limits apply to it.
GOLDEN_LIMITS = ImageLimits()

# In a graph, TorchScript turns PyTorch's OutOfMemoryError into a plain RuntimeError that quotes it
# (pytorch/pytorch issue 148642): the words of its allocators for GPUs and CPUs, and of cuBLAS.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")

# TorchScript's executor profiles the first run and compiles in the second; other batch sizes cost nothing.
WARM_UP_RUNS = 3


class _ExportedEncoder:
    """What image and text encoders share: verified loading, and running without gradients."""

    def __init__(self, path: Path, device: torch.device):
        self.path = path
        self.spec = read_spec(path)
        self.device = device
        load = LOADERS[check_format(path, self.spec, LOADERS)]
        if self.spec.device != device.type:
            raise SpecError(
                f"{path}: traced for {self.spec.device}, asked to run on {device.type}; "
                f"run 'make export DEVICE={device.type}'"
            )
        check_cpu(path, self.spec)
        check_unchanged(path, self.spec, artifact_sha256(path))
        self._module = load(path, device)

    def _run(self, *inputs: torch.Tensor) -> FloatArray:
        try:
            with torch.inference_mode():
                embeddings: torch.Tensor = self._module(*(i.to(self.device) for i in inputs))
                return embeddings.cpu().numpy()
        except RuntimeError as error:
            if not any(words in str(error) for words in OUT_OF_MEMORY):
                raise
        # Out of the `except` block, which keeps alive what the pass has allocated.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        raise MemoryError(
            f"{self.path}: no memory on {self.device} for inputs of {[list(i.shape) for i in inputs]}; lower "
            "max_batch in the archive's YAML, or have fewer workers there"
        )

    def _check_golden(self, embedding: FloatArray) -> None:
        try:
            expected = decode_vector(self.spec.certificate.golden.embedding)
        except ValueError as error:
            raise SpecError(f"{self.path}: its golden embedding is no vector; run 'make export'") from error
        if expected.shape != embedding.shape:
            raise SpecError(
                f"{self.path}: its golden embedding has {len(expected)} numbers, the encoder gives "
                f"{len(embedding)}; run 'make export'"
            )
        alike, least = cosine(embedding, expected), golden_min_cosine(self.spec.precision)
        if not alike >= least:
            raise SpecError(
                f"{self.path}: the golden input's embedding has cosine {alike:.6f} with the "
                f"certificate's, allowed is >= {least}; run 'make export' on this machine"
            )


class ExportedImageEncoder(_ExportedEncoder):
    """An exported image encoder that has reproduced its golden embedding.

    Args:
        path: the encoder file.
        device: where to run; must be the device it was exported for.

    Raises:
        SpecError: wrong modality, device, hash or golden embedding.
    """

    def __init__(self, path: Path, device: torch.device):
        super().__init__(path, device)
        if self.spec.image is None:
            raise SpecError(f"{path}: a {self.spec.modality} encoder, should be an image encoder")
        self.preprocessing = self.spec.image
        for _ in range(WARM_UP_RUNS):
            self.check_golden()

    def embed(self, pixel_values: Sequence[PixelArray]) -> FloatArray:
        """Embeds uint8 `[3, H, W]` pictures in one batch: float32 `[N, embedding_dim]`.

        Raises:
            MemoryError: there is none left for so many.
            ValueError: other pixels. A `.pt` refuses them itself, but for older ones; a `.pt2` would read
                their memory as it comes.
        """
        batch = np.stack(pixel_values)
        size = (3, self.preprocessing.crop_height, self.preprocessing.crop_width)
        if batch.dtype != np.uint8 or batch.shape[1:] != size:
            raise ValueError(f"{self.preprocessing.wanted_pixels}; found {batch.dtype} {list(batch.shape)}")
        return self._run(torch.from_numpy(batch))

    def check_golden(self) -> None:
        """Embeds the golden picture.

        Raises:
            SpecError: its embedding is not the certificate's.
        """
        try:
            png = base64.b64decode(self.spec.certificate.golden.input, validate=True)
            pixels = preprocess(decode_image(png, GOLDEN_LIMITS), self.preprocessing, GOLDEN_LIMITS)
        except (ValueError, RequestError) as error:
            raise SpecError(f"{self.path}: its golden input is no picture; run 'make export'") from error
        self._check_golden(self.embed([pixels])[0])


class ExportedTextEncoder(_ExportedEncoder):
    """An exported text encoder, with its tokenizer, that has reproduced its golden embedding.

    Args:
        path: the encoder file.
        device: where to run; must be the device it was exported for.

    Raises:
        SpecError: wrong modality, device, hash, tokenizer or golden embedding.
    """

    def __init__(self, path: Path, device: torch.device):
        super().__init__(path, device)
        if self.spec.text is None:
            raise SpecError(f"{path}: an {self.spec.modality} encoder, should be a text encoder")
        self.preprocessing = self.spec.text
        definition = read_extra_file(path, TOKENIZER_FILE).decode("utf-8")
        self.tokenizer = Tokenizer(definition, self.preprocessing)
        for _ in range(WARM_UP_RUNS):
            self.check_golden()

    def embed(self, input_ids: TokenArray, attention_mask: TokenArray) -> FloatArray:
        """Embeds int64 `[N, L]` token ids in one batch: float32 `[N, embedding_dim]`.

        Raises:
            MemoryError: there is none left for so many.
            ValueError: of another length than the encoder's only one. A `.pt` refuses it itself; a `.pt2`
                would read what memory there is.
        """
        length = self.preprocessing.padded(input_ids.shape[1])
        if input_ids.shape[1] != length:
            raise ValueError(f"input_ids must be int64 [N, {length}]; found {list(input_ids.shape)}")
        return self._run(torch.from_numpy(input_ids), torch.from_numpy(attention_mask))

    def check_golden(self) -> None:
        """Embeds the golden sentence.

        Raises:
            SpecError: its embedding is not the certificate's.
        """
        tokens = self.tokenizer.tokenize(self.spec.certificate.golden.input)
        self._check_golden(self.embed(*self.tokenizer.pad([tokens.ids]))[0])


ENCODERS: dict[Modality, type[ExportedImageEncoder] | type[ExportedTextEncoder]] = {
    "image": ExportedImageEncoder,
    "text": ExportedTextEncoder,
}
