"""Clients that others wrote, unchanged, through OpenAI's door: `make test-clients`.

Each is given the server's address and key, nothing else; it gets the vectors of `clip_text` and `clip_image`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipserve.encoder_spec import FloatArray
from serving.local import ROOT
from tests.http.api import Api, b64, picture, vectors

HERE = Path(__file__).parent / "clients"
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
OPENAI_JS = "openai@7.59.0"

TEXTS = ["két kutya a hóban", "two dogs in the snow", "雪の中の二匹の犬"]
PICTURES = [picture(seed, format="JPEG") for seed in (1, 2)]

installed = pytest.mark.skipif(not PYTHON.is_file(), reason="no .venv-clients; run 'make test-clients'")


@pytest.fixture
def url(api: Api) -> str:
    """What a user puts in the place of `https://api.openai.com/v1`."""
    return f"{api.url}/predictions/v1"


@pytest.fixture
def expected(api: Api) -> FloatArray:
    texts = vectors(api.post_json("clip_text", {"input": TEXTS}))
    pictures = vectors(api.post_json("clip_image", {"input": [b64(data) for data in PICTURES]}))
    return np.stack([texts[0], pictures[0], texts[1], pictures[1], texts[2]])


def uri(data: bytes) -> str:
    return f"data:image/jpeg;base64,{b64(data)}"


def asked(api: Api, url: str) -> str:
    items = [TEXTS[0], uri(PICTURES[0]), TEXTS[1], uri(PICTURES[1]), TEXTS[2]]
    return json.dumps(
        {"url": url, "key": api.server.key_file.token("inference"), "model": "clip", "items": items}
    )


def run(command: list[Any], given: str, folder: Path = HERE) -> FloatArray:
    # Of the environment only what programs need: no key, proxy or address of whoever runs the tests.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=kept, input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return np.asarray(json.loads(done.stdout), np.float32)


@installed
@pytest.mark.parametrize(
    "client", ["openai", "openai, parts", "litellm", "langchain", "llama-index", "infinity"]
)
def test_python(api: Api, url: str, expected: FloatArray, client: str) -> None:
    found = run([PYTHON, HERE / "ask.py", client], asked(api, url))
    np.testing.assert_array_equal(found, expected)


@installed
@pytest.mark.ray_only("TorchServe has this path behind the proxy only, see test_deployment.py")
def test_python_at_the_short_path(api: Api, expected: FloatArray) -> None:
    found = run([PYTHON, HERE / "ask.py", "openai"], asked(api, f"{api.url}/v1"))
    np.testing.assert_array_equal(found, expected)


@installed
def test_javascript(api: Api, url: str, expected: FloatArray, tmp_path: Path) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm: apt-get install nodejs npm")
    install = [
        "npm",
        "install",
        "--no-save",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--silent",
        OPENAI_JS,
    ]
    subprocess.run(install, cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)
    found = run(["node", HERE / "ask.mjs"], asked(api, url), tmp_path)
    np.testing.assert_array_equal(found, expected)


def test_curl(api: Api, url: str, expected: FloatArray, tmp_path: Path) -> None:
    given = json.loads(asked(api, url))
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"input": given["items"]}))
    head = tmp_path / "head"
    head.write_text(f"Authorization: Bearer {given['key']}\nContent-Type: application/json\n")
    line = [
        "curl",
        "--silent",
        "--fail-with-body",
        "--noproxy",
        "*",
        "--header",
        f"@{head}",
        "--data",
        f"@{body}",
    ]
    done = subprocess.run([*line, f"{url}/embeddings"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    found = [entry["embedding"] for entry in json.loads(done.stdout)["data"]]
    np.testing.assert_array_equal(np.asarray(found, np.float32), expected)
