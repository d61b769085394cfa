"""ATTACKS B1: a file from a stranger is read before it runs, and refused if it holds more than arithmetic."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from clipserve.encoder import ExportedImageEncoder
from clipserve.encoder_spec import SPEC_FILE, artifact_sha256, read_extra_file, read_spec
from clipserve.errors import SpecError
from clipserve.loading import load_for_inference, load_torchscript
from clipserve.operators import check_records
from export_scripts import verify
from export_scripts.formats.torchscript import TorchScript

CPU = torch.device("cpu")
LOADERS = [load_for_inference, load_torchscript]

# Where an attack writes to; TorchScript takes no path from outside, so that it is a constant of the graph.
Attack = Callable[[str], str]


def saves(path: str) -> str:
    return f"""
    def forward(self, pixel_values: Tensor) -> Tensor:
        torch.save(pixel_values, "{path}")
        return self.inner(pixel_values)
"""


def saves_in_a_branch(path: str) -> str:
    return f"""
    def forward(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.size(0) == 1:
            for i in range(1):
                torch.save(pixel_values, "{path}")
        return self.inner(pixel_values)
"""


def maps_a_file(path: str) -> str:
    return f"""
    def forward(self, pixel_values: Tensor) -> Tensor:
        written = torch.from_file("{path}", shared=True, size=1)
        return self.inner(pixel_values) + 0.0 * written.sum()
"""


def runs_at_load(path: str) -> str:
    return f"""
    @torch.jit.export
    def __getstate__(self) -> Tuple[Tensor, bool]:
        return torch.zeros(1), self.training

    @torch.jit.export
    def __setstate__(self, state: Tuple[Tensor, bool]) -> None:
        torch.save(state[0], "{path}")
        self.training = state[1]

    def forward(self, pixel_values: Tensor) -> Tensor:
        return pixel_values
"""


ATTACKS = [saves, saves_in_a_branch, maps_a_file, runs_at_load]


def write(attack: Attack, encoder: Path, path: Path, written: Path, folder: Path) -> Path:
    """A `.pt` that answers as `encoder` does, carries its spec and right hashes, and attacks."""
    source = folder / "attack.py"
    source.write_text(
        "from typing import Tuple\nimport torch\nfrom torch import Tensor, nn\n\n"
        "class Attack(nn.Module):\n    def __init__(self, inner):\n        super().__init__()\n"
        + ("        self.inner = inner\n" if attack is not runs_at_load else "")
        + attack(str(written))
    )
    names: dict[str, type[nn.Module]] = {}
    exec(compile(source.read_text(), str(source), "exec"), names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        inner = torch.jit.load(str(encoder))
        torch.jit.save(torch.jit.script(names["Attack"](inner).eval()), str(path))  # type: ignore[call-arg]
    spec = dataclasses.replace(read_spec(encoder), artifact_sha256=artifact_sha256(path))
    TorchScript().add_extra_files(path, {SPEC_FILE: spec.to_json()})
    path.with_suffix(".json").write_text(spec.to_json())
    return path


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_would_work_without_the_check(attack: Attack, image_path: Path, tmp_path: Path) -> None:
    """What is refused below is an attack: PyTorch alone writes or maps the file."""
    written = tmp_path / "written"
    path = write(attack, image_path, tmp_path / "attack.pt", written, tmp_path)
    assert not written.exists()
    with torch.inference_mode():
        torch.jit.load(str(path))(torch.zeros(1, 3, 48, 48, dtype=torch.uint8))
    assert written.exists()


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused_before_it_runs(
    attack: Attack,
    load: Callable[[Path, torch.device], torch.jit.ScriptModule],
    image_path: Path,
    tmp_path: Path,
) -> None:
    """ATTACKS B1."""
    written = tmp_path / "written"
    path = write(attack, image_path, tmp_path / "attack.pt", written, tmp_path)
    with pytest.raises(SpecError, match="refused before it ran: it holds "):
        load(path, CPU)
    assert not written.exists()


@pytest.mark.parametrize("attack", ATTACKS)
def test_worker_and_verify_refuse(
    attack: Attack,
    clip_folder: Path,
    multilingual_folder: Path,
    store: Path,
    image_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """ATTACKS B1: the doors through which a file comes."""
    own = Path(shutil.copytree(store, tmp_path / "store"))
    written = tmp_path / "written"
    path = write(attack, image_path, own / image_path.name, written, tmp_path)
    with pytest.raises(SpecError, match="refused before it ran"):
        ExportedImageEncoder(path, CPU)
    capsys.readouterr()
    checkpoints = ["--model", str(clip_folder), "--text-model", str(multilingual_folder)]
    assert verify.main(["--store", str(own), *checkpoints]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"{path.name}: refused before it ran" in message
    assert not written.exists()


def test_refusal_names_the_operator(image_path: Path, tmp_path: Path) -> None:
    path = write(saves, image_path, tmp_path / "attack.pt", tmp_path / "written", tmp_path)
    with pytest.raises(SpecError, match=r"calls of aten::save.*load no encoder file that you do not trust"):
        load_torchscript(path, CPU)


def changed(encoder: Path, target: Path, records: dict[str, bytes]) -> Path:
    """A copy of an encoder file with records added or in the place of its own."""
    with zipfile.ZipFile(encoder) as source, zipfile.ZipFile(target, "w") as copy:
        folder = source.namelist()[0].partition("/")[0]
        for record in source.infolist():
            if record.filename.partition("/")[2] not in records:
                copy.writestr(record, source.read(record))
        for name, data in records.items():
            copy.writestr(f"{folder}/{name}", data)
    return target


@pytest.mark.parametrize(
    ("records", "wanted"),
    [
        # The format before 2019, whose code is elsewhere.
        ({"model.json": b"{}"}, "a record 'model.json'"),
        ({"code/__torch__/a.py": b"def __forward_hook__(self):\n  pass\n"}, "__forward_hook__"),
        ({"code/__torch__/a.py": b"_0 = __torch__.torch . classes.foo.Bar\n"}, "a class of PyTorch's own"),
        ({"data.pkl": b"\x80\x02c__torch__.torch.classes.foo\nBar\n."}, "__torch__.torch.classes.foo Bar"),
        ({"data.pkl": b"\x80\x02cos\nsystem\n."}, "os system"),
        ({"constants.pkl": b"\x80\x04\x8c\x02os\x8c\x06system\x93."}, "STACK_GLOBAL in constants.pkl"),
        ({"code/__torch__/a.py": b"", "code/__torch__/A.py": b""}, "two records of one name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_records_that_no_encoder_has(
    records: dict[str, bytes], wanted: str, image_path: Path, tmp_path: Path
) -> None:
    """ATTACKS B1: other ways to have code run while a file is loaded."""
    path = changed(image_path, tmp_path / "changed.pt", records)
    with pytest.raises(SpecError, match="refused before it ran") as caught:
        load_torchscript(path, CPU)
    assert wanted in str(caught.value)


def test_no_file_of_pytorch(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(SpecError, match="not a readable encoder"):
        check_records(path)


def test_spec_travels_with_the_attack(image_path: Path, tmp_path: Path) -> None:
    """The attack's file passes every other check: its hash is the one in its spec."""
    path = write(saves, image_path, tmp_path / "attack.pt", tmp_path / "written", tmp_path)
    assert read_spec(path).artifact_sha256 == artifact_sha256(path)
    assert read_extra_file(path, SPEC_FILE)
