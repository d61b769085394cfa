"""What a server says of an endpoint of its own: its workers, and the encoders that they serve."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from clipserve.encoder_spec import EncoderSpec
from clipserve.errors import ServerError

READY = "READY"


@dataclass(frozen=True)
class Worker:
    """A worker of an endpoint.

    Attributes:
        pid: its process id; not above 0 where it has none yet.
        status: `READY`, or why it is not.
    """

    pid: int
    status: str


@dataclass(frozen=True)
class EndpointStatus:
    """What a server says of one endpoint, whichever server it is.

    Attributes:
        workers: all, ready or not.
        min_workers: how many it should have.
        encoders: the specs of what it serves, as JSON objects; empty where no worker was asked.
    """

    workers: Sequence[Worker]
    min_workers: int
    encoders: Sequence[Mapping[str, Any]] = ()

    def to_json(self) -> dict[str, Any]:
        """As a server of ours answers."""
        return {
            "workers": [{"pid": worker.pid, "status": worker.status} for worker in self.workers],
            "min_workers": self.min_workers,
            "encoders": [*self.encoders],
        }

    @classmethod
    def from_json(cls, answer: Any, endpoint: str) -> EndpointStatus:
        """Reads what `to_json` wrote, or what TorchServe says of a model, which is a list.

        Raises:
            ServerError: it is neither.
        """
        try:
            if isinstance(answer, list):
                [model] = answer
                # What the worker itself says is a sentence where it failed.
                metadata = model.get("customizedMetadata")
                told = metadata["encoders"] if isinstance(metadata, dict) else ()
                encoders = [_with_nulls(EncoderSpec, spec) for spec in told]
                least = model["minWorkers"]
            else:
                model, encoders, least = answer, answer["encoders"], answer["min_workers"]
            workers = [Worker(int(w["pid"]), str(w["status"])) for w in model["workers"]]
            return cls(workers, int(least), encoders)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(f"{endpoint}: its server does not say what runs ({error!r})") from error


def _with_nulls(cls: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object of a dataclass with its null fields, which TorchServe does not pass on."""
    found = dict(told)
    for name, hint in get_type_hints(cls).items():
        choices = get_args(hint)
        parts = [choice for choice in (hint, *choices) if dataclasses.is_dataclass(choice)]
        if name not in found and type(None) in choices:
            found[name] = None
        elif parts and isinstance(found.get(name), dict):
            found[name] = _with_nulls(parts[0], found[name])
    return found
