"""`python -m serving`: starts, stops and shows the server; what the Makefile calls."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from clipserve.client import Management
from clipserve.command import run_command
from clipserve.errors import ClipServeError
from clipserve.interrupt import interrupt_on_sigterm
from serving.example import EXAMPLE_IMAGE, EXAMPLE_TEXTS, PICTURES, curl_lines, run_example
from serving.local import ROOT, check_port_free, telling
from serving.probe import probe_server
from serving.server import Server, project_server, running_servers, server_in


def serve(arguments: argparse.Namespace) -> None:
    """Starts the project's server, unless it runs, and shows how to talk to it."""
    server = project_server()
    pid = server.running_pid()
    if pid is not None:
        with telling(f"TorchServe is running already (process {pid})"):
            server.wait_ready(arguments.timeout)
    else:
        with telling("starting TorchServe"):
            server.check_startable()
            try:
                server.start()
                server.wait_ready(arguments.timeout)
            except (ClipServeError, KeyboardInterrupt):
                server.stop()
                raise
    url = server.properties["inference_address"]
    # The golden inputs were just embedded with it: an expired one has been renewed.
    token = server.key_file.token("inference")
    print(f"\nready at {url}\ninference token (60 minutes; the client renews it): {token}")
    print(f"all tokens: {server.folder / 'key_file.json'}\n")
    print(curl_lines(url, token))
    print(f"\n# OpenAI's clients: base_url={url}/predictions/v1, and the token as api_key")
    print("\n'make example' runs the example, 'make stop' stops the server.")
    for warning in server.warnings():
        print(f"warning: {warning}", file=sys.stderr)


def stop(arguments: argparse.Namespace) -> None:
    """Stops the project's server, and no other."""
    server = project_server()
    if server.running_pid() is None:
        print(f"TorchServe is not running in {ROOT}")
        for folder, process in running_servers().items():
            print(f"left alone: the one of {folder} (process {process.pid})")
    else:
        with telling("stopping TorchServe"):
            server.stop()
        print("stopped")


def ready(arguments: argparse.Namespace) -> None:
    """Checks that the project's server answers its golden inputs."""
    server = server_in(arguments.folder)
    with telling("asking every worker"), server.client() as client:
        Management(client).check_ready(server.endpoints)
    print("ready: every worker answers, and every golden input has its certified embedding")


def probe(arguments: argparse.Namespace) -> None:
    """Answers /ready and /live without a token, for a load balancer or Kubernetes."""
    check_port_free(arguments.host, arguments.port, "name another with PORT=… (--port)")
    with probe_server(server_in(arguments.folder), arguments.host, arguments.port) as http:
        print(f"http://{arguments.host}:{arguments.port}/ready and /live; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            http.serve_forever()


def example(arguments: argparse.Namespace) -> None:
    """Runs the running example against the project's server."""
    texts = [text.strip() for text in arguments.texts.split("|") if text.strip()]
    with project_server().client() as client:
        run_example(client, arguments.image, texts)


def demo(arguments: argparse.Namespace) -> None:
    """Runs the running example on a server of its own, and stops it."""
    with contextlib.ExitStack() as stack:
        with telling("starting TorchServe on free ports"):
            server = stack.enter_context(Server.private(arguments.store, arguments.timeout))
        print(f"ready at {server.properties['inference_address']}\n", flush=True)
        with server.client() as client:
            for picture in sorted(PICTURES.glob("*.jpg")):
                run_example(client, picture, EXAMPLE_TEXTS)
                print()
    print("stopped. Next:")
    print("  make export MODEL=demo archive serve      serve this demo checkpoint from model_store/")
    print("  make export MODEL=clip-ViT-B-32           export a real checkpoint pair (needs the model hub)")
    print("  make help                                 everything else")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__, help=run.__doc__)
        added.set_defaults(run=run)
        return added

    for run in (serve, demo):
        command(run).add_argument("--timeout", type=float, default=120.0, help="seconds to wait")
    commands.choices["demo"].add_argument("--store", type=Path, required=True, help="folder of the archives")
    command(stop)
    of_probe = command(probe)
    for added in (command(ready), of_probe):
        added.add_argument(
            "--folder", type=Path, default=ROOT, help="where the server was started; default: this checkout"
        )
    of_probe.add_argument("--host", default="127.0.0.1", help="where the prober calls from may need another")
    of_probe.add_argument("--port", type=int, default=8083)
    of_example = command(example)
    of_example.add_argument("--image", type=Path, default=EXAMPLE_IMAGE)
    of_example.add_argument("--texts", default="|".join(EXAMPLE_TEXTS), help="texts, separated by |")
    arguments = parser.parse_args(argv)
    return run_command(
        "serving", lambda: arguments.run(arguments), "interrupted; a server that this started was stopped"
    )


if __name__ == "__main__":
    interrupt_on_sigterm()
    sys.exit(main())
