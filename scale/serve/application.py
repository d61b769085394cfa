"""The endpoints as one Ray Serve application.

```
HTTP ─▶ (Ray Serve's proxy) ─▶ Ingress ─▶ clip_image | clip_text | clip_similarity | v1 ─▶ clipserve.worker
                         tokens, sizes, queues     batches, workers that come and go
```

On one machine the ingress listens itself.
"""

# No `from __future__ import annotations`: Ray Serve makes of a config's arguments what the type of `app`'s
# parameter says, and takes a string for no type.

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from clipserve.encoder_spec import EncoderSpec
from clipserve.store import Store
from scale.serve.ingress import Ingress, ServedModel
from scale.serve.replica import Replica
from scale.serve.settings import EndpointSettings, read_endpoints, read_server
from scale.serve.tracing import check_collector
from serving.local import CONFIG, ROOT

HANDLERS = ROOT / "handlers"

# A worker that fails for want of memory may succeed the second time; one with a wrong encoder never does.
START_ATTEMPTS = 2

# Until a replica that died is missed.
HEALTH_SECONDS = 2

# Calls wait in the router while each replica holds its most. Ray looks for room after up to half a second;
# a batch takes a tenth of that, and the replica would have nothing to do for the rest.
ROUTER = RequestRouterConfig.model_validate({"initial_backoff_s": 0.005, "max_backoff_s": 0.02})


class AppArguments(BaseModel):
    """What a Serve config says under `args`.

    Attributes:
        store: folder of the encoder files.
        key_file: tokens; `scale.serve.tokens.write_key_file` makes one, a cluster mounts a secret.
        device: where encoders run.
        model: id of the model; None where the store holds one only.
        gpus_per_replica: share of a GPU that a replica takes, for `cuda`; with a third, all share one.
        max_replicas: of each endpoint, as requests wait, and `minWorkers` at least; None as its settings say.
        handlers: folder with an endpoint's settings, `NAME.yaml` for each.
        config: the server's settings.
        traces: address of an OpenTelemetry collector, such as `http://127.0.0.1:4318`, which is sent a span
            for each request; None where nobody is.
    """

    model_config = ConfigDict(extra="forbid")

    store: Path
    key_file: Path
    device: str = "cpu"
    model: str | None = None
    gpus_per_replica: float = 0.33
    max_replicas: PositiveInt | None = None
    handlers: Path = HANDLERS
    config: Path = CONFIG
    traces: str | None = None


def app(arguments: AppArguments) -> Application:
    """The application, for Serve configs (`import_path: scale.serve.application:app`).

    Raises:
        SpecError: the store has no encoders for this device, or several models and it was not said which.
        SettingsError: the settings are wrong.
    """
    return build(arguments, read_model(arguments))


@dataclass(frozen=True)
class Model:
    """What is served.

    Attributes:
        text: spec of its text encoder.
        endpoints: the settings with which it is served.
    """

    text: EncoderSpec
    endpoints: Sequence[EndpointSettings]


def read_model(arguments: AppArguments) -> Model:
    """Finds the model in the store, and how it is to be served; see `app` for the errors."""
    encoders = Store.read(arguments.store).model(arguments.model)
    text = encoders.pair(arguments.device)[1].spec
    endpoints = read_endpoints(arguments.handlers, encoders, arguments.device)
    if arguments.max_replicas is not None:
        endpoints = [replace(e, max_replicas=max(e.min_replicas, arguments.max_replicas)) for e in endpoints]
    return Model(text, endpoints)


def build(arguments: AppArguments, model: Model, address: tuple[str, int] | None = None) -> Application:
    """The application that serves a model, for `serve.run`; see `app` for the errors.

    Args:
        address: host and port at which the ingress listens itself, for a Ray of one machine.
    """
    if arguments.traces is not None:
        check_collector(arguments.traces)
    server = read_server(arguments.config)
    endpoints = model.endpoints
    gpus = arguments.gpus_per_replica if arguments.device == "cuda" else 0
    replicas = {
        settings.name: _deployment(settings, gpus).bind(
            settings, str(arguments.store), arguments.device, arguments.model
        )
        for settings in endpoints
    }
    # What waits for an endpoint waits in the ingress: all queues, and all that replicas hold.
    waiting = sum(server.queue + e.max_replicas * e.calls * e.batch_size for e in endpoints)
    ingress = serve.deployment(
        name="ingress",
        # It waits more than it works.
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=waiting,
        # Far enough for the endpoints' own queues to refuse first, and in our own words.
        max_queued_requests=waiting,
        health_check_period_s=HEALTH_SECONDS,
    )(Ingress)
    served = ServedModel(model.text, int(time.time()))
    settings_of = {e.name: e for e in endpoints}
    key_file = str(arguments.key_file)
    return ingress.bind(replicas, settings_of, server, key_file, served, arguments.traces, address)


def _deployment(settings: EndpointSettings, gpus: float) -> serve.Deployment:
    replicas: dict[str, Any] = {"num_replicas": settings.min_replicas}
    if settings.max_replicas > settings.min_replicas:
        autoscaling = AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            # Full batches, and none that waits for another.
            target_ongoing_requests=settings.batch_size,
        )
        replicas = {"autoscaling_config": autoscaling}
    return serve.deployment(
        name=settings.name,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": gpus},
        max_ongoing_requests=settings.calls,
        request_router_config=ROUTER,
        health_check_period_s=HEALTH_SECONDS,
        # Three missed checks are one dead worker; a busy one answers them beside its work.
        health_check_timeout_s=settings.response_seconds / 3,
        graceful_shutdown_timeout_s=settings.response_seconds,
        max_constructor_retry_count=START_ATTEMPTS,
        **replicas,
    )(Replica)
