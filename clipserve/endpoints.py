"""The endpoints: one table, which workers, archives, servers, the client and the tests read.

It holds what is said of an endpoint without loading anything, and imports no PyTorch; `clipserve.pipeline`
is what runs one. A new endpoint is a row here, its wire functions, and its settings in `handlers/NAME.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from clipserve.encoder_spec import EncoderSpec, Modality
from clipserve.errors import RequestError
from clipserve.wire import native, openai, similarity
from clipserve.wire.messages import Request, Result
from clipserve.wire.rows import DialectName, Reply, RequestLimits, Row

RequestT = TypeVar("RequestT", bound=Request)
Example = Callable[[Mapping[Modality, Any]], dict[str, Any]]
Encode = Callable[[EncoderSpec, RequestT, Sequence[Sequence[Result]]], Reply]


@dataclass(frozen=True)
class Dialect:
    """One shape of an endpoint's bodies.

    Attributes:
        decode: from a row, under limits, to a request of the model that the spec describes; raises
            `RequestError` where the row is wrong as a whole.
        encode: from the first encoder's spec, the request and its results, a list for each input, to a reply.
        refuse: the reply to a request of which nothing could be answered.
    """

    decode: Callable[[Row, RequestLimits, EncoderSpec], Request]
    encode: Encode[Any]
    refuse: Callable[[RequestError], Reply]


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
        dialects: the bodies that it speaks.
        example: makes the JSON of a native body, of lists of pictures in base64 and of texts, by modality;
            for who asks all endpoints alike, and with damaged lists too: it takes whatever stands there.
        gives_embeddings: whether its replies hold the embeddings of its one input.
        remembers_texts: whether its workers keep the embeddings of texts, which come again and again.
    """

    name: str
    inputs: tuple[Input, ...]
    dialects: Mapping[DialectName, Dialect]
    example: Example
    gives_embeddings: bool = False
    remembers_texts: bool = False

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Whose encoders a worker holds."""
        return tuple(dict.fromkeys(of.modality for of in self.inputs))


def _native(decode: Callable[[Row, RequestLimits], RequestT], encode: Encode[RequestT]) -> Dialect:
    """Our own bodies, which ask for no model by name."""
    return Dialect(lambda row, limits, _: decode(row, limits), encode, native.encode_error)


ENDPOINTS: dict[str, Endpoint] = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint(
            "clip_image",
            (Input("image", "max_items"),),
            {"native": _native(native.decode_images, native.encode_embeddings)},
            lambda items: {"input": items["image"]},
            gives_embeddings=True,
        ),
        Endpoint(
            "clip_text",
            (Input("text", "max_items"),),
            {
                "native": _native(native.decode_texts, native.encode_embeddings),
                "openai": Dialect(openai.decode, openai.encode, openai.encode_error),
            },
            lambda items: {"input": items["text"]},
            gives_embeddings=True,
        ),
        Endpoint(
            "clip_similarity",
            (Input("image", "max_items"), Input("text", "max_texts")),
            {"native": _native(similarity.decode, similarity.encode)},
            lambda items: {"images": items["image"], "texts": items["text"]},
            remembers_texts=True,
        ),
    )
}
