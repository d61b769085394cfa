"""Recomputes the certificates of what lies in the model store: `make verify`."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import transformers

from clipserve.command import run_command
from clipserve.encoder_spec import EncoderSpec, Format
from clipserve.errors import ExportError, ParityError, SpecError
from clipserve.store import EncoderFile, Store
from export_scripts.checkpoints.loading import load_pair, model_id_of
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.export import DJL, STORE
from export_scripts.formats import FORMATS
from export_scripts.packages.djl import djl_encoders
from export_scripts.packages.wrapped import wrapped_files
from export_scripts.parity.proof import recheck
from export_scripts.parity.subjects import SUBJECTS


def verify_store(store: Path, model: str | None, text_model: str | None) -> None:
    """Compares every encoder of a model in `store` with its checkpoint and prints a table.

    Args:
        model, text_model: where the checkpoints are; None takes the names in the specs. Where the store holds
            several models, `model` says which is meant.

    Raises:
        ClipServeError: the store is empty, a file is not what its spec says, or beyond its bound.
    """
    with tempfile.TemporaryDirectory(prefix="clipserve-verify-") as work:
        _verify(store, model, text_model, Path(work))


def _verify(store: Path, model: str | None, text_model: str | None, work: Path) -> None:
    in_folders = [EncoderFile.read(path, FORMATS["torchscript"]) for path in djl_encoders(store)]
    wrapped = {one.file.path: one for one in wrapped_files(store, work)}
    found = Store(
        store, (*Store.read(store, FORMATS).encoders, *in_folders, *(one.file for one in wrapped.values()))
    )
    if not found.encoders:
        raise ExportError(f"{store} holds no encoder; run 'make export' first")
    # Of an only model the checkpoint may lie in a folder of another name by now.
    meant = model_id_of(model) if model is not None and len(found.models) > 1 else None
    encoders = found.model(meant).encoders
    if not encoders:
        raise ExportError(f"{store} holds no encoder of {model}, only of {', '.join(found.models)}")
    names = {
        file.path: wrapped[file.path].name
        if file.path in wrapped
        else file.path.relative_to(store).as_posix()
        for file in encoders
    }
    width = max(map(len, names.values()))
    print(
        f"{'artefact':<{width}}  {'format':<13}  {'precision':<9}  {'MB':>7}  {'max-abs':>9}  "
        f"{'min cosine':>10}  {'s':>5}"
    )
    pairs: dict[tuple[str, str], CheckpointPair] = {}
    for file in encoders:
        path, spec = file.path, file.spec
        if file in in_folders:
            _check_folder(file)
        file.check_unchanged()
        checkpoints = _checkpoints(encoders, spec, model, text_model)
        if checkpoints not in pairs:
            pairs[checkpoints] = load_pair(*checkpoints)
        start = time.monotonic()
        pair = pairs[checkpoints]
        if path in wrapped:
            certificate = wrapped[path].recheck(pair, store, work)
        else:
            # Read under this name.
            form = FORMATS[cast("Format", spec.format)]
            certificate = recheck(SUBJECTS[spec.modality](pair), form, path, spec)
        print(
            f"{names[path]:<{width}}  {DJL if file in in_folders else spec.format:<13}  {spec.precision:<9}  "
            f"{path.stat().st_size / 1e6:7.1f}  {certificate.max_abs_diff:9.2g}  "
            f"{certificate.min_cosine:10.6f}  {time.monotonic() - start:5.1f}",
            flush=True,
        )
        if not certificate.holds:
            raise ParityError(
                f"{path}: {certificate}, the bound is {certificate.bound}; run 'make export' again"
            )


def _check_folder(file: EncoderFile) -> None:
    """Checks that spec and tokenizer in a DJL folder are those inside its encoder file."""
    for name in file.spec.extra_files:
        beside = file.path.parent / name
        if not beside.is_file() or beside.read_bytes() != file.extra_file(name):
            raise SpecError(
                f"{beside}: missing, or not what is inside {file.path.name}; run 'make export FORMAT=djl' "
                "again"
            )


def _checkpoints(
    encoders: Iterable[EncoderFile], spec: EncoderSpec, model: str | None, text_model: str | None
) -> tuple[str, str]:
    """Names of the image and the text checkpoint of the pair that `spec` belongs to."""
    pair = [file.spec for file in encoders if file.spec.space_id == spec.space_id]
    siblings = {s.modality: s.checkpoint for s in pair}
    if "text" not in siblings:
        raise SpecError(f"{spec.stem}: the other encoder of its pair is missing; run 'make export' again")
    # Some programs have a use for texts alone; a pair on the hub has its image checkpoint's name.
    return model or siblings.get("image", spec.model_id), text_model or siblings["text"]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m export_scripts verify", description=__doc__)
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument(
        "--model", help="the image checkpoint, where the store holds several models or it was a local folder"
    )
    parser.add_argument("--text-model", help="where the text checkpoint is, if it was a local folder")
    arguments = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return run_command("verify", lambda: verify_store(arguments.store, arguments.model, arguments.text_model))
