"""The `clip_text` archive's handler."""

from clipserve.torchserve_adapter import TorchServeHandler


class ClipTextHandler(TorchServeHandler):
    """Embeds texts."""

    endpoint = "clip_text"
