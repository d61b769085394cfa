"""Which of transformers' models there are encoders for."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from clipserve.errors import ExportError
from export_scripts.encoders.bert import BERT_LIKES
from export_scripts.encoders.clip import CLIP
from export_scripts.encoders.towers import Family

FAMILIES: dict[type[nn.Module], Family] = {family.model: family for family in (CLIP,)}


def check_supported(transformer: PreTrainedModel) -> None:
    """Checks that there is an encoder for a transformer and its settings.

    Raises:
        ExportError: there is none.
    """
    models = [*FAMILIES, *BERT_LIKES]
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
