"""The parts of a `multipart/form-data` body."""

from __future__ import annotations

import logging

from python_multipart.exceptions import FormParserError, ParseError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from clipserve.errors import RequestError
from clipserve.wire.rows import MAX_PARTS, MULTIPART, OCTETS, Part, check_charset, unreadable_form

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


def multipart_parts(content_type: str, body: bytes) -> list[Part]:
    """The parts of a multipart body, as they came and in their order.

    Raises:
        RequestError: it is damaged, or has too many.
    """
    parts: list[Part] = []

    def add(name: bytes | None, content: bytes, content_type: str | None) -> None:
        if len(parts) == MAX_PARTS:
            raise RequestError("too_many_items", f"more than {MAX_PARTS} parts", 413)
        parts.append(Part((name or b"").decode("utf-8", "replace"), content, content_type))

    def on_field(field: Field) -> None:
        check_charset(field.content_type or "")
        add(field.field_name, field.value or b"", None)

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_object.read(), file.content_type or OCTETS)
        file.close()

    _, options = parse_options_header(content_type)
    ended = False

    def on_end() -> None:
        nonlocal ended
        ended = True

    # The body is in memory already, and bounded: no part of it goes to a disk.
    config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1, "UPLOAD_ERROR_ON_BAD_CTE": True}
    try:
        parser = FormParser(MULTIPART, on_field, on_file, on_end, options.get(b"boundary"), config=config)
        parser.write(body)
        parser.finalize()
        parser.close()
    except FormParserError as error:
        # Its own words and its log quote the headers of parts: they are the caller's.
        where = f" at byte {error.offset}" if isinstance(error, ParseError) and error.offset >= 0 else ""
        raise unreadable_form(where) from None
    if not ended:
        raise RequestError("invalid_request", "the multipart body has no closing boundary: it was cut off")
    return parts
