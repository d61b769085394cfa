"""Runs a job: lists what is missing, has Ray embed it, commits."""

from __future__ import annotations

import gc
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError
from tqdm import tqdm

from clipserve.encoder_spec import EncoderSpec, read_spec
from clipserve.preprocessing import ImagePreprocessing
from pictures.paths import printable
from pictures.rows import FileState
from pictures.storage import sole_writer
from pictures.table import PictureTable, open_or_create_table
from scale.bulk.commit import commit
from scale.bulk.encoding import Encoder
from scale.bulk.error_table import ErrorTable
from scale.bulk.errors import BulkError
from scale.bulk.plan import Plan, open_plan, write_plan
from scale.bulk.sources import UNKNOWN_SIZE, UNREADABLE, Failure, Picture, Source
from scale.bulk.stages import decode_shard, write_shard

JOBS = "bulk"

# A shard's file takes a writer some ten milliseconds, a GPU at least a hundred to fill.
ENCODERS_PER_WRITER = 4

SHOWN_FAILURES = 20

# Passes over what is left, one after the other, in which no shard at all was done: then the job gives up.
BARREN_PASSES = 3


@dataclass(frozen=True)
class Pool:
    """What the stages take of a cluster.

    Attributes:
        encoders: actors at most; None for as many as there is room for.
        encoder_cpus: of each, with decoding beside it; PyTorch uses as many threads, one at least.
        encoder_gpus: of each.
        decode_cpus: of each decoding task.
        batch_size: pictures of one forward pass.
        shard_size: pictures of a shard; a job that was begun keeps its own.
    """

    encoders: int | None
    encoder_cpus: float
    encoder_gpus: float
    decode_cpus: float
    batch_size: int
    shard_size: int


@dataclass
class Report:
    """What a run did.

    Attributes:
        unchanged: pictures whose rows were left alone.
        failed_before: pictures left alone that failed in an earlier run and have not changed since.
        resumed: pictures of shards that an earlier run had done.
        planned: pictures of the shards.
        added: rows of new paths.
        replaced: rows of changed pictures.
        present: rows that an earlier run had committed already.
        failures: pictures in the errors table because of this run.
        seconds: the run took.
        images_per_second: embedded by the cluster, from the first actor's start to the last shard.
    """

    unchanged: int = 0
    failed_before: int = 0
    resumed: int = 0
    planned: int = 0
    added: int = 0
    replaced: int = 0
    present: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    images_per_second: float = 0.0


def run_job(source: Source, folder: Path, encoder: Path, pool: Pool) -> Report:
    """Embeds what the table in `folder` does not hold yet; Ray is connected.

    Raises:
        BulkError: no pictures, too small a cluster, or shards that cannot be done.
        PicturesError: the table cannot be written, or is of another embedding space.
        SpecError: no such encoder.
    """
    start = time.monotonic()
    spec = read_spec(encoder)
    if spec.image is None:
        raise BulkError(f"{encoder}: a {spec.modality} encoder; name an image encoder with --encoder")
    with sole_writer(folder, lambda: print("another job writes to this table: waiting", flush=True)):
        table = open_or_create_table(folder, spec.space_id, spec.model_id, spec.embedding_dim)
        elsewhere = f"{printable(str(folder))}-{spec.space_id[:6]}"
        table.require_space(
            spec.space_id,
            spec.stem,
            f"name an encoder of the first, or another table: make bulk IMAGES=… TABLE={elsewhere}",
        )
        run = _Run(source, table, _Stages(encoder, spec, spec.image, pool))
        run.bring_up_to_date()
    run.report.seconds = time.monotonic() - start
    return run.report


class _Run:
    """One run over one table, whose writer lock is held."""

    def __init__(self, source: Source, table: PictureTable, stages: _Stages):
        self.report = Report()
        self._source = source
        self._table = table
        self._stages = stages
        self._errors = ErrorTable(table.folder)
        self._job = table.folder / JOBS / source.identity

    def bring_up_to_date(self) -> None:
        """Goes on with the job that was begun, if one was; then does what is missing after it."""
        plan = open_plan(self._job)
        if plan is not None:
            if not plan.schema.equals(self._table.schema, check_metadata=True):
                raise BulkError(
                    f"{printable(str(self._job))}: begun with another encoder, or by an older version; "
                    "remove this folder, then run the job again"
                )
            self._do(plan)
        plan = self._plan()
        if plan is not None:
            self._do(plan)
        if self.report.added or self.report.replaced:
            self._table.maintain()

    def _plan(self) -> Plan | None:
        """Lists what is missing; what cannot even be listed goes to the errors table at once."""
        known, failed = self._table.states(), self._errors.failures()
        self.report.unchanged = self.report.failed_before = 0
        skipped: list[Failure] = []

        def missing() -> Iterator[Picture]:
            for item in self._source.list():
                if isinstance(item, Failure):
                    skipped.append(item)
                elif _is_unchanged(item, known.get(item.path)):
                    self.report.unchanged += 1
                elif _failed_for_good(item, failed.get(item.path)):
                    self.report.failed_before += 1
                else:
                    yield item

        plan = write_plan(
            self._job, self._source, self._table.schema, self._stages.pool.shard_size, missing()
        )
        if plan is None and not (self.report.unchanged or self.report.failed_before or self.report.planned):
            reason = f" ({skipped[0].path}: {skipped[0].message})" if skipped else ""
            raise BulkError(f"{printable(str(self._source.root))}: no pictures there{printable(reason)}")
        self._errors.put(skipped)
        self.report.failures += skipped
        return plan

    def _do(self, plan: Plan) -> None:
        """Embeds and commits the shards of a plan."""
        self.report.planned += plan.pictures
        rest = [number for number in range(plan.shards) if not plan.is_done(number)]
        self.report.resumed += plan.pictures - sum(map(plan.shard_pictures, rest))
        if rest:
            began = time.monotonic()
            self._stages.run(plan, rest)
            seconds = time.monotonic() - began
            self.report.images_per_second = sum(map(plan.shard_pictures, rest)) / seconds
        known, failed = self._table.states(), self._errors.failures()
        done = commit(plan, self._table, self._errors, known, failed)
        plan.forget()
        self.report.added += done.added
        self.report.replaced += done.replaced
        self.report.present += done.present
        self.report.failures += done.failures


def _is_unchanged(picture: Picture, state: FileState | None) -> bool:
    # The size of a picture in Parquet is not known before it is read.
    return state is not None and state.is_of(
        state.size if picture.size == UNKNOWN_SIZE else picture.size, picture.mtime_ns
    )


def _failed_for_good(picture: Picture, failure: Failure | None) -> bool:
    return (
        failure is not None
        and failure.code != UNREADABLE
        and failure.mtime_ns == picture.mtime_ns
        and picture.size in (failure.size, UNKNOWN_SIZE)
    )


@dataclass(frozen=True)
class _Stages:
    """The cluster's part."""

    encoder: Path
    spec: EncoderSpec
    preprocessing: ImagePreprocessing
    pool: Pool

    def run(self, plan: Plan, numbers: Sequence[int]) -> None:
        """Has shards done, until each has its file.

        A pass goes over all that is left. Shards that were under way on a node or in a worker that died are
        left out of it, and are of the next one.

        Raises:
            BulkError: shards cannot be done.
        """
        rest = list(numbers)
        barren = 0
        done_before = plan.pictures - sum(map(plan.shard_pictures, rest))
        with tqdm(
            total=plan.pictures, initial=done_before, unit=" images", disable=None, smoothing=0.05
        ) as bar:
            while rest:
                problem = "a worker or a node died"
                try:
                    for done in self._pass(plan, rest):
                        problem = str(done["problem"]) or problem
                        bar.update(int(done["pictures"]))
                except RayError as error:
                    problem = _sentence(error)
                left = [number for number in rest if not plan.is_done(number)]
                barren = 0 if len(left) < len(rest) else barren + 1
                if barren == BARREN_PASSES:
                    raise BulkError(
                        f"{len(left)} of {plan.shards} shards cannot be done: {problem}; what was done is "
                        "kept, and the same command goes on from there"
                    )
                if left:
                    bar.write(f"{len(left)} shards are done once more: {problem}", file=sys.stderr)
                    # Ray Data's cycles of references still hold the encoders of this pass. One that had died
                    # and starts again keeps its room: where there is no other, the next pass waits for it.
                    gc.collect()
                bar.update(plan.pictures - sum(map(plan.shard_pictures, left)) - bar.n)
                rest = left

    def _pass(self, plan: Plan, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """What `write_shard` says of each shard; those that are lost are missing."""
        encoders, decoders = self._room()
        # The terminal has the bar and our own words; Ray Data's file in the session's folder has everything.
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # The stages raise nothing: an error is the death of a node or a worker, and costs its shards only.
        context.max_errored_blocks = -1
        shards = ray.data.from_items([{"shard": n} for n in numbers], override_num_blocks=len(numbers))
        decoded = shards.map_batches(
            partial(decode_shard, plan=plan, preprocessing=self.preprocessing),
            batch_size=1,
            # Tasks give back their share whenever they end: an encoder that has to move finds room.
            compute=ray.data.TaskPoolStrategy(decoders),
            num_cpus=self.pool.decode_cpus,
        )
        with warnings.catch_warnings():
            # Ray means to do away with such arguments, and has no other for `max_task_retries` yet.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            embedded = decoded.map_batches(
                Encoder,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=encoders),
                num_cpus=self.pool.encoder_cpus,
                num_gpus=self.pool.encoder_gpus,
                fn_constructor_kwargs={
                    "path": self.encoder,
                    "spec": self.spec,
                    "batch_size": self.pool.batch_size,
                    "threads": max(1, int(self.pool.encoder_cpus)),
                },
                # One that died starts again where there is room, which a smaller cluster may never have: its
                # shards do not wait for it.
                max_task_retries=0,
            )
        written = embedded.map_batches(
            partial(write_shard, plan=plan),
            batch_size=1,
            compute=ray.data.TaskPoolStrategy(max(1, encoders // ENCODERS_PER_WRITER)),
            # Takes a disk's time, not a core's: it must find room beside encoders and decoding.
            num_cpus=0,
        )
        yield from written.iter_rows()

    def _room(self) -> tuple[int, int]:
        """How many encoders there is room for, up to those asked for, and how many decoders beside them.

        Raises:
            BulkError: for none.
        """
        pool = self.pool
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        encoders = decoders = 0
        for node in nodes:
            cpus, gpus = node.get("CPU", 0.0), node.get("GPU", 0.0)
            here = _times(cpus, pool.encoder_cpus + pool.decode_cpus)
            if pool.encoder_gpus:
                here = min(here, _times(gpus, pool.encoder_gpus))
            if pool.encoders is not None:
                here = min(here, pool.encoders - encoders)
            rest = _times(cpus - here * pool.encoder_cpus, pool.decode_cpus)
            encoders += here
            # A GPU wants every other core to decode for it; of cores that encode, each decodes for itself.
            decoders += rest if pool.encoder_gpus else min(rest, here)
        if not encoders:
            cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
            raise BulkError(
                f"{len(nodes)} nodes with {cpus:g} CPUs and {gpus:g} GPUs: no node has room for an encoder "
                f"({pool.encoder_cpus:g} CPUs, {pool.encoder_gpus:g} GPUs) with decoding beside it "
                f"({pool.decode_cpus:g} CPUs); ask for less (--encoder-cpus, --encoder-gpus, --decode-cpus) "
                "or add nodes"
            )
        return encoders, decoders


def _times(there: float, each: float) -> int:
    # 0.1 + 0.2 is not 0.3.
    return int(there / each + 1e-6)


def _sentence(error: RayError) -> str:
    """The last line of Ray's text, where the cause is; of our own errors their sentence alone."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return re.sub(r"^clipserve\.errors\.\w+: ", "", last)[:300]


def print_report(report: Report) -> None:
    """Prints what a run did, and the first pictures that are in the errors table because of it."""
    print(
        f"{report.added} added, {report.replaced} changed, {report.present} committed before, "
        f"{report.unchanged} unchanged, {report.failed_before} failed before; "
        f"{len(report.failures)} errors; {report.seconds:.1f} s; {report.images_per_second:.1f} images/s"
    )
    for failure in report.failures[:SHOWN_FAILURES]:
        print(f"  {printable(failure.path)}: {printable(failure.message)}")
    if len(report.failures) > SHOWN_FAILURES:
        print(f"  and {len(report.failures) - SHOWN_FAILURES} more in the errors table")
