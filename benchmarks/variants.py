"""The same encoders in other archives: another layout of workers and threads, and int8."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.child import PeerError
from clipserve.encoder_spec import SUFFIXES, description_path
from clipserve.endpoints import ENDPOINTS
from clipserve.store import Store
from clipserve.tuned import Tuned, write_tuned
from export_scripts.packages.archive import build_archives
from export_scripts.packages.folders import link_or_copy

# Those whose layout and precision are compared.
COMPARED = ("clip_image", "clip_text")


def archive_settings(archive: Path) -> dict[str, Any]:
    """The YAML inside an archive: what the server is told of its endpoint."""
    with zipfile.ZipFile(archive) as content:
        settings: dict[str, Any] = yaml.safe_load(content.read(f"{archive.stem}.yaml"))
    return settings


def layout_of(store: Path, endpoint: str) -> Tuned:
    """What an archive holds, in as many workers and threads as it says."""
    archive = store / f"{endpoint}.mar"
    settings = archive_settings(archive)
    with zipfile.ZipFile(archive) as content:
        files = tuple(name for name in content.namelist() if name.endswith(tuple(SUFFIXES.values())))
    return Tuned(files, settings["minWorkers"], settings["handler"]["threads"], settings["batchSize"])


def other_layout(layout: Tuned) -> Tuned:
    """One worker with all cores where there are several, else a worker a core."""
    cores = psutil.cpu_count() or 1
    return (
        replace(layout, workers=1, threads=cores)
        if layout.workers > 1
        else replace(layout, workers=cores, threads=1)
    )


def build_other_layout(store: Path, folder: Path) -> None:
    """Archives of `COMPARED` with the files of those in `store`, in the other layout."""
    _build(store, folder, {name: other_layout(layout_of(store, name)) for name in COMPARED})


def build_int8(store: Path, folder: Path) -> None:
    """The same in int8, in the layout that `store` has.

    Raises:
        PeerError: it has no int8.
    """
    int8 = Store.read(store).where(lambda spec: (spec.device, spec.precision) == ("cpu", "int8"))
    files = {file.spec.modality: file.path.name for file in int8.encoders}
    if len(files) < len(COMPARED):
        raise PeerError(f"{store} has no int8 encoders of both; run 'make tune'")
    layouts = {
        name: replace(
            layout_of(store, name), files=tuple(files[modality] for modality in ENDPOINTS[name].modalities)
        )
        for name in COMPARED
    }
    _build(store, folder, layouts)


def _build(store: Path, folder: Path, layouts: Mapping[str, Tuned]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names: Collection[str] = {name for layout in layouts.values() for name in layout.files}
    for name in names:
        for path in (store / name, description_path(store / name)):
            link_or_copy(path, folder / path.name)
    found = Store.read(folder)
    write_tuned(folder, found.encoders[0].spec.space_id, layouts, {})
    build_archives(folder, None, None, endpoints=tuple(layouts))
