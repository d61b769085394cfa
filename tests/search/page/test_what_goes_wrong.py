"""What goes wrong is told on the page: broken pictures, no server, no table."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from clipserve.client import Client
from clipserve.errors import ServerError
from pictures.files import MAX_BYTES
from search.indexer import index_folder
from serving.running import RunningServer
from tests.search.page.pages import (
    COUNT,
    LOGO,
    NAME,
    Served,
    ask,
    check_accessible,
    keep,
    opened,
    served,
    status,
    tiles,
)


@pytest.mark.server
def test_a_text_file_with_a_pictures_name(browser: Browser, page: Served, tmp_path: Path) -> None:
    """CASES 54: a sentence with the file's name; results stay; `page` fails on any traceback."""
    text = tmp_path / "holiday.jpg"
    text.write_text("no picture at all")
    large = tmp_path / "large.png"
    with large.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    with opened(browser, page.link(), problems=True) as tab:
        ask(tab, "kutya")
        expect(status(tab)).to_contain_text("for kutya")
        tab.locator("#file").set_input_files([text, large])
        notice = tab.locator("#notice")
        expect(notice).to_contain_text("holiday.jpg: the bytes are no picture in an allowed format")
        expect(notice).to_contain_text(f"large.png: {MAX_BYTES + 1} bytes, allowed are {MAX_BYTES}")
        expect(tiles(tab)).to_have_count(COUNT)
        expect(tab.locator(".chip")).to_have_count(0)
        keep(tab, "no-picture")


@pytest.mark.server
def test_comparison_with_one_broken_picture_of_eight(
    browser: Browser, page: Served, pictures: Path, tmp_path: Path
) -> None:
    """CASES 55: seven rows of the matrix, and the reason in the eighth."""
    broken = tmp_path / "broken.png"
    broken.write_bytes((pictures / NAME.format(0)).read_bytes()[:200])
    files = [*(pictures / NAME.format(number) for number in range(4)), broken]
    files += [pictures / NAME.format(number) for number in range(4, 7)]
    with opened(browser, page.link("/compare"), problems=True) as tab:
        tab.locator("#file").set_input_files(files)
        tab.locator("#texts").fill("two dogs\n<script>alert(1)</script>\nدو سگ در برف\n雪の中の二匹の犬")
        tab.get_by_role("button", name="Compare", exact=True).click()
        expect(status(tab)).to_contain_text("7 of 8 pictures compared with 4 texts")
        rows = tab.locator("#matrix tbody tr")
        expect(rows).to_have_count(8)
        expect(rows.nth(4)).to_contain_text("broken.png")
        expect(rows.nth(4).locator(".problem")).to_contain_text("cannot be decoded")
        expect(tab.locator("#matrix td[data-cosine]")).to_have_count(7 * 4)
        expect(tab.locator("#matrix th[scope=col]").nth(1)).to_have_text("<script>alert(1)</script>")
        check_accessible(tab)
        keep(tab, "compare-matrix")


@pytest.mark.server
def test_comparison_is_the_servers_own(
    browser: Browser, page: Served, pictures: Path, client: Client
) -> None:
    labels = ["كلبان في الثلج", "قطة على طاولة", "لندن ليلًا"]
    expected = client.similarity([pictures / LOGO], labels=labels, template="صورة: {}")
    with opened(browser, page.link("/compare"), problems=True) as tab:
        tab.locator("#file").set_input_files(pictures / LOGO)
        tab.get_by_role("button", name=labels[0]).click()  # an example compares at once
        expect(status(tab)).to_contain_text("1 of 1 picture compared with 3 texts")
        cells = tab.locator("#matrix td[data-cosine]")
        shown = [float(str(cell.get_attribute("data-cosine"))) for cell in cells.all()]
        assert shown == pytest.approx(expected.cosine_similarity[0].tolist(), abs=1e-6)
        expect(cells.first).to_contain_text(f"{100 * expected.probabilities[0, 0]:.1f} %")
        keep(tab, "compare-arabic")
        tab.locator("#score").select_option("sigmoid")
        tab.get_by_role("button", name="Compare", exact=True).click()
        expect(status(tab)).to_contain_text("the probability of the text by itself")
        alone = client.similarity(
            [pictures / LOGO], labels=labels, template="صورة: {}", score="sigmoid"
        ).probabilities
        expect(cells.first).to_contain_text(f"{100 * alone[0, 0]:.1f} %")
        tab.locator("#template").fill("no place for the label")
        tab.get_by_role("button", name="Compare", exact=True).click()
        expect(tab.locator("#notice")).to_contain_text("should be a text with one {}")


class Dead:
    """A server that closes every connection, and counts them."""

    def __init__(self) -> None:
        self.connections = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._refuse, daemon=True).start()

    def _refuse(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self.connections += 1
                connection.close()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def dead() -> Iterator[Dead]:
    dead = Dead()
    yield dead
    dead.close()


@pytest.mark.parametrize(("retries", "at_least", "at_most"), [(False, 1, 1), (True, 3, 10_000)])
def test_retries_are_a_choice(
    dead: Dead, monkeypatch: pytest.MonkeyPatch, retries: bool, at_least: int, at_most: int
) -> None:
    """CASES 56: counted in connections, not in seconds."""
    monkeypatch.setattr("clipserve.client.connection.RETRIES_SECONDS", 0.5)
    with (
        Client(dead.url, dead.url, "token", retries=retries) as client,
        pytest.raises(ServerError, match="cannot be reached"),
    ):
        client.embed_texts(["kutya"])
    assert at_least <= dead.connections <= at_most


@pytest.mark.server
def test_server_that_is_down(
    browser: Browser, server: RunningServer, tmp_path: Path, pictures: Path, dead: Dead
) -> None:
    """CASES 56: said after one attempt; what needs no server is still there, and one may try again."""
    table = tmp_path / "table"
    with server.client() as client:
        index_folder(client, pictures, table)
    with (
        served(dead.url, server.key_file, table, tmp_path) as page,
        opened(browser, page.link(), problems=True) as tab,
    ):
        expect(tiles(tab)).to_have_count(COUNT)
        ask(tab, "kutya")
        alert = tab.locator("#status[role=alert]")
        expect(alert).to_contain_text("cannot be reached")
        expect(alert).to_contain_text("make serve")
        assert dead.connections == 1
        keep(tab, "server-down")
        tab.get_by_role("button", name="Try again").click()
        expect(tab.locator("body")).not_to_have_attribute("aria-busy", "true")
        assert dead.connections == 2
        # More like this needs the table alone.
        tab.go_back()
        tiles(tab).first.click()
        tab.get_by_role("button", name="More like this").click()
        expect(status(tab)).to_contain_text("9 of 10 pictures like this picture")
        # The page itself is gone.
        page.process.terminate()
        page.process.wait()
        ask(tab, "kutya")
        expect(alert).to_contain_text("make ui")


@pytest.mark.server
def test_no_table_yet(browser: Browser, server: RunningServer, tmp_path: Path) -> None:
    with (
        served(server.url, server.key_file, tmp_path / "nothing", tmp_path) as page,
        opened(browser, page.link(), problems=True) as tab,
    ):
        expect(tab.locator("#status[role=alert]")).to_contain_text("make index IMAGES=folder")
        keep(tab, "no-table")
