"""What the search room raises on purpose; see `pictures.errors` for folders and tables."""

from __future__ import annotations

from clipserve.errors import ClipServeError


class SearchError(ClipServeError):
    """A query, or a run over a folder, cannot be done as asked; its text is one sentence fit for a user."""
