"""Ready means: proven. What may not serve says why, and the command line ends with 1."""

from __future__ import annotations

import base64
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from clipserve.client import Client, KeyFile, Management
from clipserve.encoder_spec import EncoderSpec, decode_vector, encode_vector
from clipserve.errors import ServerError
from serving.probe import Readiness, probe_server
from serving.server import Server, private_server
from tests.http.api import AnyServer, picture
from tests.http.conftest import READY_SECONDS
from tests.http.repack import repack


def flip_last_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def other_golden(spec: bytes) -> bytes:
    """A spec whose certificate has another embedding: what weights that compute something else look like."""
    parsed = json.loads(spec)
    golden = parsed["certificate"]["golden"]
    vector = np.frombuffer(base64.b64decode(golden["embedding"]), "<f4")
    golden["embedding"] = encode_vector(np.roll(vector, 1))
    return json.dumps(parsed).encode()


def wrong_weights(mar: Path, target: Path, work: Path) -> Path:
    """The text archive rebuilt around an encoder file that does not compute what it certifies."""
    encoder = extracted(mar, "clip-text-cpu-fp32.pt", work)
    changed = repack(encoder, work / "changed.pt", {"extra/spec.json": other_golden})
    return repack(mar, target, {"clip-text-cpu-fp32.pt": lambda _: changed.read_bytes()}, fix_sums=True)


def extracted(mar: Path, name: str, work: Path) -> Path:
    with zipfile.ZipFile(mar) as archive:
        return Path(archive.extract(name, work))


REASONS = {
    "tampered": "clip-text-cpu-fp32.pt was changed after it was packaged; run 'make archive' again",
    "weights": "the golden input's embedding has cosine",
    "device": "TorchServe gave this worker no GPU",
}


@pytest.fixture(scope="module")
def refused(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of wrong archives only."""
    good = archives / "clip_text.mar"
    work = tmp_path_factory.mktemp("wrong")
    repack(good, work / "tampered.mar", {"clip-text-cpu-fp32.pt": flip_last_bit})
    wrong_weights(good, work / "weights.mar", work)
    device = {"clip_text.yaml": lambda yaml: yaml.replace(b"deviceType: cpu", b"deviceType: gpu")}
    repack(good, work / "device.mar", device, fix_sums=True)
    models = ",".join(f"{name}={name}.mar" for name in REASONS)
    server = private_server(work, work / "server", overrides={"load_models": models})
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.mark.torchserve_only("its archives")
def test_wrong_archives_are_never_ready_and_say_why(refused: Server) -> None:
    said = ""
    while not all(reason in said for reason in REASONS.values()):
        with pytest.raises(ServerError, match="a worker refuses to start: ") as caught:
            refused.wait_ready(READY_SECONDS)
        said = str(caught.value)
    reason = Readiness(refused).reason()
    assert reason is not None
    assert "tampered: 0 of 1 workers are ready" in reason


def test_ready(client: Client) -> None:
    Management(client).check_ready()


def test_a_killed_worker_is_replaced(server: AnyServer, client: Client) -> None:
    before = Management(client).workers("clip_image")[0].pid
    (process,) = [p for p in server.processes() if p.pid == before]
    process.kill()
    process.wait(30)
    # The client's retries are all that its callers need.
    assert client.embed_images([picture(1)]).shape == (1, 32)
    server.wait_ready(READY_SECONDS)
    assert Management(client).workers("clip_image")[0].pid != before


@pytest.fixture
def probe(server: Server) -> Iterator[str]:
    with probe_server(server, "127.0.0.1", 0) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            thread.join()


@pytest.mark.torchserve_only("the probe beside it")
def test_probe(probe: str) -> None:
    assert httpx.get(f"{probe}/ready", timeout=60).json() == {"ok": True}
    assert httpx.get(f"{probe}/live", timeout=60).json() == {"ok": True}
    assert httpx.get(f"{probe}/models", timeout=60).status_code == 404
    assert httpx.post(f"{probe}/ready", timeout=60).status_code == 501


@pytest.mark.torchserve_only("the probe beside it")
def test_the_probe_tells_nothing_but_no(
    archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ATTACKS C5: it told the paths of files to callers without a token; the reason is for its own log."""
    dead = private_server(archives, tmp_path)
    with probe_server(dead, "127.0.0.1", 0) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            for _ in range(3):
                answer = httpx.get(f"http://127.0.0.1:{http.server_address[1]}/ready", timeout=60)
                assert (answer.status_code, answer.content) == (503, b'{"ok": false}')
        finally:
            http.shutdown()
            thread.join()
    assert capsys.readouterr().err == "not ready: TorchServe is not running\n"


@pytest.mark.torchserve_only("the probe beside it")
def test_probe_of_a_server_that_does_not_run(archives: Path, tmp_path: Path) -> None:
    readiness = Readiness(private_server(archives, tmp_path))
    assert readiness.reason() == "TorchServe is not running"
    assert not readiness.alive()


def test_not_ready_with_another_golden_vector(client: Client) -> None:
    """The client compares by itself: a worker that serves other weights than it certifies is found out."""

    class Doubtful(Management):
        def specs(self, endpoint: str) -> list[EncoderSpec]:
            [spec] = super().specs(endpoint)
            golden = spec.certificate.golden
            other = replace(golden, embedding=encode_vector(np.roll(decode_vector(golden.embedding), 1)))
            return [replace(spec, certificate=replace(spec.certificate, golden=other))]

    with pytest.raises(ServerError, match="clip_text: the golden input's embedding has cosine"):
        Doubtful(client).check_ready(["clip_text"])


# ---- tokens


@pytest.fixture
def hasty(archives: Path, tmp_path: Path) -> Iterator[Server]:
    """A server whose tokens expire after three seconds; texts only."""
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(archives / "clip_text.mar", folder)
    overrides = {"load_models": "clip_text=clip_text.mar", "token_expiration_min": "0.05"}
    with private_server(folder, tmp_path / "hasty", overrides=overrides).started(READY_SECONDS) as server:
        yield server


@pytest.mark.torchserve_only("its tokens expire")
def test_an_expired_token_is_refused_and_the_client_renews_it(hasty: Server) -> None:
    url = hasty.properties["inference_address"]
    keys = KeyFile(hasty.folder / "key_file.json")
    first = keys.token("inference")
    stale = httpx.Response(200)
    while stale.status_code == 200:
        stale = httpx.post(
            f"{url}/predictions/clip_text", json={"input": "a"}, headers={"Authorization": f"Bearer {first}"}
        )
    assert stale.status_code == 400
    assert "expired" in stale.json()["message"].lower()
    # Over several expiries, and with two clients that renew in each other's way, no request fails.
    seen = {first}
    with hasty.client() as one, hasty.client() as two, ThreadPoolExecutor(2) as pool:
        while len(seen) < 4:
            for future in [pool.submit(c.embed_texts, ["a", "b"]) for c in (one, two)]:
                assert future.result().shape == (2, 32)
            seen.add(keys.token("inference"))
