"""The bulk job's parts, without Ray: sources, plan, stages, commit, command line."""

from __future__ import annotations

import importlib.util
import io
import os
import socket
import tarfile
from pathlib import Path

import pytest

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs .venv-scale: make test-scale", allow_module_level=True)

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipserve.encoder_spec import read_spec
from pictures.errors import PicturesError
from pictures.files import Contents
from pictures.rows import picture_schema
from pictures.table import PictureTable, open_or_create_table
from scale.bulk.__main__ import main
from scale.bulk.commit import commit
from scale.bulk.encoding import Encoder
from scale.bulk.error_table import ErrorTable
from scale.bulk.errors import BulkError
from scale.bulk.plan import Plan, open_plan, write_plan
from scale.bulk.sources import UNREADABLE, Failure, Picture, Source, find_source
from scale.bulk.stages import decode_shard, write_shard
from standins.many_pictures import write_pictures
from tests.command_lines import told

STORE = Path(__file__).parents[3] / "model_store" / "demo"
ENCODER = STORE / "demo-image-cpu-fp32.pt"
SPEC = read_spec(ENCODER)
SCHEMA = picture_schema(SPEC.space_id, SPEC.model_id, SPEC.embedding_dim)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_pictures(tmp_path / "images", 20)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def pictures_of(source: Source) -> list[Picture]:
    return [item for item in source.list() if isinstance(item, Picture)]


def failures_of(source: Source) -> list[Failure]:
    return [item for item in source.list() if isinstance(item, Failure)]


def contents_of(source: Source) -> list[bytes]:
    found = [contents for _, contents in source.read(pictures_of(source))]
    return [contents.data for contents in found if isinstance(contents, Contents)]


def test_tar_gives_its_pictures_alone_and_as_they_are(images: list[Path], tmp_path: Path) -> None:
    data = [path.read_bytes() for path in images]
    long_name = "very-" * 50 + "long.jpg"
    names = ["a.jpg", "b/kutya.png", long_name, *(f"{number}.jpeg" for number in range(17))]
    members = [
        item for name, d in zip(names, data, strict=True) for item in ((name, d), (f"{name}.txt", b"text"))
    ]
    path = write_tar(tmp_path / "shards.tar", members)
    source = find_source(path, None)
    assert [p.path for p in pictures_of(source)] == [f"{path}/{name}" for name in names]
    assert contents_of(source) == data
    assert failures_of(source) == []


def test_tar_leaves_out_what_other_programs_put_beside_pictures(images: list[Path], tmp_path: Path) -> None:
    """CASES 40."""
    data = images[0].read_bytes()
    names = [
        "./a.png",
        "./._a.png",
        "__MACOSX/a.png",
        "b/@eaDir/a.png",
        "./.hidden/a.png",
        "b/c.png",
        "/d.png",
    ]
    path = write_tar(tmp_path / "a.tar", [(name, data) for name in names])
    found = [item.path.removeprefix(f"{path}/") for item in Source("tar", path).list()]
    assert found == ["./a.png", "b/c.png", "/d.png"]


def test_what_a_person_leaves_out(images: list[Path], tmp_path: Path) -> None:
    """Of folders and of tars alike; rows of Parquet have no names."""
    root, data = tmp_path / "images", images[0].read_bytes()
    (root / "screens").mkdir()
    (root / "screens" / "a.png").write_bytes(data)
    every = find_source(root, None)
    some = find_source(root, None, ["screens/", f"{images[0].stem}.*"])
    assert len(pictures_of(every)) == 21
    assert {p.path for p in pictures_of(every)} - {p.path for p in pictures_of(some)} == {
        str(root / "screens" / "a.png"), str(images[0])
    }  # fmt: skip
    path = write_tar(tmp_path / "a.tar", [(name, data) for name in ("a.png", "screens/b.png", "c.gif")])
    assert [p.path for p in pictures_of(find_source(path, None, ["screens/", "*.gif"]))] == [f"{path}/a.png"]
    pq.write_table(pa.table({"image": [data]}), tmp_path / "a.parquet")
    with pytest.raises(BulkError, match="EXCLUDE: 'screens/' goes by names, which pictures in Parquet lack"):
        find_source(tmp_path / "a.parquet", None, ["screens/"])
    # A job that was begun goes on as it was begun.
    plan = write_plan(tmp_path / "job", some, SCHEMA, 8, pictures_of(some))
    assert open_plan(tmp_path / "job") == plan
    assert every.identity != some.identity == find_source(root, None, some.exclude).identity


def test_tar_of_two_members_of_one_name_fails_the_second(images: list[Path], tmp_path: Path) -> None:
    data = images[0].read_bytes()
    source = find_source(
        write_tar(tmp_path / "a.tar", [("x.jpg", data), ("x.jpg", images[1].read_bytes())]), None
    )
    assert contents_of(source) == [data]
    assert "a second member of this name" in failures_of(source)[0].message


def test_tar_that_cannot_be_read_is_a_failure_of_its_own(images: list[Path], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        tar.add(images[0], "a.jpg")
    write_tar(tmp_path / "b.tar", [("b.jpg", images[1].read_bytes())])
    source = find_source(tmp_path, None)
    assert [failure.path for failure in failures_of(source)] == [str(tmp_path / "a.tar")]
    assert contents_of(source) == [images[1].read_bytes()]


def test_tar_that_is_changed_after_it_was_listed_is_not_read(images: list[Path], tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.jpg", images[0].read_bytes())])
    source = find_source(path, None)
    listed = pictures_of(source)
    os.utime(path, ns=(1, 1))
    [(_, failure)] = source.read(listed)
    assert isinstance(failure, Failure)
    assert failure.code == UNREADABLE
    assert "was changed after it was listed" in failure.message


@pytest.mark.parametrize("nested", [False, True])
def test_parquet_gives_its_column_of_bytes(images: list[Path], tmp_path: Path, nested: bool) -> None:
    data: list[bytes | None] = [path.read_bytes() for path in images]
    data[7] = None
    column = pa.array([{"bytes": d, "path": "x"} for d in data] if nested else data)
    table = pa.table({"label": list(range(20)), "image": column})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=6)
    source = find_source(tmp_path / "a.parquet", None)
    assert [p.path for p in pictures_of(source)] == [f"{tmp_path}/a.parquet/{row}" for row in range(20)]
    assert contents_of(source) == [d for d in data if d is not None]
    # Any shard of it, too.
    part = list(source.read(pictures_of(source)[5:8]))
    assert [isinstance(contents, Contents) for _, contents in part] == [True, True, False]


def test_parquet_of_two_columns_of_bytes_wants_one_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [b"1"], "b": [b"2"]}), tmp_path / "a.parquet")
    [failure] = failures_of(find_source(tmp_path, None))
    assert "there are: a, b; name one with --column" in failure.message
    assert contents_of(find_source(tmp_path, "b")) == [b"2"]


def make_plan(source: Source, job: Path, shard_size: int = 8) -> Plan:
    plan = write_plan(job, source, SCHEMA, shard_size, pictures_of(source))
    assert plan is not None
    return plan


def test_plan_is_the_same_for_whoever_opens_it(images: list[Path], tmp_path: Path) -> None:
    source = find_source(tmp_path / "images", None)
    plan = make_plan(source, tmp_path / "job")
    assert open_plan(tmp_path / "job") == plan
    assert (plan.shards, [plan.shard_pictures(n) for n in range(3)]) == (3, [8, 8, 4])
    assert [p for number in range(3) for p in plan.shard(number)] == pictures_of(source)
    (tmp_path / "job" / "plan.arrow").write_bytes(b"half")
    with pytest.raises(BulkError, match="damaged"):
        open_plan(tmp_path / "job")


def do_shard(plan: Plan, number: int) -> None:
    """What Ray has the stages do."""
    assert SPEC.image is not None
    decoded = decode_shard({"shard": np.array([number])}, plan, SPEC.image)
    assert decoded["pixel_values"].shape == (1, plan.shard_size, 3, 112, 112)
    assert decoded["pixel_values"].dtype == np.uint8
    told = write_shard(Encoder(ENCODER, SPEC, 3, 1)(decoded), plan)
    assert told["problem"][0] == ""
    assert told["pictures"][0] == plan.shard_pictures(number)


@pytest.fixture
def table(tmp_path: Path) -> PictureTable:
    return open_or_create_table(tmp_path / "table", SPEC.space_id, SPEC.model_id, SPEC.embedding_dim)


@pytest.fixture
def plan(images: list[Path], tmp_path: Path, table: PictureTable) -> Plan:
    """All shards done; one of the twenty pictures is none."""
    images[3].write_bytes(b"no picture")
    plan = make_plan(find_source(tmp_path / "images", None), tmp_path / "job")
    for number in range(plan.shards):
        do_shard(plan, number)
    return plan


def commit_all(plan: Plan, table: PictureTable) -> tuple[int, int, int]:
    errors = ErrorTable(table.folder)
    done = commit(plan, table, errors, table.states(), errors.failures())
    return done.added, done.replaced, done.present


def test_commit_may_be_repeated(plan: Plan, table: PictureTable, images: list[Path]) -> None:
    assert commit_all(plan, table) == (19, 0, 0)
    # The process died before it could remove the plan; then a shard was written again.
    do_shard(plan, 1)
    assert commit_all(plan, table) == (0, 0, 19)
    # The number of rows, since `states` would hide a second row of a path.
    assert len(table) == 19
    assert set(table.states()) == {str(path) for path in images if path != images[3]}
    assert list(ErrorTable(table.folder).failures()) == [str(images[3])]


def test_repaired_picture_leaves_the_errors_and_a_spoilt_one_the_table(
    plan: Plan, table: PictureTable, images: list[Path], tmp_path: Path
) -> None:
    commit_all(plan, table)
    images[3].write_bytes(images[5].read_bytes())
    images[4].write_bytes(b"no picture either")
    Image.new("RGB", (50, 50), "red").save(images[6])
    plan = make_plan(plan.source, tmp_path / "job")
    for number in range(plan.shards):
        do_shard(plan, number)
    assert commit_all(plan, table) == (1, 1, 17)
    assert set(table.states()) == {str(path) for path in images if path != images[4]}
    assert list(ErrorTable(table.folder).failures()) == [str(images[4])]


def test_commit_refuses_a_shard_with_a_row_too_few(plan: Plan, table: PictureTable) -> None:
    rows = pa.ipc.open_file(plan.output(1).read_bytes()).read_all()
    for wrong in (rows.slice(1), pa.concat_tables([rows, rows.slice(0, 1)])):
        with pa.OSFile(str(plan.output(1)), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
            writer.write_table(wrong)
        with pytest.raises(BulkError, match="embeddings and 0 errors for 8 pictures"):
            commit_all(plan, table)
        assert len(table) == 0


def test_commit_refuses_a_shard_that_is_cut_off(plan: Plan, table: PictureTable) -> None:
    plan.output(2).write_bytes(plan.output(2).read_bytes()[:-100])
    with pytest.raises(BulkError, match="damaged"):
        commit_all(plan, table)
    assert len(table) == 0


def test_embedding_that_is_no_number_is_an_error_of_its_picture(
    images: list[Path], tmp_path: Path, table: PictureTable
) -> None:
    plan = make_plan(find_source(tmp_path / "images", None), tmp_path / "job", 32)
    assert SPEC.image is not None
    embedded = Encoder(ENCODER, SPEC, 8, 1)(decode_shard({"shard": np.array([0])}, plan, SPEC.image))
    embedded["embeddings"][0, 2, 5] = np.nan
    write_shard(embedded, plan)
    assert commit_all(plan, table) == (19, 0, 0)
    [failure] = ErrorTable(table.folder).failures().values()
    assert (failure.path, failure.code) == (str(images[2]), "not_finite")


def test_disk_that_cannot_be_written_is_told_to_the_driver(images: list[Path], tmp_path: Path) -> None:
    plan = make_plan(find_source(tmp_path / "images", None), tmp_path / "job")
    (tmp_path / "job" / "shards").rmdir()
    assert SPEC.image is not None
    embedded = Encoder(ENCODER, SPEC, 8, 1)(decode_shard({"shard": np.array([0])}, plan, SPEC.image))
    assert "FileNotFoundError" in write_shard(embedded, plan)["problem"][0]


def errors_of(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert main([str(word) for word in words]) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_wrong_use_is_told_in_a_sentence(
    images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    assert "no such file or folder" in errors_of(capsys, tmp_path / "nowhere", "--store", STORE)
    assert "neither .parquet nor .tar" in errors_of(capsys, images[0], "--store", STORE)
    (tmp_path / "empty").mkdir()
    assert "no image encoder for cpu here" in errors_of(capsys, folder, "--store", tmp_path / "empty")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert "no Ray there" in errors_of(capsys, folder, "--store", STORE, "--ray-address", address)


def test_table_of_another_space_is_refused(images: list[Path], tmp_path: Path) -> None:
    from scale.bulk.job import Pool, run_job

    open_or_create_table(tmp_path / "other", "another space", "other", SPEC.embedding_dim)
    source = find_source(tmp_path / "images", None)
    with pytest.raises(
        PicturesError, match=r"in space another spac.*by a version that tells .* cannot be compared"
    ):
        run_job(source, tmp_path / "other", ENCODER, Pool(1, 1, 0, 1, 8, 8))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the following arguments are required: images"),
        ([""], "no pictures are named; name a folder, or a Parquet or tar file: make bulk IMAGES=folder"),
        ([" "], "no pictures are named"),
        ([".", "--table", ""], "no file or folder is named"),
        ([".", "--store", ""], "no file or folder is named"),
        ([".", "--encoder", ""], "no file or folder is named"),
        ([".", "--batch-size", "0"], "'0': allowed are whole numbers from 1 to"),
        ([".", "--batch-size", "many"], "'many': allowed are whole numbers from 1 to"),
        ([".", "--encoder-cpus", "none"], "'none': allowed is more than 0"),
    ],
)
def test_usage(words: list[str], sentence: str) -> None:
    """CASES 50: an empty name is no name, not the folder that one is in; one sentence."""
    status, error = told(main, words)
    assert status == 2
    assert sentence in error
    assert len(error.splitlines()) == 1
