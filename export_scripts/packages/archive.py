"""Packages exported encoders with their handlers into TorchServe archives: `make archive`."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

from clipserve import __version__
from clipserve.archive_files import SUMS_FILE, file_sha256
from clipserve.command import run_command
from clipserve.encoder_spec import PARITY_BOUNDS, Device
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import ExportError
from clipserve.store import EncoderFile, Store
from clipserve.tuned import Tuned, read_tuned
from export_scripts import zips
from export_scripts.packages.folders import link_or_copy

ROOT = Path(__file__).parents[2]
HANDLER = ROOT / "handlers" / "endpoint.py"


def build_archives(
    store: Path, model_id: str | None, precision: str | None, endpoints: Collection[str] = tuple(ENDPOINTS)
) -> list[Path]:
    """Builds every endpoint's archive from the encoders in `store`.

    Args:
        model_id: which model; None where the store holds one only.
        precision: take variants of this precision only; None takes all there are.
        endpoints: names of those that are wanted.

    Returns:
        The archives' paths, in `store`.

    Raises:
        ClipServeError: nothing to package, ambiguous, stale or of different embedding spaces.
    """
    encoders = _select(store, model_id, precision)
    tuned = read_tuned(encoders)
    with tempfile.TemporaryDirectory(prefix=".archive-", dir=store) as work:
        made = []
        for name in endpoints:
            endpoint = ENDPOINTS[name]
            settings = tuned.get(name)
            chosen = [
                file
                for file in encoders.encoders
                if file.spec.modality in endpoint.modalities
                and (settings is None or file.path.name in settings.files)
            ]
            print(f"packaging {name}.mar: {', '.join(file.path.name for file in chosen)}", flush=True)
            made.append(_build(name, chosen, settings, Path(work)))
        # All or none: an image archive of one export beside a text archive of another would not pair.
        return [Path(shutil.move(path, store / path.name)) for path in made]


def _select(store: Path, model_id: str | None, precision: str | None) -> Store:
    found = Store.read(store)
    if not found.encoders:
        raise ExportError(
            f"{store} holds no encoder that TorchServe's handlers serve"
            f"{f' ({found.onnx_names} are for ONNX Runtime)' if found.onnx_names else ''}; "
            "run 'make export' (or 'make export MODEL=demo') first"
        )
    of_model = found.model(model_id, "'make archive MODEL={}'")
    encoders = of_model.where(lambda spec: precision in (None, spec.precision))
    if {file.spec.modality for file in encoders.encoders} != {"image", "text"}:
        raise ExportError(
            f"{store} holds no image and text encoder of {model_id or found.models[0]!r}"
            f"{f' in {precision}' if precision else ''}; it has {', '.join(found.models)}; run 'make export'"
        )
    encoders.check_published()
    return encoders


def _build(name: str, encoders: Sequence[EncoderFile], tuned: Tuned | None, work: Path) -> Path:
    stage = work / f"{name}-files"
    for source in sorted((ROOT / "clipserve").rglob("*.py")):
        copy = stage / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    for file in encoders:
        link_or_copy(file.path, stage / file.path.name)
    config = work / f"{name}.yaml"
    config.write_text(_config(name, {file.spec.device for file in encoders}, tuned), encoding="utf-8")
    _write_sums(stage, [HANDLER, config])
    private = work / "tmp"
    private.mkdir(exist_ok=True)
    result = subprocess.run(
        [
            str(Path(sys.executable).with_name("torch-model-archiver")),
            *("--model-name", name),
            *("--version", ENDPOINTS[name].version or __version__),
            *("--handler", str(HANDLER)),
            *("--extra-files", str(stage)),
            *("--config-file", str(config)),
            *("--archive-format", "zip-store"),
            *("--export-path", str(work)),
        ],
        # It stages in $TMPDIR/<model name> and deletes that first: its own folder.
        env={**os.environ, "TMPDIR": str(private), "TEMP": str(private)},
        capture_output=True,
        text=True,
        check=False,
    )
    made = work / f"{name}.mar"
    if result.returncode != 0 or not made.is_file():
        raise ExportError(f"torch-model-archiver failed for {name}: {result.stderr.strip()[-500:]}")
    _make_reproducible(made)
    shutil.rmtree(stage)
    return made


def _config(name: str, devices: set[Device], tuned: Tuned | None) -> str:
    """The handler's YAML, bound to the CPU where the archive has nothing for a GPU."""
    text = (ROOT / "handlers" / f"{name}.yaml").read_text(encoding="utf-8")
    if tuned is not None:
        values = {
            "minWorkers": tuned.workers,
            "maxWorkers": tuned.workers,
            "batchSize": tuned.batch,
            "threads": tuned.threads,
            "max_batch": tuned.batch,
        }
        for key, value in values.items():
            # In the text, so that its comments stay.
            text, found = re.subn(rf"(?m)^( *{key}:) *\d+", rf"\1 {value}", text)
            if found != 1:
                raise ExportError(f"handlers/{name}.yaml: {found} lines set {key}, should be 1")
    if devices == {"cpu"}:
        text += "\n# The archive carries CPU variants only.\ndeviceType: cpu\n"
    elif devices == {"cuda"}:
        text += "\n# The archive carries GPU variants only.\ndeviceType: gpu\n"
    return text


def _write_sums(stage: Path, beside: Sequence[Path]) -> None:
    """Lists the SHA-256 of every file of the archive, in the format of `sha256sum`."""
    files = {path.relative_to(stage).as_posix(): path for path in stage.rglob("*") if path.is_file()}
    files |= {path.name: path for path in beside}
    lines = [f"{file_sha256(path)}  {name}" for name, path in sorted(files.items())]
    (stage / SUMS_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _make_reproducible(archive: Path) -> None:
    """Rewrites the archive with sorted entries and no times, so that equal inputs give equal bytes."""
    plain = archive.with_suffix(".plain")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(plain, "w", zipfile.ZIP_STORED) as target:
        for name in sorted(source.namelist()):
            if name.endswith("/"):
                continue
            if name == "MAR-INF/MANIFEST.json":
                manifest = json.loads(source.read(name)) | {"createdOn": "01/01/1980 00:00:00"}
                text = json.dumps(manifest, indent=2, sort_keys=True).encode()
                zips.add(target, name, io.BytesIO(text), len(text))
                continue
            with source.open(name) as reader:
                zips.add(target, name, reader, source.getinfo(name).file_size)
    plain.replace(archive)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m export_scripts archive", description=__doc__)
    parser.add_argument("--store", type=Path, default=ROOT / "model_store")
    parser.add_argument("--model", help="model id, where the store holds several")
    parser.add_argument("--precision", choices=list(PARITY_BOUNDS), help="take this precision only")
    arguments = parser.parse_args(argv)

    def build() -> None:
        for path in build_archives(arguments.store, arguments.model, arguments.precision):
            print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")

    return run_command("archive", build)
