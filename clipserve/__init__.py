"""clipserve: from a CLIP checkpoint pair to TorchScript, and from there to an HTTP service.

This package is what export and service must agree on; it is bundled whole in every archive and imports only
torch, Pillow, NumPy and tokenizers (`clipserve.client` is for callers and imports httpx).
"""

__version__ = "0.1.0"
