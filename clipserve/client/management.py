"""Whether a server is ready and what it serves: what whoever runs it asks, at its management address."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Collection, Mapping, Sequence

from clipserve.client.calls import Client
from clipserve.client.tokens import KeyFile, MissingKeyFileError, RefusedTokenError
from clipserve.encoder_spec import EncoderSpec, decode_vector, golden_min_cosine
from clipserve.endpoint_status import READY, EndpointStatus, Worker
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import ClipServeError, ServerError, SpecError
from clipserve.similarity import cosine

WITHOUT_EMBEDDINGS = {name for name, endpoint in ENDPOINTS.items() if not endpoint.gives_embeddings}

POLL_SECONDS = 0.25


class Management:
    """Asks a server about itself, with the management token.

    Args:
        client: of the server; its connections and tokens are used.
    """

    def __init__(self, client: Client):
        self._client = client
        self._connection = client.connection

    def workers(self, endpoint: str) -> Sequence[Worker]:
        """The workers of an endpoint.

        Raises:
            ServerError: the server cannot be reached, or has no such endpoint.
        """
        return self._status(endpoint).workers

    def specs(self, endpoint: str) -> list[EncoderSpec]:
        """The encoder specs of an endpoint, told by one of its workers.

        Raises:
            ServerError: the server cannot be reached, has no such endpoint, or is of another version.
        """
        # A request that one of the workers answers.
        encoders = self._status(endpoint, {"customized": "true"}).encoders
        if not encoders:
            raise ServerError(f"{endpoint}: its worker does not say what it serves")
        try:
            return [EncoderSpec.from_json(json.dumps(spec), endpoint) for spec in encoders]
        except SpecError as error:
            raise ServerError(str(error)) from error

    def check_ready(self, endpoints: Collection[str] = ENDPOINTS) -> None:
        """Checks that every endpoint has all its workers, and answers its golden input as certified.

        Raises:
            ServerError: one is not ready; the message says which and why.
        """
        # All workers before any golden input: asked again and again during a start, the endpoints that are up
        # would take the cores from those that still load.
        for endpoint in endpoints:
            status = self._status(endpoint)
            ready = [worker for worker in status.workers if worker.status == READY]
            if len(ready) < max(1, status.min_workers):
                states = ", ".join(worker.status for worker in status.workers) or "none"
                raise ServerError(
                    f"{endpoint}: {len(ready)} of {status.min_workers} workers are ready ({states}); "
                    "logs/model_log.log says why"
                )
        for endpoint in endpoints:
            for spec in self.specs(endpoint):
                self._check_golden(endpoint, spec)

    def wait_ready(self, timeout: float = 120.0, endpoints: Collection[str] = ENDPOINTS) -> None:
        """Waits until `check_ready` holds.

        Args:
            timeout: seconds.

        Raises:
            ServerError: not ready in time, the message is the last reason; or, at once, a server answers but
                its token file is not where it was looked for, or it refuses the token that was given.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.check_ready(endpoints)
            except ClipServeError as error:
                # A server writes the file before it listens.
                if isinstance(error, MissingKeyFileError) and self._connection.listens():
                    raise
                # A key file may still be an earlier server's.
                if isinstance(error, RefusedTokenError) and not isinstance(self._connection.tokens, KeyFile):
                    raise
                if time.monotonic() > deadline:
                    raise ServerError(f"not ready after {timeout:g} s: {error}") from error
                time.sleep(POLL_SECONDS)
            else:
                return

    def _status(self, endpoint: str, params: Mapping[str, str] | None = None) -> EndpointStatus:
        return EndpointStatus.from_json(self._connection.describe(endpoint, params), endpoint)

    def _check_golden(self, endpoint: str, spec: EncoderSpec) -> None:
        if endpoint in WITHOUT_EMBEDDINGS:
            # Its workers compared their golden embeddings before they called themselves ready.
            return
        golden = spec.certificate.golden
        if spec.modality == "image":
            found = self._client.embed_images([base64.b64decode(golden.input)])[0]
        else:
            found = self._client.embed_texts([golden.input])[0]
        alike, least = cosine(found, decode_vector(golden.embedding)), golden_min_cosine(spec.precision)
        if not alike >= least:
            raise ServerError(
                f"{endpoint}: the golden input's embedding has cosine {alike:.6f}, not >= {least}"
            )
