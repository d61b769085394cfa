"""The instrument: a load generator that counts right, ratios of the right figures, a page of the results."""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import compare, ratios, report
from benchmarks.child import Child, PeerError
from benchmarks.load import FRESH, Generator, LoadJob, run
from benchmarks.rounds import image_encoder_shapes, joined
from benchmarks.workloads import KNOWN_LABELS, SIZES, WORKLOADS, labels, sentences, write_pictures
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
    found = ratios.summarise(rounds)
    assert found["median"]["clipserve"]["image_c1"]["p50_ms"] == 5.0
    assert found["ratios"] == {name: 0.5}  # of 0.5, 0.75 and 0.1; not 5 / 40
    assert found["ratio_spread"] == {name: [0.1, 0.75]}
    assert ratios.RATIOS[name].holds(0.5)
    assert not ratios.RATIOS[name].holds(0.51)


def test_a_peer_that_was_not_measured_leaves_its_ratios_out() -> None:
    rounds = [
        {"clipserve": {"image_c32": {"rate": 8.0}}, "infinity": {"image_c32": {"rate": 2.0}}},
        {"clipserve": {"image_c32": {"rate": 9.0}}},
    ]
    assert ratios.summarise(rounds)["ratios"] == {"image_http_c32_vs_infinity": 4.0}


def test_the_page_is_of_the_results() -> None:
    written = "\n".join(report.page(ratios.read(ratios.LATEST))) + "\n"
    assert report.PAGE.read_text(encoding="utf-8") == written, "run 'make bench-report'"
