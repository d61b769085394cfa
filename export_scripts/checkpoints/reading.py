"""Reads a checkpoint's files, damaged or hostile ones too, and says what is wrong in our words."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clipserve.errors import ExportError
from export_scripts.identity import UNUSED_WEIGHTS


@contextmanager
def in_our_words(folder: Path, problem: str) -> Iterator[None]:
    """Turns whatever a library raises over a damaged or hostile checkpoint into one sentence."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        # OSError, KeyError, TypeError, SafetensorError, UnpicklingError and more, over many lines.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportError(f"{folder}: {problem}: {reason}") from error


def check_complete(kind: Any, folder: Path) -> None:
    """Refuses a checkpoint of which transformers would make up weights at random.

    Raises:
        ExportError: a weight is missing.
    """
    _, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(UNUSED_WEIGHTS))
    if missing:
        raise ExportError(f"{folder}: weights are missing: {first_names(missing)}")


def move_to_own_memory(model: nn.Module) -> None:
    """Moves weights that lie in a file's pages to where PyTorch puts its own.

    A product adds its numbers in an order that depends on where they lie, by half a float's last digit: a
    checkpoint's file of another length would give its originals, and so its certificate, other figures.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def first_names(names: Sequence[str]) -> str:
    """The first three, and how many there are."""
    return f"{', '.join(names[:3])} ({len(names)} in all)" if names else "none"


def read_json(path: Path) -> dict[str, Any]:
    """A configuration.

    Raises:
        ExportError: missing, or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: cannot load it, not a readable checkpoint config: {error}") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path}: {type(content).__name__}, should be an object")
    return content


def model_type(folder: Path) -> str | None:
    """Of a `config.json` as transformers and M-CLIP write it.

    Raises:
        ExportError: see `read_json`.
    """
    return read_json(folder / "config.json").get("model_type")


def read_state_dict(folder: Path) -> dict[str, Tensor]:
    """Weights from `model.safetensors`, else from `pytorch_model.bin`, of which only tensors are read.

    Raises:
        ExportError: neither is there, or it is damaged or holds something else.
    """
    safe = folder / "model.safetensors"
    if safe.is_file():
        return load_file(safe)
    path = folder / "pytorch_model.bin"
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ExportError(f"{folder}: neither model.safetensors nor pytorch_model.bin") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ExportError(f"{path}: not a file of tensors: {error}") from error
    return state
