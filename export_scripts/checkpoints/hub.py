"""Where a checkpoint lies: in the repository, in a folder of the user's, or in the hub library's cache."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from clipserve.errors import ExportError

DEMO = "demo"
DEMO_IMAGE = Path(__file__).parents[2] / "demo" / "checkpoint" / "clip"
DEMO_TEXT = Path(__file__).parents[2] / "demo" / "checkpoint" / "multilingual"

# On the hub, of the names without a slash.
DEFAULT_OWNER = "sentence-transformers/"

# Formats of the same weights that are never read here.
UNUSED_FILES = ["onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.ot", "clip_cn_*.pt"]
PICKLED = "pytorch_model*.bin"
# What the names of open_clip's own weights begin with, beside which others may lie.
OPEN_CLIP = "open_clip_"


def short_name(given: str) -> str:
    """A name on the hub without its default owner: both ways to write it are one. A folder as given."""
    return given if Path(given).is_dir() else given.removeprefix(DEFAULT_OWNER)


def spec_name(given: str) -> str:
    """What a spec calls a checkpoint: its name on the hub, or a folder's last part and no path."""
    return Path(given).resolve().name if Path(given).is_dir() else given


def checkpoint_folder(name: str, demo: Path) -> Path:
    """The local folder of a checkpoint, through the hub's cache where `name` is not a folder.

    Args:
        demo: the folder that the name `demo` stands for.

    Raises:
        ExportError: there is none, or it is out of reach.
    """
    if name == DEMO:
        return demo
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")):
        raise ExportError(f"checkpoint folder {name!r} does not exist; give a folder or a hub name")
    return hub_folder(name if "/" in name else DEFAULT_OWNER + name)


def hub_folder(name: str, *, only: str | None = None) -> Path:
    """The folder of a hub repository in the hub's cache; with `only` this one file of it is fetched.

    Raises:
        ExportError: there is no such repository, or it is out of reach and not in the cache.
    """
    unused = UNUSED_FILES
    try:
        if only is None:
            folder = Path(snapshot_download(name, ignore_patterns=[*UNUSED_FILES, f"*{PICKLED}"]))
            # Of weights that lie there twice, safetensors are read; a pickle is fetched where it is alone.
            twice = {
                path.parent.relative_to(folder) / (OPEN_CLIP * path.name.startswith(OPEN_CLIP) + PICKLED)
                for path in folder.rglob("*.safetensors")
            }
            unused = [*UNUSED_FILES, *sorted(path.as_posix() for path in twice)]
        return Path(snapshot_download(name, ignore_patterns=unused, allow_patterns=only))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        # One sentence: the library's own messages are paragraphs about its cache.
        reason = type(error).__name__
        raise ExportError(
            f"checkpoint {name!r} is neither a folder nor to be had from the model hub ({reason}); check "
            "the name and the network, or run 'make export MODEL=demo', or give a local folder as MODEL"
        ) from error
