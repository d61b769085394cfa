"""Triton's model repository, checked with Triton's protobuf definition and with the encoders in it.

No Triton server runs here.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format

from clipserve.encoder import ExportedTextEncoder
from clipserve.encoder_spec import read_spec
from clipserve.loading import load_torchscript
from export_scripts.export import export_pair
from export_scripts.packages.triton import config, main, write_repository
from tests.export_scripts.commands import assert_one_sentence
from tests.golden import golden_inputs

CPU = torch.device("cpu")
TYPES = {"TYPE_UINT8": torch.uint8, "TYPE_INT64": torch.int64, "TYPE_FP32": torch.float32}


@pytest.fixture(scope="module")
def model_config() -> ModuleType:
    """Triton's `model_config_pb2`, by its path: the package around it imports gRPC, which is not here."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def repository(store: Path, tmp_path: Path) -> Path:
    write_repository(store, tmp_path / "triton", None, "cpu", None)
    return tmp_path / "triton"


def parse(model_config: ModuleType, text: str) -> Any:
    return text_format.Parse(text, model_config.ModelConfig())


@pytest.mark.parametrize("modality", ["image", "text"])
def test_config_is_what_the_encoder_is(
    modality: str, repository: Path, store: Path, model_config: ModuleType
) -> None:
    folder = repository / f"clip_{modality}"
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*")) == ["1/model.pt", "config.pbtxt"]
    encoder = folder / "1" / "model.pt"
    spec = read_spec(encoder)
    assert encoder.read_bytes() == (store / spec.file_name).read_bytes()
    parsed = parse(model_config, (folder / "config.pbtxt").read_text())
    assert (parsed.name, parsed.backend, parsed.platform) == (folder.name, "pytorch", "pytorch_libtorch")

    # The backend finds an input by the name of the graph's argument, and an output by its position.
    module = load_torchscript(encoder, CPU)
    arguments = [argument.name for argument in module.forward.schema.arguments]
    assert [i.name for i in parsed.input] == arguments[1:]
    assert [o.name for o in parsed.output] == ["embedding__0"]

    inputs = golden_inputs(encoder)
    with torch.inference_mode():
        found = module(*(i.expand(parsed.max_batch_size, *i.shape[1:]) for i in inputs))
    for declared, tensor in zip([*parsed.input, *parsed.output], [*inputs, found], strict=True):
        assert TYPES[model_config.DataType.Name(declared.data_type)] == tensor.dtype
        row = tensor.shape[1:]
        assert len(declared.dims) == len(row)
        assert all(wanted in (-1, size) for wanted, size in zip(declared.dims, row, strict=True))
        assert not getattr(declared, "allow_ragged_batch", False)
    assert len(found) == parsed.max_batch_size
    assert max(parsed.dynamic_batching.preferred_batch_size) == parsed.max_batch_size
    assert parsed.dynamic_batching.max_queue_delay_microseconds > 0
    kinds = [(group.kind, group.count) for group in parsed.instance_group]
    assert kinds == [(model_config.ModelInstanceGroup.KIND_CPU, 1)]
    assert {key: value.string_value for key, value in parsed.parameters.items()} == {
        "INFERENCE_MODE": "true", "ENABLE_WEIGHT_SHARING": "true",
        "INTRA_OP_THREAD_COUNT": "1", "INTER_OP_THREAD_COUNT": "1",
    }  # fmt: skip


def test_misspelt_field_is_found(model_config: ModuleType, image_path: Path) -> None:
    text = config(read_spec(image_path)).replace("max_queue_delay_microseconds", "max_queue_delay")
    with pytest.raises(text_format.ParseError, match="max_queue_delay"):
        parse(model_config, text)


def test_a_client_may_pad_to_any_length(text_encoder: ExportedTextEncoder) -> None:
    """Triton batches equal lengths only, so that a client pads: which changes no embedding."""
    rows = [
        text_encoder.tokenizer.tokenize(text).ids for text in ("két kutya", "a cat on the table by the sea")
    ]
    alone = np.concatenate([text_encoder.embed(*text_encoder.tokenizer.pad([row])) for row in rows])
    assert text_encoder.spec.text is not None
    filler = [0] * text_encoder.spec.text.context_length
    ids, mask = (array[:2] for array in text_encoder.tokenizer.pad([*rows, filler]))
    assert ids.shape == (2, len(filler))
    np.testing.assert_allclose(text_encoder.embed(ids, mask), alone, atol=1e-5)


def test_other_models_of_the_repository_stay(repository: Path, store: Path) -> None:
    (repository / "other" / "1").mkdir(parents=True)
    (repository / "clip_text" / "left over").touch()
    write_repository(store, repository, None, "cpu", None)
    assert sorted(path.name for path in repository.iterdir()) == ["clip_image", "clip_text", "other"]
    assert not (repository / "clip_text" / "left over").exists()


def run(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> tuple[int, str]:
    capsys.readouterr()
    status = main(arguments)
    return status, capsys.readouterr().err


def test_command(capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path) -> None:
    assert main(["--store", str(store), "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "clip_image"), str(tmp_path / "clip_text")]


def test_half_precision_goes_first(
    capsys: pytest.CaptureFixture[str], clip_folder: Path, multilingual_folder: Path, tmp_path: Path
) -> None:
    for precision in ("fp32", "bf16", "fp16"):
        export_pair(str(clip_folder), str(multilingual_folder), "cpu", precision, tmp_path / "store")
    assert run(capsys, ["--store", str(tmp_path / "store"), "--output", str(tmp_path / "out")]) == (0, "")
    encoder = tmp_path / "out" / "clip_text" / "1" / "model.pt"
    assert read_spec(encoder).precision == "bf16"
    wanted = ["--store", str(tmp_path / "store"), "--output", str(tmp_path / "out"), "--precision", "fp32"]
    assert run(capsys, wanted) == (0, "")
    assert read_spec(encoder).precision == "fp32"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no image encoder for cpu, only no TorchScript encoder at all; run 'make export DEVICE=cpu'"),
        (
            ["--device", "cuda"],
            "no image encoder for cuda, only clip-image-cpu-fp32.pt, clip-text-cpu-fp32.pt",
        ),
        (["--model", "other"], "no image encoder of other for cpu"),
        (["--precision", "bf16"], "no image encoder for cpu in bf16"),
    ],
)
def test_nothing_to_serve(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str, store: Path, tmp_path: Path
) -> None:
    taken = store if arguments else tmp_path / "empty"
    status, message = run(capsys, ["--store", str(taken), "--output", str(tmp_path / "out"), *arguments])
    assert status == 1
    assert words in message
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_changed_encoder(capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(store, tmp_path / "store"))
    path = changed / "clip-text-cpu-fp32.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    status, message = run(capsys, ["--store", str(changed), "--output", str(tmp_path / "out")])
    assert status == 1
    assert "make export" in message
    assert not (tmp_path / "out").exists()


def test_triton_of_two_models(
    capsys: pytest.CaptureFixture[str], own_store: Path, made: Path, tmp_path: Path
) -> None:
    """CASES 14."""
    other = Path(shutil.copytree(made / "clip", tmp_path / "other"))
    export_pair(str(other), str(made / "multilingual"), "cpu", "fp32", own_store)
    options = ["--store", str(own_store), "--output", str(tmp_path / "triton")]
    status, message = run(capsys, options)
    assert_one_sentence(status, message, "holds 2 models (clip, other); say which: 'make triton MODEL=clip'")
    assert run(capsys, [*options, "--model", "other"])[0] == 0
