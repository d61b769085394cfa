"""A request that names itself is found in the log by that name, which comes back with the answer."""

from __future__ import annotations

import secrets
import time

import pytest

from tests.http.api import AnyServer, Api

SECRET = "zweihundfuenfzig"


def logged(server: AnyServer, name: str) -> list[str]:
    """The lines with a name, as soon as there is one: a worker's lines take the way of a pipe."""
    deadline = time.monotonic() + 60
    while True:
        lines = [
            line
            for path in server.logs.rglob("*.log")
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
            if name in line
        ]
        if lines or time.monotonic() > deadline:
            return lines
        time.sleep(0.1)


@pytest.mark.parametrize(("text", "status"), [(SECRET, 200), (SECRET * 2000, 413)])
@pytest.mark.parametrize("endpoint", ["clip_text", "v1/embeddings"])
def test_a_trace(api: Api, server: AnyServer, endpoint: str, text: str, status: int) -> None:
    trace = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    response = api.http.post(
        f"{api.url}/predictions/{endpoint}",
        json={"input": text},
        headers={**api.bearer(), "traceparent": trace},
    )
    assert response.status_code == status
    assert response.headers["traceparent"] == trace
    lines = logged(server, trace)
    assert len(lines) == 1
    assert f"answered {status}, traceparent {trace}" in lines[0]
    assert SECRET not in "".join(lines)


def test_a_request_id(api: Api, server: AnyServer) -> None:
    name = secrets.token_hex(16)
    response = api.http.post(
        f"{api.url}/predictions/clip_text",
        json={"input": "a"},
        headers={**api.bearer(), "X-Request-Id": name},
    )
    # TorchServe's frontend answers with its own, which the line has as well.
    found = response.headers["x-request-id"]
    (line,) = [line for line in logged(server, name) if "answered 200" in line]
    assert found in line


def test_what_is_no_name_is_not_logged(api: Api, server: AnyServer) -> None:
    headers = {**api.bearer(), "traceparent": SECRET, "X-Request-Id": f"{SECRET} {SECRET}"}
    response = api.http.post(f"{api.url}/predictions/clip_text", json={"input": "a"}, headers=headers)
    assert response.status_code == 200
    assert "traceparent" not in response.headers
    after = secrets.token_hex(16)
    api.http.post(
        f"{api.url}/predictions/clip_text",
        json={"input": "a"},
        headers={**api.bearer(), "X-Request-Id": after},
    )
    assert logged(server, after)
    assert not [
        line
        for path in server.logs.rglob("*.log")
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        if SECRET in line
    ]
