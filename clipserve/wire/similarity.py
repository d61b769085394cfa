"""`clip_similarity`'s bodies: pictures and texts, or labels in a template; cosines and probabilities.

```
{"images": […], "texts": […]} or {"images": […], "labels": […], "template": "a photo of {}"}
and "score": "softmax" | "sigmoid", other than the pair's own
or multipart: files, and a field `texts` or `labels` (JSON list), `template`, `score`
```

What all of our own bodies share is in `native`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from clipserve.encoder_spec import EncoderSpec, ScoreKind
from clipserve.errors import RequestError
from clipserve.similarity import cosine_similarity, probabilities
from clipserve.wire.json_input import (
    image_item,
    item_list,
    json_object,
    read_json,
    read_score,
    text_items,
    utf8,
)
from clipserve.wire.messages import Embedded, Result
from clipserve.wire.native import encode_error, space_fields, usage_fields
from clipserve.wire.rows import Reply, RequestLimits, Row, has_json, read_form, refuse_form, shown


@dataclass(frozen=True)
class SimilarityRequest:
    """A parsed similarity request: encoded pictures, and texts with the template filled in.

    Attributes:
        score: how probabilities are to be made; None as the pair was trained.
    """

    images: list[bytes | RequestError]
    texts: list[str | RequestError]
    score: ScoreKind | None = None

    @property
    def inputs(self) -> Sequence[Sequence[Any]]:
        """The pictures and the texts."""
        return [self.images, self.texts]


def decode(row: Row, limits: RequestLimits) -> SimilarityRequest:
    """Reads a `clip_similarity` request.

    Raises:
        RequestError: the request as a whole is wrong.
    """
    images: list[bytes | RequestError]
    if has_json(row):
        body = json_object(row.body, {"images", "texts", "labels", "template", "score", "model"})
        images = [image_item(i) for i in item_list(body, "images", (str, dict), limits.max_items)]
    elif row.parts:
        fields, files = read_form(row, {"texts", "labels", "template", "score", "model"}, limits)
        images = [*files]
        body = {
            name: read_json(part, f"field {name!r}") if name in ("texts", "labels") else utf8(part)
            for name, part in fields.items()
        }
    else:
        refuse_form(row)
        raise RequestError(
            "unsupported_media_type",
            f"content type {shown(row.content_type or 'none')}; send application/json or multipart/form-data",
            415,
        )
    template, score = body.get("template"), read_score(body.get("score"))
    if "texts" in body and "labels" in body:
        raise RequestError("invalid_request", "both 'texts' and 'labels' are given; send one")
    if "labels" not in body:
        if template is not None:
            raise RequestError("invalid_request", "'template' goes with 'labels', not with 'texts'")
        texts = text_items(item_list(body, "texts", str, limits.max_texts), limits)
        return SimilarityRequest(images, texts, score)
    template = "{}" if template is None else template
    if isinstance(template, str) and len(template) > limits.max_characters:
        raise RequestError(
            "text_too_long",
            f"'template' has {len(template)} characters, allowed are {limits.max_characters}",
            413,
        )
    if not isinstance(template, str) or template.count("{}") != 1:
        raise RequestError(
            "invalid_request", f"'template' is {shown(template)}, should be a text with one {{}}"
        )
    labels = item_list(body, "labels", str, limits.max_texts)
    return SimilarityRequest(images, text_items(labels, limits, template), score)


def encode(spec: EncoderSpec, request: SimilarityRequest, results: Sequence[Sequence[Result]]) -> Reply:
    """The response to a similarity request.

    `cosine_similarity` and `probabilities` have a row for each image and a column for each text; null stands
    where the image or the text is in `errors`. A softmax is over the valid texts of its row.
    """
    images, texts = results
    errors = [
        (kind, result.at(index))
        for kind, of_kind in (("images", images), ("texts", texts))
        for index, result in enumerate(of_kind)
        if isinstance(result, RequestError)
    ]
    valid_texts = [i for i, text in enumerate(texts) if isinstance(text, Embedded)]
    valid_images = [image for image in images if isinstance(image, Embedded)]
    if not valid_texts or not valid_images:
        return encode_error(errors[0][1])
    cosines = cosine_similarity(
        np.stack([image.embedding for image in valid_images]),
        np.stack([text.embedding for text in texts if isinstance(text, Embedded)]),
    )
    score = replace(spec.score, kind=request.score or spec.score.kind)
    body = {
        "object": "similarity",
        **space_fields(spec),
        "cosine_similarity": _matrix(cosines, images, valid_texts, len(texts)),
        "probabilities": _matrix(probabilities(cosines, score), images, valid_texts, len(texts)),
        "score": score.kind,
        "logit_scale": score.scale,
        "logit_bias": score.bias,
        "errors": [{"input": kind, "error": error.to_json()} for kind, error in errors],
        "usage": usage_fields(texts),
    }
    return Reply.json(200, body)


def _matrix(
    values: np.ndarray[Any, Any],
    images: Sequence[Result],
    columns: Sequence[int],
    width: int,
) -> list[list[float | None] | None]:
    """Rows of `values` in the places of the valid images, its columns in those of the valid texts."""
    rows = iter(values.tolist())
    matrix: list[list[float | None] | None] = []
    for image in images:
        if isinstance(image, RequestError):
            matrix.append(None)
            continue
        row: list[float | None] = [None] * width
        for column, value in zip(columns, next(rows), strict=True):
            row[column] = value
        matrix.append(row)
    return matrix
