"""What the Ray Serve application is told: the files that TorchServe is told by, read once more.

`handlers/NAME.yaml` is an endpoint's (workers, batches, limits), `tuned.json` beside the encoders what `make
tune` found better on this machine, `config.properties` the server's (the size of a request, the length of a
queue). No setting of theirs is written down a second time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from clipserve.endpoints import ENDPOINTS
from clipserve.errors import SettingsError
from clipserve.settings import Settings
from clipserve.store import Store
from clipserve.tuned import Tuned, read_tuned
from serving.local import read_properties


@dataclass(frozen=True)
class EndpointSettings:
    """One endpoint.

    Attributes:
        name: as in its URL.
        batch_size: the most requests of a batch.
        batch_wait_seconds: how long a lone request waits for company.
        min_replicas, max_replicas: workers; more are started as requests wait.
        response_seconds: until a stuck worker is replaced, and its callers are told to ask again.
        handler: what the endpoint itself is told.
        files: names of the encoder files to choose from; None is all of the store.
    """

    name: str
    batch_size: int
    batch_wait_seconds: float
    min_replicas: int
    max_replicas: int
    response_seconds: float
    handler: Settings
    files: tuple[str, ...] | None = None

    def encoders(self, of_model: Store) -> Store:
        """Those that its replicas choose from, among a model's."""
        return of_model if self.files is None else of_model.named(self.files)

    @property
    def calls(self) -> int:
        """Calls that a replica holds: one in the works, and one that waits for it.

        Where replicas come and go, Ray counts calls to tell whether there should be more: it is given two
        batches of single requests, which the replica gathers.
        """
        return 2 if self.min_replicas == self.max_replicas else 2 * self.batch_size

    @property
    def cpus(self) -> int:
        """Cores that Ray sets aside for a replica: with `threads: 0` one, though it uses all of its node."""
        return max(1, self.handler.threads)


@dataclass(frozen=True)
class ServerSettings:
    """What holds for all endpoints.

    Attributes:
        queue: requests that may wait for one endpoint; more are told to come back (503).
        max_bytes: of a request's body.
    """

    queue: int
    max_bytes: int


def read_endpoints(folder: Path, encoders: Store, device: str) -> list[EndpointSettings]:
    """The settings of all endpoints.

    Args:
        folder: with a `NAME.yaml` for each.
        encoders: of the model to be served, and what was tuned for them.
        device: `cpu` or `cuda`; what was tuned for the other does not count.

    Raises:
        SettingsError: a file is missing, is not readable, or lacks a setting.
    """
    tuned = read_tuned(encoders.where(lambda spec: spec.device == device))
    return [_endpoint(name, folder / f"{name}.yaml", tuned.get(name)) for name in ENDPOINTS]


def _endpoint(name: str, path: Path, tuned: Tuned | None) -> EndpointSettings:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise SettingsError(f"{path}: holds no settings")
    settings = EndpointSettings(
        name=name,
        batch_size=_number(config, "batchSize", path),
        batch_wait_seconds=_number(config, "maxBatchDelay", path) / 1000,
        min_replicas=_number(config, "minWorkers", path),
        max_replicas=_number(config, "maxWorkers", path),
        response_seconds=_number(config, "responseTimeout", path),
        handler=Settings.from_mapping(config.get("handler") or {}),
    )
    if tuned is None:
        return settings
    return replace(
        settings,
        batch_size=tuned.batch,
        min_replicas=tuned.workers,
        max_replicas=tuned.workers,
        handler=replace(settings.handler, threads=tuned.threads, max_batch=tuned.batch),
        files=tuned.files,
    )


def read_server(path: Path) -> ServerSettings:
    """The settings of the server.

    Args:
        path: `config.properties`.

    Raises:
        SettingsError: the file is missing or lacks a setting.
    """
    try:
        properties: dict[str, Any] = dict(read_properties(path))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error
    for name, value in properties.items():
        if value.isdecimal():
            properties[name] = int(value)
    return ServerSettings(
        queue=_number(properties, "job_queue_size", path),
        max_bytes=_number(properties, "max_request_size", path),
    )


def _number(values: dict[str, Any], key: str, path: Path) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingsError(f"{path}: {key} is {value!r}, should be a whole number >= 1")
    return value
