"""Texts and pictures in one list, in every shape that those who serve CLIPs by OpenAI's API have given them.

How a picture goes into it, OpenAI has not said, and each has found another way. An item of `input`, or of
Cohere's `inputs`, is one text or one picture:

```
"text"                           "data:image/…;base64,…"
{"text": "…"}                    {"image": "<base64 or data: URI>"}
{"type": "text", "text": "…"}    {"type": "image_url", "image_url": {"url": "data:…"}}
{"content": one of these, alone or in a list}
```

`messages`, one of one part, is a single item; `modality: "image"` makes pictures of strings, as infinity has
it. No URL is ever fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from clipserve.encoder_spec import Modality
from clipserve.errors import RequestError
from clipserve.wire.json_input import item_list
from clipserve.wire.rows import RequestLimits, shown
from clipserve.wire.schemas import ANY, ENCODED, LIMITS, TEXT, Schema, closed, one_or_many

MODALITIES: tuple[Modality, ...] = get_args(Modality)
PICTURE = "data:image/"

# What an item turns out to be, before it is decoded.
Item = tuple[Modality, str] | RequestError

_URL = {"oneOf": [ENCODED, closed({"url": ENCODED, "detail": ANY}, ["url"])]}
_PART: Schema = {
    "oneOf": [
        TEXT,
        closed({"text": TEXT, "type": {"const": "text"}}, ["text"]),
        closed({"image": ENCODED}),
        closed({"type": {"const": "image_url"}, "image_url": _URL}),
    ]
}
_ONE = {"minItems": 1, "maxItems": 1}
_CONTENT = closed(
    {"content": {"oneOf": [_PART, {"type": "array", "items": _PART, **_ONE}]}, "role": ANY}, ["content"]
)
_ITEMS = one_or_many({"oneOf": [_PART, _CONTENT]}, LIMITS.max_items)
# Where a request has its items: in one of these.
SOURCE_SCHEMAS: dict[str, Schema] = {
    "input": _ITEMS,
    "inputs": _ITEMS,
    "messages": {"type": "array", "items": _CONTENT, **_ONE},
}


def read_items(
    body: Mapping[str, Any], source: str, modality: Modality | None, limits: RequestLimits
) -> list[Item]:
    """The items of one of `SOURCE_SCHEMAS`, each what it is, or what is wrong with it.

    Raises:
        RequestError: it is no list of items.
    """
    given = body[source]
    if _has_tokens(given):
        raise RequestError(
            "invalid_request",
            f"{source!r} is an array of tokens, but the served model has a tokenizer of its own; send texts "
            "(LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))",
        )
    listed = item_list(body, source, (str, dict), limits.max_items)
    if source == "messages":
        if not isinstance(given, list):
            raise RequestError("invalid_request", f"'messages' is {shown(given)}, should be a list")
        if len(listed) != 1:
            raise _too_many_parts(len(listed), "messages")
    return [_item(item, modality) for item in listed]


def _item(given: str | dict[str, Any] | RequestError, modality: Modality | None) -> Item:
    """What an item is, or what is wrong with it."""
    if isinstance(given, RequestError):
        return given
    if isinstance(given, str):
        return modality or ("image" if given[: len(PICTURE)].lower() == PICTURE else "text"), given
    names = set(given)
    if "content" in names and names <= {"content", "role"}:
        content = given["content"]
        if isinstance(content, list):
            if len(content) != 1:
                return _too_many_parts(len(content), "parts")
            (content,) = content
        if isinstance(content, str) or (isinstance(content, dict) and "content" not in content):
            return _item(content, modality)
        return _wrong_item()
    if {"text", "image"} <= names or {"text", "image_url"} <= names:
        return _too_many_parts(2, "parts")
    if names in ({"text"}, {"type", "text"}) and given.get("type", "text") == "text":
        return ("text", given["text"]) if isinstance(given["text"], str) else _wrong_item()
    if names == {"image"}:
        return ("image", given["image"]) if isinstance(given["image"], str) else _wrong_item()
    if names == {"type", "image_url"} and given["type"] == "image_url":
        url = given["image_url"]
        if isinstance(url, dict) and set(url) <= {"url", "detail"}:
            url = url.get("url")
        return ("image", url) if isinstance(url, str) else _wrong_item()
    return _wrong_item()


def _too_many_parts(count: int, what: str) -> RequestError:
    return RequestError(
        "invalid_item",
        f"an item of {count} {what}; an embedding is of one text or of one picture: send each as an item of "
        "its own in 'input'",
    )


def _wrong_item() -> RequestError:
    return RequestError(
        "invalid_item",
        'an item should be a text, {"text": "…"}, {"image": "<base64 or data: URI>"}, {"type": "image_url", '
        '"image_url": {"url": "data:…"}} or {"content": [one of these]}',
    )


def _has_tokens(given: Any) -> bool:
    """Whether an input is a list of token numbers, or a list of such lists."""
    if not isinstance(given, list) or not given:
        return False
    first = given[0]
    if isinstance(first, list):
        return bool(first) and _has_tokens(first)
    return isinstance(first, int) and not isinstance(first, bool)


def kind_of(item: Item) -> Modality:
    """Which list an item goes to; what is neither costs nothing in that of the texts."""
    return "text" if isinstance(item, RequestError) else item[0]
