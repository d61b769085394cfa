"""Items out of a JSON body, whose cost is bounded before it is parsed.

A wrong item becomes a `RequestError` in its place; a wrong body raises one. No URL is ever fetched.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from clipserve.encoder_spec import ScoreKind
from clipserve.errors import RequestError
from clipserve.wire.messages import EncodingFormat
from clipserve.wire.rows import RequestLimits, check_count, shown

MAX_JSON_DEPTH = 32
# Lists, objects, and what stands in them. A request of 1,000 texts has some 1,000; OpenAI's clients send
# texts as lists of tokens, which get an answer of their own.
MAX_JSON_VALUES = 250_000
# Of an integer. Python's own limit, but it is a setting of the interpreter's.
MAX_JSON_DIGITS = 4300
# What has more is no double's: its value matters to nobody, and reading it costs the square of its digits.
EXACT_JSON_DIGITS = 309
BRACKET = re.compile(r"[\[{\]}]")
SURROGATE = re.compile("[\ud800-\udfff]")
NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=_ \t\r\n-]")
URL_SAFE_BASE64 = bytes.maketrans(b"-_", b"+/")


def json_object(data: bytes, allowed: AbstractSet[str]) -> dict[str, Any]:
    """Reads a body that is one JSON object of known fields.

    Raises:
        RequestError: it is not.
    """
    body = read_json(data, "the body")
    if not isinstance(body, dict):
        raise RequestError("invalid_request", f"the body is {shown(body)}, should be a JSON object")
    unknown = sorted(set(body) - allowed)
    if unknown:
        raise RequestError(
            "invalid_request",
            f"unknown field {shown(unknown[0])}; allowed are {', '.join(sorted(allowed))}",
        )
    return body


def read_json(data: bytes, where: str) -> Any:
    """Reads JSON as the standard has it: UTF-8, no NaN, no key twice; bounded in depth, values and digits.

    Args:
        where: what it is, for messages.

    Raises:
        RequestError: it is not.
    """
    return _parsed(utf8(data), where)


def _parsed(text: str, where: str) -> Any:
    def no_constant(name: str) -> None:
        raise RequestError("invalid_json", f"{where} holds {name}, which is not JSON")

    def integer(digits: str) -> int | float:
        if len(digits) > MAX_JSON_DIGITS:
            raise RequestError("invalid_json", f"{where} holds a number of {len(digits)} digits")
        return int(digits) if len(digits) <= EXACT_JSON_DIGITS else float(digits)

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise RequestError("invalid_json", f"{where} has the key {shown(key)} twice")
            found[key] = value
        return found

    _check_structure(text, where)
    try:
        return json.loads(
            text, parse_constant=no_constant, parse_int=integer, object_pairs_hook=no_duplicates
        )
    except ValueError as error:
        raise RequestError("invalid_json", f"{where} is not valid JSON: {error}") from error


def _check_structure(text: str, where: str) -> None:
    """Bounds what parsing costs: json's own guard is the recursion limit, and it counts nothing.

    Exact for valid JSON; what is not may pass and fails in the parser.
    """
    if sum(map(text.count, "[{")) <= MAX_JSON_DEPTH and sum(map(text.count, "[{,")) <= MAX_JSON_VALUES:
        return
    # Texts may hold brackets and commas. Without its escapes a string ends at the next quote: pairs of
    # backslashes go first, so that what is left of each run tells whether the quote behind it is escaped.
    plain = text.replace("\\\\", "").replace('\\"', "")
    if plain.count('"') > 4 * MAX_JSON_VALUES:
        raise RequestError("invalid_json", f"{where} holds more than {2 * MAX_JSON_VALUES} strings")
    outside = "".join(plain.split('"')[::2])
    if sum(map(outside.count, "[{]}")) > 2 * MAX_JSON_VALUES:
        raise RequestError("invalid_json", f"{where} holds more than {MAX_JSON_VALUES} lists and objects")
    depth = 0
    for bracket in BRACKET.findall(outside):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_JSON_DEPTH:
            raise RequestError("invalid_json", f"{where} is nested deeper than {MAX_JSON_DEPTH} levels")
    if sum(map(outside.count, "[{,")) > MAX_JSON_VALUES:
        raise RequestError("too_many_items", f"{where} holds more than {MAX_JSON_VALUES} values", 413)


def is_json(text: str) -> bool:
    """Whether a text is a JSON object or list, or an object a line: a request under a wrong type.

    Whatever else may be wrong with that request, such as a key given twice, it is not something to embed.
    """
    text = text.strip()
    line = text.partition("\n")[0]
    return (text.startswith(("{", "[")) and _is_json_value(text)) or (
        line.startswith("{") and _is_json_value(line)
    )


def _is_json_value(text: str) -> bool:
    try:
        _check_structure(text, "the body")
        json.loads(text, parse_int=float)
    except (RequestError, ValueError):
        return False
    return True


def utf8(data: bytes) -> str:
    """Bytes as text.

    Raises:
        RequestError: they are not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError("invalid_encoding", f"the text is not UTF-8: {error}") from error


def item_list(body: Mapping[str, Any], key: str, kinds: type | tuple[type, ...], limit: int) -> list[Any]:
    """The list under `key`; a single item stands for a list of one, a wrong item becomes its error."""
    if key not in body:
        raise RequestError("invalid_request", f"the field {key!r} is missing")
    value = body[key]
    items = [value] if isinstance(value, kinds) else value
    if not isinstance(items, list):
        raise RequestError("invalid_request", f"{key!r} is {shown(value)}, should be a list")
    check_count(repr(key), len(items), limit)
    return [
        item
        if isinstance(item, kinds)
        else RequestError("invalid_item", f"an item of {key!r} is {shown(item)}")
        for item in items
    ]


def text_items(
    items: Sequence[str | RequestError], limits: RequestLimits, template: str = "{}"
) -> list[str | RequestError]:
    """Texts put into the template, each checked; their characters are counted before it is filled in."""
    total = sum(len(template) - 2 + len(item) for item in items if isinstance(item, str))
    if total > limits.max_total_characters:
        raise RequestError(
            "text_too_long",
            f"the texts have {total} characters together{' in their template' if template != '{}' else ''}, "
            f"allowed are {limits.max_total_characters}; send them in several requests",
            413,
        )
    return [
        item if isinstance(item, RequestError) else text_item(template.replace("{}", item), limits)
        for item in items
    ]


def text_item(item: str, limits: RequestLimits) -> str | RequestError:
    """A text, or what is wrong with it."""
    if len(item) > limits.max_characters:
        return RequestError(
            "text_too_long",
            f"the text has {len(item)} characters, allowed are {limits.max_characters}",
            413,
        )
    if SURROGATE.search(item):
        return RequestError("invalid_encoding", "the text has a surrogate without its other half")
    return item


def image_item(item: str | dict[str, Any] | RequestError) -> bytes | RequestError:
    """A picture's bytes out of base64 or a data: URI, or what is wrong with it; a wrong item stays wrong."""
    if isinstance(item, RequestError):
        return item
    if isinstance(item, dict):
        if set(item) != {"image"} or not isinstance(item["image"], str):
            return RequestError("invalid_item", 'an image item should be {"image": "<base64 or data: URI>"}')
        item = item["image"]
    if item.startswith(("http://", "https://", "file://", "ftp://")):
        return RequestError(
            "url_not_fetched", "the image is a URL; no URL is ever fetched, send the bytes in base64"
        )
    if item[:5].lower() == "data:":
        header, comma, item = item.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            return RequestError("invalid_base64", "the data: URI is not base64")
    try:
        return _decode_base64(item)
    except ValueError as error:
        wrong = NOT_BASE64.search(item)
        reason = f"{wrong[0]!r} at character {wrong.start() + 1} is none of its own" if wrong else error
        return RequestError("invalid_base64", f"the image is not base64: {reason}")


def _decode_base64(text: str) -> bytes:
    """Decodes base64, also in lines (MIME), of the URL-safe alphabet, or without its padding.

    Raises:
        ValueError: it is none of these.
    """
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        data = text.encode("ascii").translate(URL_SAFE_BASE64, b" \t\r\n")
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)


def read_score(value: Any) -> ScoreKind | None:
    """How probabilities are to be made; as the pair was trained where nothing is said.

    Raises:
        RequestError: neither of the two ways.
    """
    if value is None:
        return None
    if value == "softmax":
        return "softmax"
    if value == "sigmoid":
        return "sigmoid"
    raise RequestError("invalid_request", f"'score' is {shown(value)}, allowed are 'softmax' and 'sigmoid'")


def read_encoding_format(value: Any) -> EncodingFormat:
    """How embeddings are to be written; as numbers where nothing is said.

    Raises:
        RequestError: neither of the two ways.
    """
    if value in (None, "float"):
        return "float"
    if value == "base64":
        return "base64"
    raise RequestError(
        "invalid_request", f"'encoding_format' is {shown(value)}, allowed are 'float' and 'base64'"
    )
