"""The nginx of docs/deployment.md, as somebody would paste it, before a running server.

nginx is Debian's, with its own nginx.conf. What differs from the page is where things lie: `/etc` and
`/var/lib/clipserve` are folders given, and beside TLS it listens without it, for callers who know no
certificate.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from clipserve.client import Client, KeyFile
from clipserve.errors import ClipServeError
from serving.local import ROOT, free_ports
from serving.server import Server

PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
CALLER = "0f3c" * 12  # the key of one who may call
NAME = "clip.example.org"


def snippets(language: str) -> list[str]:
    """The page's snippets of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def snippet(language: str, mark: str) -> str:
    """The one snippet that holds a mark, such as the name of its file."""
    (found,) = [text for text in snippets(language) if mark in text]
    return found


def at(text: str, places: Mapping[str, str]) -> str:
    """A text with other places in it.

    Raises:
        ClipServeError: one of them is not there: the page has changed.
    """
    for name, place in places.items():
        if name not in text:
            raise ClipServeError(f"{name!r} is not in this snippet of docs/deployment.md:\n{text}")
        text = text.replace(name, place)
    return text


@dataclass(frozen=True)
class Proxy:
    """A running nginx.

    Attributes:
        folder: everything of its own.
        port: of TLS.
        plain_port: without it.
        command: nginx with its files; `-t` or `-s reload` follow.
    """

    folder: Path
    port: int
    plain_port: int
    command: Sequence[str]

    @property
    def etc(self) -> Path:
        """Its `/etc/nginx`."""
        return self.folder / "etc" / "nginx"

    @property
    def authority(self) -> Path:
        """Its certificate."""
        return self.folder / "ssl" / NAME / "fullchain.pem"

    def client(self, key: str | None = CALLER) -> httpx.Client:
        """Plain HTTP over TLS, with a caller's key."""
        context = ssl.create_default_context(cafile=self.authority)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # The name leads here without a resolver.
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}",
            headers=headers | {"Host": NAME},
            transport=httpx.HTTPTransport(verify=context),
            trust_env=False,
            timeout=120,
        )

    def connect(self) -> ssl.SSLSocket:
        """A connection over TLS."""
        context = ssl.create_default_context(cafile=self.authority)
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=120)
        return context.wrap_socket(plain, server_hostname=NAME)


@contextlib.contextmanager
def running_proxy(server: Server, folder: Path) -> Iterator[Proxy]:
    """The page's nginx before a TorchServe, with the page's token script and one caller's key.

    Raises:
        ClipServeError: no nginx here, or it refuses the page's file or warns of it.
    """
    if NGINX is None:
        raise ClipServeError("nginx is missing; run apt-get install nginx-light")
    bodies = " ".join(
        f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    log = folder / "log"
    log.mkdir(parents=True)
    port, plain_port, probe_port = free_ports(3)
    command = [NGINX, "-c", str(folder / "etc" / "nginx" / "nginx.conf"), "-e", str(log / "error.log")]
    proxy = Proxy(folder, port, plain_port, command)
    (proxy.etc / "conf.d").mkdir(parents=True)
    _certify(proxy.authority.parent)
    inference = urlsplit(server.properties["inference_address"])
    text = at(
        snippet("nginx", "# /etc/nginx/conf.d/clipserve.conf"),
        {
            "/etc/nginx/": f"{proxy.etc}/",
            "/etc/ssl/": f"{folder / 'ssl'}/",
            "/var/log/nginx/": f"{log}/",
            "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2; listen 127.0.0.1:{plain_port};",
            "127.0.0.1:8080": f"127.0.0.1:{inference.port}",
            "127.0.0.1:8083": f"127.0.0.1:{probe_port}",
        },
    )
    (proxy.etc / "conf.d" / "clipserve.conf").write_text(text)
    callers = snippet("nginx", "# /etc/nginx/clipserve-callers.conf")
    (proxy.etc / "clipserve-callers.conf").write_text(at(callers, {"0f3c…": CALLER}))
    main = at(
        Path("/etc/nginx/nginx.conf").read_text(),
        {
            "/run/nginx.pid": str(folder / "nginx.pid"),
            "/var/log/nginx": str(log),
            "/etc/nginx/conf.d": str(proxy.etc / "conf.d"),
            "include /etc/nginx/sites-enabled/*;": bodies,
            # A temporary folder is of who runs this, and only root may become another.
            "user www-data;": "user root;" if os.getuid() == 0 else "",
        },
    )
    (proxy.etc / "nginx.conf").write_text(main)
    give_token(server, proxy, started=False)
    tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    if tested.returncode != 0 or "[warn]" in tested.stderr:
        raise ClipServeError(f"nginx refuses the file of docs/deployment.md: {tested.stderr}")
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    try:
        yield proxy
    finally:
        master = psutil.Process(int((folder / "nginx.pid").read_text()))
        family = [master, *master.children()]
        subprocess.run([*command, "-s", "quit"], check=True)
        psutil.wait_procs(family, timeout=30)


def give_token(server: Server, proxy: Proxy, *, started: bool = True) -> None:
    """Runs the page's script, with `systemctl reload nginx` done by nginx itself."""
    reload = shlex.join([*proxy.command, "-s", "reload"])
    tool(proxy.folder / "bin", "systemctl", f'test "$*" = "reload nginx"\n{reload if started else ""}')
    script = at(
        snippet("sh", "Gives TorchServe's inference token to nginx"),
        {"/var/lib/clipserve": str(server.folder), "/etc/nginx": str(proxy.etc)},
    )
    tool(proxy.folder / "sbin", "clipserve-token", script)
    environment = {"PATH": f"{proxy.folder / 'bin'}:/usr/bin:/bin"}
    subprocess.run([str(proxy.folder / "sbin" / "clipserve-token")], env=environment, check=True)


def tool(folder: Path, name: str, script: str) -> None:
    """A program of the machine's, replaced."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(script if script.startswith("#!") else f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def _certify(folder: Path) -> None:
    """A certificate of its own for `NAME` and 127.0.0.1."""
    folder.mkdir(parents=True)
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    request += f" -keyout privkey.pem -out fullchain.pem -subj /CN={NAME}"
    request += f" -addext subjectAltName=DNS:{NAME},IP:127.0.0.1"
    subprocess.run(shlex.split(request), cwd=folder, check=True, capture_output=True)


class ProxiedServer:
    """A TorchServe as callers behind the proxy see it; who manages it goes past that.

    Attributes:
        properties: the server's, with the proxy's address for requests.
        endpoints: the names that it serves.
        key_file: the server's tokens, but of inference the caller's key.
    """

    def __init__(self, server: Server, proxy: Proxy):
        self._server = server
        self.properties = server.properties | {"inference_address": f"http://127.0.0.1:{proxy.plain_port}"}
        self.endpoints = server.endpoints
        tokens = {kind: {"key": server.key_file.token(kind)} for kind in ("management", "API")}
        path = proxy.folder / "key_file.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps(tokens | {"inference": {"key": CALLER}}))
        self.key_file = KeyFile(path, self.properties["management_address"])

    def client(self) -> Client:
        """A client that goes through the proxy."""
        inference, management = (self.properties[f"{kind}_address"] for kind in ("inference", "management"))
        return Client(inference, management, self.key_file)

    def frontends(self) -> dict[str, psutil.Process]:
        """TorchServe's, the proxy's not."""
        return self._server.frontends()
