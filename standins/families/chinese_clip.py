"""Writes Chinese-CLIP as it is published, with seeded random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

from standins.checkpoints import CLIP_MEAN, CLIP_STD, ClipShape
from standins.tokenizers import write_json, write_wordpiece

TINY = ClipShape(48, 16, 64, 2, 2, 48, 2, 2, 32, 2000, 140)
# OFA-Sys/chinese-clip-vit-base-patch16
B_16 = ClipShape(224, 16, 768, 12, 12, 768, 12, 12, 512, 21128, 512)


def write_chinese_clip(folder: Path, shape: ClipShape = TINY, seed: int = 7) -> Path:
    """A Chinese-CLIP: a torch pickle of tensors with older transformers' position ids, and `vocab.txt` alone.

    Nothing says that texts lower their case or how long they may be.
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_wordpiece(folder, shape.vocabulary, with_fast_file=False)
    (folder / "tokenizer_config.json").unlink()
    config = transformers.ChineseCLIPConfig(
        text_config=shape.text_config,
        vision_config={**shape.vision_config, "projection_dim": shape.projection_dim},
        projection_dim=shape.projection_dim,
        logit_scale_init_value=4.6052,
    )
    model = transformers.ChineseCLIPModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Zeros would hide what is left out.
            if name.endswith("bias"):
                parameter.normal_(std=0.05)
            # As drawn, with 0.02, the first token hardly sees the others; so a layer keeps its input's size.
            elif name.startswith("text_model.encoder") and "LayerNorm" not in name:
                parameter.mul_(55 / shape.text_width**0.5)
    patches = (shape.image_size // shape.patch_size) ** 2
    torch.save(
        model.state_dict()
        | {
            "text_model.embeddings.position_ids": torch.arange(shape.context_length)[None],
            "vision_model.embeddings.position_ids": torch.arange(patches + 1)[None],
        },
        folder / "pytorch_model.bin",
    )
    said = json.loads(config.to_json_string())
    said["text_config"] |= {
        "directionality": "bidi",
        "eos_token_id": 2,
        "pooler_type": "first_token_transform",
    }
    write_json(folder / "config.json", said | {"architectures": ["ChineseCLIPModel"]})
    write_json(
        folder / "preprocessor_config.json",
        {
            "do_center_crop": False,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "ChineseCLIPFeatureExtractor",
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "resample": 3,
            "size": {"height": shape.image_size, "width": shape.image_size},
        },
    )
    return folder


PAIRS = {"chinese-clip": write_chinese_clip}
