"""ATTACKS B4: sources from strangers; CASES 22: pictures as the server sees them."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from pathlib import Path

import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs .venv-scale: make test-scale", allow_module_level=True)

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from clipserve.encoder import ExportedImageEncoder
from clipserve.encoder_spec import FloatArray, read_spec
from pictures.files import MAX_BYTES, Contents
from pictures.rows import picture_schema
from scale.bulk import parquet
from scale.bulk.encoding import Encoder
from scale.bulk.plan import write_plan
from scale.bulk.sources import Failure, Picture, Source, find_source
from scale.bulk.stages import decode_shard, write_shard
from standins.twenty_files import assert_same_vectors, served_vector

STORE = Path(__file__).parents[3] / "model_store" / "demo"
ENCODER = STORE / "demo-image-cpu-fp32.pt"
SPEC = read_spec(ENCODER)


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), "olive").save(stream, "PNG")
    return stream.getvalue()


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header whose size may be what no program writes: GNU's binary form takes negative ones."""
    member = tarfile.TarInfo(name)
    member.type = kind
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (b"\xff" if size < 0 else b"\x80") + (size % 2**88).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def member(name: str, data: bytes) -> bytes:
    return tar_header(name, len(data)) + data + bytes(-len(data) % 512)


def listed(source: Source, most: int = 1000) -> list[Picture | Failure]:
    found = []
    for item in source.list():
        found.append(item)
        assert len(found) <= most, "listing does not end"
    return found


@pytest.mark.parametrize("size", [-1, -512, -1024, -10_000, -(2**63)])
def test_tar_member_of_negative_size(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(
        member("a.png", png()) + tar_header("b.png", size) + member("c.png", png()) + bytes(1024)
    )
    good, bad = listed(find_source(path, None))
    assert isinstance(good, Picture)
    assert isinstance(bad, Failure)
    assert f"a member of {size} bytes" in bad.message


def test_tar_member_whose_record_says_a_negative_size(tmp_path: Path) -> None:
    record = b"17 size=-1024\n"
    record = b"%d" % len(record) + record[2:]
    path = tmp_path / "a.tar"
    path.write_bytes(
        member("a.png", png()) + tar_header("x", len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0")
        + member("b.png", png()) + bytes(1024)
    )  # fmt: skip
    *_, bad = listed(find_source(path, None))
    assert isinstance(bad, Failure)
    assert "a member of -1024 bytes" in bad.message


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_tar_record_that_is_read_into_memory(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as stream:
        stream.write(tar_header("name", 6_000_000_000, kind))
        stream.truncate(6_000_001_024)  # takes no room on the disk
    [bad] = listed(find_source(path, None))
    assert isinstance(bad, Failure)
    assert "a member of 6000000000 bytes" in bad.message


def test_large_tar_member_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as stream:
        stream.write(tar_header("a.png", 5_000_000_000))
        stream.truncate(512 + 5_000_000_000)
        stream.seek(0, 2)
        stream.write(member("b.png", png()))
    bad, good = listed(find_source(path, None))
    assert isinstance(bad, Failure)
    assert f"5000000000 bytes, allowed are {MAX_BYTES}" in bad.message
    assert isinstance(good, Picture)
    assert good.path.endswith("b.png")


def test_parquet_of_more_rows_than_bytes(tmp_path: Path) -> None:
    """200 million empty rows: a few bytes say so."""
    path = tmp_path / "a.parquet"
    empty = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2_000_000, np.int32)), pa.array([b""]))
    pq.write_table(pa.table({"image": empty.cast(pa.binary())}), path)
    assert path.stat().st_size < 10_000
    [bad] = listed(find_source(path, None))
    assert isinstance(bad, Failure)
    assert "2000000 rows in a file of" in bad.message


def test_parquet_that_unpacks_to_much(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"image": pa.array([bytes(19_000_000)] * 6)})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    [bad] = listed(find_source(path, None))
    assert isinstance(bad, Failure)
    assert "they cannot be pictures" in bad.message
    # The same bytes in a column that is not read hurt nobody.
    table = table.slice(0, 6).append_column("picture", pa.array([png()] * 6))
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    assert len(listed(find_source(path, "picture"))) == 6


def test_parquet_whose_rows_are_one_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written once, it is read as often as there are rows: never more than a few of them at a time."""
    path = tmp_path / "a.parquet"
    rows = 100
    value = png() + bytes(1_000_000)
    pq.write_table(pa.table({"image": pa.array([value] * rows)}), path, compression="zstd")
    assert path.stat().st_size < 20_000
    most = 0

    class Watched(parquet.pa.Table):  # type: ignore[misc]
        @classmethod
        def from_batches(cls, batches: list[pa.RecordBatch]) -> pa.Table:
            nonlocal most
            most = max(most, sum(batch.nbytes for batch in batches))
            return pa.Table.from_batches(batches)

    monkeypatch.setattr(parquet, "pa", NamespaceWith(pa, Table=Watched))
    source = find_source(path, None)
    pictures = [item for item in source.list() if isinstance(item, Picture)]
    before = pa.total_allocated_bytes()
    found = 0
    for _, contents in source.read(pictures):
        assert isinstance(contents, Contents)
        found += 1
        assert pa.total_allocated_bytes() - before < 20_000_000
    assert found == rows
    assert 0 < most <= parquet.PARQUET_BATCH * (len(value) + 1000)


class NamespaceWith:
    """A module with some of its names replaced."""

    def __init__(self, module: object, **names: object):
        self.__dict__.update({**vars(module), **names})


def test_every_door_gives_the_same_vectors(tmp_path: Path) -> None:
    """CASES 22 and the twenty files: the bulk job."""
    encoder = ExportedImageEncoder(ENCODER, torch.device("cpu"))
    schema = picture_schema(SPEC.space_id, SPEC.model_id, SPEC.embedding_dim)
    assert SPEC.image is not None

    def door(name: str, data: bytes) -> FloatArray:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        (folder / "images" / name).write_bytes(data)
        source = find_source(folder / "images", None)
        pictures = [item for item in source.list() if isinstance(item, Picture)]
        plan = write_plan(folder / "job", source, schema, 1, pictures)
        assert plan is not None
        decoded = decode_shard({"shard": np.array([0])}, plan, SPEC.image)
        embedded = Encoder(ENCODER, SPEC, 1, 1)(decoded)
        assert write_shard(embedded, plan)["problem"][0] == ""
        rows = pa.ipc.open_file(plan.output(0).read_bytes()).read_all()
        assert rows.num_rows == 1, name
        with Image.open(io.BytesIO(rows["thumbnail"][0].as_py())) as thumbnail:
            assert max(thumbnail.size) <= 224
        vector: FloatArray = np.array(rows["embedding"][0].as_py(), np.float32)
        return vector

    assert_same_vectors(door, lambda name: served_vector(name, encoder))
