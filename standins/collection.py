"""A folder of pictures as people have them, with every trap that is known, and what an index must say of it.

Twelve kinds of files; copies and hard links; names of any bytes; files that are broken, empty, too large or
something else than they say; pipes and links; what other programs leave behind; what is no picture at all.
"""

from __future__ import annotations

import collections
import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pillow_heif
from PIL import Image

from clipserve.image_formats import FORMATS
from clipserve.images import ImageLimits
from standins.many_pictures import AGE_NS, draw_pictures
from standins.twenty_files import FILES, file

Encode = Callable[[Image.Image], bytes]

LIMITS = ImageLimits()

# Of all files: copies of another one, and what a pattern of one's own leaves out.
COPIES, SCREENSHOTS = 1 / 25, 1 / 50
# Of every kind of broken file, of what else programs leave, and of what is no picture, one in so many files.
EACH = 400

EXCLUDE = ("Screenshots/", "*.bak.png")


def _pillow(format: str, mode: str = "RGB", **options: object) -> Encode:
    def encode(image: Image.Image) -> bytes:
        stream = io.BytesIO()
        image.convert(mode).save(stream, format, **options)
        return stream.getvalue()

    return encode


def _heic(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=60)
    return stream.getvalue()


def _two_frames(format: str) -> Encode:
    return lambda image: _pillow(format, save_all=True, append_images=[image.rotate(180)])(image)


# By their ending.
KINDS: dict[str, Encode] = {
    ".jpg": _pillow("JPEG", quality=85),
    ".JPEG": _pillow("JPEG", progressive=True),
    ".jfif": _pillow("JPEG", "CMYK"),
    ".mpo": _two_frames("MPO"),
    ".png": _pillow("PNG"),
    ".apng": _two_frames("PNG"),
    ".gif": _two_frames("GIF"),
    ".bmp": _pillow("BMP"),
    ".tif": _pillow("TIFF", compression="tiff_lzw"),
    ".webp": _pillow("WEBP", method=0),
    ".avif": _pillow("AVIF", speed=10),
    ".heic": _heic,
}

# Names that somebody's disk has.
NAMES = (
    b"not utf-8 \xff.jpg",
    b"line\nend.jpg",
    b"back\\slash.jpg",
    b" a space first.jpg",
    b"-rf.jpg",
    b"#hash.jpg",
    b"!bang.jpg",
    b"a'quote \"; -- 100%_.jpg",
    b"$(reboot) `x`.jpg",
    "Ko\u0308ln, in NFD.jpg".encode(),
    "\u202egnp, from the right.jpg".encode(),
    "рыба 🐟.jpg".encode(),
    "ő".encode() * 120 + b".jpg",
)

# What is no picture here, by its ending; JPEG 2000 and JPEG XL are pictures that nothing here reads.
OTHERS = (".jp2", ".jxl", ".nef", ".mp4", ".xmp", ".txt", ".db", "")


@dataclass
class Collection:
    """What was written, and what an index has to say of it.

    Attributes:
        root: the folder.
        indexed: what has to be in the table: paths to their contents.
        heic: those of `indexed` that take a decoder which may not be installed.
        refused: what has to be told of, with a part of the reason.
        others: files of other endings, by ending.
        left_out: files that a pattern leaves out, by pattern.
        left_out_folders: folders that a pattern leaves out, by pattern.
    """

    root: Path
    indexed: dict[bytes, bytes] = field(default_factory=dict)
    heic: set[bytes] = field(default_factory=set)
    refused: dict[bytes, str] = field(default_factory=dict)
    others: collections.Counter[str] = field(default_factory=collections.Counter)
    left_out: collections.Counter[str] = field(default_factory=collections.Counter)
    left_out_folders: collections.Counter[str] = field(default_factory=collections.Counter)

    @property
    def found(self) -> int:
        """All files but those below folders that are left out."""
        return len(self.indexed) + len(self.refused) + self.others.total() + self.left_out.total()

    def path(self, name: str | bytes) -> bytes:
        """Where a file of this name goes; its folder is made."""
        path = os.fsencode(self.root) + b"/" + os.fsencode(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120  # bytes
        return path

    def write(self, name: str | bytes, data: bytes) -> bytes:
        """Writes a file that looks an hour old: an index trusts such a file's time."""
        path = self.path(name)
        with open(path, "wb") as stream:  # noqa: PTH123  # bytes
            stream.write(data)
        status = os.stat(path)  # noqa: PTH116  # bytes
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - AGE_NS))
        return path

    def add(self, name: str | bytes, data: bytes) -> None:
        """A picture."""
        path = self.write(name, data)
        self.indexed[path] = data
        if FORMATS["HEIF"].signature.match(data):
            self.heic.add(path)

    def refuse(self, name: str, data: bytes, reason: str) -> None:
        """What looks like a picture and is none that is taken."""
        self.refused[self.write(name, data)] = reason


def write_collection(root: Path, count: int) -> Collection:
    """Writes `count` files into a folder, and some more below folders that are left out.

    The same count gives the same files. Less than some 200 are not enough for every trap.
    """
    made = Collection(root.resolve())
    _odd_ones(made)
    for number in range(max(1, count // EACH)):
        _broken_ones(made, number)
        _left_out(made, number)
        for ending in OTHERS:
            made.write(f"{number}/beside/notes{ending}", b"no picture")
            made.others[ending or "no ending"] += 1
    for number in range(int(count * SCREENSHOTS)):
        made.write(f"exports/{number}.bak.png", b"\x89PNG")
        made.left_out["*.bak.png"] += 1
    copies = int(count * COPIES)
    rest = count - made.found - copies
    kinds = list(KINDS.items())
    for number, image in enumerate(draw_pictures(rest)):
        ending, encode = kinds[number % len(kinds)]
        made.add(f"{number // 500:03}/{number:06}{ending}", encode(image))
    originals = list(made.indexed)
    for number in range(copies):
        # Spread over all kinds; every fourth is a second name of the same file.
        source = originals[number * 7919 % len(originals)]
        path = made.path(f"copies/{number:05}".encode() + os.path.splitext(source)[1])  # noqa: PTH122
        (os.link if number % 4 == 0 else shutil.copy2)(source, path)
        made.indexed[path] = made.indexed[source]
        if source in made.heic:
            made.heic.add(path)
    return made


def _odd_ones(made: Collection) -> None:
    """Pictures that are pictures, though something about them is not as usual."""
    images = draw_pictures(len(NAMES) + len(KINDS) + 1, seed=1)
    for name in NAMES:
        made.add(b"names/" + name, KINDS[".jpg"](next(images)))
    for encode in KINDS.values():
        # As messengers and converters name them.
        number = len(made.indexed)
        made.add(f"misnamed/{number}{'.png' if encode is KINDS['.jpg'] else '.jpg'}", encode(next(images)))
    for one in FILES:
        made.add(f"twenty/{one}", file(one))
    made.add("/".join(["deep"] * 60) + "/deep.jpg", KINDS[".jpg"](next(images)))
    made.add("a folder.jpg/inside.png", KINDS[".png"](next(draw_pictures(1, seed=2))))
    # 48 megapixels.
    made.add("huge/48.jpg", KINDS[".jpg"](Image.new("RGB", (8000, 6000), (90, 120, 40))))
    link = made.path("links/to a picture.jpg")
    os.symlink("../huge/48.jpg", link)  # noqa: PTH211  # bytes
    os.symlink("..", made.path("links/round and round"))  # noqa: PTH211
    os.symlink("nowhere", made.path("links/nowhere.png"))  # noqa: PTH211
    os.mkfifo(made.path("links/pipe.jpg"))
    for one in ("to a picture.jpg", "round and round", "nowhere.png"):
        made.refused[made.path(f"links/{one}")] = "a symbolic link, not followed"
    made.refused[made.path("links/pipe.jpg")] = "not a regular file"


def _broken_ones(made: Collection, number: int) -> None:
    image = next(draw_pictures(1, seed=100 + number))
    for kind in (".jpg", ".png", ".gif", ".bmp", ".tif", ".webp", ".avif", ".heic"):
        data = KINDS[kind](image)
        # In the first of two frames; decoders say it variously.
        made.refuse(f"{number}/broken/cut{kind}", data[: len(data) // 4], "")
    unknown = "no picture in an allowed format"
    made.refuse(f"{number}/broken/text.jpg", f"this is text {number}".encode(), unknown)
    made.refuse(f"{number}/broken/jpeg 2000.jpg", _pillow("JPEG2000")(image), unknown)
    made.refuse(f"{number}/broken/empty.jpg", b"", "the file is empty")
    large = made.path(f"{number}/broken/large.png")
    with open(large, "wb") as stream:  # noqa: PTH123  # bytes
        stream.truncate(LIMITS.max_bytes + 1)
    made.refused[large] = f"{LIMITS.max_bytes + 1} bytes, allowed are {LIMITS.max_bytes}"
    made.refuse(f"{number}/broken/bomb.png", _bomb(30_000 + number, 30_000), "bytes of memory")
    strip = Image.new("RGB", (20_000, 10 + number % 90), (number % 256, 90, 200))
    made.refuse(f"{number}/broken/strip.png", KINDS[".png"](strip), "its longer side may be up to")
    start, rest = KINDS[".jpg"](image)[:2], KINDS[".jpg"](image)[2:]
    segments = start + b"\xff\xe1\x00\x02" * (LIMITS.max_structures + 1) + rest
    made.refuse(f"{number}/broken/segments.jpg", segments, f"allowed are {LIMITS.max_structures}")


def _bomb(width: int, height: int) -> bytes:
    """A PNG of 900 megapixels in a hundred bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def _left_out(made: Collection, number: int) -> None:
    """What other programs leave, and what people do not want."""
    data = KINDS[".jpg"](next(draw_pictures(1, seed=200 + number)))
    made.write(f"{number}/._IMG_1.jpg", data)
    made.left_out[".*"] += 1
    for folder, pattern in {
        ".thumbnails/normal": ".*",
        "@eaDir/IMG_1.jpg": "@eaDir/",
        "$RECYCLE.BIN": "$RECYCLE.BIN/",
        "catalogue.lrdata": "*.lrdata/",
        "Screenshots": "Screenshots/",
        "private": ".nomedia",
    }.items():
        for copy in range(3):
            made.write(f"{number}/{folder}/{copy}.jpg", data + bytes([copy]))
        made.left_out_folders[pattern] += 1
    made.write(f"{number}/private/.nomedia", b"")
