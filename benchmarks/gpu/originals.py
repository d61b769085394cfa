"""The originals on the device that is proven and measured: sentence-transformers, and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from PIL import Image
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.plan import CLIP, Plan
from clipserve.encoder_spec import FloatArray
from clipserve.tokens import Tokenizer
from export_scripts.checkpoints.image import pillow_processor


class Original(Protocol):
    """A pair's original; embeddings come out of unit length, float32 `[N, D]`."""

    def pictures(self, pictures: Sequence[Image.Image]) -> FloatArray:
        """Embeds pictures, prepared by its own processor."""

    def texts(self, texts: Sequence[str]) -> FloatArray:
        """Embeds texts."""


def exact_float32() -> None:
    """Has cuDNN compute float32 as such: by default its convolutions round to TF32, and ours has none."""
    torch.backends.cudnn.allow_tf32 = False


def sentence_transformer(folder: Path, device: str) -> SentenceTransformer:
    """A checkpoint as its users load it, in float32."""
    return SentenceTransformer(str(folder), device=device, local_files_only=True)


class SentenceTransformers:
    """Two checkpoints of sentence-transformers.

    Args:
        exact: with the image processor that the checkpoint was published with, also where torchvision is
            installed, and transformers takes another one by itself.
    """

    def __init__(self, plan: Plan, *, exact: bool):
        clip, text = plan.folders(CLIP)
        self.image = sentence_transformer(clip, plan.device)
        self.text = sentence_transformer(text, plan.device)
        self._options: dict[str, Any] = {"show_progress_bar": False, "normalize_embeddings": True}
        if exact:
            module: Any = self.image[0]
            module.processor.image_processor = pillow_processor(clip / "0_CLIPModel")

    def half(self) -> None:
        """Goes on in half precision."""
        self.image.half()
        self.text.half()

    def pictures(self, pictures: Sequence[Image.Image], batch: int = 32) -> FloatArray:
        """See `Original`."""
        found = self.image.encode(list(pictures), batch_size=batch, **self._options)
        return np.asarray(found, np.float32)

    def texts(self, texts: Sequence[str], batch: int = 32) -> FloatArray:
        """See `Original`."""
        return np.asarray(self.text.encode(list(texts), batch_size=batch, **self._options), np.float32)


class Siglip2:
    """SigLIP 2 as transformers runs it.

    Its tokens are ours, which the export compares with transformers' own on the same texts.
    """

    def __init__(self, plan: Plan, pair: str, tokenizer: Tokenizer):
        folder, _ = plan.folders(pair)
        self._model: Any = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
        self._model = self._model.to(plan.device).eval()
        self._processor = pillow_processor(folder)
        self._tokenizer = tokenizer
        self._device = plan.device

    def pictures(self, pictures: Sequence[Image.Image]) -> FloatArray:
        """See `Original`."""
        prepared = self._processor(list(pictures), do_convert_rgb=True, return_tensors="pt")
        with torch.inference_mode():
            found = image_embeddings(self._model, prepared["pixel_values"].to(self._device))
        return found.float().cpu().numpy()

    def texts(self, texts: Sequence[str]) -> FloatArray:
        """See `Original`."""
        ids, _ = self._tokenizer.pad([self._tokenizer.tokenize(text).ids for text in texts])
        with torch.inference_mode():
            features = self._model.get_text_features(input_ids=torch.from_numpy(ids).to(self._device))
            found = functional.normalize(_tensor(features), dim=-1)
        return found.float().cpu().numpy()


def image_embeddings(model: Any, pixels: Tensor) -> Tensor:
    """The image side of a transformers model: normalised pixels to unit vectors `[N, D]`."""
    return functional.normalize(_tensor(model.get_image_features(pixel_values=pixels)), dim=-1)


def text_embeddings(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """A text checkpoint of sentence-transformers: tokens to unit vectors `[N, D]`."""
    features = {"input_ids": input_ids, "attention_mask": attention_mask, "modality": "text"}
    return functional.normalize(model(features)["sentence_embedding"], dim=-1)


def _tensor(features: Any) -> Tensor:
    """Of an output with names, as transformers 5 gives it; before, it was the tensor itself."""
    tensor: Tensor = getattr(features, "pooler_output", features)
    return tensor
