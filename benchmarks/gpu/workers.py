"""Workers as TorchServe sets them up, without TorchServe: the handler of every archive, and a context."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from clipserve.archive_files import SUMS_FILE, file_sha256
from clipserve.store import EncoderFile
from clipserve.torchserve_adapter import TorchServeHandler

HANDLERS = Path(__file__).parents[2] / "handlers"


class _Metrics:
    """TorchServe's metrics, which nobody reads here."""

    def get_metric(self, name: str) -> _Metrics:
        return self

    def add_or_update(self, value: float, dimensions: Sequence[str]) -> None:
        pass


@dataclass
class Context:
    """What our handlers use of TorchServe's `ts.context.Context`.

    Attributes:
        model_dir: the unpacked archive.
        gpu_id: that the frontend gave the worker; None: the CPU.
        model_yaml_config: the archive's YAML.
        model_name: that it was archived under.
        content_types: of the requests of a batch.
        statuses: that the handler has set, by the request's place; else 200.
    """

    model_dir: Path
    gpu_id: int | None
    model_yaml_config: dict[str, Any]
    model_name: str
    content_types: list[str] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    metrics: _Metrics = field(default_factory=_Metrics)

    @property
    def manifest(self) -> dict[str, Any]:
        """See `ts.context.Context`, as the rest."""
        return {"model": {"modelName": self.model_name}}

    @property
    def system_properties(self) -> dict[str, Any]:
        """The folder and the GPU."""
        return {"model_dir": str(self.model_dir), "gpu_id": self.gpu_id}

    def get_request_id(self, index: int) -> str:
        """A name of the request."""
        return f"request-{index}"

    def get_request_header(self, index: int, key: str) -> str | None:
        """One header."""
        return self.get_all_request_header(index).get(key)

    def get_all_request_header(self, index: int) -> dict[str, str]:
        """The only one."""
        return {"Content-Type": self.content_types[index]}

    def set_response_status(self, code: int, phrase: str, index: int) -> None:
        """What the caller gets."""
        self.statuses[index] = code

    def set_response_content_type(self, index: int, value: str) -> None:
        """Nobody asks."""

    def set_response_header(self, index: int, name: str, value: str) -> None:
        """Nobody asks."""


@dataclass(frozen=True)
class Answer:
    """One request's.

    Attributes:
        body: JSON.
    """

    status: int
    body: Any


@dataclass(frozen=True)
class Worker:
    """A handler that has been initialised as TorchServe does it.

    Attributes:
        context: of its start.
    """

    handler: TorchServeHandler
    context: Context

    def ask(self, *requests: Any) -> list[Answer]:
        """A batch: bytes of a picture, or what goes into JSON; each request's answer."""
        bodies = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in requests]
        types = ["image/jpeg" if isinstance(r, bytes) else "application/json" for r in requests]
        context = replace(self.context, content_types=types, statuses={})
        rows = [[{"name": "body", "contentType": "", "value": body}] for body in bodies]
        replies = self.handler.handle(rows, context)
        return [Answer(context.statuses.get(i, 200), json.loads(reply)) for i, reply in enumerate(replies)]


def unpacked(folder: Path, files: Sequence[EncoderFile]) -> Path:
    """A folder as TorchServe unpacks an archive: encoder files, and the sums that a worker checks."""
    folder.mkdir(parents=True)
    for file in files:
        try:
            os.link(file.path, folder / file.path.name)
        except OSError:
            shutil.copyfile(file.path, folder / file.path.name)
    sums = [f"{file_sha256(folder / file.path.name)}  {file.path.name}" for file in files]
    (folder / SUMS_FILE).write_text("\n".join(sums) + "\n", encoding="utf-8")
    return folder


def start(endpoint: str, folder: Path, gpu_id: int | None, **settings: Any) -> Worker:
    """Starts a worker of an endpoint on an unpacked archive.

    Args:
        settings: of the `handler` section that differ from the project's.

    Raises:
        SpecError: the worker refuses what it is to run.
        SettingsError: it refuses where.
    """
    config = yaml.safe_load((HANDLERS / f"{endpoint}.yaml").read_text(encoding="utf-8"))
    config["handler"] |= settings
    handler = TorchServeHandler()
    context = Context(folder, gpu_id, config, endpoint)
    handler.initialize(context)
    return Worker(handler, context)
