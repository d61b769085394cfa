"""Which headers name a request, and what is logged of them."""

from __future__ import annotations

import pytest

from clipserve.tracing import trace_headers, trace_line

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_names_of_a_request() -> None:
    names = {"traceparent": PARENT, "x-request-id": "c0ffee00-1111-4222-8333-444455556666"}
    assert trace_headers({"content-type": "text/plain", **names}) == names
    assert (
        trace_line(names, 200) == f"answered 200, traceparent {PARENT}, x-request-id {names['x-request-id']}"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("traceparent", PARENT.upper()),
        ("traceparent", PARENT + "-x"),
        ("traceparent", PARENT + "\n"),
        ("traceparent", "two dogs in the snow"),
        ("x-request-id", ""),
        ("x-request-id", "two dogs in the snow"),
        ("x-request-id", "a\nb"),
        ("x-request-id", "a" * 65),
        ("x-request-id", "kutya é"),
    ],
)
def test_what_is_no_name_goes_nowhere(name: str, value: str) -> None:
    assert trace_headers({name: value}) == {}
