"""The endpoints on a Ray of this machine: `make serve-ray`, `python -m scale.serve`.

On a cluster a Serve config runs the same application, `scale.serve.application:app`; see deploy/.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipserve.command import run_command
from clipserve.errors import ServerError
from clipserve.interrupt import interrupt_on_sigterm, say_what_ends_it
from scale.ray_files import keep_token_private, private_files
from scale.serve.settings import EndpointSettings
from scale.serve.tokens import write_key_file
from serving.example import curl_lines
from serving.local import CONFIG, ROOT, check_port_free, telling
from serving.running import RunningServer

if TYPE_CHECKING:
    from ray.serve import Application

APP = "clipserve"
HOST = "127.0.0.1"
PORT = 8000
HANDLERS = ROOT / "handlers"

# Bodies on their way to a replica, and answers: twice as many of the largest as one endpoint's batch holds.
OBJECT_STORE_BYTES = 512 * 1024 * 1024

# The most that gRPC can be told.
GRPC_BYTES = 2**31 - 1


@contextlib.contextmanager
def start(
    store: Path,
    port: int = PORT,
    *,
    host: str = HOST,
    device: str = "cpu",
    model: str | None = None,
    key_file: Path | None = None,
    handlers: Path = HANDLERS,
    config: Path = CONFIG,
    traces: str | None = None,
    temporary: Path | None = None,
) -> Iterator[RunningServer]:
    """A server on a Ray of its own on this machine, for as long as the `with` block lasts.

    Args:
        model: id of the model; None where the store holds one only.
        key_file: where its tokens are written, and removed at the end; None is a file of the checkout's.
        traces: address of an OpenTelemetry collector; None where no spans are made.
        temporary: folder of Ray's sessions and logs, with a short path, for this user only; None is one that
            is removed at the end.

    Raises:
        ClipServeError: no encoder, a port that is taken, wrong settings, or the server does not start.
    """
    check_port_free(host, port, "name another with PORT=…")
    # Before Ray is imported, which reads this once: all of its own ports on loopback too. On a single machine
    # it needs no other, although the name speaks of two systems where it never does.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Calls from process to process by gRPC, at the port that each replica opens anyhow and that wants Ray's
    # token: bodies over 100 kB do not go through the object store. CPU of a lone picture 111 to 92 ms.
    os.environ.setdefault("RAY_SERVE_USE_GRPC_BY_DEFAULT", "1")
    # A call carries bodies of `max_request_size` together: Ray's 4 MB would refuse a picture.
    os.environ.setdefault("RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH", str(GRPC_BYTES))
    # Ray's workers import this checkout, whatever folder they run in.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    from scale.serve.application import AppArguments, build, read_model

    arguments = AppArguments(
        store=store.resolve(),
        key_file=(key_file or ROOT / ".serve-ray" / str(port) / "key_file.json").resolve(),
        device=device,
        model=model,
        handlers=handlers.resolve(),
        config=config.resolve(),
        traces=traces,
    )
    served = read_model(arguments)
    application = build(arguments, served, (host, port))
    write_key_file(arguments.key_file)
    try:
        with _ray(served.endpoints, temporary), _serve(application):
            url = f"http://{host}:{port}"
            yield RunningServer(url, url, None, str(arguments.key_file), os.getpid())
    finally:
        arguments.key_file.unlink(missing_ok=True)


@contextlib.contextmanager
def _ray(endpoints: Sequence[EndpointSettings], temporary: Path | None) -> Iterator[None]:
    """A Ray of one machine; its token authentication is on, which is its default."""
    import ray

    keep_token_private()
    with private_files(temporary) as folder:
        ray.init(
            # The endpoints take turns on the cores, as TorchServe's workers do.
            num_cpus=max(os.cpu_count() or 1, sum(e.max_replicas * e.cpus for e in endpoints)),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=str(folder),
        )
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _serve(application: Application) -> Iterator[None]:
    from ray import serve
    from ray.serve.config import ProxyLocation
    from ray.serve.schema import LoggingConfig

    # What it did is nothing new to who started it.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # No line for each request, in no process.
    quiet = LoggingConfig(enable_access_log=False)
    # The ingress listens itself.
    serve.start(ProxyLocation.Disabled, logging_config=quiet)
    try:
        try:
            serve.run(application, name=APP, logging_config=quiet)
        except RuntimeError as error:
            raise ServerError(f"Ray Serve does not start: {_reason(error)}") from error
        yield
    finally:
        # Requests that are being answered still get their answers; the rest ends with Ray.
        serve.delete(APP)


def _reason(error: RuntimeError) -> str:
    """Why the application does not start: what its replicas themselves raised, where they did."""
    from ray import serve

    application = serve.status().applications.get(APP)
    said = [d.message for d in application.deployments.values()] if application else []
    # The last lines of their tracebacks.
    raised = re.findall(r"clipserve\.errors\.\w+: (.*)", "\n".join(said))
    return "; ".join(dict.fromkeys(raised)) or str(error).strip().splitlines()[-1]


def _serve_until_interrupted(server: RunningServer) -> None:
    token = server.keys.token("inference")
    print(f"\nready at {server.url}\ntoken (in {server.key_file}): {token}\n")
    print(curl_lines(server.url, token))
    print(f"\n# OpenAI's clients: base_url={server.url}/v1, and the token as api_key\n")
    print("Ctrl-C stops it.", flush=True)
    while True:
        signal.pause()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m scale.serve", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--store", type=Path, default=ROOT / "model_store", help="folder of the encoder files"
    )
    parser.add_argument(
        "--host", default=HOST, help="address to listen on; another than loopback wants TLS before it"
    )
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", help="model id, where the store holds several")
    parser.add_argument("--key-file", type=Path, help="where to write the tokens")
    parser.add_argument("--handlers", type=Path, default=HANDLERS, help="folder of the endpoints' YAML files")
    parser.add_argument("--config", type=Path, default=CONFIG, help="the server's settings")
    parser.add_argument(
        "--traces", metavar="URL", help="an OpenTelemetry collector, such as http://127.0.0.1:4318"
    )
    parser.add_argument("--temporary", type=Path, help="folder of Ray's sessions and logs, with a short path")
    parser.add_argument(
        "--until-stdin-ends",
        action="store_true",
        help="for programs that start it, see serving.running",
    )
    arguments = parser.parse_args(argv)
    say_what_ends_it(sys.stderr)

    def serve() -> None:
        with contextlib.ExitStack() as stack:
            # Whoever reads the one line of JSON is told nothing else.
            said = contextlib.nullcontext() if arguments.until_stdin_ends else telling("starting Ray Serve")
            with said:
                server = stack.enter_context(
                    start(
                        arguments.store,
                        arguments.port,
                        host=arguments.host,
                        device=arguments.device,
                        model=arguments.model,
                        key_file=arguments.key_file,
                        handlers=arguments.handlers,
                        config=arguments.config,
                        traces=arguments.traces,
                        temporary=arguments.temporary,
                    )
                )
            # Ray put a handler of its own in the place of this one.
            interrupt_on_sigterm()
            if arguments.until_stdin_ends:
                server.serve_until_stdin_ends()
            else:
                _serve_until_interrupted(server)

    return run_command("serve-ray", serve, "interrupted; the server was stopped")


if __name__ == "__main__":
    interrupt_on_sigterm()
    sys.exit(main())
