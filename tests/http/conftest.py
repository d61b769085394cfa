"""One real TorchServe for all tests of this folder, on free ports, serving the tiny pair."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from clipserve.client import Client
from export_scripts.archive import build_archives
from serving.server import Server, private_server
from tests.http.api import Api

READY_SECONDS = 240.0  # generous: the machine may be busy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("server")


@pytest.fixture(scope="session")
def archives(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with both encoders and the three archives; to be read, never written."""
    # One thread a worker, as in production; else a busy machine stalls at every OpenMP barrier.
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = tmp_path_factory.mktemp("archives")
    for path in [*store.glob("*.pt"), *store.glob("*.json")]:
        shutil.copyfile(path, folder / path.name)
    build_archives(folder, None, None)
    return folder


@pytest.fixture(scope="session")
def server(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A running server; after the last test it must go without leaving a process."""
    server = private_server(archives, tmp_path_factory.mktemp("server"))
    server.start()
    try:
        server.wait_ready(READY_SECONDS)
        family = server.processes()
        yield server
    finally:
        server.stop()
    assert not [p for p in family if p.is_running()]


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def api(server: Server) -> Iterator[Api]:
    """Plain HTTP to the server, without the client's help."""
    with httpx.Client(timeout=60) as http:
        yield Api(server, http)
