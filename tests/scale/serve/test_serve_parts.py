"""The parts of the Ray Serve application, each by itself."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import re
import shutil
import time
import zipfile
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

if importlib.util.find_spec("python_multipart") is None:
    pytest.skip("needs .venv-scale: make test-scale", allow_module_level=True)

import numpy as np
from ray.serve._private.build_app import build_app

from clipserve.encoder_spec import SPEC_FILE, decode_vector, encode_vector, read_spec
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import RequestError, SettingsError, SpecError
from clipserve.store import Store
from clipserve.tuned import Tuned, write_tuned
from clipserve.wire.rows import JSON, MAX_PARTS, OCTETS, Part, Row
from scale.serve.application import AppArguments, app, read_model
from scale.serve.multipart import multipart_parts
from scale.serve.replica import Replica
from scale.serve.settings import EndpointSettings, read_endpoints, read_server
from serving.local import CONFIG, ROOT
from tests.http.repack import repack

STORE = ROOT / "model_store" / "demo"
HANDLERS = ROOT / "handlers"
NO_ENCODERS = Store(HANDLERS, ())


@pytest.fixture
def text_settings() -> EndpointSettings:
    return next(e for e in read_endpoints(HANDLERS, NO_ENCODERS, "cpu") if e.name == "clip_text")


# ---- settings


def test_settings_are_those_of_torchserves_files() -> None:
    endpoints = read_endpoints(HANDLERS, NO_ENCODERS, "cpu")
    assert [e.name for e in endpoints] == list(ENDPOINTS)
    for endpoint in endpoints:
        text = (HANDLERS / f"{endpoint.name}.yaml").read_text()
        numbers = {name: int(value) for name, value in re.findall(r"^(\w+): (\d+)", text, re.MULTILINE)}
        assert numbers == {
            "minWorkers": endpoint.min_replicas,
            "maxWorkers": endpoint.max_replicas,
            "batchSize": endpoint.batch_size,
            "maxBatchDelay": 1000 * endpoint.batch_wait_seconds,
            "responseTimeout": endpoint.response_seconds,
            "startupTimeout": 120,
        }
    server = read_server(CONFIG)
    assert f"job_queue_size={server.queue}\n" in CONFIG.read_text()
    assert f"max_request_size={server.max_bytes}\n" in CONFIG.read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            ("batchSize: 16", "batchSize: 0"),
            r"clip_text\.yaml: batchSize is 0, should be a whole number",
        ),
        (("batchSize: 16", "batchSize: many"), r"batchSize is 'many'"),
        (("minWorkers: 1", ""), r"minWorkers is None"),
        (("threads: 1", "thread: 1"), r"handler setting 'thread' is unknown"),
        (("minWorkers: 1", "minWorkers: ["), r"clip_text\.yaml: cannot be read"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    shutil.copytree(HANDLERS, tmp_path / "handlers")
    path = tmp_path / "handlers" / "clip_text.yaml"
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(SettingsError, match=words):
        read_endpoints(tmp_path / "handlers", NO_ENCODERS, "cpu")


def test_missing_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"clip_image\.yaml: cannot be read"):
        read_endpoints(tmp_path, NO_ENCODERS, "cpu")
    with pytest.raises(SettingsError, match=r"config\.properties: cannot be read"):
        read_server(tmp_path / "config.properties")


def test_what_was_tuned_is_obeyed_as_in_archives(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in STORE.glob("*.pt"):
        os.link(path, tmp_path / path.name)
    encoders = Store.read(tmp_path)
    (image,) = (file.path.name for file in encoders.where(lambda spec: spec.modality == "image").encoders)
    tuned = {"clip_image": Tuned((image,), workers=3, threads=2, batch=5)}
    write_tuned(tmp_path, encoders.encoders[0].spec.space_id, tuned, {})
    arguments = AppArguments(store=tmp_path, key_file=tmp_path / "key_file.json")
    found = {e.name: e for e in read_model(arguments).endpoints}
    of_files = {e.name: e for e in read_endpoints(HANDLERS, NO_ENCODERS, "cpu")}
    ours = found.pop("clip_image")
    assert found == {name: e for name, e in of_files.items() if name != "clip_image"}
    assert (ours.min_replicas, ours.max_replicas, ours.cpus, ours.batch_size) == (3, 3, 2, 5)
    assert ours.handler == replace(of_files["clip_image"].handler, threads=2, max_batch=5)
    assert [file.path.name for file in ours.encoders(encoders).encoders] == [image]
    assert found["clip_text"].encoders(encoders) == encoders
    deployed = build_app(app(arguments), name="clipserve").deployments
    assert {d.name: d.num_replicas for d in deployed}["clip_image"] == 3
    assert not caplog.messages

    # None of its files is for a GPU, where it says nothing of what is best.
    assert read_endpoints(HANDLERS, encoders, "cuda") == list(of_files.values())
    assert "tuned.json is of other encoders and not obeyed" in caplog.text


def test_an_encoder_of_another_space_is_no_pair(tmp_path: Path) -> None:
    for path in STORE.glob("*.pt"):
        os.link(path, tmp_path / path.name)
    Store.read(tmp_path).pair("cpu")
    (text,) = tmp_path.glob("*-text-*.pt")
    source = text.rename(tmp_path / "text")

    def elsewhere(spec: bytes) -> bytes:
        return json.dumps(json.loads(spec) | {"space_id": "0" * 16}).encode()

    repack(source, text, {"extra/spec.json": elsewhere})
    with pytest.raises(SpecError, match="are not of one embedding space"):
        app(AppArguments(store=tmp_path, key_file=tmp_path / "key_file.json"))


# ---- a replica


def test_a_replica_that_computes_something_else_does_not_start(
    tmp_path: Path, text_settings: EndpointSettings
) -> None:
    (good,) = STORE.glob("*-text-*.pt")

    def other_golden(spec: bytes) -> bytes:
        parsed = json.loads(spec)
        golden = parsed["certificate"]["golden"]
        golden["embedding"] = encode_vector(np.roll(decode_vector(golden["embedding"]), 1))
        return json.dumps(parsed).encode()

    repack(good, tmp_path / good.name, {"extra/spec.json": other_golden})
    with pytest.raises(SpecError, match="the golden input's embedding has cosine"):
        Replica(text_settings, str(tmp_path), "cpu")


def test_a_batch_is_answered_row_by_row(text_settings: EndpointSettings) -> None:
    replica = Replica(text_settings, str(STORE), "cpu")
    rows = [Row(json.dumps({"input": text}).encode(), JSON) for text in ("a dog", "a cat on a table")]
    of_calls = asyncio.run(replica._answer_batch([[rows[0], Row(b"{", JSON)], [rows[1]]]))
    assert [len(answers) for answers in of_calls] == [2, 1]
    answers = list(chain.from_iterable(of_calls))
    assert [answer.reply.status for answer in answers] == [200, 400, 200]
    # One batch, one time.
    (timing,) = {answer.timing for answer in answers}
    assert "inference;dur=" in timing
    for row, answer in zip(rows, (answers[0], answers[2]), strict=True):
        ((alone,),) = asyncio.run(replica._answer_batch([[row]]))
        found, expected = (json.loads(a.reply.body)["data"][0]["embedding"] for a in (answer, alone))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_a_stuck_replica_says_so(text_settings: EndpointSettings) -> None:
    class Stuck:
        def handle(self, rows: list[Row]) -> list[object]:
            time.sleep(1)
            raise SpecError("never")

    async def ask() -> None:
        replica = Replica(replace(text_settings, response_seconds=0.01), str(STORE), "cpu")
        replica.check_health()
        replica._worker = Stuck()  # type: ignore[assignment]
        asked = asyncio.ensure_future(replica._answer_batch([[Row(b"a", "text/plain")]]))
        await asyncio.sleep(0.25)
        with pytest.raises(RuntimeError, match=r"clip_text: stuck for 0\.01 s"):
            replica.check_health()
        with pytest.raises(SpecError):
            await asked
        replica.check_health()

    asyncio.run(ask())


# ---- multipart


def part(name: str, content: bytes, *headers: str) -> bytes:
    lines = [f'Content-Disposition: form-data; name="{name}"; filename="f"', *headers]
    return b"--b\r\n" + "\r\n".join(lines).encode() + b"\r\n\r\n" + content + b"\r\n"


TYPE = "multipart/form-data; boundary=b"


def test_parts_come_as_they_are() -> None:
    content = bytes(range(256)) * 8000 + b"\r\n--\r\n--bb\r\n"
    field = b'--b\r\nContent-Disposition: form-data; name="t"\r\n\r\n\xff\xfe\r\n'
    found = multipart_parts(TYPE, part("a", content) + field + part("é", b"") + b"--b--\r\n")
    assert found == [Part("a", content, OCTETS), Part("t", b"\xff\xfe"), Part("é", b"", OCTETS)]


def test_parts_of_one_name_are_all_there() -> None:
    """CASES 1."""
    parts = part("a", b"x", "Content-Type: image/png") + part("a", b"y") + part("a", b"x")
    found = multipart_parts(TYPE, parts + b"--b--\r\n")
    assert found == [Part("a", b"x", "image/png"), Part("a", b"y", OCTETS), Part("a", b"x", OCTETS)]


def test_a_field_in_another_charset() -> None:
    """CASES 12."""
    headers = b'Content-Disposition: form-data; name="t"\r\nContent-Type: text/plain; charset=utf-16'
    with pytest.raises(RequestError, match="charset is 'utf-16'") as caught:
        multipart_parts(TYPE, b"--b\r\n" + headers + b"\r\n\r\nx\r\n--b--\r\n")
    assert caught.value.status == 415


def test_nothing_of_a_damaged_form_is_logged_or_told(caplog: pytest.LogCaptureFixture) -> None:
    """CASES 33: a part's headers are of the body, too."""
    caplog.set_level(logging.DEBUG)
    secret = "a payload that must not reach a log"
    for header in ("Content-Transfer-Encoding", "Content-Disposition"):
        body = part("a", b"x", f"{header}: {secret}") + b"--b--\r\n"
        with pytest.raises(RequestError) as caught:
            multipart_parts(TYPE, body)
        assert secret not in caught.value.message
    assert secret not in caplog.text


@pytest.mark.parametrize(
    ("content_type", "body", "words"),
    [
        ("multipart/form-data", part("a", b"x") + b"--b--\r\n", "cannot be read"),
        (TYPE, b"", "no closing boundary"),
        (TYPE, part("a", b"x"), "no closing boundary"),
        (TYPE, b"nonsense", "cannot be read"),
        (TYPE, part("a", b"x", "Content-Transfer-Encoding: bogus") + b"--b--\r\n", "cannot be read"),
        (
            TYPE,
            b"".join(part(f"{i}", b"") for i in range(MAX_PARTS + 1)) + b"--b--\r\n",
            "more than 2000",
        ),
    ],
    ids=["no boundary", "empty", "cut off", "nonsense", "encoding", "many"],
)
def test_damaged_multipart(content_type: str, body: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        multipart_parts(content_type, body)


def test_of_two_models_none_is_served_silently(tmp_path: Path) -> None:
    """CASES 14: `make serve-ray` says which there are, and how to say which is meant."""
    for path in STORE.glob("*.pt"):
        shutil.copyfile(path, tmp_path / path.name)
        spec = replace(read_spec(path), model_id="another")
        with zipfile.ZipFile(tmp_path / f"another-{spec.modality}.pt", "w") as archive:
            archive.writestr(f"archive/extra/{SPEC_FILE}", spec.to_json())
    with pytest.raises(SpecError, match=r"holds 2 models \(another, demo\); say which: MODEL=another"):
        Store.read(tmp_path).model(None)
    arguments = AppArguments(store=tmp_path, key_file=tmp_path / "key_file.json")
    with pytest.raises(SpecError, match="say which: MODEL=another"):
        app(arguments)
    for model in ("another", "demo"):
        assert {f.spec.model_id for f in Store.read(tmp_path).model(model).pair("cpu")} == {model}
