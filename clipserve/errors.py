"""Everything that clipserve raises on purpose.

```
ClipServeError
├── SpecError        an encoder file or its spec is missing, stale, tampered with or of another version
├── SettingsError    a setting is missing or not allowed, or asks for what this machine has not
├── ExportError      an export cannot be made as asked
│   └── ParityError  an exported encoder differs from its original by more than its bound
├── RequestError     one caller's input is wrong: has a code, an HTTP status and, in a list, an index
└── ServerError      the server cannot be reached, refuses, or answers what it should not
    └── SpaceError   the server answers in another embedding space than was asked for
```
"""

from __future__ import annotations

from typing import Any


class ClipServeError(Exception):
    """Base of all clipserve errors; its text is one sentence fit for a user."""


class SpecError(ClipServeError):
    """An encoder file or its spec is missing, stale, tampered with or of another version."""


class SettingsError(ClipServeError):
    """A setting is missing or not allowed, or asks for what this machine has not."""


class ExportError(ClipServeError):
    """An export cannot be made as asked."""


class ParityError(ExportError):
    """An exported encoder differs from its original by more than its declared bound."""


class RequestError(ClipServeError):
    """One caller's input is wrong.

    Args:
        code: stable machine-readable name, such as `invalid_image`.
        message: what was wrong, the value, what is allowed.
        status: HTTP status: 400–499, or 503 where the caller should ask again.
        index: position of the item in its request; None when the request as a whole is wrong.
    """

    def __init__(self, code: str, message: str, status: int = 400, index: int | None = None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.index = index

    def at(self, index: int) -> RequestError:
        """The same error, told of the item at `index`."""
        return RequestError(self.code, self.message, self.status, index)

    def to_json(self) -> dict[str, Any]:
        """The `error` object of a response."""
        body: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.index is not None:
            body["index"] = self.index
        return body


class ServerError(ClipServeError):
    """The server cannot be reached, refuses, or answers what it should not."""


class SpaceError(ServerError):
    """The server answers in another embedding space than was asked for.

    Args:
        message: one sentence.
        space_id: of the server's answer.
    """

    def __init__(self, message: str, space_id: str):
        super().__init__(message)
        self.space_id = space_id
