"""A store with two models: every command asks which is meant, and takes none silently.

Each command is tried where its packages are: `make test` has the first four, `make test-scale` the others.
"""

from __future__ import annotations

import importlib
import socket
import zipfile
from pathlib import Path

import pytest

from clipserve.certificate import Golden, ParityCertificate
from clipserve.encoder_spec import (
    PARITY_BOUNDS,
    SCHEMA_VERSION,
    SPEC_FILE,
    EncoderSpec,
    Modality,
    Score,
)
from clipserve.preprocessing import ImagePreprocessing, TextPreprocessing

COMMANDS = {
    "export_scripts.packages.archive": ["--store", "STORE"],
    "export_scripts.packages.triton": ["--store", "STORE", "--output", "OUT"],
    "export_scripts.tune": ["--store", "STORE"],
    "export_scripts.verify": ["--store", "STORE"],
    "scale.bulk.__main__": ["PICTURES", "--store", "STORE", "--table", "OUT"],
    "scale.serve.__main__": ["--store", "STORE", "--port", "PORT"],
}
# What each command's module imports first of what the other environment lacks.
PACKAGES = {"export_scripts": "transformers", "scale": "ray"}

IMAGE = ImagePreprocessing(8, 8, 8, "bicubic", (0.5,) * 3, (0.25,) * 3)
TEXT = TextPreprocessing(8, 9, 0, "t")


def place(store: Path, model_id: str, modality: Modality) -> None:
    """An encoder file of which only the spec is real: no command reads on."""
    spec = EncoderSpec(
        schema_version=SCHEMA_VERSION,
        format="torchscript",
        cpu_capability=None,
        model_id=model_id,
        checkpoint=model_id,
        license=None,
        modality=modality,
        embedding_dim=3,
        normalized=True,
        device="cpu",
        precision="fp32",
        image=IMAGE if modality == "image" else None,
        text=TEXT if modality == "text" else None,
        score=Score("softmax", 100.0),
        checkpoint_sha256="c",
        artifact_sha256="a",
        space_id=f"{model_id:0>16}",
        versions={},
        certificate=ParityCertificate(PARITY_BOUNDS["fp32"], 0.0, 1.0, 1.0, (), Golden("", "")),
    )
    with zipfile.ZipFile(store / spec.file_name, "w") as archive:
        archive.writestr(f"{spec.stem}/extra/{SPEC_FILE}", spec.to_json())


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    for name in ("store", "pictures"):
        (tmp_path / name).mkdir()
    (tmp_path / "pictures" / "a.jpg").touch()
    for model_id in ("one", "two"):
        place(tmp_path / "store", model_id, "image")
        place(tmp_path / "store", model_id, "text")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "STORE": str(tmp_path / "store"),
        "PICTURES": str(tmp_path / "pictures"),
        "OUT": str(tmp_path / "out"),
        "PORT": str(port),
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_asks_which_model(
    command: str, places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip(PACKAGES[command.partition(".")[0]])
    main = importlib.import_module(command).main
    arguments = [places.get(word, word) for word in COMMANDS[command]]
    before = sorted(Path(places["STORE"]).iterdir())
    assert main(arguments) == 1
    said = capsys.readouterr()
    asked = said.err.splitlines()[-1]
    assert f"{places['STORE']} holds 2 models (one, two); say which: " in asked
    assert "MODEL=one" in asked
    assert sorted(Path(places["STORE"]).iterdir()) == before
    assert not Path(places["OUT"]).exists()
