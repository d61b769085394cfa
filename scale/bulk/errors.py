"""What the bulk job raises on purpose."""

from __future__ import annotations

from clipserve.errors import ClipServeError


class BulkError(ClipServeError):
    """A bulk job cannot be run as asked, or cannot go on; its text is one sentence fit for a user."""
