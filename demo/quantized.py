"""What fewer bits cost in retrieval, with the bundled checkpoint: `make quantized`.

Scenes, captions and languages are those of `demo.languages`; embeddings come over HTTP as a caller gets them,
and are compared as docs/http.md says. Writes `demo/quantized.json`, of which `make figures` makes the table.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from clipserve.client import Client
from clipserve.command import run_command
from clipserve.encoder_spec import FloatArray
from clipserve.errors import ServerError
from clipserve.similarity import cosine_similarity
from demo.captions import load_vocabularies
from demo.languages import drawn, pool, ranks, wordings
from export_scripts.export import export_pair
from export_scripts.packages.archive import build_archives
from serving.server import Server

DATA = Path(__file__).parent / "quantized.json"
DIGITS = 4
ITEMS = 100

TYPES = ["float", "int8", "binary"]


def signs(embeddings: FloatArray) -> FloatArray:
    """-1 and 1 for the bits of `binary` embeddings: their cosine falls as the Hamming distance grows."""
    bits = np.unpackbits((embeddings.astype(np.int16) + 128).astype(np.uint8), axis=1)
    return 2 * bits.astype(np.float32) - 1


# How pictures and texts are kept, and compared by cosine: what of the answers, and what it is made into.
WAYS: dict[str, tuple[tuple[str, Callable[[FloatArray], FloatArray]], ...]] = {
    "float": (("float", np.asarray), ("float", np.asarray)),
    "int8": (("int8", np.asarray), ("int8", np.asarray)),
    "binary": (("binary", signs), ("binary", signs)),
    "binary pictures, float texts": (("binary", signs), ("float", np.asarray)),
}


def embed(client: Client, items: Sequence[Any]) -> dict[str, FloatArray]:
    """The embeddings of items by type, `[N, …]` each.

    Raises:
        ServerError: the server refuses.
    """
    found: dict[str, list[FloatArray]] = {name: [] for name in TYPES}
    for start in range(0, len(items), ITEMS):
        body = {"input": items[start : start + ITEMS], "embedding_types": TYPES}
        answer = client.post("v1", json.dumps(body).encode(), "application/json")
        if answer.status_code != 200:
            raise ServerError(f"status {answer.status_code}: {answer.text[:200]}")
        for entry in answer.json()["data"]:
            for name, numbers in entry["embedding"].items():
                found[name].append(np.asarray(numbers, np.float32))
    return {name: np.stack(vectors) for name, vectors in found.items()}


def recall(images: Mapping[str, FloatArray], texts: Mapping[str, FloatArray], way: str) -> float:
    """Share of texts whose picture comes first."""
    (of_images, make_images), (of_texts, make_texts) = WAYS[way]
    cosines = cosine_similarity(make_texts(texts[of_texts]), make_images(images[of_images]))
    return float((ranks(cosines, np.arange(len(cosines))) == 0).mean())


def measure(client: Client, seed: int) -> dict[str, Any]:
    """What `quantized.json` holds.

    Raises:
        ClipServeError: the server refuses or cannot be reached.
    """
    scenes = pool(seed)
    images = embed(client, [{"image": base64.b64encode(data).decode()} for data in drawn(scenes, seed)])
    recalls: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for vocabulary in tqdm(load_vocabularies().values(), unit=" languages", leave=False):
        texts = embed(client, wordings(vocabulary, scenes, seed))
        for way in WAYS:
            recalls[way][vocabulary.name] = recall(images, texts, way)
    return {
        "seed": seed,
        "scenes": len(scenes),
        "languages": len(recalls["float"]),
        "dimensions": images["float"].shape[1],
        "ways": {way: _summary(recalls["float"], found) for way, found in recalls.items()},
    }


def _summary(exact: Mapping[str, float], found: Mapping[str, float]) -> dict[str, Any]:
    loss = {name: exact[name] - found[name] for name in exact}
    worst = max(loss, key=lambda name: loss[name])
    return {
        "mean_recall_at_1": round(float(np.mean([*found.values()])), DIGITS),
        "largest_loss": round(loss[worst], DIGITS),
        "largest_loss_of": worst,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m demo.quantized", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the fresh scenes")
    arguments = parser.parse_args(argv)

    def work() -> None:
        seed: int = arguments.seed
        with tempfile.TemporaryDirectory(prefix="clipserve-quantized-") as folder:
            store = Path(folder)
            export_pair("demo", None, "cpu", "fp32", store)
            build_archives(store, None, None)
            with Server.private(store) as server, server.client() as client:
                results = measure(client, seed)
        DATA.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for way, found in results["ways"].items():
            print(
                f"{way}: R@1 {found['mean_recall_at_1']:.1%}, at most {found['largest_loss']:.1%} less "
                f"({found['largest_loss_of']})"
            )
        print(f"wrote {DATA}; 'make figures' brings docs/http.md to it")

    return run_command("quantized", work)


if __name__ == "__main__":
    sys.exit(main())
