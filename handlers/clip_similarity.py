"""The `clip_similarity` archive's handler."""

from clipserve.torchserve_adapter import TorchServeHandler


class ClipSimilarityHandler(TorchServeHandler):
    """Compares pictures with texts."""

    endpoint = "clip_similarity"
