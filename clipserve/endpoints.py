"""The endpoints: one table, which workers, archives, servers, the client and the tests read.

It holds what is said of an endpoint without loading anything, and imports no PyTorch; `clipserve.pipeline`
is what runs one. A new endpoint is a row here, its wire functions, and its settings in `handlers/NAME.yaml`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal, TypeVar

from clipserve.encoder_spec import EncoderSpec, Modality
from clipserve.errors import RequestError
from clipserve.wire import native, openai, similarity
from clipserve.wire.messages import Request, Result
from clipserve.wire.rows import FORM, MULTIPART, Reply, RequestLimits, Row, media_type
from clipserve.wire.schemas import REFUSAL, Schema

# Of the OpenAPI document, where a server has it.
DOCUMENT_PATH = "/openapi.json"

RequestT = TypeVar("RequestT", bound=Request)
Decode = Callable[[Row, RequestLimits, EncoderSpec], Request]
Example = Callable[[Mapping[Modality, Any]], dict[str, Any]]
Encode = Callable[[EncoderSpec, RequestT, Sequence[Sequence[Result]]], Reply]


@dataclass(frozen=True)
class Input:
    """One list of items in an endpoint's requests.

    Attributes:
        modality: of the encoder that embeds it.
        limit: the one of `RequestLimits` that says how many items it may have.
    """

    modality: Modality
    limit: Literal["max_items", "max_texts"]


@dataclass(frozen=True)
class Endpoint:
    """One endpoint.

    Attributes:
        name: in its URL, of its archive, and of its settings in `handlers/`.
        inputs: what is embedded, in the order of `Request.inputs`.
        decode: from a row, under limits, to a request of the model that the spec describes; raises
            `RequestError` where the row is wrong as a whole.
        encode: from the first encoder's spec, the request and its results, a list for each input, to a reply.
        bodies: what `decode` reads, by media type.
        answer: what `encode` writes where something could be answered.
        example: makes the JSON of a body, of lists of pictures in base64 and of texts, by modality; for who
            asks all endpoints alike, and with damaged lists too: it takes whatever stands there.
        refuse: the reply to a request of which nothing could be answered; `refusal` is its schema.
        version: of its archive, which stands behind the name in its URL; None where that is clipserve's own,
            and the URL ends with the name.
        gives_embeddings: whether its replies hold the embeddings of its one input.
        remembers_texts: whether its workers keep the embeddings of texts, which come again and again.
    """

    name: str
    inputs: tuple[Input, ...]
    decode: Decode
    encode: Encode[Any]
    bodies: Mapping[str, Schema]
    answer: Schema
    example: Example
    refuse: Callable[[RequestError], Reply] = native.encode_error
    refusal: Schema = field(default_factory=lambda: REFUSAL)
    version: str | None = None
    gives_embeddings: bool = False
    remembers_texts: bool = False

    @property
    def path(self) -> str:
        """What stands behind `/predictions/` in its URL."""
        return self.name if self.version is None else f"{self.name}/{self.version}"

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Whose encoders a worker holds."""
        return tuple(dict.fromkeys(of.modality for of in self.inputs))

    def read(self, row: Row, limits: RequestLimits, spec: EncoderSpec) -> Request:
        """The request in a row, by `decode`; whoever sends nothing at all is told what to send.

        TorchServe hands a `GET` over as a request without a body.

        Raises:
            RequestError: nothing was sent, or the row is wrong as a whole.
        """
        # A form in which the server has found no parts has an answer of its own.
        if row.body or row.parts or media_type(row.content_type) in (FORM, MULTIPART):
            return self.decode(row, limits, spec)
        raise RequestError(
            "empty_request",
            f"the request has no body; POST {', '.join(self.bodies)}, in JSON such as "
            f"{json.dumps(self._pattern(), ensure_ascii=False)}; {spec.model_id} gives {spec.embedding_dim} "
            "numbers for an item; all that can be sent is in docs/http.md",
        )

    def description(self, limits: RequestLimits, spec: EncoderSpec) -> dict[str, Any]:
        """What it takes, and which model it has: JSON of the schema `DESCRIPTION`."""
        return {
            "object": "endpoint",
            "method": "POST",
            "content_types": [*self.bodies],
            "example": self._pattern(),
            "limits": {of.limit: getattr(limits, of.limit) for of in self.inputs},
            **native.space_fields(spec),
            "document": DOCUMENT_PATH,
        }

    def _pattern(self) -> dict[str, Any]:
        return self.example({"image": ["<base64 or data: URI>"], "text": ["two dogs in the snow"]})


def _of_any_model(decode: Callable[[Row, RequestLimits], Request]) -> Decode:
    """Our own bodies, which ask for no model by name."""
    return lambda row, limits, _: decode(row, limits)


def _mixed(items: Mapping[Modality, Any]) -> dict[str, Any]:
    """A picture and a text in turns, as far as there are both."""
    images, texts = (of if isinstance(of, list) else [of] for of in (items["image"], items["text"]))
    turns = zip_longest([{"image": image} for image in images], texts)
    return {"input": [item for turn in turns for item in turn if item is not None]}


ENDPOINTS: dict[str, Endpoint] = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint(
            "clip_image",
            (Input("image", "max_items"),),
            _of_any_model(native.decode_images),
            native.encode_embeddings,
            native.IMAGE_BODIES,
            native.EMBEDDINGS,
            lambda items: {"input": items["image"]},
            gives_embeddings=True,
        ),
        Endpoint(
            "clip_text",
            (Input("text", "max_items"),),
            _of_any_model(native.decode_texts),
            native.encode_embeddings,
            native.TEXT_BODIES,
            native.EMBEDDINGS,
            lambda items: {"input": items["text"]},
            gives_embeddings=True,
        ),
        Endpoint(
            "clip_similarity",
            (Input("image", "max_items"), Input("text", "max_texts")),
            _of_any_model(similarity.decode),
            similarity.encode,
            similarity.BODIES,
            similarity.SIMILARITY,
            lambda items: {"images": items["image"], "texts": items["text"]},
            remembers_texts=True,
        ),
        # TorchServe, too, has the path that OpenAI's clients put behind the address they are given.
        Endpoint(
            "v1",
            (Input("image", "max_items"), Input("text", "max_items")),
            openai.decode,
            openai.encode,
            openai.BODIES,
            openai.EMBEDDINGS,
            _mixed,
            openai.encode_error,
            openai.REFUSAL,
            version="embeddings",
        ),
    )
}
