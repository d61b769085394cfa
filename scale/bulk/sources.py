"""Where pictures come from: a folder of files, Parquet with a column of bytes, or webdataset tar shards.

A picture's path in the table is that of its file; in Parquet `FILE/ROW`, in a tar `FILE/MEMBER`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pictures.exclusions import Exclusions
from pictures.files import ENDINGS, MAX_BYTES, Contents, FoundFile, list_pictures, read_contents
from pictures.paths import path_to_text, printable
from scale.bulk.errors import BulkError
from scale.bulk.parquet import PARQUET_BUFFER, bytes_column, check_parquet, parquet_values

Kind = Literal["files", "parquet", "tar"]

UNKNOWN_SIZE = -1

# A name in a tar that is longer than its header, or other records of a member's: read into memory as a whole.
MAX_TAR_RECORD_BYTES = 1_000_000
TAR_RECORDS = frozenset(
    {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
    | {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
)

# The code of what may be otherwise the next time; whatever else is wrong with a picture stays wrong until its
# file changes.
UNREADABLE = "unreadable"


class Picture(NamedTuple):
    """A picture that is to be embedded.

    Attributes:
        path: in text form, see `pictures.paths`; no two are alike.
        location: the file to open.
        offset: of its first byte in a tar; its row in Parquet; 0 for a file of its own.
        size: bytes, or `UNKNOWN_SIZE`.
        mtime_ns: time of the file's last change.
    """

    path: str
    location: bytes
    offset: int
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Failure:
    """A picture, or something that should hold pictures, that cannot be embedded.

    Attributes:
        path: in text form.
        size: bytes, or `UNKNOWN_SIZE`.
        mtime_ns: time of the file's last change; 0 where it is not known.
        code: of a `RequestError`, or one of this module.
        message: one sentence.
    """

    path: str
    size: int
    mtime_ns: int
    code: str
    message: str

    @classmethod
    def of(cls, picture: Picture, code: str, message: str) -> Failure:
        """What is wrong with `picture`."""
        return cls(picture.path, picture.size, picture.mtime_ns, code, message)


@dataclass(frozen=True)
class Source:
    """Where the pictures of a job are.

    Attributes:
        kind: how they are stored.
        root: a folder, or one Parquet or tar file; absolute.
        column: of the bytes in Parquet; None for the only one there is.
        exclude: patterns of what is left out of a folder or a tar, see `pictures.exclusions`.
    """

    kind: Kind
    root: Path
    column: str | None = None
    exclude: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """Names the job that embeds it, which goes on as it was begun: other exceptions are another job."""
        words = " ".join((self.kind, str(self.root), *self.exclude))
        return hashlib.sha256(words.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def list(self) -> Iterator[Picture | Failure]:
        """Every picture, in an order that depends on nothing but what is there.

        Raises:
            PicturesError: the folder cannot be read, or what should be a pattern is none.
        """
        if self.kind == "files":
            yield from _list_files(self.root, self.exclude)
            return
        listing = self._list_tar if self.kind == "tar" else self._list_parquet
        for path in _container_files(self.root, self.kind):
            yield from listing(path)

    def read(self, pictures: Sequence[Picture]) -> Iterator[tuple[Picture, Contents | Failure]]:
        """The bytes of pictures, one after the other, or why there are none."""
        if self.kind == "files":
            for picture in pictures:
                yield picture, _told(picture, partial(_read_file, picture))
            return
        read = _read_tar if self.kind == "tar" else self._read_parquet
        for _, group in groupby(pictures, key=lambda picture: picture.location):
            yield from read(list(group))

    def _list_tar(self, path: Path) -> Iterator[Picture | Failure]:
        name = os.fsencode(path)
        exclusions = Exclusions(name, self.exclude)
        seen: set[bytes] = set()
        try:
            mtime_ns = path.stat().st_mtime_ns
            # Without compression ("r:"): a picture must be found without reading those before it.
            with tarfile.open(path, "r:", errors="surrogateescape", tarinfo=_Member) as tar:
                for member in tar:
                    # Else every member ever seen is kept.
                    tar.members = []  # type: ignore[attr-defined]  # missing in its stub
                    if member.size < 0:
                        # Its records may say so too; the next member would be looked for before this one.
                        raise tarfile.ReadError(f"a member of {member.size} bytes")
                    member_name = os.fsencode(member.name)
                    ending = os.path.splitext(member_name)[1].lower()  # noqa: PTH122  # bytes
                    if not member.isfile() or ending not in ENDINGS:
                        continue
                    # A Mac's tar has a copy of no picture beside each, a NAS's its thumbnails.
                    below = os.path.normpath(member_name).lstrip(b"/")
                    if exclusions.match(below, is_folder=False) is not None:
                        continue
                    full_name = name + b"/" + member_name
                    if member_name in seen:
                        yield _unreadable(full_name, "a second member of this name in the tar")
                    elif member.issparse():
                        yield _unreadable(full_name, "a sparse member, not supported")
                    elif member.size > MAX_BYTES:
                        reason = f"{member.size} bytes, allowed are {MAX_BYTES}"
                        yield _unreadable(full_name, reason)
                    else:
                        seen.add(member_name)
                        yield Picture(
                            path_to_text(full_name), name, member.offset_data, member.size, mtime_ns
                        )
        except (OSError, tarfile.TarError) as error:
            yield _unreadable(name, f"not a readable, uncompressed tar: {error}")

    def _list_parquet(self, path: Path) -> Iterator[Picture | Failure]:
        name = os.fsencode(path)
        try:
            status = path.stat()
            with pq.ParquetFile(path) as file:
                rows = file.metadata.num_rows
                check_parquet(file, bytes_column(file.schema_arrow, self.column), status.st_size)
        except (OSError, ValueError, pa.ArrowException) as error:
            yield _unreadable(name, str(error))
            return
        for row in range(rows):
            text = path_to_text(name + b"/%d" % row)
            yield Picture(text, name, row, UNKNOWN_SIZE, status.st_mtime_ns)

    def _read_parquet(self, pictures: Sequence[Picture]) -> Iterator[tuple[Picture, Contents | Failure]]:
        done = 0
        try:
            with _opened(pictures[0]) as stream, pq.ParquetFile(stream, buffer_size=PARQUET_BUFFER) as file:
                values = parquet_values(
                    file, bytes_column(file.schema_arrow, self.column), [p.offset for p in pictures]
                )
                for picture, value in zip(pictures, values, strict=True):
                    done += 1
                    yield picture, _told(picture, partial(_contents, picture, value))
        except (OSError, ValueError, pa.ArrowException) as error:
            for picture in pictures[done:]:
                yield picture, Failure.of(picture, UNREADABLE, f"cannot be read: {_reason(error)}")


def find_source(images: Path, column: str | None, exclude: Sequence[str] = ()) -> Source:
    """Looks what kind of source lies at `images`.

    Args:
        images: a folder of pictures, or of Parquet or tar files, or one such file.
        column: of the bytes in Parquet; None for the only one there is.
        exclude: patterns of what is left out, see `pictures.exclusions`.

    Raises:
        BulkError: nothing is there, or no pictures can be in it; or rows of Parquet, which have no names, are
            to be left out by theirs.
    """
    root = images.resolve()
    shown = printable(str(images))
    kinds: dict[str, Kind] = {".parquet": "parquet", ".tar": "tar"}
    if root.is_file():
        if root.suffix not in kinds:
            raise BulkError(
                f"{shown}: a file that is neither .parquet nor .tar; name a folder of pictures, a Parquet "
                "file, a tar file, or a folder of these: make bulk IMAGES=…"
            )
        return _source(kinds[root.suffix], root, column, exclude)
    if not root.is_dir():
        raise BulkError(f"{shown}: no such file or folder; name one: make bulk IMAGES=…")
    try:
        found = {kinds[path.suffix] for path in root.iterdir() if path.suffix in kinds}
    except OSError as error:
        raise BulkError(f"{shown}: cannot be read: {error.strerror}") from error
    if len(found) > 1:
        raise BulkError(f"{shown}: holds both .parquet and .tar files; keep them in folders of their own")
    return _source(found.pop() if found else "files", root, column, exclude)


def _source(kind: Kind, root: Path, column: str | None, exclude: Sequence[str]) -> Source:
    if kind == "parquet" and exclude:
        raise BulkError(
            f"EXCLUDE: {printable(exclude[0])!r} goes by names, which pictures in Parquet lack; leave it out"
        )
    return Source(kind, root, column, tuple(exclude))


def _list_files(root: Path, exclude: Sequence[str]) -> Iterator[Picture | Failure]:
    listing = list_pictures(root, exclude)
    for path, reason in listing.skipped:
        yield Failure(path, UNKNOWN_SIZE, 0, UNREADABLE, reason)
    for found in listing.pictures:
        yield Picture(found.path, found.location, 0, found.size, found.mtime_ns)


def _container_files(root: Path, kind: Kind) -> list[Path]:
    return [root] if root.is_file() else sorted(path for path in root.glob(f"*.{kind}") if path.is_file())


class _Member(tarfile.TarInfo):
    """A member whose header is read only if it can be followed."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Reads a header.

        Raises:
            ReadError: its size is negative, or that of a record which is read into memory is too large.
        """
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in TAR_RECORDS and member.size > MAX_TAR_RECORD_BYTES):
            raise tarfile.ReadError(f"a member of {member.size} bytes")
        return member


def _unreadable(name: bytes, reason: str) -> Failure:
    return Failure(path_to_text(name), UNKNOWN_SIZE, 0, UNREADABLE, reason)


def _told(picture: Picture, read: Callable[[], Contents]) -> Contents | Failure:
    try:
        return read()
    except OSError as error:
        return Failure.of(picture, UNREADABLE, f"cannot be read: {_reason(error)}")


def _reason(error: Exception) -> str:
    return str((error.strerror if isinstance(error, OSError) else None) or error)


def _read_file(picture: Picture) -> Contents:
    return read_contents(FoundFile(picture.path, picture.location, picture.size, picture.mtime_ns))


def _read_tar(pictures: Sequence[Picture]) -> Iterator[tuple[Picture, Contents | Failure]]:
    done = 0
    try:
        with _opened(pictures[0]) as stream:
            for picture in pictures:
                done += 1
                yield picture, _told(picture, partial(_read_member, stream, picture))
    except OSError as error:
        for picture in pictures[done:]:
            yield picture, Failure.of(picture, UNREADABLE, f"cannot be read: {_reason(error)}")


def _read_member(stream: BinaryIO, picture: Picture) -> Contents:
    stream.seek(picture.offset)
    data = stream.read(picture.size)
    if len(data) < picture.size:
        raise OSError(0, "the tar ends within this picture")
    return _contents(picture, data)


@contextlib.contextmanager
def _opened(picture: Picture) -> Iterator[BinaryIO]:
    """The file of pictures; it must be the one that was listed, or the offsets mean something else."""
    with open(picture.location, "rb") as stream:  # noqa: PTH123  # bytes
        if os.fstat(stream.fileno()).st_mtime_ns != picture.mtime_ns:
            raise OSError(0, "its file was changed after it was listed; run the job once more")
        yield stream


def _contents(picture: Picture, data: bytes | None) -> Contents:
    if data is None:
        raise OSError(0, "no bytes in this row")
    if len(data) > MAX_BYTES:
        raise OSError(0, f"{len(data)} bytes, allowed are {MAX_BYTES}")
    return Contents(data, picture.mtime_ns, hashlib.sha256(data).hexdigest())
