"""What a caller's request is known by elsewhere: for the log line of its request, and for the answer."""

from __future__ import annotations

import re
from collections.abc import Mapping

# W3C Trace Context, level 1; and what proxies and applications make for X-Request-Id, a UUID as a rule.
# Whatever else stands there, a payload for one, goes into no log.
SHAPES = {
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
    "x-request-id": re.compile(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,63}"),
}


def trace_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Those headers of a request that name it, and are well-formed.

    Args:
        headers: of the request; names in lower case.
    """
    return {
        name: headers[name]
        for name, shape in SHAPES.items()
        if name in headers and shape.fullmatch(headers[name])
    }


def trace_line(names: Mapping[str, str], status: int) -> str:
    """The log line of a request that has any of these names."""
    return f"answered {status}, {', '.join(f'{name} {value}' for name, value in names.items())}"
