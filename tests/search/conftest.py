"""Fixtures of the search tests: one real TorchServe, in its own environment, serving a tiny pair.

These tests run in `.venv-search` (`make test-search`), which has LanceDB, Starlette and Playwright but no
PyTorch; elsewhere they are not collected.
"""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from clipserve.client import Client
from serving.local import ROOT
from serving.running import TORCHSERVE_PYTHON, RunningServer, running_torchserve

if importlib.util.find_spec("lancedb") is None:
    collect_ignore_glob = ["test_*.py"]


def picture(path: Path, seed: int, size: tuple[int, int] = (96, 64)) -> Path:
    """Writes a picture of coloured patches; every seed gives another."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)
    if path.suffix == ".heic":
        import pillow_heif  # an extra, and other rooms' tests draw with this, too

        pillow_heif.from_pillow(image).save(path, quality=90)
    else:
        image.save(path, quality=90)
    return path


def write_tiny_store(folder: Path) -> Path:
    """Archives of a tiny pair, the same ones each time."""
    subprocess.run([TORCHSERVE_PYTHON, "-m", "standins.tiny_store", folder, "0"], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_torchserve(write_tiny_store(tmp_path_factory.mktemp("store"))) as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as client:
        yield client


def count_embedded(server: RunningServer) -> int:
    """Pictures that a server was asked to embed since its start; a request is a picture."""
    metrics = httpx.get(f"{server.metrics_url}/metrics", timeout=120, trust_env=False).text
    lines = [line for line in metrics.splitlines() if line.startswith("ts_inference_requests_total")]
    return sum(int(float(line.split()[-1])) for line in lines if 'model_name="clip_image"' in line)


@pytest.fixture
def embedded(server: RunningServer) -> Callable[[], int]:
    """Counts, at the server, the pictures that it embedded since the test began."""
    start = count_embedded(server)
    return lambda: count_embedded(server) - start


def words_for(server: RunningServer) -> list[str]:
    """The command line's words for a server."""
    return [
        *("--url", server.url),
        *("--management-url", server.management_url),
        *("--key-file", server.key_file),
    ]


@pytest.fixture
def arguments(server: RunningServer) -> list[str]:
    return words_for(server)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures in two folders."""
    for number in range(12):
        picture(tmp_path / "pictures" / str(number % 2) / f"{number}.png", number)
    return tmp_path / "pictures"
