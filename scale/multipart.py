"""The parts of a `multipart/form-data` body."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from clipserve.errors import RequestError
from clipserve.protocol import MULTIPART

# The endpoints' own limits on items are lower.
MAX_PARTS = 2000


def multipart_parts(content_type: str, body: bytes) -> dict[str, bytes]:
    """The parts of a multipart body by field name, as they came.

    Raises:
        RequestError: it is damaged, or two parts have one name.
    """
    parts: dict[str, bytes] = {}

    def add(name: bytes | None, value: bytes) -> None:
        key = (name or b"").decode("utf-8", "replace")
        if len(parts) == MAX_PARTS:
            raise RequestError("too_many_items", f"more than {MAX_PARTS} parts", 413)
        if key in parts:
            raise RequestError("invalid_request", "two parts have one name; give each a name of its own")
        parts[key] = value

    def on_field(field: Field) -> None:
        add(field.field_name, field.value or b"")

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_object.read())
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
        raise RequestError("invalid_request", f"the multipart body cannot be read: {error}") from error
    if not ended:
        raise RequestError("invalid_request", "the multipart body has no closing boundary: it was cut off")
    return parts
