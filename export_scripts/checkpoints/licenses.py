"""What a checkpoint's weights may be used for, as far as their publisher says so beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load

from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.models import NOT_COMMERCIAL, read_models

MODEL_CARD = "README.md"

# `license: other` stands for a text whose name is said apart.
OTHER = "other"


def license_of(folder: Path, given: str) -> str | None:
    """`EncoderSpec.license` of a checkpoint: from its model card, else from the table of `make models`.

    Args:
        given: its name on the hub. A folder's name is nobody's word for what is in it.
    """
    said = _of_model_card(folder / MODEL_CARD)
    if said is not None or Path(given).is_dir():
        return said
    return next((model.license for model in read_models() if model.name == given), None)


def _of_model_card(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        data: dict[str, Any] = metadata_load(path) or {}
    except (ValueError, OSError, yaml.YAMLError):
        # Prose in another form says nothing.
        return None
    said = data.get("license")
    if said == OTHER:
        said = data.get("license_name") or said
    # One weights file may come under several.
    names = said if isinstance(said, list) else [said]
    return ", ".join(name.strip() for name in names if isinstance(name, str) and name.strip()) or None


def license_lines(pair: CheckpointPair) -> list[str]:
    """What is said of a pair's licences, a line each: which, and plainly where commercial use is excluded."""
    checkpoints = {checkpoint.name: checkpoint.license for checkpoint in (pair.image, pair.text)}
    lines = []
    for name, found in checkpoints.items():
        if found is None:
            lines.append(f"licence of {name}: unknown; ask its publisher before you serve it")
        elif NOT_COMMERCIAL.search(found):
            lines.append(f"licence of {name}: {found}: NOT FOR COMMERCIAL USE")
        else:
            lines.append(f"licence of {name}: {found}")
    return lines
