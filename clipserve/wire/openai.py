"""OpenAI's `POST /v1/embeddings`, for texts and pictures in one list, and `GET /v1/models`.

How a picture goes into it, OpenAI has not said; those who serve CLIPs by its API have, each in another way.
An item of `input`, or of Cohere's `inputs`, is one text or one picture, in any of these shapes:

```
"text"                           "data:image/…;base64,…"
{"text": "…"}                    {"image": "<base64 or data: URI>"}
{"type": "text", "text": "…"}    {"type": "image_url", "image_url": {"url": "data:…"}}
{"content": one of these, alone or in a list}
```

`messages`, one of one part, is a single item; `modality: "image"` makes pictures of strings, as infinity has
it. No URL is ever fetched.

What differs from our own bodies: `model`, where it is given, must name what is served, `dimensions` may only
be the encoder's own, tokens of another tokenizer mean nothing here, and one wrong item fails its request, for
OpenAI's answer has no room for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from clipserve.encoder_spec import EncoderSpec, FloatArray, Modality, encode_vector
from clipserve.errors import RequestError
from clipserve.quantization import Quantization, quantize
from clipserve.wire.json_input import (
    image_item,
    item_list,
    json_object,
    read_encoding_format,
    text_items,
)
from clipserve.wire.messages import (
    Embedded,
    EncodingFormat,
    ItemT,
    Result,
    total_usage,
)
from clipserve.wire.rows import Reply, RequestLimits, Row, has_json, shown

EmbeddingType = EncodingFormat | Quantization

# Which of them a request has its items in.
SOURCES = ("input", "inputs", "messages")
FIELDS = {
    *SOURCES,
    *("model", "modality", "encoding_format", "embedding_types", "dimensions", "input_type", "user"),
}
# As floats are written, and how they are quantised: both are lists of the same type.
TYPES: tuple[EmbeddingType, ...] = (*get_args(EncodingFormat), *get_args(Quantization))
MODALITIES: tuple[Modality, ...] = get_args(Modality)
PICTURE = "data:image/"

# What an item turns out to be, before it is decoded.
Item = tuple[Modality, str] | RequestError


@dataclass(frozen=True)
class MixedRequest:
    """A parsed request whose items are pictures and texts, in any order.

    Attributes:
        images, texts: the items of each kind in the order in which they were given; an item of neither is a
            `RequestError` among the texts.
        order: which of the two lists each item is in.
        types: how embeddings are to be written; one at least.
        field: that the items came in.
    """

    images: list[bytes | RequestError]
    texts: list[str | RequestError]
    order: Sequence[Modality]
    types: Sequence[EmbeddingType]
    field: str

    @property
    def inputs(self) -> Sequence[Sequence[Any]]:
        """The pictures and the texts."""
        return [self.images, self.texts]

    def in_order(self, images: Sequence[ItemT], texts: Sequence[ItemT]) -> list[ItemT]:
        """What has become of the pictures and of the texts, in the order in which they were given."""
        turns = {"image": iter(images), "text": iter(texts)}
        return [next(turns[modality]) for modality in self.order]


def decode(row: Row, limits: RequestLimits, spec: EncoderSpec) -> MixedRequest:
    """Reads a request.

    Args:
        row: the request as it came.
        limits: how much it may ask for.
        spec: of one of the encoders that are served.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    if not has_json(row):
        raise RequestError(
            "unsupported_media_type",
            f"content type {shown(row.content_type or 'none')}; send application/json",
            415,
        )
    body = json_object(row.body, FIELDS)
    if body.get("model") is not None:
        check_model(body["model"], spec.model_id)
    dimensions = body.get("dimensions")
    # infinity's client sends 0 where it was told nothing; JSON's true and false are Python's 1 and 0.
    if dimensions not in (None, 0, spec.embedding_dim) or isinstance(dimensions, bool):
        raise RequestError(
            "invalid_request",
            f"'dimensions' is {shown(dimensions)}, but {spec.model_id!r} gives {spec.embedding_dim} and "
            "cannot be shortened; leave it out",
        )
    for name in ("user", "input_type"):
        if not isinstance(body.get(name, ""), str | None):
            raise RequestError("invalid_request", f"{name!r} is {shown(body[name])}, should be a text")
    modality = body.get("modality")
    if modality is not None and modality not in MODALITIES:
        raise RequestError(
            "invalid_request", f"'modality' is {shown(modality)}, allowed are {', '.join(MODALITIES)}"
        )
    types = _read_types(body)
    sources = [name for name in SOURCES if body.get(name) is not None]
    if len(sources) != 1:
        raise RequestError(
            "invalid_request",
            f"{' and '.join(map(repr, sources))} are given; send one of them"
            if sources
            else "the field 'input' is missing",
        )
    (source,) = sources
    items = _items(body, source, modality, limits)
    images = [item[1] for item in items if not isinstance(item, RequestError) and item[0] == "image"]
    texts = [item if isinstance(item, RequestError) else item[1] for item in items if _kind(item) == "text"]
    return MixedRequest(
        [image_item(image) for image in images],
        text_items(texts, limits),
        [_kind(item) for item in items],
        types,
        source,
    )


def _kind(item: Item) -> Modality:
    """Which list an item goes to; what is neither costs nothing in that of the texts."""
    return "text" if isinstance(item, RequestError) else item[0]


def _read_types(body: Mapping[str, Any]) -> Sequence[EmbeddingType]:
    """How embeddings are to be written; `encoding_format` OpenAI's clients send whatever else is said."""
    written = read_encoding_format(body.get("encoding_format"))
    asked = body.get("embedding_types")
    if asked is None:
        return [written]
    known = {name: name for name in TYPES}
    if not isinstance(asked, list) or not asked or len(asked) > len(TYPES):
        raise RequestError(
            "invalid_request",
            f"'embedding_types' is {shown(asked)}, should be a list of {', '.join(TYPES)}, each once at most",
        )
    for name in asked:
        if not isinstance(name, str) or name not in known or asked.count(name) > 1:
            raise RequestError(
                "invalid_request",
                f"'embedding_types' holds {shown(name)}, allowed are {', '.join(TYPES)}, each once",
            )
    return [known[name] for name in asked]


def _items(
    body: Mapping[str, Any], source: str, modality: Modality | None, limits: RequestLimits
) -> list[Item]:
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


def encode(spec: EncoderSpec, request: MixedRequest, results: Sequence[Sequence[Result]]) -> Reply:
    """The response to a request; the first error of an item's when one failed.

    An embedding is written as its one type, or of several as an object of them.
    """
    items = request.in_order(*results)
    errors = [r.at(i) for i, r in enumerate(items) if isinstance(r, RequestError)]
    if errors:
        return _encode_item_error(errors, len(items), request.field)
    data = [
        {"object": "embedding", "index": i, "embedding": _embedding(item.embedding, request.types)}
        for i, item in enumerate(items)
        if isinstance(item, Embedded)
    ]
    tokens = total_usage(items).prompt_tokens
    body = {
        "object": "list",
        "data": data,
        "model": spec.model_id,
        "space_id": spec.space_id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Reply.json(200, body)


def _embedding(embedding: FloatArray, types: Sequence[EmbeddingType]) -> Any:
    written = {name: _written(embedding, name) for name in types}
    return written if len(written) > 1 else written[types[0]]


def _written(embedding: FloatArray, name: EmbeddingType) -> Any:
    if name == "float":
        return embedding
    return encode_vector(embedding) if name == "base64" else quantize(embedding, name)


def _encode_item_error(errors: Sequence[RequestError], items: int, field: str) -> Reply:
    """What is wrong with the request, if anything is; else that it was too much for its time."""
    wrong = [error for error in errors if error.status < 500]
    if not wrong:
        late = errors[0]
        message = (
            f"there was time for {items - len(errors)} of {items} items; ask again, or for fewer at once"
        )
        return encode_error(RequestError(late.code, message, late.status))
    first = wrong[0]
    status = first.status if len(wrong) == items else 400
    return encode_error(RequestError(first.code, first.message, status, first.index), field)


def encode_error(error: RequestError, field: str = "input") -> Reply:
    """An error as OpenAI words it; `field` is where the item that it names stood."""
    param = None if error.index is None else f"{field}[{error.index}]"
    body = {
        "message": error.message if param is None else f"{param}: {error.message}",
        "type": "invalid_request_error" if error.status < 500 else "server_error",
        "param": param,
        "code": error.code,
    }
    return Reply.json(error.status, {"error": body})


def check_model(asked: Any, model: str) -> None:
    """Checks a model's id.

    Raises:
        RequestError: it is not that of the model that is served.
    """
    if asked != model:
        raise RequestError(
            "model_not_found", f"the model {shown(asked)} is not served here, but {model!r} is", 404
        )


def models_reply(model: str, created: int) -> Reply:
    """The answer to `GET /v1/models`; `created` is a Unix time in seconds."""
    return Reply.json(200, {"object": "list", "data": [_model(model, created)]})


def model_reply(asked: str, model: str, created: int) -> Reply:
    """The answer to `GET /v1/models/ID`.

    Raises:
        RequestError: `asked` is not what is served.
    """
    check_model(asked, model)
    return Reply.json(200, _model(model, created))


def _model(model: str, created: int) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": created, "owned_by": "clipserve"}
