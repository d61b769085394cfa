import fnmatch
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from pictures.paths import path_condition, path_to_text, printable, text_to_path
from pictures.rows import FileState, Row
from pictures.table import open_or_create_table

NAMES = [
    b"/a/kutya.jpg",
    "/a/雪の犬 كلب.jpg".encode(),
    b"/a/\xff\xfe.jpg",
    b"/a/back\\slash.jpg",
    b"/a/\\xff.jpg",
    b"/a/\\\\x41\xff\\.jpg",
    b"/a/100%_sure's.jpg",
    b"/a/line\nend\x1b[31m.jpg",
    b"/a/\xed\xa0\x80.jpg",
]


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: bytes) -> None:
    text = path_to_text(name)
    text.encode("utf-8")
    assert text_to_path(text) == name


def test_round_trip_of_any_bytes() -> None:
    random = np.random.default_rng(0)
    for _ in range(500):
        name = random.choice(
            np.frombuffer(b"\\x0fa\xff\xc3\xa9/", np.uint8), random.integers(0, 12)
        ).tobytes()
        assert text_to_path(path_to_text(name)) == name


def test_different_names_have_different_texts() -> None:
    assert len({path_to_text(name) for name in NAMES}) == len(NAMES)


def test_valid_names_stay_as_they_are() -> None:
    assert path_to_text("/a/雪の犬 كلب.jpg".encode()) == "/a/雪の犬 كلب.jpg"


def test_printable_holds_no_line_end_and_no_escape() -> None:
    assert printable("/a/line\nend\x1b[31m.jpg") == "/a/line\\nend\\x1b[31m.jpg"


@pytest.mark.parametrize(
    "pattern",
    ["kutya", "雪", "%", "_", "'", "\\\\", "\\xff", "*.jpg", "a/?", "a/l*e", "x' OR '1'='1", "/b/", "[31m"],
)
def test_path_condition_means_what_python_says(tmp_path: Path, pattern: str) -> None:
    table = open_or_create_table(tmp_path, "space", "model", 2)
    texts = [path_to_text(name) for name in NAMES]
    state = FileState(1, 0, "", 0)
    table.write([Row(text, state, np.array([1, 0], np.float32), b"") for text in texts], [])
    hits = table.nearest(np.array([1, 0], np.float32), 100, condition=path_condition(pattern))
    quoted = "".join(f"[{c}]" if c == "[" else c for c in pattern)
    assert {hit.path for hit in hits} == {t for t in texts if fnmatch.fnmatchcase(t, f"*{quoted}*")}


def test_text_of_a_real_file(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff.jpg"
    Path(os.fsdecode(name)).write_bytes(b"1")
    assert Path(os.fsdecode(text_to_path(path_to_text(name)))).read_bytes() == b"1"


def test_a_part_of_the_path_is_found_whatever_its_case_and_normal_form(tmp_path: Path) -> None:
    """CASES 42: macOS writes names in NFD, and people type in lower case."""
    nfc = unicodedata.normalize("NFC", "/Fotók/Árvíztűrő/STRASSE Ω 한국.JPG")
    names = [nfc, unicodedata.normalize("NFD", nfc).replace("Fot", "fot"), "/other/a.jpg"]
    table = open_or_create_table(tmp_path, "space", "model", 2)
    rows = [Row(name, FileState(1, 0, name, 0), np.array([1, 0], np.float32), b"") for name in names]
    table.write(rows, [])
    for part in [
        "árvíztűrő",
        "ÁRVÍZTŰRŐ",
        "fotók/",
        "straße",
        "ω 한국",
        "한국.jpg",
        "FOTÓK/*.jpg",
        "árv?ztűrő",
    ]:
        for form in ("NFC", "NFD"):
            condition = path_condition(unicodedata.normalize(form, part))
            found = {hit.path for hit in table.nearest(np.array([1, 0], np.float32), 9, condition=condition)}
            assert found == set(names[:2]), (form, part)
    assert not table.nearest(np.array([1, 0], np.float32), 9, condition=path_condition("arvizturo"))
