"""Writes checkpoints in the hub's exact layouts with seeded random weights.

Tiny ones keep tests fast; the full-size shapes are those of the published checkpoints.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from standins.tokenizers import (
    write_clip_tokenizer,
    write_gemma_tokenizer,
    write_json,
    write_siglip_tokenizer,
    write_unigram,
    write_wordpiece,
)

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True)
class ClipShape:
    """Sizes of a CLIP."""

    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    projection_dim: int
    vocabulary: int
    context_length: int

    @property
    def text_config(self) -> dict[str, Any]:
        """In transformers' names."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.text_width,
            "intermediate_size": 4 * self.text_width,
            "num_hidden_layers": self.text_layers,
            "num_attention_heads": self.text_heads,
            "max_position_embeddings": self.context_length,
        }

    @property
    def vision_config(self) -> dict[str, Any]:
        """In transformers' names."""
        return {
            "hidden_size": self.vision_width,
            "intermediate_size": 4 * self.vision_width,
            "num_hidden_layers": self.vision_layers,
            "num_attention_heads": self.vision_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
        }


TINY_CLIP = ClipShape(48, 16, 64, 2, 2, 48, 2, 2, 32, 600, 77)
# 56 is no multiple of 16, as 384 is none of the published 14.
TINY_SIGLIP = ClipShape(56, 16, 64, 2, 2, 48, 2, 2, 64, 2000, 64)
VIT_B_32 = ClipShape(224, 32, 768, 12, 12, 512, 12, 8, 512, 49408, 77)
VIT_L_14 = ClipShape(224, 14, 1024, 24, 16, 768, 12, 12, 768, 49408, 77)
SIGLIP_B_16 = ClipShape(224, 16, 768, 12, 12, 768, 12, 12, 768, 32000, 64)
SIGLIP_2_B_16 = ClipShape(224, 16, 768, 12, 12, 768, 12, 12, 768, 256000, 64)


@dataclass(frozen=True)
class TextShape:
    """Sizes of a multilingual text encoder."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    positions: int = 512
    embedding_dim: int = 512


TINY_TEXT = TextShape(48, 2, 2, 2000, 140, 32)
DISTILBERT_MULTILINGUAL = TextShape(768, 6, 12, 119547)
M_BERT_BASE = TextShape(768, 12, 12, 119547)
XLM_R_LARGE = TextShape(1024, 24, 16, 250002, 514)


def write_clip(folder: Path, shape: ClipShape = TINY_CLIP, seed: int = 0) -> Path:
    """sentence-transformers' legacy CLIP layout: `modules.json` and `0_CLIPModel`."""
    folder.mkdir(parents=True)
    inner = folder / "0_CLIPModel"
    _write_clip_model(inner, shape, seed)
    write_json(
        folder / "modules.json",
        [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}],
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {
                "sentence_transformers": "2.0.0",
                "transformers": "4.7.0",
                "pytorch": "1.9.0+cu102",
            }
        },
    )
    return folder


@dataclass(frozen=True)
class SiglipKind:
    """What tells SigLIP and SigLIP 2 of a fixed resolution apart, beside their sizes.

    Attributes:
        write_tokenizer: into a folder, of a size and a length.
        padding_id: of its tokens.
        processor: what its `preprocessor_config.json` has beside what both have.
    """

    write_tokenizer: Callable[[Path, int, int], None]
    padding_id: int
    processor: Mapping[str, Any]


SIGLIP = SiglipKind(write_siglip_tokenizer, 1, {"resample": 3})
SIGLIP_2 = SiglipKind(write_gemma_tokenizer, 0, {"do_convert_rgb": None, "resample": 2})


def write_siglip(
    folder: Path, kind: SiglipKind = SIGLIP, shape: ClipShape = TINY_SIGLIP, seed: int = 5
) -> Path:
    """SigLIP as transformers saves it, at a fixed resolution."""
    torch.manual_seed(seed)
    kind.write_tokenizer(folder, shape.vocabulary, shape.context_length)
    config = transformers.SiglipConfig(
        text_config={
            **shape.text_config,
            "projection_size": shape.projection_dim,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "pad_token_id": kind.padding_id,
        },
        vision_config=shape.vision_config,
    )
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        # Those of siglip-base-patch16-224 are about so; and no zeros, which would hide what is left out.
        model.logit_scale.fill_(4.765)
        model.logit_bias.fill_(-12.93)
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and name != "logit_bias":
                parameter.normal_(std=0.05)
    model.save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "SiglipImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "SiglipProcessor",
            "rescale_factor": 0.00392156862745098,
            "size": {"height": shape.image_size, "width": shape.image_size},
            **kind.processor,
        },
    )
    return folder


def _bert(kind: Any, shape: TextShape, **more: Any) -> Any:
    """A configuration with BERT's names."""
    return kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=shape.positions,
        **more,
    )


def _distilbert(shape: TextShape) -> transformers.DistilBertConfig:
    return transformers.DistilBertConfig(
        vocab_size=shape.vocabulary,
        dim=shape.width,
        n_layers=shape.layers,
        n_heads=shape.heads,
        hidden_dim=4 * shape.width,
        max_position_embeddings=shape.positions,
    )


@dataclass(frozen=True)
class Student:
    """A text transformer that students are made of.

    Attributes:
        config: of a shape.
        write_tokenizer: into a folder, of a size.
    """

    config: Callable[[TextShape], transformers.PretrainedConfig]
    write_tokenizer: Callable[[Path, int], None]


_wordpiece = partial(write_wordpiece, with_fast_file=True)

# At least one of every BERT-like that is supported.
STUDENTS = {
    "distilbert": Student(_distilbert, _wordpiece),
    "bert": Student(partial(_bert, transformers.BertConfig), _wordpiece),
    "xlm-roberta": Student(partial(_bert, transformers.XLMRobertaConfig, pad_token_id=1), write_unigram),
}


def write_multilingual(folder: Path, shape: TextShape = TINY_TEXT, seed: int = 1) -> Path:
    """sentence-transformers' text layout: DistilBERT, masked mean, Dense without bias, 128 tokens."""
    torch.manual_seed(seed)
    transformers.DistilBertModel(_distilbert(shape)).save_pretrained(folder)
    write_wordpiece(folder, shape.vocabulary, with_fast_file=True)
    weight = torch.randn(shape.embedding_dim, shape.width) / shape.width**0.5
    _write_modules(folder, {"weight": weight}, length=128)
    return folder


def write_student(
    folder: Path, kind: str, *, shape: TextShape = TINY_TEXT, length: int = 128, seed: int = 4
) -> Path:
    """sentence-transformers' text layout, as multilingual students are saved today.

    Args:
        kind: of `STUDENTS`.
        length: `max_seq_length`.
    """
    student = STUDENTS[kind]
    torch.manual_seed(seed)
    transformers.AutoModel.from_config(student.config(shape)).save_pretrained(folder)
    student.write_tokenizer(folder, shape.vocabulary)
    head = torch.nn.Linear(shape.width, shape.embedding_dim)
    _write_modules(folder, head.state_dict(), length)
    return folder


def _write_modules(folder: Path, head: Mapping[str, torch.Tensor], length: int) -> None:
    """What sentence-transformers writes around a transformer: mean pooling, and a Dense layer."""
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense"}
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
            for i, (name, path) in enumerate(paths.items())
        ],
    )
    out_features, in_features = head["weight"].shape
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": in_features,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    write_json(
        folder / "2_Dense" / "config.json",
        {
            "in_features": in_features,
            "out_features": out_features,
            "bias": "bias" in head,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    # The published checkpoint carries this pickle; newer ones carry safetensors.
    torch.save(
        {f"linear.{name}": tensor for name, tensor in head.items()}, folder / "2_Dense" / "pytorch_model.bin"
    )


def write_m_clip_bert(folder: Path, shape: TextShape = TINY_TEXT, seed: int = 2) -> Path:
    """M-CLIP's M-BERT layout: a BERT, and its linear head as a pickle of NumPy arrays."""
    torch.manual_seed(seed)
    transformers.BertModel(_bert(transformers.BertConfig, shape)).save_pretrained(folder)
    write_wordpiece(folder, shape.vocabulary, with_fast_file=False)
    weight = torch.randn(shape.width, shape.embedding_dim) / shape.width**0.5
    bias = torch.randn(shape.embedding_dim) / 10
    with (folder / "M-BERT-Base-69-ViT Linear Weights.pkl").open("wb") as stream:
        pickle.dump([weight.numpy(), bias.numpy()], stream)
    return folder


def write_m_clip_xlm_roberta(folder: Path, shape: TextShape = TINY_TEXT, seed: int = 3) -> Path:
    """M-CLIP's XLM-R layout: transformer and LinearTransformation in one state dict."""
    torch.manual_seed(seed)
    kind = transformers.XLMRobertaConfig
    config = _bert(kind, shape, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5)
    model = transformers.XLMRobertaModel(config)
    head = torch.nn.Linear(shape.width, shape.embedding_dim)
    state = {f"transformer.{k}": v for k, v in model.state_dict().items()}
    state |= {f"LinearTransformation.{k}": v for k, v in head.state_dict().items()}
    folder.mkdir(parents=True)
    # The published file is a torch pickle of tensors.
    torch.save({k: v.contiguous() for k, v in state.items()}, folder / "pytorch_model.bin")
    write_json(
        folder / "config.json",
        {
            "architectures": ["MultilingualCLIP"],
            "model_type": "M-CLIP",
            "modelBase": "tiny-xlm-roberta",
            "numDims": shape.embedding_dim,
            "transformerDimensions": shape.width,
        },
    )
    # The published repository names its base by hub id only; its config lies in the hub's cache of that
    # base. A local checkpoint carries the base's config beside it.
    config.save_pretrained(folder / "tiny-xlm-roberta")
    write_unigram(folder, shape.vocabulary)
    return folder


def write_pair(folder: Path, *, tiny: bool) -> tuple[Path, Path]:
    """CLIP ViT-B/32 and the multilingual DistilBERT, full size or tiny, as folders of `folder`."""
    clip, text = (TINY_CLIP, TINY_TEXT) if tiny else (VIT_B_32, DISTILBERT_MULTILINGUAL)
    return write_clip(folder / "clip-ViT-B-32", clip), write_multilingual(folder / "multilingual", text)


def _write_clip_model(folder: Path, shape: ClipShape, seed: int) -> None:
    torch.manual_seed(seed)
    vocabulary = write_clip_tokenizer(folder, shape.vocabulary, shape.context_length)
    eos = vocabulary["<|endoftext|>"]
    config = transformers.CLIPConfig(
        text_config={
            **shape.text_config,
            "projection_dim": shape.projection_dim,
            # The published config names 2 for historical reasons: pooling is at the highest token id.
            "eos_token_id": 2,
            "bos_token_id": 0,
            "pad_token_id": 1,
        },
        vision_config={
            **shape.vision_config,
            "projection_dim": shape.projection_dim,
        },
        projection_dim=shape.projection_dim,
        logit_scale_init_value=4.6052,
    )
    assert eos == shape.vocabulary - 1 or shape is not TINY_CLIP
    transformers.CLIPModel(config).save_pretrained(folder)
    write_json(
        folder / "preprocessor_config.json",
        {
            "crop_size": shape.image_size,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "resample": 3,
            "size": shape.image_size,
        },
    )
