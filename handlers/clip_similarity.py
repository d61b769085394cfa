"""The `clip_similarity` archive's handler."""

from clipserve.handler import Endpoint, SimilarityEndpoint
from clipserve.torchserve_adapter import TorchServeHandler, WorkerResources


class ClipSimilarityHandler(TorchServeHandler):
    """Compares pictures with texts."""

    def build(self, resources: WorkerResources) -> Endpoint:
        """Both encoders in one worker."""
        return SimilarityEndpoint(resources.image_encoder(), resources.text_encoder(), resources.settings)
