"""The `clip_image` archive's handler."""

from clipserve.torchserve_adapter import TorchServeHandler


class ClipImageHandler(TorchServeHandler):
    """Embeds pictures."""

    endpoint = "clip_image"
