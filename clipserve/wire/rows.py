"""A request as a server hands it over, and its reply: headers, forms and limits, whatever the body says.

Before anything is parsed, its cost is bounded: every check is a fixed number of passes over the body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from clipserve.errors import RequestError

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
OCTETS = "application/octet-stream"
# Beside every type that ends in +json (RFC 6839): what JSON was called before it had a name, and is still.
JSON_TYPES = frozenset({JSON, "application/x-json", "text/json", "text/x-json"})
UTF8_NAMES = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
# The endpoints' own limits on items are lower.
MAX_PARTS = 2000

OPENS_OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{")


@dataclass(frozen=True)
class RequestLimits:
    """How much one request may ask for.

    Attributes:
        max_items: pictures and texts of an embedding request, together; pictures of a similarity request.
        max_texts: texts or labels of a similarity request.
        max_characters: of one text; far more than any context length, a bound on tokenising time.
        max_total_characters: of all texts of a request together, each label in its template: 1,000 texts of
            500. A full-size CLIP tokenizer takes 10 µs for each of the slowest characters.
    """

    max_items: int = 128
    max_texts: int = 1000
    max_characters: int = 20_000
    max_total_characters: int = 500_000


@dataclass(frozen=True)
class Part:
    """One part of a multipart request.

    Attributes:
        name: of its field; several parts may have one name.
        content: as it came.
        content_type: of a file, as sent or as the server completes it; None for a field, which has no file
            name.
    """

    name: str
    content: bytes
    content_type: str | None = None


@dataclass(frozen=True)
class Row:
    """One HTTP request as a server hands it over.

    Attributes:
        body: the raw body; empty for multipart, unless the server could not find its parts.
        content_type: the header of that name as it was sent; empty where there is none.
        parts: all parts of a multipart request, in their order.
        content_encoding: the header of that name as it was sent; empty where there is none.
    """

    body: bytes
    content_type: str
    parts: Sequence[Part] = ()
    content_encoding: str = ""

    @property
    def size(self) -> int:
        """Bytes of the body or of all parts."""
        return len(self.body) + sum(len(part.content) for part in self.parts)


@dataclass(frozen=True)
class Reply:
    """One HTTP response: status, JSON body."""

    status: int
    body: bytes
    content_type: str = JSON

    @classmethod
    def json(cls, status: int, body: Mapping[str, Any] | Sequence[Any]) -> Reply:
        """A reply whose body is that JSON.

        Float32 arrays are written in the fewest digits that read back as the same float32. A NaN would become
        null: `clipserve.batching.as_results` lets none come here.
        """
        # Not for those who import this module to ask: a client knows endpoints, and answers nobody.
        import orjson

        return cls(status, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))


def media_type(header: str) -> str:
    """The type in a Content-Type header: in lower case, without parameters; empty where there is none."""
    return header.partition(";")[0].strip().lower()


def check_head(content_type: str, content_encoding: str) -> None:
    """Checks what the headers say of how a body is to be read.

    Raises:
        RequestError: it is compressed, or its text is in another charset than UTF-8.
    """
    if content_encoding.strip().lower() not in ("", "identity"):
        raise RequestError(
            "unsupported_media_type",
            f"Content-Encoding is {shown(content_encoding)}; send the body as it is, without that header",
            415,
        )
    if not media_type(content_type).startswith("image/"):
        check_charset(content_type)


def check_charset(content_type: str) -> None:
    """Checks the charset of a request's or a part's type, if it names one.

    Raises:
        RequestError: it is not UTF-8's, or the part of it that is ASCII.
    """
    # No split within quotes: neither a charset nor a boundary may hold a semicolon.
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.partition("=")
        charset = value.strip().strip("\"'").lower()
        if name.strip().lower() == "charset" and charset not in UTF8_NAMES:
            raise RequestError(
                "unsupported_media_type", f"the charset is {shown(charset)}; send the text in UTF-8", 415
            )


def has_json(row: Row) -> bool:
    """Whether a request's body is to be read as JSON.

    It is where its type says so; without a type, or with that of any bytes, where it begins as an object, for
    no picture and hardly a text does (RFC 9110, 8.3, allows to look).

    Raises:
        RequestError: the body is compressed, or in another charset than UTF-8.
    """
    check_head(row.content_type, row.content_encoding)
    found = media_type(row.content_type)
    if found in JSON_TYPES or found.endswith("+json"):
        return True
    return found in ("", OCTETS) and OPENS_OBJECT.match(row.body) is not None


def read_form(
    row: Row, allowed: AbstractSet[str], limits: RequestLimits
) -> tuple[dict[str, bytes], list[bytes]]:
    """The fields of a multipart request by name, and its files in their order.

    A name may be that of many files, as browsers send them, but of one field only: of two lists of texts one
    would be lost.

    Args:
        allowed: names of fields.
    """
    if len(row.parts) > MAX_PARTS:
        raise RequestError("too_many_items", f"{len(row.parts)} parts, allowed are {MAX_PARTS}", 413)
    fields: dict[str, bytes] = {}
    files: list[bytes] = []
    for part in row.parts:
        if part.name in allowed:
            if part.name in fields:
                raise RequestError("invalid_request", f"the field {part.name!r} is given twice")
            check_charset(part.content_type or "")
            fields[part.name] = part.content
        elif part.content_type is None:
            raise RequestError(
                "invalid_request",
                f"unknown field {shown(part.name)}; allowed are {', '.join(sorted(allowed))}, and pictures "
                "as files, which have a file name (curl: -F name=@FILE)",
            )
        else:
            files.append(part.content)
    check_count("files", len(files), limits.max_items)
    return fields, files


def unreadable_form(where: str = "") -> RequestError:
    """What is said of a multipart body in which no parts can be found; `where` follows "cannot be read"."""
    return RequestError(
        "invalid_request",
        f"the multipart body cannot be read{where}; its type should be 'multipart/form-data; boundary=…' "
        "with the body's own boundary, as HTTP libraries write it where they are not told a type",
    )


def refuse_form(row: Row) -> None:
    """Refuses a request whose type is a form's, but of which the server has found no parts.

    Raises:
        RequestError: it is one.
    """
    found = media_type(row.content_type)
    if found == MULTIPART and row.body:
        raise unreadable_form()
    if found in (FORM, MULTIPART):
        raise RequestError(
            "unsupported_media_type",
            f"content type {found!r} without a file; send the header "
            "'Content-Type: application/json' with a JSON body, or raw bytes",
            415,
        )


def check_count(what: str, count: int, limit: int) -> None:
    """Checks how many items a request has.

    Raises:
        RequestError: none, or too many.
    """
    if count == 0:
        raise RequestError("empty_request", f"{what}: no items")
    if count > limit:
        raise RequestError("too_many_items", f"{what}: {count} items, allowed are {limit}", 413)


def shown(value: Any) -> str:
    """A value as it may stand in a message: short, and never a payload."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "…")
    if isinstance(value, bool | int | float) or value is None:
        return json.dumps(value)[:40]
    return "an object" if isinstance(value, dict) else "a list"
