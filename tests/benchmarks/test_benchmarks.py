"""The instrument: a load generator that counts right, ratios of the right figures, a page of the results."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import compare, cpu_kinds, ratios, report, results_file
from benchmarks.child import Child, PeerError
from benchmarks.engine import Inputs as InputFiles
from benchmarks.engine import judge, time_passes
from benchmarks.infinity import InfinityPeer
from benchmarks.load import FRESH, Generator, LoadJob, run
from benchmarks.ours import TorchServePeer
from benchmarks.peers import Inputs
from benchmarks.rounds import by_layout, image_encoder_shapes, joined
from benchmarks.usage import Machine, Quiet
from benchmarks.variants import other_layout
from benchmarks.workloads import KNOWN_LABELS, SIZES, WORKLOADS, labels, sentences, write_pictures
from clipserve.endpoints import ENDPOINTS
from clipserve.tuned import Tuned
from demo.captions import LANGUAGES
from export_scripts.checkpoints.loading import load_image_checkpoint
from standins.checkpoints import TINY_CLIP, write_clip


class Answering(BaseHTTPRequestHandler):
    """Keeps connections alive, as the servers under comparison do."""

    protocol_version = "HTTP/1.1"
    answer: Callable[[bytes], tuple[int, bytes]]

    def do_POST(self) -> None:
        status, content = type(self).answer(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server(answer: Callable[[bytes], tuple[int, bytes]]) -> Iterator[str]:
    """The URL of a server on loopback that answers so, from a thread for each connection."""
    handler = type("Handler", (Answering,), {"answer": staticmethod(answer)})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/"
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture
def body(tmp_path: Path) -> str:
    path = tmp_path / "body"
    path.write_bytes(b"12345")
    return str(path)


def test_closed_loop_has_as_many_requests_under_way_as_clients(body: str) -> None:
    lock = threading.Lock()
    under_way: list[int] = [0]

    def answer(content: bytes) -> tuple[int, bytes]:
        with lock:
            under_way.append(under_way[-1] + 1)
        time.sleep(0.02)
        with lock:
            under_way.append(under_way[-1] - 1)
        return 200, b"123"

    with server(answer) as url:
        result = asyncio.run(run(LoadJob(url, {}, [body], 0.3, clients=4)))
    assert max(under_way) == 4
    assert result.errors == {}
    assert result.requests == result.answered >= 8
    assert (result.request_bytes, result.response_bytes) == (5, 3)
    assert result.rate > 0


def test_errors_are_counted_by_status_and_are_no_answers(body: str) -> None:
    asked = itertools.count(1)

    def answer(content: bytes) -> tuple[int, bytes]:
        return (503 if next(asked) % 2 else 200), b""

    with server(answer) as url:
        result = asyncio.run(run(LoadJob(url, {}, [body], 0.3, clients=2)))
    assert set(result.errors) == {"503"}
    assert result.answered + result.errors["503"] == next(asked) - 1


def test_a_server_that_hangs_up_is_an_error_and_not_the_end(body: str) -> None:
    asked = itertools.count(1)

    def answer(content: bytes) -> tuple[int, bytes]:
        if next(asked) == 1:
            raise ConnectionAbortedError
        return 200, b""

    with server(answer) as url:
        result = asyncio.run(run(LoadJob(url, {}, [body], 0.3, clients=1)))
    assert sum(result.errors.values()) == 1
    assert result.answered >= 2


def test_open_loop_does_not_wait_and_counts_from_the_due_moment(body: str) -> None:
    fifth = threading.Barrier(5, timeout=30)
    asked = itertools.count(1)

    def answer(content: bytes) -> tuple[int, bytes]:
        # The first four are not answered before the fifth has come: who waits for answers waits for ever.
        if next(asked) <= 5:
            fifth.wait()
        return 200, b""

    async def use(url: str) -> tuple[float, list[tuple[float, float]]]:
        generator = Generator(LoadJob(url, {}, [body], 0.5, rate=40.0, seed=1))
        try:
            return await generator.open_loop(40.0), generator.answers
        finally:
            generator.close()

    with server(answer) as url:
        begin, answers = asyncio.run(use(url))
    due = [since - begin for since, _ in answers]
    assert len(due) == len(set(due)) >= 5
    assert all(0 < moment < 0.5 for moment in due)


def test_every_fresh_request_carries_another_number(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"a " + FRESH + b" b " + FRESH)
    seen: list[str] = []

    def answer(content: bytes) -> tuple[int, bytes]:
        seen.append(content.decode())
        return 200, b""

    with server(answer) as url:
        job = LoadJob(url, {}, [str(tmp_path / "body")], 0.0, clients=3)
        asyncio.run(run(job))
        asyncio.run(run(job))
    assert len(seen) == len(set(seen)) == 6
    assert all(re.fullmatch(r"a (\d{10}) b \1", text) for text in seen)


def test_a_child_that_cannot_answer_says_why() -> None:
    with (
        Child("benchmarks.load") as child,
        pytest.raises(PeerError, match="unexpected keyword argument 'no'"),
    ):
        child.ask({"no": "job"})


def test_a_store_without_archives_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["--store", str(tmp_path)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bench: {tmp_path / 'clip_image.mar'} is missing; run 'make archive'")


def test_inputs_are_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(sentences()) == 3 * len(LANGUAGES)
    assert len(set(labels(WORKLOADS["similarity_1000_known"]))) == KNOWN_LABELS
    monkeypatch.setitem(SIZES, "12 MP", ((40, 30), 1))  # the large ones take seconds
    monkeypatch.setitem(SIZES, "2 MP", ((1632, 1224), 1))
    found = write_pictures(tmp_path)
    assert len({path.read_bytes() for path in found["0.3 MP"]}) == len(found["0.3 MP"])
    before = found["2 MP"][0].read_bytes()
    found["2 MP"][0].unlink()
    assert write_pictures(tmp_path)["2 MP"][0].read_bytes() == before


def test_flops_are_those_that_torch_counts(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip")
    shapes = image_encoder_shapes(clip)
    checkpoint = load_image_checkpoint(clip, "clip")
    edge = checkpoint.preprocessing.crop_height
    counter = FlopCounterMode(display=False)
    # The fused attention of CPUs is not counted, its plain form is.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        checkpoint.build(True)(torch.zeros(1, 3, edge, edge, dtype=torch.uint8))
    assert shapes["tokens"] == (edge // TINY_CLIP.patch_size) ** 2 + 1
    assert shapes["flops"] == counter.get_total_flops()


def test_of_children_side_by_side_rates_add_up() -> None:
    alone = {"gemm_gflops": 2.0, "model": {"rate": 3.0, "cpu_ms_per_item": 5.0}}
    beside = {"gemm_gflops": 4.0, "model": {"rate": 1.0, "cpu_ms_per_item": 7.0}}
    together = joined([alone, beside])
    assert together == {"gemm_gflops": 3.0, "model": {"rate": 4.0, "cpu_ms_per_item": 6.0}}


def test_ratios_are_of_the_same_round() -> None:
    name = "image_p50_c1_vs_infinity"
    rounds = [
        {
            "clipserve": {"image_c1": {"p50_ms": ours, "errors": {}}},
            "infinity": {"image_c1": {"p50_ms": theirs}},
        }
        for ours, theirs in ((1.0, 2.0), (30.0, 40.0), (5.0, 50.0))
    ]
    found = results_file.summarise(rounds, {"instructions": ["avx2"]})
    assert found["median"]["clipserve"]["image_c1"]["p50_ms"] == 5.0
    assert found["ratios"] == {name: 0.5}  # of 0.5, 0.75 and 0.1; not 5 / 40
    assert found["ratio_spread"] == {name: [0.1, 0.75]}
    assert ratios.RATIOS[name].holds(0.5, cpu_kinds.AMX)
    assert not ratios.RATIOS[name].holds(0.51, cpu_kinds.AMX)
    assert ratios.RATIOS[name].holds(0.51, cpu_kinds.AVX2)


def test_a_peer_that_was_not_measured_leaves_its_ratios_out() -> None:
    rounds = [
        {"clipserve": {"image_c32": {"rate": 8.0}}, "infinity": {"image_c32": {"rate": 2.0}}},
        {"clipserve": {"image_c32": {"rate": 9.0}}},
    ]
    assert results_file.summarise(rounds, {"instructions": []})["ratios"] == {
        "image_http_c32_vs_infinity": 4.0
    }


@pytest.mark.parametrize(
    ("instructions", "kind", "bar"),
    [
        (["avx2"], cpu_kinds.AVX2, 2.0),
        (["avx2", "avx_vnni"], cpu_kinds.VNNI, 3.0),
        (["avx2", "avx512f", "avx512_bf16"], cpu_kinds.VNNI, 3.0),
        (["avx2", "avx512_vnni", "amx_tile", "amx_int8"], cpu_kinds.AMX, 3.0),
    ],
)
def test_a_bar_is_that_of_the_kind_of_cpu(instructions: list[str], kind: str, bar: float) -> None:
    name = "image_int8_vs_fp32_per_core_b8"
    engines = {
        f"clipserve {precision}": {"one_b8": {"cpu_ms": ms}}
        for precision, ms in (("fp32", 5.0), ("int8", 2.0))
    }
    found = results_file.summarise([{"engines": {"image": engines}}], {"instructions": instructions})
    assert found["cpu_kind"] == kind
    assert found["bars"][name] == {"at_least": bar}
    assert found["ratios"] == {name: 2.5}
    assert ratios.RATIOS[name].holds(2.5, kind) is (bar == 2.0)


def test_int8_is_compared_with_the_fastest_peer_where_it_is_slowest() -> None:
    def engine(alone: float, together: float) -> dict[str, dict[str, float]]:
        return {"all_b1": {"ms": alone}, "all_b8": {"ms": together}}

    engines = {
        "clipserve int8": engine(2.0, 10.0),
        "ONNX Runtime int8": engine(3.0, 20.0),
        "OpenVINO int8": engine(4.0, 9.0),
    }
    found = results_file.summarise([{"engines": {"image": engines}}], {"instructions": []})["ratios"]
    assert found == {"image_int8_vs_best_int8_peer": 0.9}  # of 3 / 2 and 9 / 10


def test_the_forward_pass_of_onnx_runtime_gets_a_millisecond_for_the_way() -> None:
    measured = {
        "clipserve": {"text_c1": {"p50_ms": 12.0}},
        "engines": {"text": {"ONNX Runtime fp32": {"all_sentences": {"ms": 7.0}}}},
    }
    assert ratios.RATIOS["text_p50_c1_vs_onnxruntime"].of(measured) == 1.5


def test_what_the_issue_names_is_a_ratio_and_every_ratio_is_on_the_page() -> None:
    named = {
        "text_fp16_vs_fp32_b1",
        "image_fp16_vs_fp32_b1",
        "image_int8_vs_fp32_per_core_b8",
        "image_int8_vs_fp32_per_core_b1",
        "text_int8_vs_fp32_per_core",
        "image_http_c32_int8_vs_infinity",
        "text_http_c32_int8_vs_infinity",
        "image_p50_c1_vs_infinity",
        "text_p50_c1_vs_onnxruntime",
        "image_int8_vs_best_int8_peer",
        "text_int8_vs_best_int8_peer",
        "image_http_c32_ray_serve_vs_torchserve",
        "door_text_c32_vs_clip_text",
        "door_image_c32_vs_clip_image",
    }
    grouped = [name for names in report.GROUPS.values() for name in names]
    assert named <= set(ratios.RATIOS)
    assert sorted(grouped) == sorted(ratios.RATIOS)


def test_layouts_are_told_apart_by_who_has_one_worker() -> None:
    def server(rate: float, megabytes: float) -> dict[str, Any]:
        figures = {"rate": rate, "p50_ms": 1.0, "failed": 0}
        memory = {"clip_image": megabytes, "clip_text": megabytes}
        return {"image_c8": figures, "text_c8": figures, "rss_all_mb": memory}

    tuned, other = server(9.0, 800.0), server(10.0, 500.0)
    # Pictures are tuned to two workers, texts to one.
    found = by_layout(tuned, other, {"clip_image": 2, "clip_text": 1})
    assert found["one_worker"]["image_c8"] == {"rate": 10.0, "p50_ms": 1.0}
    assert found["one_worker"]["text_c8"] == {"rate": 9.0, "p50_ms": 1.0}
    assert found["one_worker"]["image_workers_mb"] == 500.0
    measured = {"layouts": found}
    assert ratios.RATIOS["image_c8_one_worker_vs_several"].of(measured) == pytest.approx(10 / 9)
    assert ratios.RATIOS["text_c8_one_worker_vs_several"].of(measured) == 0.9
    assert ratios.RATIOS["rss_one_worker_vs_several"].of(measured) == 1.0
    assert by_layout(tuned, {}, {}) == {}


def test_the_other_layout_has_one_worker_or_as_many_as_cores() -> None:
    cores = psutil.cpu_count() or 1
    several, one = Tuned(("a.pt",), cores + 1, 1, 8), Tuned(("a.pt",), 1, cores, 8)
    assert other_layout(several) == Tuned(("a.pt",), 1, cores, 8)
    assert other_layout(one) == Tuned(("a.pt",), cores, 1, 8)


def test_infinity_and_our_door_are_sent_the_same_bodies(tmp_path: Path) -> None:
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(b"jpeg")
    inputs = Inputs({"0.3 MP": [picture]}, tmp_path, tmp_path, tmp_path, np.zeros(2, np.float32))
    (tmp_path / "modules.json").write_text('[{"path": ""}]')
    ours = TorchServePeer(inputs, "ours", tuple(ENDPOINTS))
    theirs = InfinityPeer(inputs)
    for kind in ("image", "text"):
        door, plain = WORKLOADS[f"door_{kind}"], WORKLOADS[kind]
        assert ours.serves(door)
        assert not theirs.serves(door)
        sent = [json.loads(body) for body in ours.bodies(door)]
        assert [{**body, "model": "clip"} for body in sent] == [json.loads(b) for b in theirs.bodies(plain)]
        assert sent[0]["modality"] == kind


@pytest.fixture
def spinning() -> Iterator[None]:
    """Another program that takes a core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def test_what_another_program_disturbs_is_repeated_so_often_and_then_marked(spinning: None) -> None:
    tries = 0

    def measure() -> dict[str, float]:
        nonlocal tries
        tries += 1
        machine = Machine()
        # Until the planted program has had a tenth of a core, however busy the machine is.
        while machine.other_cores(0.0) <= 0.1:
            time.sleep(0.05)
        return {"rate": float(tries), "other_cores": machine.other_cores(0.0)}

    quiet = Quiet(bound=0.05, repeats=2)
    found = quiet.measure("clipserve: image_c1", measure)
    assert tries == 3
    assert found["other_cores"] > 0.05
    assert quiet.facts() == {
        "bound_cores": 0.05,
        "measured": 1,
        "repeated": 2,
        "disturbed": ["clipserve: image_c1"],
    }


def test_the_least_disturbed_try_counts() -> None:
    tries = iter([{"rate": 1.0, "other_cores": 0.9}, {"rate": 2.0, "other_cores": 0.01}])
    quiet = Quiet(bound=0.1, repeats=5)
    assert quiet.measure("a", lambda: next(tries))["rate"] == 2.0
    assert quiet.measure("b", lambda: {"rate": 3.0, "other_cores": 0.1})["rate"] == 3.0
    assert (quiet.measured, quiet.repeated, quiet.disturbed) == (2, 1, [])


def test_all_repetitions_of_a_run_have_so_much_time() -> None:
    quiet = Quiet(bound=0.1, repeats=3, seconds_left=0.0)
    quiet.measure("a", lambda: {"other_cores": 1.0})
    assert (quiet.repeated, quiet.disturbed) == (0, ["a"])


def test_own_work_is_no_other_programs() -> None:
    machine = Machine()
    assert machine.other_cores(own=1e9) == 0.0


def test_an_engine_waits_without_a_core_until_its_turn() -> None:
    with Child("benchmarks.load") as child:
        child.suspend()
        deadline = time.monotonic() + 60
        while child.process.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.resume()
        with pytest.raises(PeerError):
            child.ask({"no": "job"})


def test_a_child_says_what_it_has_taken() -> None:
    with Child("tests.benchmarks.counting") as child:
        result = child.ask({"up to": 3})
    assert result["sum"] == 6
    assert result["cpu_s"] >= 0


def test_passes_are_timed_over_inputs_in_turns() -> None:
    seen: list[int] = []
    found = time_passes(lambda given: seen.append(given["n"]), [{"n": 0}, {"n": 1}], 0.0)
    assert seen == [0, 0, 1]  # the first is not timed
    assert found["ms"] >= 0


def test_fidelity_is_to_the_original_and_to_oneself_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((16, 4))
    reference /= np.linalg.norm(reference, axis=1, keepdims=True)
    np.savez(tmp_path / "arrays.npz", judged=np.arange(16), tokens=np.array(5), reference=reference)
    inputs = InputFiles(tmp_path, "image", raw=False)

    def embed(given: dict[str, Any]) -> Any:
        vectors = 3 * reference[given["pixels"]]
        # Company moves the first number of a vector, and one is far from its original.
        vectors[:, 0] += 0.5 * (len(vectors) > 1)
        return np.where((given["pixels"] == 7)[:, None], -vectors, vectors)

    found = judge(embed, inputs)
    assert found["cosine_distance"] == pytest.approx(2)
    assert 0.01 < found["moved_by_neighbours"] < 0.5
    assert judge(lambda given: reference[given["pixels"]], inputs) == {
        "cosine_distance": pytest.approx(0),
        "moved_by_neighbours": 0.0,
    }


def test_no_round_begins_that_would_end_too_late(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began: list[int] = []

    class Few:
        notes: ClassVar[dict[str, str]] = {}
        encoders: ClassVar[dict[str, str]] = {}
        quiet = Quiet()

        def __init__(self, *_: object, **__: object):
            pass

        def __enter__(self) -> Few:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def expected_seconds(self, number: int) -> float:
            # The first takes longer than that, and so will the others.
            return 3600.0 if number == 2 else 1e-9

        def measure(self, number: int, tell: Callable[[str], None]) -> dict[str, Any]:
            began.append(number)
            tell("ours")
            figures = {"rss_mb": {"clip_image": 1.0}, "start": {"cold_start_s": 1.0}}
            return {"load_average": 0.0, "clipserve": figures}

    for name, made in {
        "Rounds": Few,
        "load_pair": lambda *_: None,
        "write_pictures": lambda _: {},
        "archive_settings": lambda _: {},
    }.items():
        monkeypatch.setattr(compare, name, made)
    for name in ENDPOINTS:
        (tmp_path / f"{name}.mar").touch()
    found = compare.run(
        seconds=1,
        rounds=3,
        store=tmp_path,
        checkpoints=(tmp_path, tmp_path),
        workers={},
        minutes=30,
        small=False,
    )
    assert began == [1]
    assert found["settings"]["rounds"] == 1
    said = capsys.readouterr().err
    assert "of about 60] round 1 of 3: ours" in said
    assert "round 2 would end after 30 minutes: left out" in said


def test_the_page_is_of_the_results() -> None:
    written = "\n".join(report.page(results_file.read(results_file.LATEST))) + "\n"
    assert report.PAGE.read_text(encoding="utf-8") == written, "run 'make bench-report'"
