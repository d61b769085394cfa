"""Reaches a Ray cluster, or starts one on this machine.

Imports nothing of LanceDB, whose threads would not outlive the processes that Ray forks here.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

import clipserve
import pictures
import scale
from pictures.paths import printable
from scale.bulk.errors import BulkError
from scale.ray_files import keep_token_private

CONNECT_SECONDS = 5


def connect(address: str | None, object_store_bytes: int) -> None:
    """Connects to a Ray cluster, or starts one on this machine.

    The rooms' code travels with the job, so that every node runs the driver's.

    Args:
        address: `HOST:PORT`; `auto` for the cluster that this machine is of; None for one of its own.
        object_store_bytes: of that; of another cluster its nodes decide.

    Raises:
        BulkError: no Ray at that address, or it refuses.
    """
    options: dict[str, Any] = {
        "runtime_env": {
            "py_modules": [str(Path(module.__path__[0])) for module in (clipserve, pictures, scale)]
        },
        "logging_level": "error",
        "log_to_driver": False,
    }
    if address is None:
        # Else Ray ends a task's process that was idle for a second where there are more processes than CPUs,
        # and the next takes seconds to start.
        os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
        keep_token_private()
        options |= {"include_dashboard": False, "object_store_memory": object_store_bytes}
    else:
        if address != "auto":
            _require_reachable(address)
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        where = address or "this machine"
        raise BulkError(
            f"{where}: Ray cannot be used there: {first_line(error)}; if it is up, its token may not be that "
            "of RAY_AUTH_TOKEN_PATH (~/.ray/auth_token), or its versions of Ray and Python not this machine's"
        ) from error


def _require_reachable(address: str) -> None:
    # Ray itself tries for half a minute.
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise BulkError(
            f"{printable(address)}: no Ray there ({error}); start one: ray start --head, "
            "or leave the address out to use this machine alone"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text; Ray's go on for pages."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
