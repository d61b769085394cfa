"""Bearer tokens: made at start, kept in a file of their owner's, compared in constant time.

The file has the shape of TorchServe's key file, so that `clipserve.client.KeyFile` reads it. An ingress keeps
the tokens' hashes only.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Literal

from clipserve.client import KeyFile

# Predictions, and what tells of the server itself.
Kind = Literal["inference", "management"]
KINDS: tuple[Kind, ...] = ("inference", "management")


def write_key_file(path: Path) -> None:
    """Makes new tokens and writes them to a file of mode 600, in place of the one that was there."""
    keys = {kind: {"key": secrets.token_urlsafe(32)} for kind in KINDS}
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(keys, file, indent=2)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


class TokenCheck:
    """Says whether a request carries the right token.

    Args:
        path: the key file; on a cluster a mounted secret.

    Raises:
        ServerError: no such file, or no key file.
    """

    def __init__(self, path: Path):
        file = KeyFile(path)
        self._hashes = {kind: _hash(file.token(kind)) for kind in KINDS}

    def holds(self, authorization: str, kind: Kind) -> bool:
        """Whether an Authorization header is `Bearer` with the token of a kind."""
        scheme, _, token = authorization.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(_hash(token), self._hashes[kind])


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
