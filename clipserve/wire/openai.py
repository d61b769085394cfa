"""OpenAI's `POST /v1/embeddings`, for texts and pictures in one list, and `GET /v1/models`.

What stands in that list is in `mixed_items`. What differs from our own bodies: `model`, where it is given,
must name what is served, `dimensions` may only be the encoder's own, tokens of another tokenizer mean nothing
here, and one wrong item fails its request, for OpenAI's answer has no room for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from clipserve.encoder_spec import EncoderSpec, FloatArray, Modality, encode_vector
from clipserve.errors import RequestError
from clipserve.quantization import Quantization, quantize
from clipserve.wire.json_input import image_item, json_object, read_encoding_format, text_items
from clipserve.wire.messages import (
    Embedded,
    EncodingFormat,
    ItemT,
    Result,
    total_usage,
)
from clipserve.wire.mixed_items import MODALITIES, SOURCE_SCHEMAS, kind_of, read_items
from clipserve.wire.rows import JSON, Reply, RequestLimits, Row, has_json, shown
from clipserve.wire.schemas import ENCODING_FORMAT, INTEGER, STRING, VECTOR, Schema, choice, closed

EmbeddingType = EncodingFormat | Quantization

# As floats are written, and how they are quantised: both are lists of the same type.
TYPES: tuple[EmbeddingType, ...] = (*get_args(EncodingFormat), *get_args(Quantization))
# The one way in which texts are cut, in Cohere's words and in those of Jina and text-embeddings-inference.
TRUNCATED = ("END", True)
REQUEST: Schema = {
    **closed(
        {
            **SOURCE_SCHEMAS,
            "model": {"type": ["string", "null"], "description": "what is served, else 404"},
            "modality": choice(MODALITIES),
            "encoding_format": ENCODING_FORMAT,
            "embedding_types": {
                "type": ["array", "null"],
                "items": {"enum": [*TYPES]},
                "minItems": 1,
                "uniqueItems": True,
            },
            "dimensions": {"type": ["integer", "null"], "description": "the model's own, or 0"},
            "input_type": {"type": ["string", "null"]},
            "truncate": {"enum": [*TRUNCATED, None], "description": "texts that are too long end early"},
            "user": {"type": ["string", "null"]},
        },
        [],
    ),
    "oneOf": [{"required": [name]} for name in SOURCE_SCHEMAS],
}
BODIES: dict[str, Schema] = {JSON: REQUEST}
EMBEDDINGS = closed(
    {
        "object": {"const": "list"},
        "model": STRING,
        "space_id": STRING,
        "data": {
            "type": "array",
            "items": closed(
                {
                    "object": {"const": "embedding"},
                    "index": INTEGER,
                    "embedding": {"oneOf": [*VECTOR["oneOf"], closed(dict.fromkeys(TYPES, VECTOR), [])]},
                }
            ),
        },
        "usage": closed(dict.fromkeys(("prompt_tokens", "total_tokens"), INTEGER)),
    }
)
REFUSAL = closed(
    {
        "error": closed(
            {"message": STRING, "type": STRING, "param": {"type": ["string", "null"]}, "code": STRING}
        )
    }
)
MODEL = closed({"id": STRING, "object": {"const": "model"}, "created": INTEGER, "owned_by": STRING})
MODELS = closed({"object": {"const": "list"}, "data": {"type": "array", "items": MODEL}})


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
    body = json_object(row.body, REQUEST["properties"].keys())
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
    truncate = body.get("truncate")
    # JSON's 1 is no true, but Python's is.
    if truncate not in (None, *TRUNCATED) or (truncate == 1 and truncate is not True):
        raise RequestError(
            "invalid_request",
            f"'truncate' is {shown(truncate)}, but a text that is too long is cut at its end; allowed are "
            "'END' and true",
        )
    modality = body.get("modality")
    if modality is not None and modality not in MODALITIES:
        raise RequestError(
            "invalid_request", f"'modality' is {shown(modality)}, allowed are {', '.join(MODALITIES)}"
        )
    types = _read_types(body)
    sources = [name for name in SOURCE_SCHEMAS if body.get(name) is not None]
    if len(sources) != 1:
        raise RequestError(
            "invalid_request",
            f"{' and '.join(map(repr, sources))} are given; send one of them"
            if sources
            else "the field 'input' is missing",
        )
    (source,) = sources
    items = read_items(body, source, modality, limits)
    images = [item[1] for item in items if not isinstance(item, RequestError) and item[0] == "image"]
    texts = [item if isinstance(item, RequestError) else item[1] for item in items if kind_of(item) == "text"]
    return MixedRequest(
        [image_item(image) for image in images],
        text_items(texts, limits),
        [kind_of(item) for item in items],
        types,
        source,
    )


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
