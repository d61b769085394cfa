"""What the search room raises on purpose."""

from __future__ import annotations

from clipserve.errors import ClipServeError


class SearchError(ClipServeError):
    """A folder, a table or a query cannot be used as asked; its text is one sentence fit for a user."""
