"""One TorchServe on this machine: how it is started, found ready, and stopped."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from clipserve.client import Client, KeyFile, Management
from clipserve.errors import ServerError
from serving.java import java_home
from serving.local import CONFIG, ROOT, check_port_free, free_ports, private_folder, read_properties

ADDRESSES = ("inference_address", "management_address", "metrics_address")
GRPC_PORTS = ("grpc_inference_port", "grpc_management_port")

# What config.properties names, beside it: metrics and logs.
SETTINGS = ("metrics.yaml", "log4j2.xml")

MAIN_CLASS = "org.pytorch.serve.ModelServer"

# A busy machine may need them.
PRIVATE_SECONDS = 240.0

STOP_SECONDS = 30.0

# Its workers' sockets lie in its temp dir, and sockaddr_un holds 108 bytes, with a zero at the end.
LONGEST_SOCKET = 107

# One crash may be an accident, such as a moment without memory.
CRASHES_TO_GIVE_UP = 2


# What the sentences of these have in common: `_warn_of_too_many_threads` (clipserve.torchserve_adapter),
# `_too_large` (clipserve.worker), `Settings.within`. A worker's log has no levels.
WARNINGS = r"are more than the \d+ cores|take \d+ s here, and max_request_seconds is|is lowered from"


@dataclass(frozen=True)
class Server:
    """A TorchServe instance, running or not.

    Attributes:
        folder: where it is started from: `logs/` and `key_file.json` appear there. A server belongs to its
            folder: what else runs on this machine is another one.
        config: its properties file.
        store: its model store.
        temporary: its temp dir, which holds its pid file, its workers' sockets and the unpacked archives,
            which are code: no other user may enter it.
    """

    folder: Path
    config: Path
    store: Path
    temporary: Path

    @classmethod
    @contextlib.contextmanager
    def private(cls, store: Path, timeout: float = PRIVATE_SECONDS) -> Iterator[Server]:
        """A server of the archives in `store`, ready, for as long as the `with` block lasts; nothing stays.

        It has free ports and a folder of its own; the settings are those of the project.

        Args:
            timeout: seconds that it may take to be ready.

        Raises:
            ServerError: it does not start.
        """
        with (
            tempfile.TemporaryDirectory(prefix="clipserve-server-") as folder,
            private_server(store, Path(folder)).started(timeout) as server,
        ):
            yield server

    @contextlib.contextmanager
    def started(self, timeout: float) -> Iterator[Server]:
        """This server, ready, for as long as the `with` block lasts.

        Args:
            timeout: seconds that it may take to be ready.

        Raises:
            ServerError: it does not start.
        """
        try:
            self.start()
            self.wait_ready(timeout)
            yield self
        finally:
            self.stop()

    @property
    def properties(self) -> dict[str, str]:
        """The properties file, read."""
        return read_properties(self.config)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The names that its configuration serves."""
        return tuple(model.partition("=")[0] for model in self.properties["load_models"].split(","))

    @property
    def logs(self) -> Path:
        """Folder of its logs."""
        return self.folder / "logs"

    @property
    def key_file(self) -> KeyFile:
        """Its tokens; there is no such file while it does not run."""
        return KeyFile(self.folder / "key_file.json", self.properties["management_address"])

    def client(self, timeout: float = 100.0) -> Client:
        """A client of this server, with its key file; `timeout` in seconds is for one request."""
        properties = self.properties
        return Client(
            properties["inference_address"],
            properties["management_address"],
            self.key_file,
            timeout=timeout,
        )

    def warnings(self) -> list[str]:
        """What its workers warned of since the start: threads, time, limits that contradict each other."""
        try:
            log = self._model_log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return list(dict.fromkeys(re.findall(rf"MODEL_LOG - (.* (?:{WARNINGS}) .*)", log)))

    def processes(self) -> list[psutil.Process]:
        """The Java server and its workers; empty where it is not running."""
        pid = self.running_pid()
        if pid is None:
            return []
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]

    def frontends(self) -> dict[str, psutil.Process]:
        """The Java server, which all requests pass on their way to a worker."""
        return {"frontend": self.processes()[0]}

    def running_pid(self) -> int | None:
        """Process id of the Java server, None where it is not running."""
        process = running_servers().get(self.folder.resolve())
        return None if process is None else process.pid

    def start(self) -> None:
        """Starts TorchServe in the background; `wait_ready` says when it serves.

        Raises:
            ServerError: no archive, no Java, a port taken, already running, or it ended at once.
        """
        self.check_startable()
        if self._model_log.is_file():
            # `wait_ready` reads in it why workers fail: it should hold this start's reasons only.
            self._model_log.replace(self._model_log.with_suffix(".previous.log"))
        private_folder(self.temporary)
        result = subprocess.run(
            [
                torchserve(),
                "--start",
                "--ncs",
                *("--model-store", str(self.store)),
                *("--ts-config", str(self.config)),
            ],
            cwd=self.folder,
            env=environment(self.temporary),
            # TorchServe writes its keys first, and makes the file its owner's then.
            umask=0o077,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if result.returncode != 0:
            raise ServerError(f"torchserve --start ended with {result.returncode}; logs/ says why")

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Waits until every endpoint answers its golden input; gives up at once if the server dies.

        Raises:
            ServerError: not ready within `timeout` seconds, or ended.
        """
        deadline = time.monotonic() + timeout
        with self.client() as client:
            management = Management(client)
            while True:
                if self.running_pid() is None:
                    raise ServerError(f"TorchServe has ended; {self.logs / 'ts_log.log'} says why")
                try:
                    management.check_ready(self.endpoints)
                except ServerError as error:
                    self._give_up_on_crash_loop()
                    if time.monotonic() > deadline:
                        raise ServerError(f"not ready after {timeout:g} s: {error}") from error
                    time.sleep(0.25)
                else:
                    return

    def stop(self) -> bool:
        """Stops the server and waits until it and its workers are gone.

        Returns:
            Whether one was running.

        Raises:
            ServerError: it does not end.
        """
        family = self.processes()
        if not family:
            return False
        # As `torchserve --stop` does, which finds a server by its temp dir alone.
        with contextlib.suppress(psutil.NoSuchProcess):
            family[0].terminate()
        _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for left in alive:
            left.kill()
        _, alive = psutil.wait_procs(alive, timeout=5)
        if alive:
            raise ServerError(f"processes {[p.pid for p in alive]} do not end")
        for name in (self.folder / "key_file.json", self.temporary / ".model_server.pid"):
            name.unlink(missing_ok=True)
        return True

    def check_startable(self) -> None:
        """Checks what `start` needs.

        Raises:
            ServerError: already running, no archive, or a port taken.
        """
        pid = self.running_pid()
        if pid is not None:
            raise ServerError(f"TorchServe is running already (process {pid}); 'make stop' stops it")
        properties = self.properties
        for model in properties["load_models"].split(","):
            archive = self.store / model.partition("=")[2]
            if not archive.is_file():
                raise ServerError(
                    f"{archive} is missing; run 'make export' (or 'make export MODEL=demo'), 'make archive'"
                )
            if not zipfile.is_zipfile(archive):
                raise ServerError(f"{archive} is no archive (damaged, or a copy cut off); run 'make archive'")
        ports = [urlsplit(properties[name]).port for name in ADDRESSES]
        ports += [int(properties[name]) for name in GRPC_PORTS]
        for port in ports:
            try:
                check_port_free("127.0.0.1", port or 0, f"change {self.config.name}")
            except ServerError as error:
                raise ServerError(f"{error}{_whose(port or 0)}") from error
        longest = self.temporary.absolute() / ".ts.sock.65535"
        if len(os.fsencode(longest)) > LONGEST_SOCKET:
            raise ServerError(
                f"{longest} is too long a path for a socket ({LONGEST_SOCKET} bytes); "
                f"move {self.folder} to a shorter one"
            )

    @property
    def _model_log(self) -> Path:
        return self.logs / "model_log.log"

    def _give_up_on_crash_loop(self) -> None:
        """TorchServe restarts a failing worker for minutes; no reason to fail heals by that."""
        try:
            log = self._model_log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        crashes = Counter(re.findall(r"(\S+) MODEL_LOG - Backend worker process died\.", log))
        if max(crashes.values(), default=0) >= CRASHES_TO_GIVE_UP:
            # The last lines of tracebacks: `clipserve.errors.SpecError: …`, `ModuleNotFoundError: …`.
            reasons = re.findall(r"MODEL_LOG - (?:\w+\.)*\w+(?:Error|Exception): (.*)", log)
            reason = "; ".join(dict.fromkeys(reasons)) or f"{self._model_log} says why"
            raise ServerError(f"a worker refuses to start: {reason}")


def environment(temporary: Path) -> dict[str, str]:
    """This program's environment, with the Java and the temp dir that TorchServe is to have.

    Raises:
        ServerError: there is no Java.
    """
    variables = dict(os.environ)
    home = java_home()
    if home is None:
        variables.pop("JAVA_HOME", None)
    else:
        variables["JAVA_HOME"] = str(home)
    # TorchServe's Java side reads TEMP, its Python side TMPDIR.
    variables["TEMP"] = variables["TMPDIR"] = str(temporary)
    # glibc keeps free memory in an arena a core and more, and holds back ever larger pieces; Java's network
    # buffers come from there. A worker sets its own bounds (clipserve/memory.py).
    variables.setdefault("MALLOC_ARENA_MAX", "2")
    variables.setdefault("MALLOC_MMAP_THRESHOLD_", "262144")
    return variables


def running_servers() -> dict[Path, psutil.Process]:
    """The TorchServes that this user may look at, however they were started, by the folder of each."""
    found: dict[Path, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if MAIN_CLASS in process.cmdline():
                # The first is the server: a worker that it starts has its command line for a moment.
                found.setdefault(Path(process.cwd()), process)
    return found


def _whose(port: int) -> str:
    for folder, process in running_servers().items():
        with contextlib.suppress(psutil.Error):
            if any(connection.laddr.port == port for connection in process.net_connections("inet")):
                return f" (it is the TorchServe of {folder}, process {process.pid})"
    return ""


def private_server(store: Path, folder: Path, *, overrides: Mapping[str, str] | None = None) -> Server:
    """A server on free ports with everything of its own in `folder`, not started yet; see `Server.private`.

    Args:
        overrides: properties that differ from the project's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ports = free_ports(len(ADDRESSES) + len(GRPC_PORTS))
    properties = read_properties(CONFIG)
    properties |= {name: f"http://127.0.0.1:{port}" for name, port in zip(ADDRESSES, ports, strict=False)}
    properties |= {name: str(port) for name, port in zip(GRPC_PORTS, ports[len(ADDRESSES) :], strict=True)}
    for name in SETTINGS:
        shutil.copyfile(ROOT / name, folder / name)
    properties |= overrides or {}
    config = folder / "config.properties"
    config.write_text("".join(f"{k}={v}\n" for k, v in properties.items()), encoding="utf-8")
    return Server(folder, config, store.resolve(), folder / "tmp")


def project_server() -> Server:
    """The server that `make serve` and the README's `torchserve --start` run."""
    return server_in(ROOT)


def server_in(folder: Path) -> Server:
    """The server that is started from a folder with its `config.properties`, such as a service's."""
    return Server(folder, folder / CONFIG.name, folder / "model_store", folder / ".torchserve")


def torchserve() -> str:
    """TorchServe's own command, in this environment."""
    return str(Path(sys.executable).with_name("torchserve"))
