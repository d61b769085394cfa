"""What `make tune` found best for the endpoints of a store: `tuned.json`, which both servers obey."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from clipserve.errors import SettingsError
from clipserve.store import Store

TUNED_FILE = "tuned.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuned:
    """What was found best for one endpoint.

    Attributes:
        files: names of the encoder files to serve.
        workers, threads: processes, and threads of each.
        batch: items of one forward pass, and requests that the server hands over at once.
    """

    files: tuple[str, ...]
    workers: int
    threads: int
    batch: int


def write_tuned(
    store: Path, space_id: str, endpoints: Mapping[str, Tuned], measured: Mapping[str, object]
) -> None:
    """Writes `tuned.json`; `measured` is for people to read."""
    content = {"space_id": space_id, "endpoints": {k: asdict(v) for k, v in endpoints.items()}, **measured}
    part = store / f".{TUNED_FILE}"
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(store / TUNED_FILE)


def read_tuned(encoders: Store) -> dict[str, Tuned]:
    """What was tuned for these encoders, by endpoint; empty where nothing was, or for others than these.

    Raises:
        SettingsError: the file is not readable.
    """
    path = encoders.folder / TUNED_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tuned = {
            name: Tuned(tuple(e["files"]), int(e["workers"]), int(e["threads"]), int(e["batch"]))
            for name, e in content["endpoints"].items()
        }
        space_id = content["space_id"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{path}: not readable ({error!r}); remove it, or run 'make tune'") from error
    names = {file.path.name for file in encoders.encoders}
    if {file.spec.space_id for file in encoders.encoders} != {space_id} or not all(
        set(t.files) <= names for t in tuned.values()
    ):
        logger.warning("%s is of other encoders and not obeyed; 'make tune' makes one for these", path)
        return {}
    return tuned
