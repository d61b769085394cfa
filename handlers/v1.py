"""The `v1` archive's handler."""

from clipserve.torchserve_adapter import TorchServeHandler


class V1Handler(TorchServeHandler):
    """Embeds pictures and texts, as OpenAI's clients ask for them."""

    endpoint = "v1"
