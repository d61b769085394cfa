from __future__ import annotations

import base64
import copy
import dataclasses
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipserve.certificate import ParityBound
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import (
    PARITY_BOUNDS,
    SPEC_FILE,
    TOKENIZER_FILE,
    Device,
    EncoderSpec,
    Format,
    Score,
    artifact_sha256,
    decode_vector,
    encode_vector,
    parity_bound,
    read_extra_file,
    read_spec,
    sha256,
)
from clipserve.errors import SpecError
from clipserve.loading import load_torchscript
from clipserve.preprocessing import ImagePreprocessing

CPU = torch.device("cpu")
ENCODERS = {"image": ExportedImageEncoder, "text": ExportedTextEncoder}
MODALITIES = pytest.mark.parametrize("modality", ENCODERS)

Paths = dict[str, Path]


@pytest.fixture
def paths(image_path: Path, text_path: Path) -> Paths:
    return {"image": image_path, "text": text_path}


@pytest.fixture
def data(image_path: Path) -> dict[str, Any]:
    """A spec as parsed JSON, to be damaged."""
    parsed: dict[str, Any] = json.loads(read_spec(image_path).to_json())
    return parsed


def refusal(value: Any) -> str:
    """What is said of a spec that is refused."""
    text = value if isinstance(value, str) else json.dumps(value)
    with pytest.raises(SpecError) as caught:
        EncoderSpec.from_json(text, "here.json")
    message = str(caught.value)
    assert message.startswith("here.json: ")
    assert len(message) < 1000
    return message


# ---- reading and writing


@MODALITIES
def test_round_trip(modality: str, paths: Paths) -> None:
    spec = read_spec(paths[modality])
    again = EncoderSpec.from_json(spec.to_json(), "x")
    assert again == spec
    assert again.to_json() == spec.to_json()
    assert isinstance(again.certificate.cases, tuple)
    assert (spec.image is None, spec.text is None) == (modality == "text", modality == "image")


@MODALITIES
def test_spec_inside_is_the_spec_beside(modality: str, paths: Paths) -> None:
    inside = read_extra_file(paths[modality], SPEC_FILE).decode()
    assert inside == paths[modality].with_suffix(".json").read_text(encoding="utf-8")
    assert read_spec(paths[modality]).stem == paths[modality].stem == f"clip-{modality}-cpu-fp32"


def test_text_outside_of_ascii_is_kept(data: dict[str, Any]) -> None:
    data["checkpoint"] = "モデル"
    spec = EncoderSpec.from_json(json.dumps(data), "x")
    assert spec.checkpoint == "モデル"
    assert "モデル" in spec.to_json()


def test_whole_numbers_stand_for_floats(data: dict[str, Any]) -> None:
    data["score"]["scale"] = 100
    scale = EncoderSpec.from_json(json.dumps(data), "x").score.scale
    assert (scale, type(scale)) == (100.0, float)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_vectors_round_trip(values: list[float]) -> None:
    vector = np.array(values, dtype=np.float32)
    assert np.array_equal(decode_vector(encode_vector(vector)), vector)
    assert base64.b64decode(encode_vector(vector)) == vector.astype("<f4").tobytes()
    # Of any memory layout and byte order.
    assert encode_vector(np.repeat(vector, 2)[::2]) == encode_vector(vector)
    assert encode_vector(vector.astype(">f4")) == encode_vector(vector)


# ---- what is wrong with a spec


@pytest.mark.parametrize("text", ["", "{", "nonsense", "{'a': 1}", "\0", '{"a": 1} {}', "\ufeff{}"], ids=repr)
def test_text_that_is_no_json(text: str) -> None:
    assert "not a spec" in refusal(text)
    assert "make export" in refusal(text)


@pytest.mark.parametrize("value", [[], "a", 5, None, True, {}], ids=str)
def test_json_that_is_no_spec(value: Any) -> None:
    assert "schema_version None, this clipserve reads 5" in refusal(json.dumps(value))


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4, 6, "5", None, [5]], ids=repr)
def test_other_schema_versions(version: Any, data: dict[str, Any]) -> None:
    message = refusal({**data, "schema_version": version})
    assert f"schema_version {version!r}" in message
    assert "run 'make export' again" in message


def test_schema_version_that_only_equals_5(data: dict[str, Any]) -> None:
    assert "schema_version" in refusal({**data, "schema_version": 5.0})


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every value inside a parsed spec."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, v in inner for p in [(*path, key), *places(v, (*path, key))]]


def changed(
    data: dict[str, Any], path: tuple[Any, ...], change: Callable[[Any, Any], None]
) -> dict[str, Any]:
    """A copy in which `change(container, key)` was made at `path`."""
    damaged = copy.deepcopy(data)
    container: Any = damaged
    for key in path[:-1]:
        container = container[key]
    change(container, path[-1])
    return damaged


def set_to(value: Any) -> Callable[[Any, Any], None]:
    def change(container: Any, key: Any) -> None:
        container[key] = value

    return change


def is_field(path: tuple[Any, ...]) -> bool:
    return isinstance(path[-1], str) and "versions" not in path[:-1]


def test_every_missing_field_is_named(data: dict[str, Any]) -> None:
    fields = [path for path in places(data) if is_field(path)]
    assert len(fields) > 30
    for path in fields:
        message = refusal(changed(data, path, lambda container, key: container.pop(key)))
        assert path[-1] in message, path


def test_every_unknown_field_is_named(data: dict[str, Any]) -> None:
    for path in ((), ("image",), ("certificate",), ("certificate", "bound"), ("certificate", "cases", 0)):
        message = refusal(changed(data, (*path, "colour"), set_to(1)))
        assert "unknown fields ['colour']" in message


def test_every_wrong_type_is_refused_by_name(data: dict[str, Any]) -> None:
    """Another JSON type in every single place of a spec."""
    others: list[Any] = [{"a": 1}, [["b"]], "text", 5.5, 5, True, None]
    refused = 0
    for path in places(data):
        now: Any = changed(data, path, lambda container, key: None)
        for key in path:
            now = now[key]
        for value in others:
            fits = (
                type(value) is type(now)
                or (type(now) is float and type(value) is int)
                # Optional fields.
                or (path == ("license",) and (value is None or type(value) is str))
                or (
                    value is None
                    and path[-1] in ("text", "max_abs_diff", "min_cosine", "mean_cosine")
                    and "cases" not in path
                    and path[:-1] != ("certificate",)
                )
                or (
                    path[-1] in ("max_abs_diff", "min_cosine", "mean_cosine")
                    and "bound" in path
                    and type(value) in (int, float)
                )
            )
            if fits:
                continue
            message = refusal(changed(data, path, set_to(value)))
            named = [key for key in path if isinstance(key, str)]
            assert named[-1] in message, (path, value)
            refused += 1
    assert refused > 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modality", "audio"),
        ("device", "gpu"),
        ("device", "tpu"),
        ("precision", "int4"),
        ("precision", "FP32"),
    ],
)
def test_values_outside_of_what_is_allowed(field: str, value: str, data: dict[str, Any]) -> None:
    message = refusal({**data, field: value})
    assert f"{field}: {value!r}, allowed are '" in message


@MODALITIES
def test_modality_without_its_section(modality: str, paths: Paths) -> None:
    data = json.loads(read_spec(paths[modality]).to_json())
    assert f"modality {modality!r} without its {modality!r} section" in refusal({**data, modality: None})


def test_modality_with_the_other_section(data: dict[str, Any], text_path: Path) -> None:
    message = refusal({**data, "modality": "text"})
    assert "modality 'text' without its 'text' section" in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("image", "resample"), "sharpest"), (("image", "shortest_edge"), 0), (("image", "crop_width"), -1),
        (("image", "mean"), [0.5]), (("embedding_dim",), 0), (("score", "scale"), float("nan")),
        (("score", "scale"), 10**400), (("score", "scale"), 0.0), (("score", "bias"), float("inf")),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_values_that_no_encoder_has(path: tuple[str, ...], value: Any, data: dict[str, Any]) -> None:
    assert path[-1] in refusal(changed(data, path, set_to(value)))


@pytest.mark.parametrize(("edge", "holds"), [(48, True), (56, False), (40, False)])
def test_a_squashed_picture_has_no_edge_of_its_own(edge: int, holds: bool) -> None:
    """It is what a JPEG's decoder is asked for, and so no less than either side."""
    section = ImagePreprocessing(edge, 40, 48, "bicubic", (0.5,) * 3, (0.5,) * 3, "squash")
    assert all(rule for _, rule in section.rules()) is holds


def test_endless_nesting() -> None:
    assert "not a spec" in refusal("[" * 200_000)


# ---- files


def test_file_that_does_not_exist(tmp_path: Path) -> None:
    for read in (read_spec, artifact_sha256, lambda path: read_extra_file(path, SPEC_FILE)):
        with pytest.raises(SpecError, match=r"nothing\.pt: not a readable encoder \(.*run 'make export'"):
            read(tmp_path / "nothing.pt")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04", b"\x80\x02}."], ids=repr)
def test_file_that_is_no_archive(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    for read in (read_spec, artifact_sha256):
        with pytest.raises(SpecError, match=r"x\.pt: not a readable encoder"):
            read(path)


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not a readable encoder"):
        read_spec(tmp_path)


def test_torchscript_that_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(SpecError, match=r"carries no spec\.json, so it was not written by clipserve"):
        read_spec(path)
    with pytest.raises(SpecError, match=r"carries no spec\.json"):
        ExportedTextEncoder(path, CPU)


@MODALITIES
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated_encoder(modality: str, part: float, paths: Paths, tmp_path: Path) -> None:
    whole = paths[modality].read_bytes()
    path = tmp_path / "x.pt"
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(SpecError, match=r"x\.pt: not a readable encoder"):
        ENCODERS[modality](path, CPU)


# ---- the hash, and what it protects


def resaved(
    path: Path,
    target: Path,
    *,
    spec: str | None = None,
    tokenizer: str | None = None,
    change: Callable[[torch.jit.ScriptModule], None] = lambda module: None,
) -> Path:
    """Loads an encoder and saves it again, with other extra files or weights."""
    extra = {SPEC_FILE: spec or read_extra_file(path, SPEC_FILE).decode()}
    with zipfile.ZipFile(path) as archive:
        has_tokenizer = any(name.endswith(TOKENIZER_FILE) for name in archive.namelist())
    if tokenizer is not None or has_tokenizer:
        extra[TOKENIZER_FILE] = tokenizer or read_extra_file(path, TOKENIZER_FILE).decode()
    module = load_torchscript(path, CPU)
    change(module)
    target.parent.mkdir(exist_ok=True)
    torch.jit.save(module, target, _extra_files=extra)
    return target


def with_spec(path: Path, target: Path, **fields: Any) -> Path:
    spec = dataclasses.replace(read_spec(path), **fields)
    return resaved(path, target, spec=spec.to_json())


def change_one_bit(module: torch.jit.ScriptModule) -> None:
    """The lowest bit of the first number of one weight."""
    weight = next(p for name, p in module.named_parameters() if name == "projection.weight")
    weight.data.view(torch.int32).view(-1)[0] ^= 1


@MODALITIES
def test_hash_is_of_code_and_weights_and_not_of_the_spec(modality: str, paths: Paths, tmp_path: Path) -> None:
    path = paths[modality]
    expected = read_spec(path).artifact_sha256
    assert artifact_sha256(path) == expected
    # Of another name's archive the records' folder is another, which does not count.
    same = resaved(path, tmp_path / "same" / path.name)
    assert artifact_sha256(same) == expected
    other_spec = with_spec(
        path, tmp_path / "spec" / path.name, checkpoint="another", score=Score("softmax", 1.0)
    )
    assert read_spec(other_spec).checkpoint == "another"
    assert artifact_sha256(other_spec) == expected
    other_weight = resaved(path, tmp_path / "weight" / path.name, change=change_one_bit)
    assert artifact_sha256(other_weight) != expected


@MODALITIES
def test_hash_does_not_depend_on_the_file_name(modality: str, paths: Paths, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed.pt"
    shutil.copy(paths[modality], renamed)
    assert artifact_sha256(renamed) == read_spec(renamed).artifact_sha256
    assert ENCODERS[modality](renamed, CPU).spec == read_spec(paths[modality])


@MODALITIES
def test_weight_that_was_changed_is_refused(modality: str, paths: Paths, tmp_path: Path) -> None:
    """Even by an amount that no golden embedding would show."""
    path = resaved(paths[modality], tmp_path / "x.pt", change=change_one_bit)
    with pytest.raises(SpecError, match=r"x\.pt: changed since its export: SHA-256 .* the spec says .*"):
        ENCODERS[modality](path, CPU)


@MODALITIES
def test_byte_that_was_flipped_is_refused(modality: str, paths: Paths, tmp_path: Path) -> None:
    whole = bytearray(paths[modality].read_bytes())
    with zipfile.ZipFile(paths[modality]) as archive:
        largest = max(
            (i for i in archive.infolist() if "/extra/" not in i.filename), key=lambda info: info.file_size
        )
    # Behind the record's header and name, in the middle of its content.
    whole[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    path = tmp_path / "x.pt"
    path.write_bytes(whole)
    with pytest.raises(SpecError, match=r"x\.pt"):
        ENCODERS[modality](path, CPU)


def test_code_that_was_changed_is_refused(image_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    changed_files = 0
    with zipfile.ZipFile(image_path) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            content = source.read(info)
            if info.filename.endswith(".py") and b"def forward" in content:
                content += b"\n"
                changed_files += 1
            target.writestr(info, content)
    assert changed_files
    with pytest.raises(SpecError, match="changed since its export"):
        ExportedImageEncoder(path, CPU)


def test_file_that_was_added_is_refused(image_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    shutil.copy(image_path, path)
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/code/more.py", "x = 1")
    with pytest.raises(SpecError, match="changed since its export"):
        ExportedImageEncoder(path, CPU)


def test_other_tokenizer_is_refused(text_path: Path, tmp_path: Path) -> None:
    definition = json.loads(read_extra_file(text_path, TOKENIZER_FILE))
    vocabulary = definition["model"]["vocab"]
    first, second = list(vocabulary)[100:102]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path = resaved(text_path, tmp_path / "x.pt", tokenizer=json.dumps(definition))
    with pytest.raises(SpecError, match="tokenizer: SHA-256 "):
        ExportedTextEncoder(path, CPU)


def test_missing_tokenizer_is_refused(text_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    module = load_torchscript(text_path, CPU)
    torch.jit.save(module, path, _extra_files={SPEC_FILE: read_extra_file(text_path, SPEC_FILE).decode()})
    with pytest.raises(SpecError, match=r"carries no tokenizer\.json"):
        ExportedTextEncoder(path, CPU)


@MODALITIES
def test_golden_embedding_of_another_encoder_is_refused(modality: str, paths: Paths, tmp_path: Path) -> None:
    spec = read_spec(paths[modality])
    other = np.random.default_rng(0).normal(size=spec.embedding_dim).astype(np.float32)
    certificate = dataclasses.replace(
        spec.certificate, golden=dataclasses.replace(spec.certificate.golden, embedding=encode_vector(other))
    )
    path = with_spec(paths[modality], tmp_path / "x.pt", certificate=certificate)
    with pytest.raises(SpecError, match=r"golden input's embedding has cosine .* allowed is >= 0.999"):
        ENCODERS[modality](path, CPU)


@MODALITIES
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")], ids=str)
def test_golden_embedding_without_direction_is_refused(
    modality: str, value: float, paths: Paths, tmp_path: Path
) -> None:
    spec = read_spec(paths[modality])
    nothing = encode_vector(np.full(spec.embedding_dim, value, dtype=np.float32))
    certificate = dataclasses.replace(
        spec.certificate, golden=dataclasses.replace(spec.certificate.golden, embedding=nothing)
    )
    path = with_spec(paths[modality], tmp_path / "x.pt", certificate=certificate)
    with pytest.raises(SpecError, match="golden"), np.errstate(all="ignore"):
        ENCODERS[modality](path, CPU)


@MODALITIES
@pytest.mark.parametrize("embedding", ["no base64", "QUJD", encode_vector(np.ones(5, np.float32))])
def test_golden_embedding_that_is_none_is_refused(
    modality: str, embedding: str, paths: Paths, tmp_path: Path
) -> None:
    spec = read_spec(paths[modality])
    golden = dataclasses.replace(spec.certificate.golden, embedding=embedding)
    path = with_spec(
        paths[modality], tmp_path / "x.pt", certificate=dataclasses.replace(spec.certificate, golden=golden)
    )
    with pytest.raises(SpecError, match="golden"):
        ENCODERS[modality](path, CPU)


@pytest.mark.parametrize("golden_input", ["no base64", base64.b64encode(b"no picture").decode(), ""])
def test_golden_picture_that_is_none_is_refused(golden_input: str, image_path: Path, tmp_path: Path) -> None:
    spec = read_spec(image_path)
    golden = dataclasses.replace(spec.certificate.golden, input=golden_input)
    path = with_spec(
        image_path, tmp_path / "x.pt", certificate=dataclasses.replace(spec.certificate, golden=golden)
    )
    with pytest.raises(SpecError, match="golden"):
        ExportedImageEncoder(path, CPU)


def test_spec_inside_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/extra/spec.json", b"\xff")
    with pytest.raises(SpecError, match=r"x\.pt"):
        read_spec(path)


def test_encoder_of_the_other_modality_is_refused(paths: Paths) -> None:
    with pytest.raises(SpecError, match="a text encoder, should be an image encoder"):
        ExportedImageEncoder(paths["text"], CPU)
    with pytest.raises(SpecError, match="an image encoder, should be a text encoder"):
        ExportedTextEncoder(paths["image"], CPU)


@MODALITIES
def test_encoder_of_another_device_is_refused(modality: str, paths: Paths, tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match="traced for cpu, asked to run on cuda; run 'make export DEVICE=cuda'"
    ):
        ENCODERS[modality](paths[modality], torch.device("cuda", 0))
    path = with_spec(paths[modality], tmp_path / "x.pt", device="cuda")
    with pytest.raises(SpecError, match="traced for cuda, asked to run on cpu; run 'make export DEVICE=cpu'"):
        ENCODERS[modality](path, CPU)


@MODALITIES
def test_golden_input_can_be_checked_again(
    modality: str, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker does before it calls itself ready, and a health check after."""
    loaded: Any = ENCODERS[modality](paths[modality], CPU)
    loaded.check_golden()
    embed = loaded.embed
    monkeypatch.setattr(loaded, "embed", lambda *inputs: -embed(*inputs))
    with pytest.raises(SpecError, match=r"cosine -1\.000000"):
        loaded.check_golden()
    monkeypatch.setattr(loaded, "embed", lambda *inputs: embed(*inputs) * np.nan)
    with pytest.raises(SpecError, match="golden"):
        loaded.check_golden()


# ---- bounds


@pytest.mark.parametrize(
    ("bound", "max_abs_diff", "min_cosine", "holds"),
    [
        (ParityBound(1e-5, None), 1e-5, -1.0, True), (ParityBound(1e-5, None), 1.1e-5, 1.0, False),
        (ParityBound(None, 0.999), 9.0, 0.999, True), (ParityBound(None, 0.999), 0.0, 0.9989, False),
        (ParityBound(1e-5, 0.999), 1e-6, 0.9, False), (ParityBound(1e-5, 0.999), 1e-4, 1.0, False),
        (ParityBound(1e-5, None), float("nan"), 1.0, False),
        (ParityBound(None, 0.999), 0.0, float("nan"), False),
        (ParityBound(None, None), 9.0, -1.0, True),
    ],
)  # fmt: skip
def test_bounds(bound: ParityBound, max_abs_diff: float, min_cosine: float, holds: bool) -> None:
    assert bound.holds(max_abs_diff, min_cosine, min_cosine) is holds


def test_a_mean_has_a_bound_of_its_own() -> None:
    bound = PARITY_BOUNDS["int8"]
    assert bound.holds(9.0, 0.99, 0.995)
    assert not bound.holds(0.0, 0.99, 0.9949)
    assert not bound.holds(0.0, 0.989, 0.999)
    assert not bound.holds(0.0, 1.0, float("nan"))


def test_bounds_in_words_and_numbers() -> None:
    assert {name: str(bound) for name, bound in PARITY_BOUNDS.items()} == {
        "fp32": "max-abs <= 1e-05",
        "bf16": "cosine >= 0.999",
        "fp16": "cosine >= 0.999",
        "int8": "cosine >= 0.99 and mean cosine >= 0.995",
    }
    assert str(ParityBound(1e-5, 0.999)) == "max-abs <= 1e-05 and cosine >= 0.999"


@pytest.mark.parametrize(
    ("file_format", "device", "bound"),
    [
        ("torchscript", "cpu", "max-abs <= 0.0005 and cosine >= 0.99999"),
        ("torchscript", "cuda", "cosine >= 0.999"),
        ("onnx", "cpu", "cosine >= 0.999"),
    ],
)
def test_weights_alone_in_half_precision_are_bound_more_closely(
    file_format: Format, device: Device, bound: str
) -> None:
    assert str(parity_bound(file_format, device, "fp16")) == bound


def test_sha256_known_answer() -> None:
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_extra_file_is_read_without_the_weights(text_path: Path) -> None:
    definition = read_extra_file(text_path, TOKENIZER_FILE)
    with zipfile.ZipFile(io.BytesIO(text_path.read_bytes())) as archive:
        assert archive.read(f"archive/extra/{TOKENIZER_FILE}") == definition
    text = read_spec(text_path).text
    assert text is not None
    assert text.tokenizer_sha256 == sha256(definition)
