"""`make tune` on a tiny pair: real timings in real processes; that they are fast is nobody's claim here."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from clipserve.encoder_spec import EncoderSpec, read_spec
from clipserve.endpoints import ENDPOINTS
from clipserve.errors import ExportError, SettingsError
from clipserve.tuned import TUNED_FILE, Tuned, write_tuned
from export_scripts import tune
from export_scripts.checkpoints.loading import load_pair
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.packages.archive import build_archives
from export_scripts.publish import export_encoder
from export_scripts.tune import Timing, choose, export_candidates, layouts, plot, time_file, timed_precisions
from tests.conftest import FolderOf

TIMED = timed_precisions("cpu")
TIMING = Timing("a.pt", "image", "fp32", 1.0, 2, 1, 1, 0.0)


@pytest.fixture
def own_store(store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "store"))


def settings_of(archive: Path) -> dict[str, object]:
    with zipfile.ZipFile(archive) as content:
        config: dict[str, object] = yaml.safe_load(content.read(f"{archive.stem}.yaml"))
    return config


# Each precision is timed in processes of its own, half a minute.
@pytest.mark.full
@pytest.mark.parametrize("layout", ["multilingual", "siglip-2"])
def test_tuning_end_to_end(
    layout: str, folder_of: FolderOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing precisions are exported, all is timed, and the archives are what was chosen."""
    pair = load_pair(str(folder_of("clip" if layout == "multilingual" else layout)), str(folder_of(layout)))
    own_store = tmp_path / "own"
    export_encoder(pair, "image", "cpu", "fp32", own_store)
    monkeypatch.setattr(tune, "layouts", lambda device, megabytes: [(2, 1)])
    tuned = tune.tune(pair, "cpu", own_store, 0.001)
    written = json.loads((own_store / TUNED_FILE).read_text())
    assert {(t["modality"], t["precision"]) for t in written["timings"]} == {
        (modality, precision) for modality in ("image", "text") for precision in TIMED
    }
    assert all(t["per_second"] > 0 for t in written["timings"])
    # Shown, and not taken unasked.
    assert not any("int8" in file for settings in tuned.values() for file in settings.files)
    assert (own_store / "tuned.png").stat().st_size > 10_000
    build_archives(own_store, None, None)
    for name, settings in tuned.items():
        config = settings_of(own_store / f"{name}.mar")
        assert (config["minWorkers"], config["maxWorkers"]) == (2, 2)
        assert config["batchSize"] == settings.batch
        handler = config["handler"]
        assert isinstance(handler, dict)
        assert (handler["threads"], handler["max_batch"]) == (1, settings.batch)
        with zipfile.ZipFile(own_store / f"{name}.mar") as content:
            assert sorted(n for n in content.namelist() if n.endswith(".pt")) == sorted(settings.files)


@pytest.mark.skipif("int8" not in TIMED, reason="FBGEMM does not run on this CPU")
def test_int8_is_chosen_where_it_is_allowed(
    pair: CheckpointPair, own_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(path: Path, workers: int, threads: int, seconds: float) -> list[Timing]:
        spec = read_spec(path)
        rate = 100.0 if spec.precision == "int8" else 1.0
        return [Timing(path.name, spec.modality, spec.precision, 1.0, workers, threads, 1, rate)]

    monkeypatch.setattr(tune, "time_file", timed)
    for allowed in (False, True):
        tuned = tune.tune(pair, "cpu", own_store, allow_int8=allowed)
        assert {"int8" in file for settings in tuned.values() for file in settings.files} == {allowed}


def test_what_is_there_is_not_exported_again(pair: CheckpointPair, own_store: Path) -> None:
    files = export_candidates(pair, "cpu", own_store)
    before = {file: file.stat().st_mtime_ns for file in files}
    assert export_candidates(pair, "cpu", own_store) == files
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert len(files) == 2 * len(TIMED)


def test_the_smallest_batch_that_is_nearly_as_fast() -> None:
    def timing(batch: int, per_second: float, **other: object) -> Timing:
        return replace(TIMING, batch=batch, per_second=per_second, **other)  # type: ignore[arg-type]

    timings = [timing(1, 5.0), timing(4, 9.8), timing(8, 9.9), timing(32, 10.0)]
    # Neither another file nor another layout is taken for its batch.
    timings += [
        timing(1, 5.0, file="b.pt"),
        timing(2, 9.9, file="b.pt"),
        timing(2, 9.9, workers=1, threads=2),
    ]
    assert choose(timings) == timing(4, 9.8)


def test_more_workers_unless_threads_gain_much() -> None:
    def timing(workers: int, threads: int, batch: int, per_second: float) -> Timing:
        return replace(TIMING, workers=workers, threads=threads, batch=batch, per_second=per_second)

    nearly = [timing(1, 4, 16, 10), timing(2, 2, 8, 9.1), timing(2, 2, 16, 9.2), timing(4, 1, 8, 8.9)]
    assert choose(nearly) == timing(2, 2, 8, 9.1)
    # Of the time between two batches, 3 ms, a fast encoder's small batches have their share.
    fast = [timing(2, 1, 2, 1000), timing(2, 1, 8, 1000)]
    assert [round(t.served) for t in fast] == [571, 842]
    assert choose(fast) == fast[1]
    far = [timing(1, 4, 16, 10), timing(1, 4, 8, 9.8), timing(2, 2, 8, 8), timing(4, 1, 8, 7.9)]
    assert choose(far) == timing(1, 4, 8, 9.8)


def test_a_lone_caller_counts_as_much_as_many() -> None:
    def timings(file: str, alone: float, together: float) -> list[Timing]:
        return [
            replace(TIMING, file=file, workers=1, threads=2, batch=1, per_second=alone),
            replace(TIMING, file=file, batch=1, per_second=together / 2),
            replace(TIMING, file=file, batch=32, per_second=together),
        ]

    full, half = timings("fp32.pt", 16, 40), timings("fp16.pt", 30, 39.5)
    assert choose([*full, *half]).file == "fp16.pt"
    assert choose([*full, *timings("bf16.pt", 15, 40)]).file == "fp32.pt"


def test_what_is_ringed_is_inside_its_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CASES 68: the ring was cut, its label stood outside, and another point stood above it."""
    from matplotlib import pyplot as plt

    timings = [
        replace(TIMING, modality=modality, precision=precision, batch=batch, per_second=speed * batch**0.2)
        for modality in ("image", "text")
        for precision, speed in (("fp32", 10.0), ("bf16", 19.0))
        for batch in (1, 8, 32)
    ]
    chosen = [choose([t for t in timings if t.modality == m]) for m in ("image", "text")]
    drawn = []
    monkeypatch.setattr(plt, "close", drawn.append)
    plot(timings, chosen, tmp_path / "tuned.png")
    monkeypatch.undo()
    (figure,) = drawn
    for axes, best in zip(figure.axes, chosen, strict=True):
        outside = figure.bbox
        texts = [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for box in (text.get_window_extent() for text in texts):
            assert outside.contains(box.x0, box.y0)
            assert outside.contains(box.x1, box.y1)
        ring = axes.collections[-1]
        (x, y), radius = ring.get_offsets()[0], (ring.get_sizes()[0] ** 0.5) / 2 * figure.dpi / 72
        across, up = axes.transData.transform((x, y))
        assert y == pytest.approx(best.served)
        assert y == pytest.approx(max(t.served for t in timings if t.modality == best.modality), rel=0.03)
        assert axes.bbox.y0 <= up - radius
        assert up + radius <= axes.bbox.y1
        assert axes.bbox.x0 <= across - radius
        assert across + radius <= axes.bbox.x1
    plt.close(figure)


def test_layouts_use_all_cores_and_half_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    memory = type("Memory", (), {"total": 8e9 * len(ENDPOINTS)})()
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    assert layouts("cpu", 100) == [(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)]
    assert layouts("cpu", 1000) == [(1, 12), (2, 6), (3, 4), (4, 3)]
    assert layouts("cpu", 1e6) == [(1, 12)]
    assert layouts("cuda", 100) == [(1, 1)]


def test_an_encoder_that_does_not_load(own_store: Path) -> None:
    path = own_store / "clip-image-cpu-fp32.pt"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("clip/data/added", b"?")
    with pytest.raises(ExportError, match=r"clip-image-cpu-fp32\.pt cannot be timed: .*SHA-256"):
        time_file(path, 2, 1, 0.001)


def test_tuned_settings_of_other_encoders_are_not_obeyed(
    own_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = EncoderSpec.from_json((own_store / "clip-image-cpu-fp32.json").read_text(), "")
    gone = Tuned(("clip-image-cpu-bf16.pt",), 7, 1, 8)
    for space_id, files in (("another", (spec.stem + ".pt",)), (spec.space_id, gone.files)):
        write_tuned(own_store, space_id, {"clip_image": replace(gone, files=files)}, {})
        build_archives(own_store, None, None)
        assert "is of other encoders and not obeyed" in caplog.text
        caplog.clear()
        assert settings_of(own_store / "clip_image.mar")["maxWorkers"] == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"endpoints": 5}', '{"endpoints": {"clip_image": {}}}'])
def test_tuned_settings_that_cannot_be_read(own_store: Path, text: str) -> None:
    (own_store / TUNED_FILE).write_text(text)
    with pytest.raises(SettingsError, match=r"tuned\.json: not readable .*make tune"):
        build_archives(own_store, None, None)
