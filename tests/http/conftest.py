"""One real server for all tests of this folder, on free ports, serving the tiny pair.

TorchServe, or with `--server ray` Ray Serve: the same requests, the same answers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from clipserve.client import Client
from export_scripts.packages.archive import build_archives
from reliability.ray_server import ray_server
from serving.server import private_server
from tests.http.api import AnyServer, Api

READY_SECONDS = 240.0  # generous: the machine may be busy


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    others = "ray_only" if config.getoption("--server") == "torchserve" else "torchserve_only"
    for item in items:
        if here in item.path.parents:
            item.add_marker("server")
            marker = item.get_closest_marker(others)
            if marker is not None:
                item.add_marker(pytest.mark.skip(reason=f"{others}: {marker.args[0]}"))


@pytest.fixture(scope="session")
def archives(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with both encoders and all archives; to be read, never written."""
    # One thread a worker, as in production; else a busy machine stalls at every OpenMP barrier.
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = tmp_path_factory.mktemp("archives")
    for path in [*store.glob("*.pt"), *store.glob("*.json")]:
        shutil.copyfile(path, folder / path.name)
    build_archives(folder, None, None)
    return folder


@pytest.fixture(scope="session")
def server(
    archives: Path, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[AnyServer]:
    with serving(archives, tmp_path_factory.mktemp("server"), pytestconfig) as server:
        yield server


@contextmanager
def serving(archives: Path, folder: Path, config: pytest.Config) -> Iterator[AnyServer]:
    """A running server; after the last test it must go without leaving a process."""
    if config.getoption("--server") == "ray":
        with ray_server(archives) as ray:
            ray.wait_ready(READY_SECONDS)
            family = ray.processes()
            yield ray
        assert not [p for p in family if p.is_running()]
        return
    with private_server(archives, folder).started(READY_SECONDS) as server:
        family = server.processes()
        yield server
    assert not [p for p in family if p.is_running()]


@pytest.fixture
def client(server: AnyServer) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def api(server: AnyServer) -> Iterator[Api]:
    """Plain HTTP to the server, without the client's help."""
    with httpx.Client(timeout=60) as http:
        yield Api(server, http)
