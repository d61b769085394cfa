"""Strangers: other web pages, large uploads, and what is left when the page was ended."""

from __future__ import annotations

import contextlib
import io
import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

from clipserve.image_formats import FORMATS
from pictures.files import MAX_BYTES
from search.indexer import index_folder
from search.page.strangers import HEADERS
from serving.running import RunningServer
from tests.search.page.pages import (
    LOGO,
    MILLISECONDS,
    Served,
    served,
)


def test_headers_are_strict() -> None:
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert "http" not in policy
    assert policy.startswith("default-src 'none'")


@pytest.mark.server
@pytest.mark.parametrize("path", ["/", "/compare", "/static/search.js", "/picture?path=x", "/nothing"])
def test_headers(page: Served, path: str) -> None:
    response = page.get(path)
    assert {name: response.headers[name] for name in HEADERS} == HEADERS
    # A name elsewhere that was made to point here.
    port = urlsplit(page.url).port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert page.get(path, headers={"Host": host}).status_code == 400


@pytest.mark.server
@pytest.mark.parametrize("route", ["/pictures", "/comparison?text=a"])
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:1", None]
)
def test_other_pages_cannot_post(page: Served, pictures: Path, route: str, origin: str | None) -> None:
    """ATTACKS C6: also without an origin, and from another port of this machine."""
    data = (pictures / LOGO).read_bytes()
    assert page.post(route, data, origin).status_code == 403
    assert page.post(route, data).status_code == 200


@pytest.mark.server
@pytest.mark.parametrize("path", ["/", "/results?q=a", "/picture?path=x", "/static/search.js", "/nothing"])
def test_without_the_token_nothing_is_told(page: Served, path: str) -> None:
    """Another user of the machine, or whoever finds the forwarded port."""
    name = next(iter(page.cookies))
    known = page.get(path).status_code
    assert known in (200, 404)
    for cookie in ("", f"{name}=", f"{name}={page.token[:-1]}", f"{name}=é", f"token={page.token}"):
        answer = httpx.get(page.url + path, headers={"Cookie": cookie.encode()})
        assert answer.status_code == 403
        assert "the whole address that 'make ui' printed" in answer.text
    assert httpx.post(f"{page.url}/pictures", headers={"Origin": page.url}, content=b"x").status_code == 403
    # A script of a page that outlived its server is told in a form that it shows.
    answer = httpx.get(page.url + path, headers={"Sec-Fetch-Mode": "cors"})
    assert "make ui" in answer.json()["message"]


@pytest.mark.server
def test_the_token_leaves_the_address_at_once(page: Served) -> None:
    answer = httpx.get(page.link("/compare?q=a%26b&like=1&like=2"))
    assert answer.status_code == 303
    assert answer.headers["location"] == "/compare?q=a%26b&like=1&like=2"
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "SameSite=lax" in answer.headers["set-cookie"]
    # Not to another host.
    assert httpx.get(page.link("//evil.example/")).headers["location"] == "/evil.example/"
    for wrong in ("", "x", page.token + "x", "é"):
        assert httpx.get(f"{page.url}/", params={"token": wrong}).status_code == 403


@pytest.mark.server
def test_other_pages_cannot_read(page: Served) -> None:
    """ATTACKS C6: not embed, not fetch, not frame; a link from elsewhere may lead here."""
    for site in ("cross-site", "same-site"):
        asked = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        for path in ("/results?q=a", "/picture?path=x", "/"):
            assert page.get(path, headers=asked).status_code == 403
        framed = asked | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}
        assert page.get("/", headers=framed).status_code == 403
        link = asked | {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert page.get("/", headers=link).status_code == 200


@pytest.mark.server
@pytest.mark.parametrize("route", ["/pictures", "/comparison?text=a"])
@pytest.mark.parametrize("length", ["told", "not told", "no number"])
def test_uploads_are_bounded_before_they_are_read(page: Served, route: str, length: str) -> None:
    """ATTACKS C6: 300 MB are refused at their header; without one, as soon as they exceed the limit."""
    port = urlsplit(page.url).port or 0
    head = f"POST {route} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
    head += page.cookie_lines
    head += {
        "told": "Content-Length: 300000000\r\n\r\n",
        "not told": "Transfer-Encoding: chunked\r\n\r\n",
        "no number": "Content-Length: many\r\n\r\n",
    }[length]
    sent = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(MILLISECONDS / 1000)
        connection.sendall(head.encode())
        if length == "not told":
            chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
            connection.setblocking(False)
            while sent < 300_000_000:
                with contextlib.suppress(BlockingIOError):
                    if connection.recv(1, socket.MSG_PEEK):
                        break
                try:
                    sent += connection.send(chunk[sent % len(chunk) :])
                except BlockingIOError:
                    continue
                except OSError:  # closed by the page
                    break
            connection.setblocking(True)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400" if length == "no number" else b"HTTP/1.1 413")
    # What lies in the sockets' own buffers is not counted out.
    assert sent < MAX_BYTES + 20_000_000


@pytest.mark.server
@pytest.mark.parametrize("kind", ["many pixels", "another decoder"])
def test_a_dropped_picture_goes_through_the_cores_limits(page: Served, kind: str) -> None:
    """ATTACKS C6: 13,000 x 13,000 pixels, and a format that the server does not admit."""
    stream = io.BytesIO()
    if kind == "many pixels":
        Image.new("1", (13_000, 13_000)).save(stream, "PNG")
    else:
        Image.new("RGB", (8, 8)).save(stream, min({"PCX", "PPM", "TGA"} - FORMATS.keys()))
    answer = page.post("/pictures", stream.getvalue())
    assert answer.status_code == (413 if kind == "many pixels" else 415)
    assert answer.json()["of_picture"]


@pytest.mark.server
def test_sigterm_leaves_nothing_behind(
    server: RunningServer, page: Served, pictures: Path, tmp_path: Path
) -> None:
    """ATTACKS C5: nothing is written to disk while the page runs, nothing is left when it was ended."""
    before = sorted(tmp_path.rglob("*"))
    with served(server.url, server.key_file, tmp_path / "table", tmp_path) as other:
        with server.client() as client:
            index_folder(client, pictures, tmp_path / "table")
        pixels = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        assert len(stream.getvalue()) > 3_000_000  # more than what a form parser keeps in memory
        assert other.post("/pictures", stream.getvalue()).status_code == 200
        assert other.post("/comparison?text=a", stream.getvalue()).status_code == 200
        # A file without a name would be seen here.
        for link in Path(f"/proc/{other.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since
                assert not link.readlink().is_relative_to(other.temporary)
        assert list(other.temporary.iterdir()) == []
        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait() == 0
        assert list(other.temporary.iterdir()) == []
        assert other.complaints == []
    assert before == []
