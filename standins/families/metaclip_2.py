"""Writes MetaCLIP 2 worldwide as transformers saves it, with seeded random weights."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from standins.checkpoints import CLIP_MEAN, CLIP_STD, ClipShape
from standins.tokenizers import write_json, write_unigram

TINY = ClipShape(48, 16, 64, 2, 2, 48, 2, 2, 32, 2000, 77)
# facebook/metaclip-2-worldwide-b32: XLM-V's 901,629 tokens.
B_32 = ClipShape(224, 32, 768, 12, 12, 512, 12, 8, 512, 901629, 77)


def write_metaclip_2(folder: Path, shape: ClipShape = TINY, seed: int = 6) -> Path:
    """A MetaCLIP 2; its processor names a height and a width, and so squashes before it crops nothing."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    # XLM-V's tokenizer is XLM-R's with a larger vocabulary, and says a length that no position is for.
    write_unigram(folder, shape.vocabulary)
    config = transformers.MetaClip2Config(
        text_config={
            **shape.text_config,
            "projection_dim": shape.projection_dim,
            # Really the end token, where a CLIP's 2 is not.
            "eos_token_id": 2,
        },
        vision_config={**shape.vision_config, "projection_dim": shape.projection_dim},
        projection_dim=shape.projection_dim,
        logit_scale_init_value=4.6052,
    )
    transformers.MetaClip2Model(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags:\n- vision\n---\n\n# A stand-in\n")
    size = {"height": shape.image_size, "width": shape.image_size}
    write_json(
        folder / "preprocessor_config.json",
        {
            "crop_size": size,
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": CLIP_MEAN,
            "image_processor_type": "CLIPImageProcessor",
            "image_std": CLIP_STD,
            "processor_class": "CLIPProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": size,
        },
    )
    return folder


PAIRS = {"metaclip-2": write_metaclip_2}
