from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from clipserve.archive_files import SUMS_FILE, file_sha256, share_equal_files, verify_archive_files
from clipserve.encoder_spec import FloatArray, read_spec
from clipserve.errors import SettingsError, SpecError
from clipserve.torchserve_adapter import Reporter, TorchServeHandler
from clipserve.wire.rows import JSON
from handlers.endpoint import EndpointHandler
from tests.clipserve.answers import (
    PICTURES,
    TEXTS,
    assert_close,
    in_base64,
)


@dataclass
class Metrics:
    """What was reported: metric, value and dimensions; a report may come at any time, from its own thread."""

    updates: list[tuple[str, float, list[str]]] = field(default_factory=list)

    def get_metric(self, name: str) -> Metric:
        return Metric(name, self.updates)


@dataclass
class Metric:
    name: str
    updates: list[tuple[str, float, list[str]]]

    def add_or_update(self, count: float, dimensions: list[str]) -> None:
        self.updates.append((self.name, count, dimensions))


@dataclass
class Context:
    """What our handlers use of TorchServe's context."""

    model_dir: Path = Path()
    gpu_id: int | None = None
    model_yaml_config: dict[str, Any] | None = None
    headers: list[dict[str, str]] = field(default_factory=list)
    statuses: dict[int, tuple[int, str]] = field(default_factory=dict)
    content_types: dict[int, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    response_headers: dict[tuple[int, str], str] = field(default_factory=dict)
    model_name: str = "clip_text"

    @property
    def manifest(self) -> dict[str, Any]:
        return {"model": {"modelName": self.model_name}}

    def get_request_id(self, index: int) -> str:
        return f"request-{index}"

    @property
    def system_properties(self) -> dict[str, Any]:
        return {"model_dir": str(self.model_dir), "gpu_id": self.gpu_id}

    def get_request_header(self, index: int, key: str) -> str | None:
        return self.headers[index].get(key)

    def get_all_request_header(self, index: int) -> dict[str, str]:
        return self.headers[index]

    def set_response_status(self, code: int, phrase: str, index: int) -> None:
        self.statuses[index] = (code, phrase)

    def set_response_content_type(self, index: int, value: str) -> None:
        self.content_types[index] = value

    def set_response_header(self, index: int, name: str, value: str) -> None:
        self.response_headers[index, name] = value


def unpacked_archive(folder: Path, *encoders: Path) -> Path:
    """A folder as TorchServe unpacks it: encoder files and their sums."""
    folder.mkdir(exist_ok=True)
    for path in encoders:
        shutil.copy(path, folder)
    sums = [f"{file_sha256(path)}  {path.name}" for path in sorted(folder.glob("*.pt"))]
    (folder / SUMS_FILE).write_text("\n".join(sums) + "\n")
    return folder


@pytest.fixture(scope="module")
def model_dir(image_path: Path, text_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked_archive(tmp_path_factory.mktemp("model_dir"), image_path, text_path)


def test_endpoints_share_the_file_of_an_encoder(image_path: Path, text_path: Path, tmp_path: Path) -> None:
    """Each archive is unpacked by itself; what workers map of one file is in memory once."""
    folders = [
        unpacked_archive(tmp_path / name, *paths)
        for name, paths in (
            ("c", [image_path]),
            ("b", [text_path]),
            ("a", [image_path, text_path]),
        )
    ]
    # Of the same size, with another byte: a file that is being written.
    other = tmp_path / "d" / text_path.name
    other.parent.mkdir()
    other.write_bytes(b"x" + text_path.read_bytes()[1:])
    os.utime(other, ns=(0, 0))
    for folder in [*folders, *folders]:
        share_equal_files(folder)
        verify_archive_files(folder)
    assert (tmp_path / "a" / image_path.name).samefile(tmp_path / "c" / image_path.name)
    assert (tmp_path / "a" / text_path.name).samefile(tmp_path / "b" / text_path.name)
    assert not (tmp_path / "a" / text_path.name).samefile(other)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {image_path.name, text_path.name, SUMS_FILE}


def test_of_several_files_the_oldest_is_shared(text_path: Path, tmp_path: Path) -> None:
    """Workers start at once: what another is about to replace would be a second file of the same bytes."""
    for age, name in enumerate(("z", "a", "b"), 1):
        folder = unpacked_archive(tmp_path / name, text_path)
        os.utime(folder / text_path.name, ns=(age, age))
    share_equal_files(tmp_path / "b")
    assert (tmp_path / "b" / text_path.name).samefile(tmp_path / "z" / text_path.name)


def test_a_file_that_others_may_write_is_not_shared(text_path: Path, tmp_path: Path) -> None:
    """Who may write it could change what an encoder looks up while it runs."""
    first, second = (unpacked_archive(tmp_path / name, text_path) for name in ("a", "b"))
    (first / text_path.name).chmod(0o666)
    share_equal_files(second)
    assert not (first / text_path.name).samefile(second / text_path.name)
    (first / text_path.name).chmod(0o600)
    share_equal_files(second)
    assert (first / text_path.name).samefile(second / text_path.name)


Start = Callable[..., TorchServeHandler]


@pytest.fixture
def start(model_dir: Path) -> Start:
    def started(endpoint: str, **options: Any) -> TorchServeHandler:
        handler = EndpointHandler()
        handler.initialize(Context(model_dir, model_name=endpoint, **options))
        return handler

    return started


def parameters(**values: Any) -> list[dict[str, Any]]:
    """A row as it comes off the wire: a body, or parts, whose pictures are files."""
    return [
        {"name": n, "contentType": "image/jpeg" if len(n) == 1 or n == "data" else "", "value": v}
        for n, v in values.items()
    ]


def ask(
    handler: TorchServeHandler, rows: list[dict[str, Any]], content_types: list[str | None]
) -> tuple[list[Any], Context]:
    headers = [{} if c is None else {"Content-Type": c, "Host": "x"} for c in content_types]
    context = Context(headers=headers)
    bodies = handler.handle([parameters(**row) for row in rows], context)
    assert len(bodies) == len(rows)
    return bodies, context


def test_torchserve_raw_bodies(start: Start, text_vectors: FloatArray) -> None:
    bodies, context = ask(
        start("clip_text"),
        [{"body": TEXTS[0].encode()}, {"body": b"{"}, {"body": json.dumps({"input": TEXTS[:3]}).encode()}],
        ["text/plain", "application/json", "application/json"],
    )
    assert all(isinstance(body, bytes) for body in bodies)
    assert context.statuses == {1: (400, "Bad Request")}
    assert context.content_types == {0: JSON, 1: JSON, 2: JSON}
    assert_close(json.loads(bodies[0])["data"][0]["embedding"], text_vectors[0])
    assert json.loads(bodies[1])["error"]["code"] == "invalid_json"
    assert_close([e["embedding"] for e in json.loads(bodies[2])["data"]], text_vectors[:3])


def test_torchserve_status_is_of_its_row_only(start: Start) -> None:
    bodies, context = ask(
        start("clip_image"),
        [
            {"body": bytearray(PICTURES[0])},
            {"body": b"no"},
            {"body": bytearray(PICTURES[1])},
            {"body": b""},
            {},
        ],
        ["image/jpeg", "image/jpeg", None, None, "multipart/form-data; boundary=x"],
    )
    assert context.statuses == {
        1: (415, "Unsupported Media Type"),
        3: (400, "Bad Request"),
        4: (415, "Unsupported Media Type"),
    }
    assert ["data" in json.loads(body) for body in bodies] == [True, False, True, False, False]


def test_torchserve_413_has_a_phrase(start: Start) -> None:
    config = {"handler": {"max_items": 1}}
    _, context = ask(
        start("clip_text", model_yaml_config=config),
        [{"body": b'{"input":["a","b"]}'}],
        ["application/json"],
    )
    assert context.statuses[0][0] == 413
    assert context.statuses[0][1]


def test_torchserve_bodies_that_it_has_parsed_already(start: Start, text_vectors: FloatArray) -> None:
    """So they come unless `decode_input_request=false` is configured."""
    bodies, context = ask(
        start("clip_text"),
        [{"body": {"input": [TEXTS[3]]}}, {"body": TEXTS[3]}, {"body": ["a"]}, {"body": {"input": "\ud800"}}],
        ["application/json", "text/plain", "application/json", "application/json"],
    )
    for body in bodies[:2]:
        assert_close(json.loads(body)["data"][0]["embedding"], text_vectors[3])
    assert [json.loads(body)["error"]["code"] for body in bodies[2:]] == [
        "invalid_request",
        "invalid_encoding",
    ]
    assert context.statuses == {2: (400, "Bad Request"), 3: (400, "Bad Request")}


@pytest.mark.parametrize("value", ["two dogs", "\ud800"], ids=ascii)
def test_torchserve_json_string_that_it_has_parsed_already(start: Start, value: str) -> None:
    """A lone surrogate must not fail the whole batch either."""
    bodies, context = ask(start("clip_text"), [{"body": value}], ["application/json"])
    assert context.statuses == {0: (400, "Bad Request")}
    assert json.loads(bodies[0])["error"]["code"] == "invalid_request"


@pytest.mark.parametrize("header", ["content-type", "Content-Type", "CONTENT-TYPE"])
@pytest.mark.parametrize(
    "value", ["application/json", "Application/JSON; charset=UTF-8", " application/json ;x=y"]
)
def test_torchserve_content_type_in_any_case(start: Start, header: str, value: str) -> None:
    context = Context(headers=[{header: value}])
    body = start("clip_text").handle([parameters(body=b'{"input": "a"}')], context)[0]
    assert json.loads(body)["usage"]["prompt_tokens"] == 3
    assert context.statuses == {}


def test_torchserve_forms(start: Start, picture_vectors: FloatArray) -> None:
    form = "multipart/form-data; boundary=0f3a"
    bodies, context = ask(
        start("clip_image"),
        [{"a": bytearray(PICTURES[2]), "b": PICTURES[0]}, {"data": bytearray(b"no picture")}],
        [form, form],
    )
    assert_close([e["embedding"] for e in json.loads(bodies[0])["data"]], picture_vectors[[2, 0]])
    assert context.statuses == {1: (415, "Unsupported Media Type")}
    # A part's own content type may have been decoded: JSON to a list, text to a string.
    parts = {"a": PICTURES[0], "labels": ["dog", "cat"], "template": "a photo of a {}"}
    bodies, context = ask(
        start("clip_similarity"), [parts, {**parts, "labels": b'["dog", "cat"]'}], [form, form]
    )
    assert context.statuses == {}
    assert json.loads(bodies[0])["cosine_similarity"] == json.loads(bodies[1])["cosine_similarity"]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Any:
    """TorchServe's own code between the socket and `handle`, as it is installed; put back afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its version file open
        service = importlib.import_module("ts.service").Service
    monkeypatch.setattr(
        service, "retrieve_data_for_inference", staticmethod(service.retrieve_data_for_inference)
    )
    return service


def off_the_wire(*parts: tuple[str, str, bytes]) -> dict[str, Any]:
    """A request as `ts.protocol.otf_message_handler` reads it from the frontend."""
    return {
        "requestId": b"0",
        "headers": [{"name": b"Content-Type", "value": b"multipart/form-data; boundary=x"}],
        "parameters": [{"name": n, "contentType": c, "value": bytearray(v)} for n, c, v in parts],
    }


def test_torchserve_hands_over_every_part(service: Any, start: Start, picture_vectors: FloatArray) -> None:
    """CASES 1: two pictures of one name; its `Service` by itself keeps the last of them."""
    request = off_the_wire(
        ("a", "image/jpeg", PICTURES[2]), ("a", "image/jpeg", PICTURES[0]), ("a", "image/png", PICTURES[2])
    )
    _, before, _ = service.retrieve_data_for_inference([request])
    assert len(before[0]) == 1
    handler = start("clip_image")
    processors, rows, ids = service.retrieve_data_for_inference([request, request])
    assert ids == {0: "0", 1: "0"}
    headers = [p._request_header for p in processors]
    bodies = handler.handle(rows, Context(headers=headers))
    for body in bodies:
        found = [e["embedding"] for e in json.loads(body)["data"]]
        assert_close(found, picture_vectors[[2, 0, 2]])


def test_torchserve_bodies_are_held_once(service: Any, start: Start) -> None:
    """ATTACKS A3: 32 MB each, as a bytearray off the wire and as bytes."""
    start("clip_image")
    request = off_the_wire(("body", "image/jpeg", PICTURES[0]))
    _, ((parameter,),), _ = service.retrieve_data_for_inference([request])
    assert parameter["value"] == PICTURES[0]
    assert type(parameter["value"]) is bytes
    assert request["parameters"] == [parameter]
    assert request["parameters"][0] is parameter


def test_torchserve_fields_given_twice(service: Any, start: Start) -> None:
    """CASES 1: of two lists of texts it would drop one."""
    handler = start("clip_similarity")
    request = off_the_wire(("a", "image/jpeg", PICTURES[0]), ("texts", "", b'["a"]'), ("texts", "", b'["b"]'))
    processors, rows, _ = service.retrieve_data_for_inference([request])
    context = Context(headers=[p._request_header for p in processors])
    (body,) = handler.handle(rows, context)
    assert context.statuses == {0: (400, "Bad Request")}
    assert "twice" in json.loads(body)["error"]["message"]


def test_torchserve_parts_named_as_headers(start: Start) -> None:
    """It mixes the names of parts among the headers."""
    headers: dict[str, Any] = {
        "content-encoding": {"content-type": "image/jpeg"},
        "content-type": {"content-type": "image/jpeg"},
        "Content-Type": "multipart/form-data; boundary=x",
    }
    context = Context(headers=[headers])
    row = [
        {"name": name, "contentType": "image/jpeg", "value": PICTURES[0]}
        for name in ("content-encoding", "content-type", "describe")
    ]
    (body,) = start("clip_image").handle([row], context)
    assert len(json.loads(body)["data"]) == 3


@pytest.mark.parametrize("content_type", ["multipart/form-data", "Multipart/Form-Data; charset=utf-8"])
def test_torchserve_forms_that_it_has_not_read(
    start: Start, picture_vectors: FloatArray, content_type: str
) -> None:
    """CASES 1: without a boundary its frontend hands over the whole body, under the name of a raw one."""
    context = Context(
        headers=[{"Content-Type": content_type}, {"Content-Type": "multipart/form-data; boundary=x"}]
    )
    raw = [{"name": "body", "contentType": "multipart/form-data", "value": PICTURES[0]}]
    file = [{"name": "body", "contentType": "image/jpeg", "value": PICTURES[0]}]
    refused, taken = start("clip_image").handle([raw, file], context)
    assert context.statuses == {0: (400, "Bad Request")}
    assert "multipart body cannot be read" in json.loads(refused)["error"]["message"]
    assert_close([e["embedding"] for e in json.loads(taken)["data"]], picture_vectors[[0]])


def test_torchserve_forms_under_another_type(start: Start) -> None:
    """Of two Content-Type headers the frontend reads the first and hands on the last; nobody else is hurt."""
    context = Context(headers=[{"Content-Type": "image/jpeg"}, {"Content-Type": "image/jpeg"}])
    two = [{"name": "a", "contentType": "image/jpeg", "value": PICTURES[i]} for i in (0, 1)]
    bodies = start("clip_image").handle([two, parameters(body=PICTURES[0])], context)
    assert [len(json.loads(body)["data"]) for body in bodies] == [2, 1]


def test_another_torchserve_is_refused(monkeypatch: pytest.MonkeyPatch, start: Start) -> None:
    """CASES 1: whatever hands over parts otherwise may lose some; a worker does not start on it."""

    class Service:
        @staticmethod
        def retrieve_data_for_inference(batch: list[dict[str, Any]]) -> tuple[Any, Any, Any]:
            return [], [{"a": [1, 2]}], {}

        def predict(self, batch: list[dict[str, Any]]) -> None:
            self.retrieve_data_for_inference(batch)

    monkeypatch.setitem(sys.modules, "ts.service", SimpleNamespace(Service=Service))
    with pytest.raises(SpecError, match=r"torchserve==0\.12\.0"):
        start("clip_image")


def test_torchserve_content_encoding(start: Start) -> None:
    """CASES 25."""
    context = Context(headers=[{"Content-Type": "image/png", "content-ENCODING": "gzip"}])
    (body,) = start("clip_image").handle([parameters(body=b"x")], context)
    assert context.statuses == {0: (415, "Unsupported Media Type")}
    assert "Content-Encoding is 'gzip'" in json.loads(body)["error"]["message"]


def reported(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Sums by metric and second dimension; the first is the endpoint's name in each."""
    sums: dict[tuple[str, str], float] = {}
    for name, count, (model, dimension) in metrics.updates:
        assert model == "clip_similarity"
        sums[name, dimension] = sums.get((name, dimension), 0.0) + count
    return sums


def test_torchserve_metrics_are_those_that_are_declared(model_dir: Path) -> None:
    """TorchServe refuses a metric that is not in the metrics file."""
    declared = yaml.safe_load((Path(__file__).parents[2] / "metrics.yaml").read_text())["model_metrics"][
        "counter"
    ]
    dimensions = {metric["name"]: metric["dimensions"] for metric in declared}
    context = Context(model_dir, model_name="clip_similarity")
    handler = EndpointHandler()
    handler.initialize(context)
    for _ in range(2):
        ask(
            handler,
            [
                {"body": json.dumps({"images": in_base64(PICTURES[0]), "texts": ["a", "b", 5]}).encode()},
                {"body": b"{"},
            ],
            ["application/json"] * 2,
        )
    stages = {
        (f"Clip{stage}Milliseconds", "Model")
        for stage in ("Parse", "Decode", "Tokenise", "Inference", "Serialise")
    }
    counts = {
        ("ClipRequests", "Model"): 4,
        ("ClipBatches", "Model"): 2,
        ("ClipItems", "Model"): 8,
        ("ClipTextCacheMisses", "Model"): 2,
        ("ClipTextCacheHits", "Model"): 2,
        ("ClipErrors", "invalid_item"): 2,
        ("ClipErrors", "invalid_json"): 2,
    }
    # Each metric comes by itself: a look at a report under way may see some and not yet the others.
    deadline = time.monotonic() + 30
    found = reported(context.metrics)
    while not (counts.items() <= found.items() and stages <= set(found)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
        found = reported(context.metrics)
    assert all(found[stage] > 0 for stage in stages)
    assert {name for name, _ in found} <= set(dimensions)
    for name, dimension in found:
        assert dimensions[name] == ["ModelName", "Level" if dimension == "Model" else "Code"]


def test_torchserve_metrics_are_reported_once() -> None:
    metrics = Metrics()
    reporter = Reporter(metrics, "clip_image")
    reporter.add({"ClipItems": 3}, {"invalid_image": 1}, {"decode": 0.25})
    reporter.add({"ClipItems": 4}, {}, {"decode": 0.5})
    assert metrics.updates == []
    reporter.report()
    reporter.report()
    assert sorted(metrics.updates) == [
        ("ClipDecodeMilliseconds", 0.75, ["clip_image", "Model"]),
        ("ClipErrors", 1, ["clip_image", "invalid_image"]),
        ("ClipItems", 7, ["clip_image", "Model"]),
    ]


def test_torchserve_times_for_the_caller_who_asks(start: Start) -> None:
    context = Context(headers=[{}, {"X-ClipServe-Timing": "1"}, {}])
    start("clip_text").handle([parameters(body=b) for b in (b"a", b"b", b"\xff")], context)
    assert list(context.response_headers) == [(1, "Server-Timing")]
    timing = context.response_headers[1, "Server-Timing"]
    assert re.fullmatch(r"(\w+;dur=\d+\.\d\d)(, \w+;dur=\d+\.\d\d)*", timing)
    assert "inference;dur=" in timing


@pytest.mark.parametrize(
    ("endpoint", "modalities"),
    [("clip_image", ["image"]), ("clip_text", ["text"]), ("clip_similarity", ["image", "text"])],
)
def test_torchserve_describe(start: Start, endpoint: str, modalities: list[str], store: Path) -> None:
    body = start(endpoint).handle([[]], Context(headers=[{"describe": "True"}]))[0]
    described = json.loads(body)["encoders"]
    assert described == [json.loads(read_spec(store / f"clip-{m}-cpu-fp32.pt").to_json()) for m in modalities]


def test_torchserve_describe_header_of_a_caller_changes_nothing(start: Start) -> None:
    context = Context(headers=[{"describe": "True", "content-type": "text/plain"}, {}])
    bodies = start("clip_text").handle([parameters(body=b"two dogs"), parameters(body=b"a cat")], context)
    assert [json.loads(body)["object"] for body in bodies] == ["list", "list"]


def test_torchserve_settings_reach_the_worker(start: Start) -> None:
    config = {"minWorkers": 1, "deviceType": "cpu", "handler": {"threads": 2, "max_characters": 5}}
    handler = start("clip_text", model_yaml_config=config)
    assert torch.get_num_threads() == 2
    bodies, _ = ask(handler, [{"body": b"123456"}], ["text/plain"])
    assert json.loads(bodies[0])["error"]["code"] == "text_too_long"
    for empty in ({}, {"handler": None}, None):
        start("clip_text", model_yaml_config=empty)
        assert torch.get_num_threads() == 1


def test_torchserve_no_threads_are_all_cores(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    alone = {"maxWorkers": 1, "handler": {"threads": 0}}
    start("clip_text", model_yaml_config=alone)
    assert torch.get_num_threads() == 3
    assert "are more than" not in caplog.text
    start("clip_text", model_yaml_config=alone | {"maxWorkers": 2})
    assert "clip_text: 2 workers x 3 threads are more than the 3 cores here" in caplog.text


def test_torchserve_wrong_settings(start: Start) -> None:
    with pytest.raises(SettingsError, match="'max_batches' is unknown"):
        start("clip_text", model_yaml_config={"handler": {"max_batches": 8}})


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_torchserve_gives_a_gpu_that_pytorch_does_not_see(start: Start) -> None:
    with pytest.raises(
        SettingsError, match=r"GPU 0, but this PyTorch sees no CUDA device; set deviceType: cpu"
    ):
        start("clip_text", gpu_id=0)


@pytest.mark.parametrize("gpu_id", [1, 7])
def test_torchserve_gives_a_gpu_that_is_not_there(
    gpu_id: int, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mock has one GPU; `make gpu-proof` asks a real one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match=f"GPU {gpu_id}, but .* sees 1, .*; set number_of_gpu=1"):
        start("clip_text", gpu_id=gpu_id)


def test_torchserve_gives_no_gpu_where_the_archive_wants_one(start: Start) -> None:
    with pytest.raises(SettingsError, match=r"deviceType: gpu .* gave this worker no GPU"):
        start("clip_text", model_yaml_config={"deviceType": "gpu"})


def test_torchserve_archive_without_the_encoder(image_path: Path, tmp_path: Path) -> None:
    folder = unpacked_archive(tmp_path / "archive", image_path)
    handler = EndpointHandler()
    with pytest.raises(
        SpecError, match=r"no text encoder for cpu here, only clip-image-cpu-fp32.pt; run 'make export"
    ):
        handler.initialize(Context(folder, model_name="clip_similarity"))


def test_torchserve_archive_of_no_endpoint(model_dir: Path) -> None:
    with pytest.raises(SettingsError, match="an archive of 'clip_video', which is no endpoint"):
        EndpointHandler().initialize(Context(model_dir, model_name="clip_video"))


def test_torchserve_archive_that_was_changed(text_path: Path, tmp_path: Path) -> None:
    folder = unpacked_archive(tmp_path / "archive", text_path)
    (folder / text_path.name).write_bytes(text_path.read_bytes() + b"\0")
    with pytest.raises(SpecError, match=r"clip-text-cpu-fp32\.pt was changed after it was packaged"):
        EndpointHandler().initialize(Context(folder))
    (folder / text_path.name).unlink()
    with pytest.raises(SpecError, match=r"clip-text-cpu-fp32\.pt is missing from the archive"):
        EndpointHandler().initialize(Context(folder))
    (folder / SUMS_FILE).write_bytes(b"\xff\xfe damaged")  # ATTACKS B2
    with pytest.raises(SpecError, match=f"no {SUMS_FILE}"):
        EndpointHandler().initialize(Context(folder))
    (folder / SUMS_FILE).unlink()
    with pytest.raises(SpecError, match=f"no {SUMS_FILE}"):
        EndpointHandler().initialize(Context(folder))


@pytest.mark.gpu
def test_worker_on_a_gpu_refuses_an_archive_for_the_cpu(start: Start) -> None:
    with pytest.raises(SpecError, match=r"no text encoder for cuda here, only .*cpu"):
        start("clip_text", gpu_id=0)
