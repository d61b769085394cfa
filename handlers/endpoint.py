"""The handler of every archive; which endpoint one serves is the name that it was archived under."""

from clipserve.torchserve_adapter import TorchServeHandler


class EndpointHandler(TorchServeHandler):
    """TorchServe takes the one class that is defined in this file, and none that is imported into it."""
