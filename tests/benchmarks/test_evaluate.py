"""`make evaluate`: what is asked, how it is counted, and what is said of a user's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import figures
from benchmarks.evaluate import __main__ as program
from benchmarks.evaluate import report, tasks
from benchmarks.evaluate.scores import Vectors, least_cosine, means, scores
from benchmarks.evaluate.tasks import Task, Texts
from clipserve.errors import SettingsError
from export_scripts.checkpoints.pair import CheckpointPair
from tests.clipserve.answers import PICTURES, TEXTS


def of(*rows: list[float]) -> Any:
    return np.array(rows, np.float32)


def test_captions_and_labels_are_counted_as_they_should_be() -> None:
    # Three pictures on the axes; of four captions the third is of another picture than it is nearest to.
    pictures = of([1, 0, 0], [0, 1, 0], [0, 0, 1])
    captions = of([1, 0.1, 0], [0.1, 1, 0], [0, 1, 0.9], [0, 0, 1])
    task = Task("", [], {"captions": Texts(["", "", "", ""], np.array([0, 1, 2, 2]), None)})
    found = Vectors(pictures, {"captions": captions})
    assert scores(task, found, found) == {
        "captions": {"r1": 0.75, "r5": 1.0, "same_first": 1.0, "same_five": 1.0}
    }
    labels = Task("", [], {"labels": Texts(["", ""], None, np.array([0, 1, 1]))})
    found = Vectors(pictures, {"labels": of([1, 0, 0.9], [0, 1, 0.2])})
    # The third picture is nearer to the first label.
    assert scores(labels, found, found)["labels"] == {
        "top1": pytest.approx(2 / 3),
        "same_first": 1.0,
        "same_five": 1.0,
    }


def test_rankings_are_compared_with_the_originals() -> None:
    pictures = np.eye(7, dtype=np.float32)
    ranked = of([7, 6, 5, 4, 3, 2, 1], [7, 6, 5, 4, 3, 2, 1])
    # The first text's first two change places; of the second's first five one is another.
    other = of([6, 7, 5, 4, 3, 2, 1], [7, 6, 5, 4, 2, 3, 1])
    task = Task("", [], {"a": Texts(["", ""], np.array([0, 0]), None)})
    given = scores(task, Vectors(pictures, {"a": other}), Vectors(pictures, {"a": ranked}))["a"]
    assert (given["same_first"], given["same_five"]) == (0.5, pytest.approx(0.9))
    assert given["r1"] == 0.5
    assert least_cosine(Vectors(pictures, {"a": other}), Vectors(pictures, {"a": ranked})) == pytest.approx(
        139 / 140
    )


def test_means_are_of_what_all_groups_have() -> None:
    assert means({"a": {"r1": 0.5, "top1": 1.0}, "b": {"r1": 1.0}}) == {"r1": 0.75}


def test_the_demos_task() -> None:
    task = tasks.demo()
    assert len(task.pictures) == 200
    assert len(task.groups) == 40
    hungarian = task.groups["Hungarian"]
    assert hungarian.own is not None
    assert len(hungarian.texts) == len(set(hungarian.own.tolist())) == 200


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number, data in enumerate(PICTURES):
        path = tmp_path / ("two_dogs" if number % 2 else "a cat") / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return tmp_path


def written(folder: Path, *lines: str) -> Path:
    path = folder / "captions.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_file_of_captions(pictures: Path) -> None:
    task = tasks.read(
        written(
            pictures,
            "picture,caption,language",
            'a cat/0.jpg,"an astronaut, smiling",English',
            "two_dogs/1.jpg,kávé,Hungarian",
            "a cat/0.jpg,űrhajós,Hungarian",
            "a cat/0.jpg,egy nő,Hungarian",
        )
    )
    assert task.pictures == PICTURES[:2]
    assert {name: list(group.texts) for name, group in task.groups.items()} == {
        "English": ["an astronaut, smiling"],
        "Hungarian": ["kávé", "űrhajós", "egy nő"],
    }
    hungarian = task.groups["Hungarian"]
    assert hungarian.own is not None
    assert (hungarian.own.tolist(), hungarian.label) == ([1, 0, 0], None)


def test_a_caption_each_is_a_label_too(pictures: Path) -> None:
    lines = ("picture,caption", "a cat/2.jpg,c", "a cat/0.jpg,a")
    group = tasks.read(written(pictures, *lines)).groups["captions"]
    assert group.label is not None
    assert group.label.tolist() == [0, 1]


def test_a_folder_of_labels(pictures: Path) -> None:
    (pictures / "0.jpg").write_bytes(PICTURES[0])  # of no label
    (pictures / "a cat" / "notes.txt").write_text("no picture")
    task = tasks.read(pictures, "eine Aufnahme: {}")
    (group,) = task.groups.values()
    assert group.texts == ["eine Aufnahme: a cat", "eine Aufnahme: two dogs"]
    assert group.label is not None
    assert group.label.tolist() == [0, 0, 1, 1]
    assert task.pictures == [PICTURES[i] for i in (0, 2, 1, 3)]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("file,text", "a,b"), "names the columns file, text; wanted are picture,caption"),
        (("picture,caption", "a cat/0.jpg,"), "row 2 lacks a picture or a caption"),
        (("picture,caption", "a cat/0.jpg"), "row 2 lacks a picture or a caption"),
        (("picture,caption",), "0 pictures and 0 captions; wanted are at least two"),
        (("picture,caption", '"a'), "no CSV in UTF-8"),
    ],
)
def test_a_file_that_says_too_little(pictures: Path, lines: tuple[str, ...], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        tasks.read(written(pictures, *lines))


def test_a_folder_without_labels(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"0 pictures and 0 labels \(folders with pictures\)"):
        tasks.read(tmp_path)
    with pytest.raises(SettingsError, match=r"template 'a photo': \{\} stands where a label goes"):
        tasks.read(tmp_path, "a photo")


def test_every_variant_beside_the_original(
    pair: CheckpointPair, store: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the files' bytes and raw sentences, against sentence-transformers on the same."""
    own = np.array([0, 1, 2, 3] * 3)
    task = Task("four pictures", PICTURES, {"texts": Texts(TEXTS[:12], own, None)})
    found = program.evaluate(pair, task, store)
    assert list(found["variants"]) == ["original", "fp32"]
    fp32 = found["variants"]["fp32"]
    assert fp32["least_cosine"] > 1 - 1e-6
    assert (fp32["mean"]["same_first"], fp32["mean"]["same_five"]) == (1.0, 1.0)
    assert "| fp32 | " in report.table(found)


def test_a_store_of_another_pair(pair: CheckpointPair, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no pair of encoders of clip .* only none at all; run 'make"):
        list(program.variants(pair, tmp_path))


def test_what_cannot_be_read_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--images", str(tmp_path / "no.csv"), "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"evaluate: {tmp_path}/no.csv: No such file or directory\n"
    assert not (tmp_path / "out").exists()


def made_up(change: float, reached: float = 0.9) -> report.Results:
    """A comparison of two languages, one of which changes."""
    original = {"English": {"r1": reached}, "Hungarian": {"r1": 0.9}}
    variant = {"English": {"r1": reached + change}, "Hungarian": {"r1": 0.9}}
    return {
        "model": "demo",
        "what": "200 scenes",
        "groups": "language",
        "main": "r1",
        "variants": {
            "original": {"mean": means(original), "by_group": original},
            "int8": {"mean": means(variant), "by_group": variant, "least_cosine": 0.99},
        },
    }


def test_weak_languages_are_named() -> None:
    assert list(report.weak(made_up(-0.02))) == []
    assert list(report.weak(made_up(-0.03))) == ["English: int8 loses 3.0 points of R@1"]
    weak = list(report.weak(made_up(0.0, 0.7)))
    assert weak == ["English: R@1 70.0 % in the original, should be >= 80 %"]


def test_the_table_says_where_most_is_lost() -> None:
    *_, original, int8, _, below = report.table(made_up(-0.03)).splitlines()
    assert original == "| original | 90.00 % | | English, 90.0 % | |"
    assert int8 == "| int8 | 88.50 % | 0.990000 | English, 87.0 % | -3.0 points (English) |"
    assert below == "200 scenes; means over 2 languages."


def test_the_plot(tmp_path: Path) -> None:
    report.draw(made_up(-0.03), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > 1000


def test_the_published_comparison_names_all_precisions_and_languages() -> None:
    found = json.loads((figures.RESULTS / "evaluation.json").read_text(encoding="utf-8"))
    assert list(found["variants"]) == ["original", "fp32", "bf16", "fp16"]
    assert {len(of["by_group"]) for of in found["variants"].values()} == {40}
    assert list(report.weak(found)) == []
