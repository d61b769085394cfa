"""What the pictures' room raises on purpose."""

from __future__ import annotations

from clipserve.errors import ClipServeError


class PicturesError(ClipServeError):
    """A folder, a pattern or a table cannot be used as asked; its text is one sentence fit for a user."""
