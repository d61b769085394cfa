"""As on a cluster: Ray Serve's own proxy before the ingress, and replicas that come and go.

`make serve-ray` has neither, so that `tests/http --server ray` does not see them.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs .venv-scale: make test-scale", allow_module_level=True)

import httpx
import numpy as np

from clipserve.client import Client, KeyFile, Management
from serving.local import ROOT, free_ports

STORE = ROOT / "model_store" / "demo"
PICTURE = ROOT / "demo" / "pictures" / "two-dogs-in-the-snow.jpg"

# What a Serve config says under `args` and `http_options`, on a Ray of its own.
SERVER = """
import sys
from pathlib import Path
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from scale.ray_files import keep_token_private, private_files
from scale.serve.application import AppArguments, app
from scale.serve.tokens import write_key_file

folder, store, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
key_file = folder / "key_file.json"
write_key_file(key_file)
keep_token_private()
with private_files(folder) as inner:
    quiet = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
    ray.init(num_cpus=8, _temp_dir=str(inner), **quiet)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    arguments = AppArguments(store=store, key_file=key_file, max_replicas=2)
    serve.run(app(arguments), name="clipserve")
    print("ready", flush=True)
    sys.stdin.read()
    ray.shutdown()
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not pytest's folder: Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    environment = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    with (
        (folder / "stderr.log").open("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-c", SERVER, folder, STORE, str(port)],
            cwd=ROOT,
            env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        told = process.stdout.readline()
        if told != "ready\n":
            process.wait()
        assert told == "ready\n", (folder / "stderr.log").read_text()
        yield f"http://127.0.0.1:{port}"
        process.stdin.close()
        process.wait()


@pytest.fixture(scope="module")
def client(url: str, folder: Path) -> Iterator[Client]:
    with Client(url, url, KeyFile(folder / "key_file.json")) as client:
        Management(client).wait_ready(120)
        yield client


def test_each_gets_his_own_answer(client: Client) -> None:
    texts = [f"counted number {i}" for i in range(40)]
    expected = client.embed_texts(texts)
    with ThreadPoolExecutor(40) as pool:
        found = list(pool.map(lambda text: client.embed_texts([text])[0], texts))
    np.testing.assert_allclose(np.stack(found), expected, rtol=0, atol=2e-6)
    assert client.embed_images([PICTURE]).shape == (1, 512)


def test_who_asks_is_known_by_one_id(url: str, client: Client) -> None:
    answer = httpx.get(f"{url}/openapi.json", headers={"X-Request-Id": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    assert len(httpx.get(f"{url}/openapi.json").headers.get_list("x-request-id")) == 1


def test_its_doors(url: str, client: Client) -> None:
    assert httpx.get(f"{url}/-/healthz").status_code == 200
    refused = httpx.post(f"{url}/v1/embeddings", json={"input": "a dog"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
