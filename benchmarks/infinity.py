"""infinity-emb among the servers that are compared."""

from __future__ import annotations

import base64
import json
import time

import numpy as np
import psutil

from benchmarks.peers import (
    JSON_HEADERS,
    ROOT,
    Inputs,
    ProcessPeer,
    Target,
    check_same,
    openai_bodies,
)
from benchmarks.workloads import WORKLOADS, Workload
from serving.local import free_ports

INFINITY_ENVIRONMENT = ROOT / ".venv-infinity"
SERVED_NAME = "clip"


class InfinityPeer(ProcessPeer):
    """infinity-emb on the same CLIP checkpoint; its texts go to the checkpoint's own English tower."""

    title = "infinity-emb"

    def __init__(self, inputs: Inputs):
        super().__init__()
        self._inputs = inputs
        modules = json.loads((inputs.clip / "modules.json").read_text(encoding="utf-8"))
        self._model = inputs.clip / modules[0]["path"]

    def start(self) -> dict[str, float]:
        """See `HttpPeer`."""
        [port] = free_ports(1)
        begin = time.perf_counter()
        self.run(
            [
                str(INFINITY_ENVIRONMENT / "bin" / "infinity_emb"),
                "v2",
                *("--model-id", str(self._model.resolve())),
                *("--served-model-name", SERVED_NAME),
                *("--engine", "torch"),
                *("--device", "cpu"),
                *("--dtype", "float32"),
                "--no-compile",
                "--no-bettertransformer",
                *("--host", "127.0.0.1"),
                *("--port", str(port)),
            ],
            # One process that computes: it may have all the cores.
            {"OMP_NUM_THREADS": str(psutil.cpu_count())},
            f"http://127.0.0.1:{port}",
        )
        workload = WORKLOADS["image"]
        answer = self.first_answer(workload, self.bodies(workload)[0])
        first = time.perf_counter() - begin
        vector = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
        check_same(vector, self._inputs.reference, self.title)
        return {"cold_start_s": first, "ready_s": first}

    def serves(self, workload: Workload) -> bool:
        """No similarities, no picture but in JSON, and all of it by the one door."""
        return workload.kind != "similarity" and workload.encoding != "raw" and not workload.door

    def target(self, workload: Workload) -> Target:
        """See `HttpPeer`."""
        return Target(f"{self.url}/embeddings", JSON_HEADERS)

    def bodies(self, workload: Workload) -> list[bytes]:
        """See `HttpPeer`."""
        return openai_bodies(workload, self._inputs, {"model": SERVED_NAME})
