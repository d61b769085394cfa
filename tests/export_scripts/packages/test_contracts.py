"""Encoders for other programs: what is published, what is refused, and by whom."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from clipserve.archive_files import file_sha256
from clipserve.encoder import ExportedImageEncoder, ExportedTextEncoder
from clipserve.encoder_spec import TOKENIZER_FILE, read_extra_file, read_spec
from clipserve.errors import ExportError, ParityError, SpecError
from clipserve.loading import load_torchscript
from clipserve.operators import operators_of
from clipserve.store import Store
from export_scripts import export, verify
from export_scripts.checkpoints.pair import CheckpointPair
from export_scripts.packages import aias, archive, elasticsearch
from export_scripts.packages.contracts import CONTRACTS
from export_scripts.packages.djl import write_djl
from export_scripts.packages.vocabularies import word_piece
from export_scripts.packages.wrapped import export_wrapped, wrapped_files
from export_scripts.parity.subjects import SUBJECTS
from tests.export_scripts.commands import assert_one_sentence, checkpoints_of, run
from tests.export_scripts.exports import Pairs, empty, rebuilt

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
STEM = "clip-text-cpu-fp32"

# As tests/export_scripts/test_publish.py has it: torch's own filter for warnings about its own code.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning:torch.nn.functional")

each_contract = pytest.mark.parametrize("name", CONTRACTS)


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def wrapped(made: Path) -> Path:
    """A store with the pair of `made`, exported for every program; to be read, never written."""
    store = made / "wrapped"
    for name in CONTRACTS:
        arguments = [*checkpoints_of(made), "--format", name, "--store", str(store)]
        assert export.main(arguments) == 0
    return store


@pytest.fixture
def own(wrapped: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(wrapped, tmp_path / "wrapped"))


def taken_out(store: Path, name: str, work: Path) -> Path:
    """The text encoder for a program."""
    paths = [one.file.path for one in wrapped_files(store, work) if one.contract.name == name]
    (path,) = [path for path in paths if read_spec(path).text is not None]
    return path


def test_what_is_published(wrapped: Path) -> None:
    assert names_in(wrapped) == [
        "aias/clip-image-cpu-fp32.pt",
        "aias/clip-image-cpu-fp32.zip",
        f"aias/{STEM}.zip",
        f"aias/{STEM}/{STEM}.pt",
        f"aias/{STEM}/vocab.txt",
        f"elasticsearch/{STEM}/config.json",
        f"elasticsearch/{STEM}/traced_pytorch_model.pt",
        f"elasticsearch/{STEM}/vocabulary.json",
        f"opensearch/{STEM}.config.json",
        f"opensearch/{STEM}.zip",
    ]


def test_names_of_the_sdk(pairs: Pairs, tmp_path: Path) -> None:
    """Of the pair that it was written for; GPU variants say so."""
    pair = pairs["m-clip-bert"]
    theirs = replace(
        pair,
        image=replace(pair.image, name="openai/clip-vit-base-patch32"),
        text=replace(pair.text, name="M-CLIP/M-BERT-Base-ViT-B"),
    )
    export_wrapped(CONTRACTS["aias"], theirs, "cpu", None, tmp_path)
    assert names_in(tmp_path / "aias") == [
        "CLIP-ViT-B-32-IMAGE.pt",
        "CLIP-ViT-B-32-IMAGE.zip",
        "M-BERT-Base-ViT-B.zip",
        "M-BERT-Base-ViT-B/M-BERT-Base-ViT-B.pt",
        "M-BERT-Base-ViT-B/vocab.txt",
    ]
    spec = read_spec(tmp_path / "aias" / "CLIP-ViT-B-32-IMAGE.pt")
    assert aias.name_of(replace(spec, device="cuda"), theirs) == "CLIP-ViT-B-32-IMAGE-cuda"
    # Another text encoder's file under that name would be searched with in vain.
    assert aias.name_of(spec, pair) == "clip-image-cpu-fp32"


def test_opensearch_configuration(wrapped: Path, tmp_path: Path) -> None:
    folder = wrapped / "opensearch"
    zipped = folder / f"{STEM}.zip"
    config = json.loads((folder / f"{STEM}.config.json").read_text("utf-8"))
    assert config["model_content_hash_value"] == file_sha256(zipped)
    assert config["model_content_size_in_bytes"] == zipped.stat().st_size
    assert (config["model_format"], config["model_task_type"]) == ("TORCH_SCRIPT", "TEXT_EMBEDDING")
    model = config["model_config"]
    assert (model["model_type"], model["embedding_dimension"]) == ("distilbert", 32)
    assert json.loads(model["all_config"])["max_position_embeddings"] == 140
    with zipfile.ZipFile(zipped) as opened:
        assert opened.namelist() == [f"{STEM}.pt", "tokenizer.json"]
        definition = json.loads(opened.read("tokenizer.json"))
    wanted = {"direction": "Right", "max_length": 128, "strategy": "LongestFirst", "stride": 0}
    assert definition["truncation"] == wanted
    assert (definition["padding"]["pad_id"], definition["padding"]["pad_token"]) == (0, "[PAD]")
    encoder = taken_out(wrapped, "opensearch", tmp_path)
    rest = {**json.loads(read_extra_file(encoder, TOKENIZER_FILE)), "truncation": None, "padding": None}
    assert {**definition, "truncation": None, "padding": None} == rest


def test_elasticsearch_configuration(wrapped: Path, pairs: Pairs, tmp_path: Path) -> None:
    """A BERT, whose length is the original's and not its tokenizer's 512; and an XLM-R.

    ml-cpp runs neither with an operator that it does not know.
    """
    config = json.loads((wrapped / "elasticsearch" / STEM / "config.json").read_text("utf-8"))
    inference = config["inference_config"]["text_embedding"]
    lengths = {"with_special_tokens": True, "truncate": "first", "span": -1}
    assert inference == {
        "tokenization": {"bert": {"do_lower_case": False, "max_sequence_length": 128, **lengths}},
        "embedding_size": 32,
    }
    vocabulary = json.loads((wrapped / "elasticsearch" / STEM / "vocabulary.json").read_text("utf-8"))
    assert vocabulary.keys() == {"vocabulary"}
    assert vocabulary["vocabulary"][:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert config["metadata"]["per_deployment_memory_bytes"] > 500_000
    assert config["metadata"]["per_allocation_memory_bytes"] > 100_000
    export_wrapped(CONTRACTS["elasticsearch"], pairs["m-clip-xlm-r"], "cpu", None, tmp_path)
    folder = tmp_path / "elasticsearch" / STEM
    config = json.loads((folder / "config.json").read_text("utf-8"))
    tokenization = config["inference_config"]["text_embedding"]["tokenization"]
    assert tokenization == {"xlm_roberta": {"max_sequence_length": 138, **lengths}}
    vocabulary = json.loads((folder / "vocabulary.json").read_text("utf-8"))
    assert vocabulary["vocabulary"][:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert len(vocabulary["scores"]) == len(vocabulary["vocabulary"])
    assert vocabulary["scores"][:4] == [0.0] * 4
    assert max(vocabulary["scores"][5:]) < 0
    for store in (wrapped, tmp_path):
        encoder = taken_out(store, "elasticsearch", tmp_path)
        assert operators_of(load_torchscript(encoder, CPU)) <= elasticsearch.OPERATORS


def test_an_operator_that_elasticsearch_refuses(
    pair: CheckpointPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elasticsearch, "OPERATORS", elasticsearch.OPERATORS - {"aten::gelu"})
    with pytest.raises(ExportError, match=r"text encoder: the graph has operators .*: aten::gelu"):
        export_wrapped(CONTRACTS["elasticsearch"], pair, "cpu", None, tmp_path)
    assert empty(tmp_path / "elasticsearch")


@pytest.mark.parametrize(
    ("name", "layout", "kind"),
    [
        ("aias", "clip", "BPE"),
        ("aias", "m-clip-xlm-r", "Unigram"),
        ("elasticsearch", "clip", "BPE"),
    ],
)
def test_a_tokenizer_that_the_program_does_not_have(
    name: str, layout: str, kind: str, pairs: Pairs, tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as caught:
        export_wrapped(CONTRACTS[name], pairs[layout], "cpu", None, tmp_path)
    message = str(caught.value)
    assert message.startswith(
        f"text encoder: its tokenizer ({kind}) is none that {CONTRACTS[name].program} has"
    )
    assert "name a TEXT_MODEL with one of these, or run 'make export' with FORMAT=opensearch" in message
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "BertNormalizer", "lowercase": False, "strip_accents": True,
                        "clean_text": True, "handle_chinese_chars": True}},
        {"normalizer": None},
        {"pre_tokenizer": {"type": "WhitespaceSplit"}},
        {"post_processor": None},
    ],
    ids=["accents", "no normalizer", "whitespace", "no special tokens"],
)  # fmt: skip
def test_a_word_piece_that_is_not_bert_s(change: dict[str, object], pair: CheckpointPair) -> None:
    """Elsewhere it would be cut in another way, without a word."""
    definition = json.loads(pair.text.tokenizer)
    assert word_piece(json.dumps(definition)) is not None
    assert word_piece(json.dumps({**definition, **change})) is None


def test_an_uncased_bert_is_not_for_the_sdk(pair: CheckpointPair) -> None:
    """Elasticsearch is told; the SDK's own tokenizer is told to keep upper case."""
    definition = json.loads(pair.text.tokenizer)
    definition["normalizer"]["lowercase"] = True
    uncased = json.dumps(definition)
    vocabulary = word_piece(uncased)
    assert vocabulary is not None
    assert vocabulary.lowercase
    subject = replace(SUBJECTS["text"](pair), extra_files={"tokenizer.json": uncased})
    assert elasticsearch.texts(subject).tokens is not None
    with pytest.raises(ExportError, match="none that the AIAS SDK has, which are BERT's cased WordPiece"):
        aias.texts(subject)


@each_contract
def test_the_bundled_checkpoint(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its tokenizer lowers and keeps accents, which BERT's does not: who asks has to, and is told."""
    assert export.main(["--model", "demo", "--format", name, "--store", str(tmp_path)]) == 0
    warned = "put texts into lower case before they are embedded there" in capsys.readouterr().err
    assert warned == (name != "opensearch")


@each_contract
def test_devices_and_precisions(name: str, pair: CheckpointPair, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"PRECISION=bf16: DEVICE=cpu with FORMAT={name} takes auto, fp32"):
        export_wrapped(CONTRACTS[name], pair, "cpu", "bf16", tmp_path)
    if "cuda" not in CONTRACTS[name].devices:
        with pytest.raises(ExportError, match=f"FORMAT={name}: DEVICE=cuda is not supported"):
            export_wrapped(CONTRACTS[name], pair, "cuda", None, tmp_path)
    assert empty(tmp_path)


@pytest.mark.gpu
def test_for_a_gpu(pair: CheckpointPair, tmp_path: Path) -> None:
    """The SDK on a GPU; the pair's other names carry the device already."""
    export_wrapped(CONTRACTS["aias"], pair, "cuda", None, tmp_path)
    assert "aias/clip-image-cuda-fp32.pt" in names_in(tmp_path)
    devices = {one.file.spec.device for one in wrapped_files(tmp_path, tmp_path / "out")}
    assert devices == {"cuda"}


@each_contract
def test_nothing_is_published_beyond_the_bound(name: str, pair: CheckpointPair, tmp_path: Path) -> None:
    """What was there stays; of a pair, both encoders or none."""
    export_wrapped(CONTRACTS[name], pair, "cpu", None, tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()}

    def spoilt(encoder: torch.nn.Module) -> torch.nn.Module:
        # Its weights are the original's.
        other = copy.deepcopy(encoder)
        with torch.no_grad():
            other.projection.weight[0].mul_(1.5)  # type: ignore[union-attr, index]
        return other

    with pytest.raises(ParityError, match="nothing was published"):
        export_wrapped(CONTRACTS[name], rebuilt(pair, "text", spoilt), "cpu", None, tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()} == before
    assert [path.name for path in (tmp_path / name).iterdir() if path.name.startswith(".")] == []


@pytest.mark.full
def test_equal_checkpoints_give_equal_files(made: Path, wrapped: Path, tmp_path: Path) -> None:
    """From a checkout in another folder, of checkpoints in another folder, in a process of its own."""
    for room in ("clipserve", "export_scripts"):
        shutil.copytree(ROOT / room, tmp_path / "checkout" / room)
    for checkpoint in ("clip", "multilingual"):
        shutil.copytree(made / checkpoint, tmp_path / "elsewhere" / checkpoint)
    # Each of them leads elsewhere in the export.
    for name in ["torchscript", "aias", "elasticsearch"]:
        done = subprocess.run(
            [sys.executable, "-m", "export_scripts", "export", "--format", name, "--precision", "fp32",
             *checkpoints_of(tmp_path / "elsewhere"), "--store", str(tmp_path / "store")],
            # As many threads as this process has: they decide how a sum is divided, and its last digit.
            cwd=tmp_path / "checkout",
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    files = names_in(tmp_path / "store")
    assert len(files) == 4 + 5 + 3
    for file in files:
        here = wrapped if "/" in file else made / "store"
        assert (here / file).read_bytes() == (tmp_path / "store" / file).read_bytes(), file
    # What told the two apart: which line of which file each operator came from.
    for path in (tmp_path / "store").rglob("*.pt"):
        with zipfile.ZipFile(path) as opened:
            assert [name for name in opened.namelist() if name.endswith(".debug_pkl")] == []


@each_contract
def test_our_own_loaders_refuse_it(name: str, wrapped: Path, own: Path, tmp_path: Path) -> None:
    """CASES 16: called in another way it gives no vector, or another one."""
    path = taken_out(wrapped, name, tmp_path / "out")
    refusal = rf"an encoder as {name} takes it, here .*torchscript.* is wanted; run 'make export'"
    with pytest.raises(SpecError, match=refusal):
        ExportedTextEncoder(path, CPU)
    with pytest.raises(SpecError, match=refusal):
        write_djl(path, tmp_path)
    store = tmp_path / "store"
    store.mkdir()
    shutil.copyfile(path, store / path.name)
    with pytest.raises(SpecError, match=refusal):
        Store.read(store)
    for other in sorted(CONTRACTS.keys() - {name}):
        theirs = own / other / "x" / "traced_pytorch_model.pt"
        if other == "opensearch":
            theirs = own / other / "x.zip"
            with zipfile.ZipFile(theirs, "w") as zipped:
                zipped.write(path, "x.pt")
        else:
            theirs.parent.mkdir()
            shutil.copyfile(path, theirs)
        with pytest.raises(SpecError, match=f"an encoder as {name} takes it, here {other} is wanted"):
            list(wrapped_files(own, tmp_path / "again"))
        shutil.rmtree(theirs.parent) if theirs.suffix == ".pt" else theirs.unlink()


def test_the_picture_encoder_of_the_sdk_is_refused(wrapped: Path) -> None:
    """CASES 16: a worker, and the bulk job, have uint8 pixels."""
    with pytest.raises(SpecError, match=r"an encoder as aias takes it, here .*torchscript.* is wanted"):
        ExportedImageEncoder(wrapped / "aias" / "clip-image-cpu-fp32.pt", CPU)


def test_a_store_with_nothing_but_them_is_not_served(
    wrapped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_sentence(
        *run(archive.main, capsys, "--store", str(wrapped)),
        "holds no encoder that TorchServe's handlers serve",
    )


def test_verify(wrapped: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["--store", str(wrapped), *checkpoints_of(made)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[:3] for line in lines] == [
        ["aias/clip-image-cpu-fp32.pt", "aias", "fp32"],
        [f"aias/{STEM}/{STEM}.pt", "aias", "fp32"],
        [f"opensearch/{STEM}.zip", "opensearch", "fp32"],
        [f"elasticsearch/{STEM}/traced_pytorch_model.pt", "elasticsearch", "fp32"],
    ]


def test_verify_looks_at_a_copy_too(own: Path, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its encoder was taken out over the first one's, of which nothing was said then."""
    shutil.copyfile(own / "opensearch" / f"{STEM}.zip", own / "opensearch" / "copy.zip")
    assert verify.main(["--store", str(own), *checkpoints_of(made)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"opensearch/copy.zip", f"opensearch/{STEM}.zip"} <= {line.split()[0] for line in lines}


def changed_text(path: Path, before: str, after: str) -> None:
    text = path.read_text("utf-8")
    assert before in text
    path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (f"opensearch/{STEM}.config.json", lambda path: changed_text(path, "32", "33")),
        (f"elasticsearch/{STEM}/vocabulary.json", Path.unlink),
        ("aias/clip-image-cpu-fp32.zip", lambda path: path.write_bytes(b"")),
    ],
)
def test_verify_finds_what_was_changed_beside_an_encoder(
    file: str, change: Callable[[Path], object], own: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(own / file)
    status, message = run(verify.main, capsys, "--store", str(own), *checkpoints_of(made))
    wanted = f"FORMAT={file.partition('/')[0]}' again"
    assert_one_sentence(status, message, file, "missing, or not what was exported with the encoder", wanted)


def test_verify_finds_a_zip_file_without_encoder(
    own: Path, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "opensearch" / f"{STEM}.zip").write_bytes(b"PK")
    status, message = run(verify.main, capsys, "--store", str(own), *checkpoints_of(made))
    assert_one_sentence(status, message, f"{STEM}.zip: holds no readable encoder")
