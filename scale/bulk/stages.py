"""The three stages that Ray Data carries shards through; a row of theirs is a whole shard.

So no block boundary can part a shard. A picture that cannot be embedded becomes a `Failure` in its shard;
whatever else goes wrong with a shard is carried in `problem` to the driver, which has the shard done again.
"""

from __future__ import annotations

import json
import os
import pickle
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from clipserve.encoder_spec import FloatArray
from clipserve.errors import ClipServeError, RequestError
from clipserve.images import PixelArray, decode_image, preprocess
from clipserve.memory import trim_memory
from clipserve.preprocessing import ImagePreprocessing
from clipserve.settings import Settings
from pictures.facts import Facts, read_facts
from pictures.files import Contents
from pictures.rows import FileState, picture_batch
from pictures.thumbnails import shrink
from scale.bulk.plan import Plan
from scale.bulk.sources import Failure, Picture

# Names that Ray Data gives batches of one row.
Batch = dict[str, np.ndarray[Any, Any]]

LEDGER = b"ledger"

# The server's, as they come.
SETTINGS = Settings()


@dataclass
class Decoded:
    """What is known of a shard's pictures besides their pixels; pixel row i belongs to entry i.

    Attributes:
        paths: in text form, of the pictures that could be decoded.
        states: of their files.
        thumbnails: small JPEGs.
        facts: what the files say of themselves.
        failures: the other pictures of the shard.
    """

    paths: list[str] = field(default_factory=list)
    states: list[FileState] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)
    facts: list[Facts] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def decode_shard(batch: Batch, plan: Plan, preprocessing: ImagePreprocessing) -> Batch:
    """Reads and decodes the pictures of a shard.

    Args:
        batch: `shard`, its number.
        plan: of the job.
        preprocessing: the encoder's.

    Returns:
        `shard`; `pixel_values` uint8 `[1, shard_size, 3, H, W]`, filled from the front;
        `decoded_pictures`, how many they are; `decoded`, a pickled `Decoded`; `problem`, empty or a sentence.
    """
    number = int(batch["shard"][0])
    size = (3, preprocessing.crop_height, preprocessing.crop_width)
    pixel_values = np.zeros((1, plan.shard_size, *size), np.uint8)
    decoded, problem = Decoded(), ""
    try:
        began_ns = time.time_ns()
        for picture, contents in plan.source.read(plan.shard(number)):
            if isinstance(contents, Failure):
                decoded.failures.append(contents)
                continue
            try:
                pixels, thumbnail = _decode(contents, preprocessing)
            except RequestError as error:
                decoded.failures.append(Failure.of(_as_read(picture, contents), error.code, error.message))
                continue
            pixel_values[0, len(decoded.paths)] = pixels
            decoded.paths.append(picture.path)
            decoded.states.append(FileState(len(contents.data), contents.mtime_ns, contents.sha256, began_ns))
            decoded.thumbnails.append(thumbnail)
            decoded.facts.append(read_facts(contents.data))
    except Exception as error:
        problem = sentence(error)
    # What Pillow freed stays with this process otherwise, see `trim_memory`.
    trim_memory()
    return {
        "shard": batch["shard"],
        "pixel_values": pixel_values,
        "decoded_pictures": np.array([len(decoded.paths)]),
        "decoded": _pickled(decoded),
        "problem": np.array([problem]),
    }


def _decode(contents: Contents, preprocessing: ImagePreprocessing) -> tuple[PixelArray, bytes]:
    image = decode_image(
        contents.data,
        SETTINGS.images,
        shortest_edge=preprocessing.shortest_edge,
        draft_factor=SETTINGS.draft_factor,
        color=SETTINGS.color,
    )
    return preprocess(image, preprocessing, SETTINGS.images), shrink(image)


def _as_read(picture: Picture, contents: Contents) -> Picture:
    return picture._replace(size=len(contents.data), mtime_ns=contents.mtime_ns)


def write_shard(batch: Batch, plan: Plan) -> Batch:
    """Writes a shard's file; done once more, it replaces the file by its like.

    Returns:
        `shard`, `pictures` (how many are in the file, failures included) and `problem`.
    """
    number, problem = int(batch["shard"][0]), str(batch["problem"][0])
    pictures = 0
    if not problem:
        try:
            decoded: Decoded = pickle.loads(batch["decoded"][0])  # noqa: S301  # a stage of this job wrote it
            pictures = _write(plan, number, decoded, batch["embeddings"][0])
        except Exception as error:
            problem = sentence(error)
    return {"shard": batch["shard"], "pictures": np.array([pictures]), "problem": np.array([problem])}


def _write(plan: Plan, number: int, decoded: Decoded, embeddings: FloatArray) -> int:
    embeddings = embeddings[: len(decoded.paths)]
    # A vector that is not finite would make the commit fail as a whole.
    finite = np.isfinite(embeddings).all(axis=1)
    for row in np.flatnonzero(~finite):
        state = decoded.states[row]
        decoded.failures.append(
            Failure(
                decoded.paths[row],
                state.size,
                state.mtime_ns,
                "not_finite",
                "its embedding has components that are no numbers",
            )
        )
    kept = np.flatnonzero(finite)
    rows = picture_batch(
        plan.schema,
        [decoded.paths[row] for row in kept],
        [decoded.states[row] for row in kept],
        embeddings[kept],
        [decoded.thumbnails[row] for row in kept],
        [decoded.facts[row] for row in kept],
    )
    ledger = json.dumps([asdict(failure) for failure in decoded.failures])
    output = plan.output(number)
    # Named after the process: of two that do the same shard, neither touches what the other is writing.
    temporary = output.with_name(f".{output.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            schema = rows.schema.with_metadata({**plan.schema.metadata, LEDGER: ledger})
            with pa.ipc.new_file(stream, schema) as writer:
                writer.write_table(rows.replace_schema_metadata(schema.metadata))
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return len(kept) + len(decoded.failures)


def _pickled(decoded: Decoded) -> np.ndarray[Any, Any]:
    # NumPy's own type for bytes drops zeros at their end.
    array = np.empty(1, object)
    array[0] = pickle.dumps(decoded)
    return array


def sentence(error: Exception) -> str:
    """An error for the driver."""
    text = str(error) if isinstance(error, ClipServeError) else f"{type(error).__name__}: {error}"
    return text.strip() or type(error).__name__
