"""The `clip_image` archive's handler."""

from clipserve.handler import Endpoint, image_endpoint
from clipserve.torchserve_adapter import TorchServeHandler, WorkerResources


class ClipImageHandler(TorchServeHandler):
    """Embeds pictures."""

    def build(self, resources: WorkerResources) -> Endpoint:
        """One image encoder."""
        return image_endpoint(resources.image_encoder(), resources.settings)
