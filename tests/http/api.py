"""HTTP as any caller speaks it: what the tests send, byte for byte."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import psutil
from PIL import Image

import reliability.load
from clipserve.encoder_spec import FloatArray, decode_vector

JSON = "application/json"


class AnyServer(reliability.load.AnyServer, Protocol):
    """What the tests need of a server, whichever it is."""

    @property
    def folder(self) -> Path:
        """Where its `key_file.json` is."""

    @property
    def logs(self) -> Path: ...

    def processes(self) -> list[psutil.Process]:
        """The process that it is, and all that it started."""

    def wait_ready(self, timeout: float) -> None: ...


@dataclass(frozen=True)
class Api:
    """A server's addresses and tokens."""

    server: AnyServer
    http: httpx.Client

    @property
    def url(self) -> str:
        return self.server.properties["inference_address"]

    @property
    def management(self) -> str:
        return self.server.properties["management_address"]

    def bearer(self, kind: str = "inference") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.server.key_file.token(kind)}"}

    def post(
        self, endpoint: str, content: bytes | str = b"", content_type: str | None = None, **options: Any
    ) -> httpx.Response:
        """A prediction with exactly this body and content type."""
        headers = self.bearer() | options.pop("headers", {})
        if content_type is not None:
            headers["Content-Type"] = content_type
        return self.http.post(
            f"{self.url}/predictions/{endpoint}", content=content or None, headers=headers, **options
        )

    def post_json(self, endpoint: str, body: Any, content_type: str = JSON) -> httpx.Response:
        return self.post(endpoint, json.dumps(body), content_type)

    def post_files(
        self, endpoint: str, files: dict[str, Any], data: dict[str, str] | None = None
    ) -> httpx.Response:
        return self.http.post(
            f"{self.url}/predictions/{endpoint}", headers=self.bearer(), files=files, data=data
        )

    def inference(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.http.request(
            method, f"{self.url}{path}", headers=self.bearer() | options.pop("headers", {}), **options
        )

    def manage(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.http.request(
            method, f"{self.management}{path}", headers=self.bearer("management"), **options
        )


def vectors(response: httpx.Response) -> FloatArray:
    """The embeddings of an answer of which every item succeeded: float32 `[N, D]`."""
    assert response.status_code == 200, response.text[:300]
    answer = response.json()
    assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
    return np.stack([vector(item) for item in answer["data"]])


def vector(item: dict[str, Any]) -> FloatArray:
    assert item["object"] == "embedding", item
    value = item["embedding"]
    return decode_vector(value) if isinstance(value, str) else np.asarray(value, np.float32)


def picture(seed: int, size: tuple[int, int] = (64, 48), format: str = "PNG", **options: Any) -> bytes:
    """A picture of smooth random colours: another seed looks different to an encoder."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(buffer, format, **options)
    return buffer.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
