"""The twenty files through the server's doors: TorchServe or, with `--server ray`, Ray Serve."""

from __future__ import annotations

from clipserve.client import Client
from clipserve.encoder import ExportedImageEncoder
from clipserve.encoder_spec import FloatArray
from standins.twenty_files import assert_same_vectors, served_vector
from tests.http.api import Api, b64, vectors


def test_every_file_has_the_same_vector(
    api: Api, client: Client, image_encoder: ExportedImageEncoder
) -> None:
    """CASES 8, 15, 21, 22, 24: as bytes, in JSON, as a part of a form, and through the client."""

    def expected(name: str) -> FloatArray:
        return served_vector(name, image_encoder)

    def as_bytes(name: str, data: bytes) -> FloatArray:
        vector: FloatArray = vectors(api.post("clip_image", data, "application/octet-stream"))[0]
        return vector

    def in_json(name: str, data: bytes) -> FloatArray:
        vector: FloatArray = vectors(api.post_json("clip_image", {"input": [{"image": b64(data)}]}))[0]
        return vector

    def as_part(name: str, data: bytes) -> FloatArray:
        vector: FloatArray = vectors(api.post_files("clip_image", {"file": (name, data)}))[0]
        return vector

    def by_client(name: str, data: bytes) -> FloatArray:
        vector: FloatArray = client.embed_images([data])[0]
        return vector

    for door in (as_bytes, in_json, as_part, by_client):
        assert_same_vectors(door, expected)
