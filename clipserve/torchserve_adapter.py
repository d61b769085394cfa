"""TorchServe's calling convention around an endpoint.

TorchServe gives a worker `initialize(context)` once and `handle(rows, context)` per batch. A row is all the
parameters of a request: its `body`, or the parts of a form; see `receive_all_parts`. Only
`context.set_response_status(code, phrase, index)` with a body at that index fails one request of a batch; an
exception would fail them all.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import torch

from clipserve.archive_files import share_equal_files, verify_archive_files
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import SettingsError, SpecError
from clipserve.hardware import usable_cores
from clipserve.meter import TIMING_HEADER, server_timing, stage_metric
from clipserve.settings import Settings
from clipserve.store import Store
from clipserve.tracing import trace_headers, trace_line
from clipserve.wire.rows import FORM, JSON, MULTIPART, Part, Row, media_type
from clipserve.worker import Worker

logger = logging.getLogger(__name__)

REPORT_SECONDS = 1.0

# One of TorchServe's parameters: `name`, `contentType` and `value`.
Parameter = Mapping[str, Any]

RESPONSE_SECONDS = 120  # TorchServe's responseTimeout where an archive's YAML says none


class TorchServeHandler:
    """Base of the class in `handlers/`, which every archive carries."""

    def initialize(self, context: Any) -> None:
        """Loads the encoders and proves them on their golden inputs.

        Raises:
            SettingsError: of the handler or deviceType, not allowed or not to be had here; the archive is of
                no endpoint that there is.
            SpecError: nothing in the archive may run here, or TorchServe is not the one that we know; it then
                reports the worker as failed.
        """
        receive_all_parts()
        properties = context.system_properties
        config = context.model_yaml_config or {}
        settings = Settings.from_mapping(config.get("handler") or {})
        device = _device(properties.get("gpu_id"), config.get("deviceType"))
        endpoint = _endpoint(context.manifest)
        folder = Path(properties["model_dir"])
        verify_archive_files(folder)
        share_equal_files(folder)
        response_seconds = float(config.get("responseTimeout", RESPONSE_SECONDS))
        encoders = Store.read(folder).model(None)
        self._worker = Worker(endpoint, encoders, device, settings, response_seconds)
        if device.type == "cpu":
            _warn_of_too_many_threads(endpoint, int(config.get("maxWorkers", 1)))
        self._reporter = Reporter(context.metrics, context.model_name)
        self._reporter.start()

    def handle(self, rows: Sequence[Sequence[Parameter]], context: Any) -> list[Any]:
        """Answers a batch: one body for each row."""
        if len(rows) == 1 and not rows[0] and context.get_request_header(0, "describe"):
            # `GET /models/NAME?customized=true` arrives so: alone, without a body, with this header. The
            # header alone proves nothing: any caller may send it, and would fail the batch that he is in.
            return [json.dumps(self._worker.describe(), ensure_ascii=False)]
        replies = self._worker.handle([_row(row, context, i) for i, row in enumerate(rows)])
        for index, reply in enumerate(replies):
            context.set_response_content_type(index, reply.content_type)
            if reply.status != HTTPStatus.OK:
                phrase = HTTPStatus(reply.status).phrase
                context.set_response_status(reply.status, phrase, index)
                # The id that the caller has in the x-request-id response header; never the payload.
                logger.info("request %s refused with %s", context.get_request_id(index), reply.status)
        counts, errors, milliseconds = self._worker.meter.take()
        self._reporter.add(counts, errors, milliseconds)
        for index, reply in enumerate(replies):
            headers = _headers(context, index)
            if TIMING_HEADER in headers:
                context.set_response_header(index, "Server-Timing", server_timing(milliseconds))
            names = trace_headers(headers)
            if names:
                # Its own x-request-id the frontend puts over ours: the line says which belongs to which.
                logger.info("request %s: %s", context.get_request_id(index), trace_line(names, reply.status))
                for name, value in names.items():
                    context.set_response_header(index, name, value)
        return [reply.body for reply in replies]


def receive_all_parts() -> None:
    """Makes TorchServe hand over every part of a request: of several with one name it keeps the last only.

    Its frontend sends all of them to the worker; it is the worker's `ts.service.Service`, between the socket
    and our `handle`, that makes a dict of them. From now on a row is the list that came off the wire.

    Raises:
        SpecError: this TorchServe does it in another way.
    """
    # Not imported: in a worker it is there, elsewhere nothing is to be done.
    module = sys.modules.get("ts.service")
    if module is None:
        return
    service = module.Service
    original = service.retrieve_data_for_inference
    if original.__module__ == __name__:
        return
    part = {"name": "a", "contentType": ""}
    request = {"requestId": b"0", "headers": [], "parameters": [part | {"value": 1}, part | {"value": 2}]}
    known = "retrieve_data_for_inference" in service.predict.__code__.co_names
    if not known or original([request])[1] != [{"a": 2}]:
        raise SpecError(
            "this TorchServe hands requests to a worker otherwise than 0.12.0 does, and would lose pictures "
            "of one name; run pip install torchserve==0.12.0"
        )

    def retrieve(batch: Sequence[Mapping[str, Any]]) -> tuple[Any, list[Sequence[Parameter]], Any]:
        headers, ids = original(batch)[::2]
        for request in batch:
            for parameter in request["parameters"]:
                # Off the wire it is a bytearray: in its place, so that no body is held twice.
                if isinstance(parameter["value"], bytearray):
                    parameter["value"] = bytes(parameter["value"])
        return headers, [request["parameters"] for request in batch], ids

    service.retrieve_data_for_inference = staticmethod(retrieve)


class Reporter:
    """Hands what a worker counted to TorchServe's Prometheus metrics, a second's worth at a time.

    TorchServe's metrics are lines of a worker's log, which its frontend reads and parses. A dozen lines for
    every batch took 2 ms of CPU, half of it before the callers had their answers.

    Args:
        metrics: TorchServe's metrics of this worker, `context.metrics`.
        model_name: of the endpoint.
    """

    def __init__(self, metrics: Any, model_name: str):
        self._metrics = metrics
        self._model_name = model_name
        self._lock = threading.Lock()
        # Name, and the dimension beside the endpoint's name in metrics.yaml: an error's code, or the level.
        self._sums: defaultdict[tuple[str, str], float] = defaultdict(float)

    def start(self) -> None:
        """Reports every `REPORT_SECONDS` from now on, as long as the process lives."""
        threading.Thread(target=self._report_forever, name="metrics", daemon=True).start()

    def add(
        self, counts: Mapping[str, int], errors: Mapping[str, int], milliseconds: Mapping[str, float]
    ) -> None:
        """Adds what `Meter.take` gave."""
        found: dict[tuple[str, str], float] = {
            **{(name, "Model"): count for name, count in counts.items()},
            **{("ClipErrors", code): count for code, count in errors.items()},
            **{(stage_metric(stage), "Model"): spent for stage, spent in milliseconds.items()},
        }
        with self._lock:
            for key, value in found.items():
                self._sums[key] += value

    def report(self) -> None:
        """Reports what was added since the last report."""
        with self._lock:
            sums, self._sums = self._sums, defaultdict(float)
        for (name, dimension), value in sums.items():
            self._metrics.get_metric(name).add_or_update(round(value, 3), [self._model_name, dimension])

    def _report_forever(self) -> None:
        while True:
            time.sleep(REPORT_SECONDS)
            self.report()


def _warn_of_too_many_threads(endpoint: str, workers: int) -> None:
    threads, cores = torch.get_num_threads(), usable_cores()
    if workers * threads > cores:
        logger.warning(
            "%s: %d workers x %d threads are more than the %d cores here, and wait for each other; lower "
            "maxWorkers or threads in handlers/%s.yaml, or run 'make tune'",
            *(endpoint, workers, threads, cores, endpoint),
        )


def _endpoint(manifest: Mapping[str, Any]) -> str:
    """Whose archive this is: registered under another name, it stays that endpoint's."""
    name: str = manifest["model"]["modelName"]
    if name not in ENDPOINTS:
        raise SettingsError(
            f"an archive of {name!r}, which is no endpoint ({', '.join(ENDPOINTS)} are); run 'make archive'"
        )
    return name


def _device(gpu_id: int | None, device_type: str | None) -> torch.device:
    if gpu_id is None:
        if device_type == "gpu":
            raise SettingsError(
                "deviceType: gpu in the archive's YAML, but TorchServe gave this worker no GPU; run "
                "on a machine with one, or 'make export DEVICE=cpu' and 'make archive'"
            )
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SettingsError(
            f"TorchServe gave this worker GPU {gpu_id}, but this PyTorch sees no CUDA device; set "
            "deviceType: cpu in the archive's YAML, or install a CUDA build of PyTorch"
        )
    count = torch.cuda.device_count()
    if gpu_id >= count:
        raise SettingsError(
            f"TorchServe gave this worker GPU {gpu_id}, but this PyTorch sees {count}, numbered from 0; set "
            f"number_of_gpu={count} in config.properties, or deviceIds in the archive's YAML to some of these"
        )
    return torch.device("cuda", gpu_id)


def _row(parameters: Sequence[Parameter], context: Any, index: int) -> Row:
    headers = _headers(context, index)
    content_type = headers.get("content-type", "")
    content_encoding = headers.get("content-encoding", "")
    found = media_type(content_type)
    if found == MULTIPART or (found != FORM and len(parameters) > 1):
        # The second: of two headers of that name, the frontend reads the first, and hands on the last. Of a
        # field, which has no file name, it sends no content type; of a file always one.
        parts = [Part(p["name"], _bytes(p["value"]), p["contentType"] or None) for p in parameters]
        if _is_unread_form(parts):
            return Row(parts[0].content, content_type, (), content_encoding)
        return Row(b"", content_type if found == MULTIPART else MULTIPART, parts, content_encoding)
    if found == FORM or not parameters:
        return Row(b"", content_type, (), content_encoding)
    (body,) = parameters
    return Row(_bytes(body["value"], parsed=found == JSON), content_type, (), content_encoding)


def _is_unread_form(parts: Sequence[Part]) -> bool:
    """Whether a form is the frontend's raw body: it reads none in whose type it finds no boundary.

    A raw body comes as a part of this name, with the type of the request.
    """
    return [(part.name, media_type(part.content_type or "")) for part in parts] == [("body", MULTIPART)]


def _headers(context: Any, index: int) -> dict[str, str]:
    """The headers of a request, names in lower case. TorchServe mixes the names of the parts among them."""
    headers = context.get_all_request_header(index)
    return {name.lower(): value for name, value in headers.items() if isinstance(value, str)}


def _bytes(value: Any, *, parsed: bool = False) -> bytes:
    """A value as it came in: decoded already unless `decode_input_request=false` is configured."""
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str) and not parsed:
        return value.encode()
    return json.dumps(value).encode()
