"""Which of transformers' models there are encoders for."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from transformers import PreTrainedModel

from clipserve.errors import ExportError
from export_scripts import encoders
from export_scripts.encoders.bert import BERT_LIKES
from export_scripts.encoders.towers import Family

_FILES = (f"{encoders.__name__}.{module.name}" for module in iter_modules(encoders.__path__))

# What the files of this folder call FAMILY, by the type in a configuration. Those without one are parts.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for file in _FILES
    if file != __name__ and (family := getattr(import_module(file), "FAMILY", None)) is not None
}

# Types that look supported and are not: why, and what to take.
REFUSED = {
    "siglip2": "SigLIP 2 in its NaFlex form cuts pictures of any shape into patches, and a trace of it gives "
    "wrong vectors at shapes that it was not traced with; take one of a fixed resolution, such as "
    "google/siglip2-base-patch16-224",
    "altclip": "AltCLIP is not supported; of the multilingual ones SigLIP 2 and MetaCLIP 2 are",
    "vision-text-dual-encoder": "a VisionTextDualEncoder joins any two models, and only families are "
    "supported whose two encoders are known",
    "aimv2": "AIMv2 is not supported; supported in its place are SigLIP 2 and MetaCLIP 2",
    **dict.fromkeys(
        ("colpali", "colqwen2", "colmodernvbert"),
        "a late-interaction model gives many vectors for a picture or a text, where one is served here",
    ),
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "embedding_gemma2"),
        "a language model that embeds pictures and texts in one is not two encoders of one embedding space, "
        "which are what is exported here",
    ),
    "jina_clip": "jina-clip runs code from its repository, which is not done here",
}


def check_supported(transformer: PreTrainedModel) -> None:
    """Checks that there is an encoder for a transformer and its settings.

    Raises:
        ExportError: there is none.
    """
    alone = (names.model for names in BERT_LIKES.values() if names.alone)
    models = [*(family.model for family in FAMILIES.values()), *alone]
    if type(transformer) not in models:
        raise ExportError(
            f"text transformer {type(transformer).__name__} is not supported; supported are "
            f"{', '.join(model.__name__ for model in models)}"
        )
    config = transformer.config
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        # transformers 5 has dropped them: it would load the checkpoint and leave its distances out.
        raise ExportError(f"position_embedding_type {positions!r} is not supported; supported is 'absolute'")
    if getattr(config, "is_decoder", False):
        raise ExportError("is_decoder true is not supported: attention is masked; supported is an encoder")


def no_image_encoder(folder: Path) -> ExportError:
    """The refusal of a checkpoint that has a text encoder only."""
    *names, last = (family.name for family in FAMILIES.values())
    return ExportError(f"{folder}: not a {', '.join(names)} or {last} checkpoint, so it has no image encoder")
