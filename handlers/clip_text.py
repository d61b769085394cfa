"""The `clip_text` archive's handler."""

from clipserve.handler import Endpoint, text_endpoint
from clipserve.torchserve_adapter import TorchServeHandler, WorkerResources


class ClipTextHandler(TorchServeHandler):
    """Embeds texts."""

    def build(self, resources: WorkerResources) -> Endpoint:
        """One text encoder."""
        return text_endpoint(resources.text_encoder(), resources.settings)
