"""What a replica gives the ingress, which has no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from clipserve.wire.rows import Reply


@dataclass(frozen=True)
class Answer:
    """A reply, and where the time of its batch went (the value of a Server-Timing header)."""

    reply: Reply
    timing: str
