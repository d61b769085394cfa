"""What weights may be used for: the model card says it, the export prints it, the spec keeps it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from clipserve.encoder_spec import read_spec
from export_scripts.checkpoints import hub
from export_scripts.checkpoints.licenses import license_lines, license_of
from export_scripts.checkpoints.loading import load_pair
from export_scripts.export import main
from tests.conftest import FolderOf
from tests.export_scripts.checkpoints.edits import Vary, write


def card(front: str) -> str:
    return f"---\n{front}\n---\n\n# A model\n\nlicense: not-this\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (card("license: apache-2.0\ntags:\n- clip"), "apache-2.0"),
        (card("license: cc-by-nc-4.0"), "cc-by-nc-4.0"),
        (card("license: other\nlicense_name: apple-amlr\nlicense_link: LICENSE"), "apple-amlr"),
        (card("license: other"), "other"),
        (card("license:\n- mit\n- apache-2.0"), "mit, apache-2.0"),
        ("\ufeff" + card("license: mit"), "mit"),
        (card("language: zh"), None),
        (card("license: 5"), None),
        (card("license: [unclosed"), None),
        (card("- a list"), None),
        ("# A model\n\nlicense: mit\n", None),
        ("", None),
    ],
)
def test_model_cards(text: str, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert license_of(tmp_path, str(tmp_path)) == expected


def test_a_model_card_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00---")
    assert license_of(tmp_path, str(tmp_path)) is None


def test_the_table_is_asked_by_the_name_on_the_hub_only(tmp_path: Path) -> None:
    """Where there is no card, or it says nothing. A folder's name is nobody's word for what is in it."""
    assert license_of(tmp_path, "facebook/metaclip-2-worldwide-b32") == "cc-by-nc-4.0"
    assert license_of(tmp_path, "OFA-Sys/chinese-clip-vit-base-patch16") is None
    assert license_of(tmp_path, "somebody/something") is None
    (tmp_path / "clip-ViT-B-32").mkdir()
    assert license_of(tmp_path / "clip-ViT-B-32", str(tmp_path / "clip-ViT-B-32")) is None
    (tmp_path / "README.md").write_text(card("license: bsd"))
    assert license_of(tmp_path, "clip-ViT-B-32") == "bsd"


def test_no_vector_depends_on_it(clip_folder: Path, vary: Vary) -> None:
    pair, other = (
        load_pair(str(clip_folder)),
        load_pair(str(vary(clip_folder, write("README.md", card("license: mit"))))),
    )
    assert (pair.image.license, other.image.license, other.text.license) == (None, "mit", "mit")
    assert pair.space_id == other.space_id


def test_each_side_has_its_own(
    clip_folder: Path, multilingual_folder: Path, vary: Vary, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = vary(
        multilingual_folder, write("README.md", card("license: other\nlicense_name: research-only"))
    )
    pair = load_pair(str(clip_folder), str(folder))
    assert license_lines(pair) == [
        "licence of clip: unknown; ask its publisher before you serve it",
        "licence of multilingual: research-only: NOT FOR COMMERCIAL USE",
    ]
    download: Callable[..., str] = lambda repository, **options: str(clip_folder)  # noqa: E731
    monkeypatch.setattr(hub, "snapshot_download", download)
    assert license_lines(load_pair("clip-ViT-L-14")) == ["licence of clip-ViT-L-14: mit"]


@pytest.mark.parametrize(
    ("said", "commercial"),
    [
        *((name, True) for name in ("mit", "apache-2.0", "cc-by-4.0", "ncsa", "apple-ascl", "other")),
        *((name, False) for name in ("cc-by-nc-4.0", "CC-BY-NC-SA-4.0", "cc-by-nc-nd-4.0", "apple-amlr")),
        *((name, False) for name in ("mit, cc-by-nc-4.0", "fair-noncommercial-research-license")),
    ],
)
def test_what_excludes_commercial_use(said: str, commercial: bool, clip_folder: Path, vary: Vary) -> None:
    pair = load_pair(str(vary(clip_folder, write("README.md", card(f"license: '{said}'")))))
    (line,) = license_lines(pair)
    assert line == f"licence of clip: {said}{'' if commercial else ': NOT FOR COMMERCIAL USE'}"


def test_the_export_says_it_and_the_spec_keeps_it(
    folder_of: FolderOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of("metaclip-2")
    assert main([f"--model={folder}", "--precision=fp32", f"--store={tmp_path}"]) == 0
    assert "licence of metaclip-2: cc-by-nc-4.0: NOT FOR COMMERCIAL USE\n" in capsys.readouterr().out
    for path in sorted(tmp_path.glob("*.pt")):
        assert read_spec(path).license == "cc-by-nc-4.0"
        assert json.loads(path.with_suffix(".json").read_text())["license"] == "cc-by-nc-4.0"
