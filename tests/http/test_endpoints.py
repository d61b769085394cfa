"""Every endpoint in every shape that the design names; vectors as the encoders themselves give them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

from clipserve.client import Client, Management
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import FloatArray, ScoreKind
from clipserve.errors import RequestError
from clipserve.images import ImageLimits, decode_image, preprocess
from tests.http.api import Api, b64, picture, vector, vectors

TEXTS = ["two dogs in the snow", "két kutya a hóban", "雪の中の二匹の犬", "كلبان في الثلج", "", "  ", "🐕🐕"]
PICTURES = [
    picture(1),
    picture(2, (48, 48), "JPEG", quality=90),
    picture(3, (200, 50), "WEBP", lossless=True),
    picture(4, (48, 49), "GIF"),
    picture(5, (17, 90), "BMP"),
    picture(6, (1, 1)),
]

# The worker pads and batches otherwise than the reference does: float additions in another order.
SAME = 2e-6


def image_vectors(encoder: ExportedImageEncoder, pictures: list[bytes]) -> FloatArray:
    limits = ImageLimits()
    return np.concatenate(
        [
            encoder.embed([preprocess(decode_image(p, limits), encoder.preprocessing, limits)])
            for p in pictures
        ]
    )


def text_vectors(encoder: ExportedTextEncoder, texts: list[str]) -> FloatArray:
    pad = encoder.tokenizer.pad
    return np.concatenate([encoder.embed(*pad([encoder.tokenizer.tokenize(t).ids])) for t in texts])


def assert_same(found: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float = SAME) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


# ---- texts


def test_texts_as_the_exported_encoder(api: Api, text_encoder: ExportedTextEncoder) -> None:
    response = api.post_json("clip_text", {"input": TEXTS})
    assert response.headers["content-type"] == "application/json"
    assert_same(vectors(response), text_vectors(text_encoder, TEXTS))


def test_texts_as_sentence_transformers(api: Api, multilingual_folder: Path) -> None:
    model = SentenceTransformer(str(multilingual_folder), device="cpu")
    expected = model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    assert_same(vectors(api.post_json("clip_text", {"input": TEXTS})), expected, 1e-5)


def test_one_text(api: Api) -> None:
    alone = vectors(api.post_json("clip_text", {"input": TEXTS[0]}))
    assert_same(alone, vectors(api.post_json("clip_text", {"input": [TEXTS[0]]})))


@pytest.mark.parametrize(
    "content_type", ["text/plain", "text/plain; charset=utf-8", "TEXT/PLAIN;charset=UTF-8"]
)
def test_plain_text(api: Api, content_type: str) -> None:
    expected = vectors(api.post_json("clip_text", {"input": TEXTS[2]}))
    assert_same(vectors(api.post("clip_text", TEXTS[2], content_type)), expected)


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON;charset=UTF-8"]
)
def test_json_with_parameters(api: Api, content_type: str) -> None:
    body = {"input": TEXTS, "model": "ignored"}
    assert_same(
        vectors(api.post_json("clip_text", body, content_type)), vectors(api.post_json("clip_text", body))
    )


def test_json_with_raw_unicode(api: Api) -> None:
    raw = json.dumps({"input": TEXTS}, ensure_ascii=False)
    assert_same(
        vectors(api.post("clip_text", raw, "application/json")),
        vectors(api.post_json("clip_text", {"input": TEXTS})),
    )


def test_base64_is_float_bit_for_bit(api: Api) -> None:
    as_float = vectors(api.post_json("clip_text", {"input": TEXTS, "encoding_format": "float"}))
    as_base64 = vectors(api.post_json("clip_text", {"input": TEXTS, "encoding_format": "base64"}))
    assert_same(as_float, as_base64, 0)


def test_embedding_answer(api: Api, text_encoder: ExportedTextEncoder) -> None:
    spec = text_encoder.spec
    answer = api.post_json("clip_text", {"input": [TEXTS[0], "dog " * 500]}).json()
    assert set(answer) == {"object", "model", "space_id", "embedding_dim", "data", "usage"}
    assert (answer["object"], answer["model"], answer["space_id"]) == ("list", spec.model_id, spec.space_id)
    assert answer["embedding_dim"] == spec.embedding_dim == len(answer["data"][0]["embedding"])
    tokens = len(text_encoder.tokenizer.tokenize(TEXTS[0]).ids)
    assert answer["usage"] == {"prompt_tokens": tokens + 128, "truncated": 1, "unknown_tokens": 0}
    assert np.linalg.norm(vector(answer["data"][0])) == pytest.approx(1, abs=1e-5)


def test_more_texts_than_one_forward_pass(api: Api, text_encoder: ExportedTextEncoder) -> None:
    texts = [" ".join(["dog"] * (1 + 37 * i % 60)) + f" {i}" for i in range(100)]
    assert_same(vectors(api.post_json("clip_text", {"input": texts})), text_vectors(text_encoder, texts))


# ---- pictures


def test_pictures_as_the_exported_encoder(api: Api, image_encoder: ExportedImageEncoder) -> None:
    response = api.post_json("clip_image", {"input": [{"image": b64(p)} for p in PICTURES]})
    assert_same(vectors(response), image_vectors(image_encoder, PICTURES))
    assert response.json()["usage"] == {"prompt_tokens": 0, "truncated": 0, "unknown_tokens": 0}


def test_pictures_as_sentence_transformers(api: Api, clip_folder: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(clip_folder), device="cpu")
    opened = []
    for number, data in enumerate(PICTURES[:5]):
        path = tmp_path / str(number)
        path.write_bytes(data)
        with Image.open(path) as image:
            opened.append(image.convert("RGB"))
    expected = model.encode(opened, normalize_embeddings=True, show_progress_bar=False)
    found = vectors(api.post_json("clip_image", {"input": [b64(p) for p in PICTURES[:5]]}))
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", None])
def test_raw_picture(api: Api, image_encoder: ExportedImageEncoder, content_type: str | None) -> None:
    for data in PICTURES:
        assert_same(vectors(api.post("clip_image", data, content_type)), image_vectors(image_encoder, [data]))


def test_multipart_pictures(api: Api, image_encoder: ExportedImageEncoder) -> None:
    files = {f"file{i}": (f"{i}.png", data) for i, data in enumerate(PICTURES)}
    assert_same(vectors(api.post_files("clip_image", files)), image_vectors(image_encoder, PICTURES))


def test_data_uri(api: Api, image_encoder: ExportedImageEncoder) -> None:
    uri = f"data:image/png;base64,{b64(PICTURES[0])}"
    expected = image_vectors(image_encoder, PICTURES[:1])
    assert_same(vectors(api.post_json("clip_image", {"input": uri})), expected)
    assert_same(vectors(api.post_json("clip_image", {"input": [{"image": uri}]})), expected)


# ---- similarity


def test_similarity_is_the_softmax_of_the_vectors_cosines(
    api: Api, image_encoder: ExportedImageEncoder, text_encoder: ExportedTextEncoder
) -> None:
    answer = api.post_json("clip_similarity", {"images": [b64(p) for p in PICTURES], "texts": TEXTS}).json()
    cosines = image_vectors(image_encoder, PICTURES) @ text_vectors(text_encoder, TEXTS).T
    assert_same(answer["cosine_similarity"], cosines)
    scale = image_encoder.spec.score.scale
    assert answer["logit_scale"] == scale
    exponentials = np.exp(scale * (cosines - cosines.max(axis=1, keepdims=True)))
    expected = exponentials / exponentials.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-3)
    assert_same(np.sum(answer["probabilities"], axis=1), np.ones(len(PICTURES)))
    assert (answer["object"], answer["errors"]) == ("similarity", [])
    assert answer["space_id"] == image_encoder.spec.space_id


def test_labels_are_put_into_the_template(api: Api) -> None:
    images = [b64(PICTURES[0])]
    labels = {"images": images, "labels": ["dog", "cat"], "template": "a photo of a {}"}
    texts = {"images": images, "texts": ["a photo of a dog", "a photo of a cat"]}
    by_label, by_text = (api.post_json("clip_similarity", body).json() for body in (labels, texts))
    assert_same(by_label["probabilities"], by_text["probabilities"])
    plain = {"images": images, "labels": ["dog", "cat"]}
    assert api.post_json("clip_similarity", plain).json() != by_label


def test_multipart_similarity(api: Api) -> None:
    files = {"one": ("1.png", PICTURES[0]), "two": ("2.jpg", PICTURES[1])}
    found = api.post_files("clip_similarity", files, {"texts": json.dumps(TEXTS)}).json()
    expected = api.post_json(
        "clip_similarity", {"images": [b64(p) for p in PICTURES[:2]], "texts": TEXTS}
    ).json()
    assert_same(found["cosine_similarity"], expected["cosine_similarity"])


@pytest.mark.parametrize("score", ["softmax", "sigmoid", None])
def test_a_caller_chooses_the_score(score: ScoreKind | None, api: Api, client: Client) -> None:
    images = [b64(p) for p in PICTURES[:2]]
    answer = api.post_json("clip_similarity", {"images": images, "texts": TEXTS, "score": score}).json()
    assert answer["score"] == (score or "softmax")
    logits = answer["logit_scale"] * np.array(answer["cosine_similarity"])
    if score == "sigmoid":
        expected = 1 / (1 + np.exp(-logits - answer["logit_bias"]))
    else:
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-9)
    fields = {"texts": json.dumps(TEXTS)} | ({} if score is None else {"score": score})
    files = {f"file{i}": (f"{i}.png", data) for i, data in enumerate(PICTURES[:2])}
    assert_same(api.post_files("clip_similarity", files, fields).json()["probabilities"], expected, 1e-3)
    found = client.similarity(PICTURES[:2], TEXTS, score=score)
    assert (found.score, found.logit_bias) == (answer["score"], answer["logit_bias"])
    assert_same(found.probabilities, expected, 1e-3)


def test_another_score_is_refused(api: Api) -> None:
    body = {"images": [b64(PICTURES[0])], "texts": TEXTS, "score": "argmax"}
    answer = api.post_json("clip_similarity", body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert "'softmax' and 'sigmoid'" in answer.json()["error"]["message"]


def test_wrong_items_of_a_similarity_request_leave_holes(api: Api) -> None:
    images = [b64(PICTURES[0]), b64(b"no picture"), b64(PICTURES[1])]
    answer = api.post_json("clip_similarity", {"images": images, "texts": ["a", 5, "b"]}).json()
    assert answer["cosine_similarity"][1] is None
    assert [row[1] for row in answer["probabilities"] if row] == [None, None]
    assert [(e["input"], e["error"]["index"]) for e in answer["errors"]] == [("images", 1), ("texts", 1)]
    assert sum(p for p in answer["probabilities"][0] if p is not None) == pytest.approx(1)


# ---- the client


def test_client(
    client: Client, image_encoder: ExportedImageEncoder, text_encoder: ExportedTextEncoder
) -> None:
    texts = [f"a sentence of its own, number {i}" for i in range(150)]  # three requests
    assert_same(client.embed_texts(texts), text_vectors(text_encoder, texts))
    assert_same(client.embed_images(PICTURES), image_vectors(image_encoder, PICTURES))
    answer = client.similarity(PICTURES[:2], TEXTS[:3])
    cosines = image_vectors(image_encoder, PICTURES[:2]) @ text_vectors(text_encoder, TEXTS[:3]).T
    assert_same(answer.cosine_similarity, cosines)


def test_specs_over_http(client: Client, text_encoder: ExportedTextEncoder) -> None:
    (spec,) = Management(client).specs("clip_text")
    expected = text_encoder.spec
    assert replace(spec, certificate=expected.certificate) == expected
    assert spec.certificate.golden == expected.certificate.golden
    assert [s.modality for s in Management(client).specs("clip_similarity")] == ["image", "text"]


def test_the_client_embeds_texts_and_pictures_in_one_list(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(PICTURES[0])
    images, texts = client.embed_images(PICTURES[:2]), client.embed_texts(TEXTS[:2])
    found = client.embed([TEXTS[0], path, PICTURES[1], TEXTS[1]])
    np.testing.assert_array_equal(found, np.stack([texts[0], images[0], images[1], texts[1]]))
    assert_same(client.embed(TEXTS[0]), texts[:1])
    assert_same(client.embed(path), images[:1])
    assert client.embed([]).shape == (0, 0)


@pytest.mark.parametrize(
    ("items", "code", "index"),
    [
        (["a", PICTURES[0], "b", b"no picture", "c"], "unsupported_image_format", 3),
        ([PICTURES[0], "a", PICTURES[1], "b" * 20_001], "text_too_long", 3),
    ],
)
def test_the_client_says_which_of_a_mixed_list_is_wrong(
    client: Client, items: list[Any], code: str, index: int
) -> None:
    with pytest.raises(RequestError) as refused:
        client.embed(items)
    assert (refused.value.code, refused.value.index) == (code, index)
