"""The stage that runs the encoder; the only one whose processes load PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from clipserve.encoder import ExportedImageEncoder
from clipserve.encoder_spec import EncoderSpec
from clipserve.errors import SpecError
from scale.bulk.stages import Batch, sentence


class Encoder:
    """An actor that holds the traced encoder.

    Args:
        path: the encoder file, on every node.
        spec: of the driver's file.
        batch_size: pictures of one forward pass.
        threads: of PyTorch.

    Raises:
        SpecError: the file is missing here, or is another than the driver's.
    """

    def __init__(self, path: Path, spec: EncoderSpec, batch_size: int, threads: int):
        torch.set_num_threads(threads)
        self._batch_size = batch_size
        self._encoder = ExportedImageEncoder(path, torch.device(spec.device))
        if self._encoder.spec.artifact_sha256 != spec.artifact_sha256:
            raise SpecError(f"{path}: this node's file is not the driver's; copy it to every node")

    def __call__(self, batch: Batch) -> Batch:
        """Embeds a shard: `embeddings` float32 `[1, shard_size, D]` in the place of `pixel_values`."""
        count = int(batch["decoded_pictures"][0])
        pixel_values = batch["pixel_values"][0]
        problem = str(batch["problem"][0])
        embeddings = np.zeros((1, len(pixel_values), self._encoder.spec.embedding_dim), np.float32)
        try:
            for start in range(0, count, self._batch_size):
                part = slice(start, min(start + self._batch_size, count))
                embeddings[0, part] = self._encoder.embed(pixel_values[part])
        except Exception as error:
            problem = problem or sentence(error)
        return {
            "shard": batch["shard"],
            "embeddings": embeddings,
            "decoded": batch["decoded"],
            "problem": np.array([problem]),
        }
