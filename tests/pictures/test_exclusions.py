"""CASES 40: what other programs put beside pictures is left out, and a person may leave out more."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from pictures.errors import PicturesError
from pictures.exclusions import Exclusions
from pictures.files import Listing, list_pictures
from tests.search.conftest import picture

LEFT_OUT = [
    "@eaDir/IMG_1.jpg/SYNOPHOTO_THUMB_XL.jpg",
    "deep/@eaDir/a.jpg",
    "#recycle/a.jpg",
    "#snapshot/2024/a.jpg",
    "@Recycle/a.jpg",
    ".@__thumb/default/a.jpg",
    ".thumbnails/normal/a.png",
    ".Trash-1000/files/a.jpg",
    ".Trashes/501/a.jpg",
    ".git/a.png",
    ".AppleDouble/a.jpg",
    "$RECYCLE.BIN/S-1-5-21/a.jpg",
    "$Recycle.Bin/S-1-5-21/a.jpg",
    "System Volume Information/a.jpg",
    "lost+found/a.jpg",
    "__MACOSX/Holiday/._a.jpg",
    "._a.jpg",
    "deep/.trashed-1700000000-a.jpg",
    "Fotos.photoslibrary/resources/derivatives/a.jpeg",
    "Fotos.photolibrary/Thumbnails/a.jpg",
    "Pictures/2024/Fotos.photoslibrary/resources/derivatives/a.jpeg",
    "Pictures/Fotos.photolibrary/Previews/a.jpg",
    "Fotos.migratedphotolibrary/Thumbnails/a.jpg",
    "Pictures/Aperture.aplibrary/Previews/2010/a.jpg",
    "Pictures/Aperture.aplibrary/Thumbnails/2010/a.jpg",
    "Aperture.migratedaplibrary/Thumbnails/a.jpg",
    "Lightroom Previews.lrdata/0/a.jpg",
    "appdata_oc8c0fd71e03/preview/a/b/1/256-256-crop.jpg",
    "cloud/data/appdata_oc8c0fd71e03/preview/a/b/1/1024-768.jpg",
    "WhatsApp/Sent/.nomedia",
    "WhatsApp/Sent/a.jpg",
    "WhatsApp/Sent/deeper/a.jpg",
]

TAKEN = [
    "a.jpg",
    "Holiday/a.jpg",
    "eaDir/a.jpg",
    "recycle/a.jpg",
    "lost and found/a.jpg",
    "Fotos.photoslibrary/originals/0/a.jpeg",
    "Pictures/2024/Fotos.photoslibrary/originals/0/a.jpeg",
    "Pictures/Aperture.aplibrary/Masters/2010/a.jpg",
    "cloud/data/anna/files/preview/a.jpg",
    "resources/a.jpg",
    "WhatsApp/a.jpg",
    "a._b.jpg",
]


NFD = unicodedata.normalize("NFD", "árvíz/")


def names(root: Path, listing: Listing) -> set[str]:
    return {str(Path(found.path).relative_to(root)) for found in listing.pictures}


def test_defaults(tmp_path: Path) -> None:
    for name in [*LEFT_OUT, *TAKEN]:
        path = tmp_path / name
        if path.suffix:
            picture(path, 0)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    listing = list_pictures(tmp_path)
    assert names(tmp_path, listing) == set(TAKEN)
    assert listing.excluded_folders[".nomedia"] == 1
    assert listing.excluded_folders["@eaDir/"] == 2
    assert listing.excluded_folders["$RECYCLE.BIN/"] == 2
    assert listing.excluded_folders[".*"] == 6
    assert listing.excluded_files == {".*": 2}


def test_the_folder_that_is_asked_for_is_never_left_out(tmp_path: Path) -> None:
    root = tmp_path / ".hidden" / "@eaDir"
    picture(root / "a.jpg", 0)
    (root / ".nomedia").touch()
    assert names(root, list_pictures(root)) == {"a.jpg"}


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        (["Screenshots/"], {"a.jpg", "b.gif", "Árvíz/c.jpg", "deep/Screenshots.jpg"}),
        (["*.gif"], {"a.jpg", "Screenshots/s.png", "Árvíz/c.jpg", "deep/Screenshots.jpg"}),
        (["*.GIF", "screenshots"], {"a.jpg", "Árvíz/c.jpg", "deep/Screenshots.jpg"}),
        ([NFD], {"a.jpg", "b.gif", "Screenshots/s.png", "deep/Screenshots.jpg"}),
        (["/Screenshots", "deep/*.jpg"], {"a.jpg", "b.gif", "Árvíz/c.jpg"}),
        (["{root}/deep", "{root}/b.*"], {"a.jpg", "Screenshots/s.png", "Árvíz/c.jpg"}),
        (["*.jpg", "!a.jpg"], {"a.jpg", "b.gif", "Screenshots/s.png"}),
        (["!.hidden/", "*s*/"], {"a.jpg", "b.gif", "Árvíz/c.jpg", "deep/Screenshots.jpg", ".hidden/h.jpg"}),
        (["#a.jpg", "?.???"], {"deep/Screenshots.jpg"}),
    ],
)  # fmt: skip
def test_patterns_of_a_person(tmp_path: Path, patterns: list[str], left: set[str]) -> None:
    for name in [
        "a.jpg",
        "b.gif",
        "Screenshots/s.png",
        "Árvíz/c.jpg",
        "deep/Screenshots.jpg",
        ".hidden/h.jpg",
    ]:
        picture(tmp_path / name, 0)
    given = [pattern.format(root=tmp_path) for pattern in patterns]
    assert names(tmp_path, list_pictures(tmp_path, given)) == left


def test_what_matched_nothing_is_told(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg", 0)
    listing = list_pictures(tmp_path, ["Screenshot/", "!x"])
    assert list(listing.excluded_files.items()) == [("Screenshot/", 0)]


@pytest.mark.parametrize("pattern", ["!", "a\\"])
def test_no_pattern(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(PicturesError, match=r"EXCLUDE: .* is no pattern; patterns are those of \.gitignore"):
        list_pictures(tmp_path, [pattern])


def test_names_that_are_not_unicode(tmp_path: Path) -> None:
    exclusions = Exclusions(bytes(tmp_path), ["*.gif"])
    assert exclusions.match(b"\xff\xfe/@eaDir", is_folder=True) == "@eaDir/"
    assert exclusions.match(b"\xff.gif", is_folder=False) == "*.gif"
    assert exclusions.match(b"\xff.jpg", is_folder=False) is None
