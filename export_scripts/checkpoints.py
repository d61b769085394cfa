"""Loads a checkpoint pair: eager originals, with everything their specs need to say.

Weights come through the libraries' own loaders: sentence-transformers for its two layouts, transformers for
M-CLIP's. Names, cache and offline behaviour are the hub library's own.

| layout | told by | image | text |
|---|---|---|---|
| sentence-transformers CLIP | `modules.json` around a `CLIPModel` | yes | its own text tower |
| sentence-transformers text | `modules.json`: Transformer, Pooling, Dense | | yes |
| M-CLIP BERT | `config.json` of type `bert`, and a pickled linear head | | yes |
| M-CLIP XLM-R | `config.json` of type `M-CLIP` | | yes |
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from PIL import Image
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from torch import Tensor, nn

from clipserve.encoder_spec import FloatArray, ImagePreprocessing, TextPreprocessing, sha256
from clipserve.errors import ExportError
from export_scripts.encoders import (
    ClipTextEncoder,
    ImageEncoder,
    L2Normalized,
    MeanPooledTextEncoder,
    Unnormalized,
    check_supported,
)

DEMO = "demo"
DEMO_IMAGE = Path(__file__).parents[1] / "demo" / "checkpoint" / "clip"
DEMO_TEXT = Path(__file__).parents[1] / "demo" / "checkpoint" / "multilingual"

# The text encoder that a published image checkpoint is served with unless TEXT_MODEL says otherwise.
DEFAULT_TEXT_MODELS = {"clip-ViT-B-32": "clip-ViT-B-32-multilingual-v1"}

# Formats of the same weights that are never read here.
UNUSED_FILES = ["onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.ot"]

M_CLIP_TYPE = "M-CLIP"

VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")

# BERT's pooler is never read here: embeddings are the mean of the last hidden state.
UNUSED_WEIGHTS = "pooler."


@dataclass(frozen=True)
class ImageCheckpoint:
    """The image side of a pair.

    Attributes:
        name: as given by the user, or the folder's name.
        embedding_dim: length of an embedding.
        logit_scale: exponentiated.
        weights_sha256: see `EncoderSpec.checkpoint_sha256`.
        reference: the eager original: pictures to un-normalised float32 `[N, D]`.
        build: makes the traceable encoder, float32; `normalized` as in the spec.
    """

    name: str
    embedding_dim: int
    logit_scale: float
    weights_sha256: str
    preprocessing: ImagePreprocessing
    reference: Callable[[Sequence[Image.Image]], FloatArray]
    build: Callable[[bool], nn.Module]


@dataclass(frozen=True)
class TextCheckpoint:
    """The text side of a pair.

    Attributes:
        name: as given by the user, or the folder's name.
        embedding_dim: length of an embedding.
        weights_sha256: see `EncoderSpec.checkpoint_sha256`.
        tokenizer: text of its `tokenizer.json`.
        reference: the eager original on tokens: `input_ids`, `attention_mask` to un-normalised `[N, D]`.
        reference_encode: the eager original on texts, with the checkpoint's own tokenizer.
        build: makes the traceable encoder, float32; `normalized` as in the spec.
    """

    name: str
    embedding_dim: int
    weights_sha256: str
    preprocessing: TextPreprocessing
    tokenizer: str
    reference: Callable[[Tensor, Tensor], FloatArray]
    reference_encode: Callable[[Sequence[str]], FloatArray]
    build: Callable[[bool], nn.Module]


@dataclass(frozen=True)
class CheckpointPair:
    """An image and a text encoder of one embedding space."""

    model_id: str
    image: ImageCheckpoint
    text: TextCheckpoint

    @property
    def space_id(self) -> str:
        """16 hexadecimal digits over both sides' weights and preprocessing."""
        parts = [
            self.image.weights_sha256,
            repr(self.image.preprocessing),
            self.text.weights_sha256,
            repr(self.text.preprocessing),
        ]
        return sha256("\n".join(parts).encode())[:16]


def load_pair(model: str, text_model: str | None = None) -> CheckpointPair:
    """Loads a pair.

    Args:
        model: `demo`, a name on the hub, or a folder: a CLIP checkpoint.
        text_model: likewise, a text checkpoint. Without it `DEFAULT_TEXT_MODELS` decides, else the CLIP
            checkpoint's own text tower.

    Raises:
        ExportError: a checkpoint cannot be had, is of no supported layout, or the two do not pair.
    """
    text_model = text_model or DEFAULT_TEXT_MODELS.get(model, model)
    image = load_image_checkpoint(_folder(model, DEMO_IMAGE), _name(model))
    text = load_text_checkpoint(_folder(text_model, DEMO_TEXT), _name(text_model))
    if image.embedding_dim != text.embedding_dim:
        raise ExportError(
            f"{model} gives {image.embedding_dim}-d embeddings and {text.name} {text.embedding_dim}-d "
            "ones: they are no pair; name a TEXT_MODEL trained for this image encoder"
        )
    # Letters, digits, dots and dashes: it becomes part of file names.
    return CheckpointPair(re.sub(r"[^\w.-]+", "-", image.name), image, text)


def _name(given: str) -> str:
    """What a spec calls a checkpoint: its name on the hub, or a folder's last part and no path."""
    return Path(given).resolve().name if Path(given).is_dir() else given


def _folder(name: str, demo: Path) -> Path:
    """The local folder of a checkpoint, through the hub's cache where `name` is not a folder."""
    if name == DEMO:
        return demo
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/", "~")):
        raise ExportError(f"checkpoint folder {name!r} does not exist; give a folder or a hub name")
    return _hub_folder(name if "/" in name else f"sentence-transformers/{name}")


def _hub_folder(name: str) -> Path:
    try:
        return Path(snapshot_download(name, ignore_patterns=UNUSED_FILES))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        # One sentence: the library's own messages are paragraphs about its cache.
        reason = type(error).__name__
        raise ExportError(
            f"checkpoint {name!r} is neither a folder nor to be had from the model hub ({reason}); check "
            "the name and the network, or run 'make export MODEL=demo', or give a local folder as MODEL"
        ) from error


def load_image_checkpoint(folder: Path, name: str) -> ImageCheckpoint:
    """Loads a CLIP checkpoint's image side.

    Raises:
        ExportError: not a CLIP checkpoint, or damaged.
    """
    model = _sentence_transformer(folder)
    clip = _clip(model)
    if clip is None:
        raise ExportError(f"{folder}: not a CLIP checkpoint, so it has no image encoder")
    # transformers types its configurations and submodules too loosely to check.
    config: Any = clip.config
    inner: Any = model[0]
    inner.processor.image_processor = _pillow_processor(folder)
    preprocessing = _image_preprocessing(inner.processor.image_processor, folder)
    edge = config.vision_config.image_size
    if (preprocessing.crop_height, preprocessing.crop_width) != (edge, edge):
        raise ExportError(
            f"{folder}: the processor crops to {preprocessing.crop_height} x "
            f"{preprocessing.crop_width}, the encoder wants {edge} x {edge}"
        )

    def reference(images: Sequence[Image.Image]) -> FloatArray:
        return np.asarray(
            model.encode(list(images), batch_size=len(images), show_progress_bar=False), np.float32
        )

    return ImageCheckpoint(
        name=name,
        embedding_dim=config.projection_dim,
        logit_scale=float(clip.logit_scale.detach().double().exp()),
        weights_sha256=_weights_sha256(clip.vision_model, clip.visual_projection),
        preprocessing=preprocessing,
        reference=reference,
        build=lambda normalized: ImageEncoder(clip, preprocessing, _output(normalized)),
    )


def load_text_checkpoint(folder: Path, name: str) -> TextCheckpoint:
    """Loads a text checkpoint of any supported layout.

    Raises:
        ExportError: no supported layout, or damaged.
    """
    if (folder / "modules.json").is_file():
        return _load_sentence_transformers_text(folder, name)
    config = _read_json(folder / "config.json")
    if config.get("model_type") == M_CLIP_TYPE:
        return _load_m_clip_xlm_roberta(folder, name, config)
    if config.get("model_type") == "bert":
        return _load_m_clip_bert(folder, name)
    if config.get("model_type") == "clip":
        return _load_sentence_transformers_text(folder, name)
    raise ExportError(
        f"{folder}: model_type {config.get('model_type')!r} is no supported text layout; supported are "
        "sentence-transformers (modules.json), M-CLIP BERT and M-CLIP XLM-R"
    )


def _sentence_transformer(folder: Path) -> SentenceTransformer:
    with _in_our_words(folder, "sentence-transformers cannot load it"):
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        inner: Any = getattr(model[0], "model", None)
        if isinstance(inner, transformers.PreTrainedModel):
            check_supported(inner)
            _check_complete(type(inner), folder / _first_module_path(folder))
    return model.float().eval()


def _first_module_path(folder: Path) -> str:
    """Where sentence-transformers keeps the transformer: `0_CLIPModel`, or the folder itself."""
    modules = folder / "modules.json"
    return str(json.loads(modules.read_text(encoding="utf-8"))[0]["path"]) if modules.is_file() else ""


@contextmanager
def _in_our_words(folder: Path, problem: str) -> Iterator[None]:
    """Turns whatever a library raises over a damaged or hostile checkpoint into one sentence."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        # OSError, KeyError, TypeError, SafetensorError, UnpicklingError and more, over many lines.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportError(f"{folder}: {problem}: {reason}") from error


def _check_complete(kind: Any, folder: Path) -> None:
    """Refuses a checkpoint of which transformers would make up weights or a vocabulary at random.

    Raises:
        ExportError: a weight or the tokenizer's vocabulary is missing.
    """
    _, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(UNUSED_WEIGHTS))
    if missing:
        raise ExportError(f"{folder}: weights are missing: {', '.join(missing[:3])} ({len(missing)} in all)")
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise ExportError(f"{folder}: no tokenizer; it should have one of {', '.join(VOCABULARY_FILES)}")


def _clip(model: SentenceTransformer) -> transformers.CLIPModel | None:
    inner = getattr(model[0], "model", None)
    return inner if isinstance(inner, transformers.CLIPModel) else None


def _pillow_processor(folder: Path) -> Any:
    """The checkpoint's image processor that resizes with Pillow, as CLIP was trained and published.

    Where torchvision can be imported, transformers 5 takes another one, whose pixels differ: by name, the
    original does not depend on what else is installed.
    """
    with _in_our_words(folder, "transformers cannot load its image processor"):
        return transformers.AutoImageProcessor.from_pretrained(
            folder / _first_module_path(folder), backend="pil", local_files_only=True
        )


def _image_preprocessing(processor: Any, folder: Path) -> ImagePreprocessing:
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
    missing = [step for step in steps if not getattr(processor, step, False)]
    edge = processor.size.get("shortest_edge")
    if missing or edge is None or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ExportError(
            f"{folder}: preprocessing other than CLIP's own is not supported (missing: {missing}, size: "
            f"{dict(processor.size)}, rescale_factor: {processor.rescale_factor})"
        )
    return ImagePreprocessing(
        shortest_edge=edge,
        crop_height=processor.crop_size["height"],
        crop_width=processor.crop_size["width"],
        resample=_resample(int(processor.resample), folder),
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )


def _resample(number: int, folder: Path) -> str:
    try:
        return Image.Resampling(number).name.lower()
    except ValueError as error:
        raise ExportError(f"{folder}: resample {number} is none of Pillow's filters") from error


def _load_sentence_transformers_text(folder: Path, name: str) -> TextCheckpoint:
    model = _sentence_transformer(folder)

    def reference(input_ids: Tensor, attention_mask: Tensor) -> FloatArray:
        features = {"input_ids": input_ids, "attention_mask": attention_mask, "modality": "text"}
        with torch.inference_mode():
            embedding: Tensor = model(features)["sentence_embedding"]
        return embedding.numpy()

    def reference_encode(texts: Sequence[str]) -> FloatArray:
        return np.asarray(
            model.encode(list(texts), batch_size=len(texts), show_progress_bar=False), np.float32
        )

    clip = _clip(model)
    build: Callable[[bool], nn.Module]
    if clip is not None:
        config: Any = clip.config
        dim: int = config.projection_dim
        context_length: int = config.text_config.max_position_embeddings
        weights = _weights_sha256(clip.text_model, clip.text_projection)
        original = clip

        def build(normalized: bool) -> nn.Module:
            return ClipTextEncoder(original, _output(normalized))
    else:
        transformer, dense = _transformer_and_dense(model, folder)
        dim = dense.linear.out_features
        positions = int(transformer.config.max_position_embeddings)
        context_length = min(int(model.max_seq_length or positions), positions)
        weights = _weights_sha256(transformer, dense.linear)

        def build(normalized: bool) -> nn.Module:
            return MeanPooledTextEncoder(transformer, dense.linear, _output(normalized))

    tokenizer, preprocessing = _tokenizer(model.tokenizer, context_length, folder)
    return TextCheckpoint(name, dim, weights, preprocessing, tokenizer, reference, reference_encode, build)


def _transformer_and_dense(
    model: SentenceTransformer, folder: Path
) -> tuple[transformers.PreTrainedModel, Dense]:
    modules: list[Any] = list(model)
    kinds = [type(module) for module in modules]
    if kinds != [Transformer, Pooling, Dense]:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise ExportError(f"{folder}: modules {names}; supported are Transformer, Pooling, Dense")
    transformer, pooling, dense = modules
    if pooling.pooling_mode != "mean":
        raise ExportError(f"{folder}: pooling {pooling.pooling_mode!r}; supported is 'mean'")
    if not isinstance(dense.activation_function, nn.Identity):
        activation = type(dense.activation_function).__name__
        raise ExportError(f"{folder}: Dense with activation {activation}; supported is Identity")
    return transformer.model, dense


class _MeanPoolingOriginal(nn.Module):
    """M-CLIP's own forward pass: masked mean of the last hidden state, then the linear head."""

    def __init__(self, transformer: nn.Module, head: nn.Linear):
        super().__init__()
        self.transformer = transformer
        self.head = head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask[:, :, None]
        pooled: Tensor = self.head((hidden * mask).sum(1) / mask.sum(1))
        return pooled


def _load_m_clip_bert(folder: Path, name: str) -> TextCheckpoint:
    heads = sorted(folder.glob("*.pkl"))
    if len(heads) != 1:
        raise ExportError(
            f"{folder}: {len(heads)} pickled linear heads (*.pkl), should be one; M-CLIP publishes it "
            "apart from the transformer ('M-BERT-Base-69-ViT Linear Weights.pkl'): put it in this folder"
        )
    weight, bias = _read_linear_head(heads[0])
    with _in_our_words(folder, "transformers cannot load it"):
        transformer = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
        _check_complete(type(transformer), folder)
    if weight.shape[0] != transformer.config.hidden_size:
        raise ExportError(
            f"{heads[0]}: takes {weight.shape[0]} numbers, the transformer gives "
            f"{transformer.config.hidden_size}; the two are no pair"
        )
    head = nn.Linear(weight.shape[0], weight.shape[1])
    head.weight = nn.Parameter(torch.from_numpy(weight.T.astype(np.float32).copy()))
    head.bias = nn.Parameter(torch.from_numpy(bias.astype(np.float32).copy()))
    return _mean_pooled(folder, name, transformer, head)


def _load_m_clip_xlm_roberta(folder: Path, name: str, config: dict[str, Any]) -> TextCheckpoint:
    with _in_our_words(folder, "its weights do not fit its config.json"):
        base = folder / config["modelBase"]
        base_config = transformers.AutoConfig.from_pretrained(
            base if base.is_dir() else _folder_of_base(config["modelBase"])
        )
        transformer = transformers.AutoModel.from_config(base_config)
        head = nn.Linear(config["transformerDimensions"], config["numDims"])
        container = nn.ModuleDict({"transformer": transformer, "LinearTransformation": head})
        # Older files carry position ids, which are no weights.
        state = _read_state_dict(folder).items()
        container.load_state_dict({key: value for key, value in state if not key.endswith(".position_ids")})
    return _mean_pooled(folder, name, transformer, head)


def _folder_of_base(name: str) -> Path:
    repository = name if "/" in name else f"FacebookAI/{name}"
    return _hub_folder(repository)


def _mean_pooled(
    folder: Path, name: str, transformer: transformers.PreTrainedModel, head: nn.Linear
) -> TextCheckpoint:
    transformer.float().eval()
    head.eval()
    original = _MeanPoolingOriginal(transformer, head)
    with _in_our_words(folder, "transformers cannot load its tokenizer"):
        auto = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    config: Any = transformer.config
    context_length = min(int(auto.model_max_length), config.max_position_embeddings)
    if isinstance(transformer, transformers.XLMRobertaModel):
        # RoBERTa's positions start behind the padding id.
        context_length = min(
            context_length,
            config.max_position_embeddings - config.pad_token_id - 1,
        )
    tokenizer, preprocessing = _tokenizer(auto, context_length, folder)

    def reference(input_ids: Tensor, attention_mask: Tensor) -> FloatArray:
        with torch.inference_mode():
            embedding: Tensor = original(input_ids, attention_mask)
        return embedding.numpy()

    def reference_encode(texts: Sequence[str]) -> FloatArray:
        tokens = auto(
            list(texts), padding=True, truncation=True, max_length=context_length, return_tensors="pt"
        )
        return reference(tokens["input_ids"], tokens["attention_mask"])

    return TextCheckpoint(
        name=name,
        embedding_dim=head.out_features,
        weights_sha256=_weights_sha256(transformer, head),
        preprocessing=preprocessing,
        tokenizer=tokenizer,
        reference=reference,
        reference_encode=reference_encode,
        build=lambda normalized: MeanPooledTextEncoder(transformer, head, _output(normalized)),
    )


def _tokenizer(tokenizer: Any, context_length: int, folder: Path) -> tuple[str, TextPreprocessing]:
    """`tokenizer.json` of a fast tokenizer; converted by transformers where only older files exist."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(f"{folder}: its tokenizer has no 'tokenizers' form")
    if tokenizer.padding_side != "right":
        raise ExportError(f"{folder}: it pads on the {tokenizer.padding_side}; supported is right")
    backend.no_padding()
    backend.no_truncation()
    definition = backend.to_str()
    return definition, TextPreprocessing(
        context_length=context_length,
        pad_token_id=tokenizer.pad_token_id,
        tokenizer_sha256=sha256(definition.encode("utf-8")),
    )


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what NumPy arrays of numbers are pickled with, and nothing else."""

    ADMITTED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy.core.numeric", "_frombuffer"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is no array")
        return super().find_class(module, name)


def _read_linear_head(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """M-CLIP's `[weight [in, out], bias [out]]`.

    Raises:
        ExportError: anything but two float arrays that fit each other.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
        weight, bias = content
        fits = (
            isinstance(weight, np.ndarray)
            and isinstance(bias, np.ndarray)
            and weight.dtype.kind == bias.dtype.kind == "f"
            and weight.ndim == 2
            and bias.shape == weight.shape[1:]
        )
    except Exception as error:
        # A hostile or damaged pickle can raise anything; none of its code has run.
        raise ExportError(f"{path}: refused, not a pickle of two arrays: {error}") from error
    if not fits:
        raise ExportError(f"{path}: refused, should hold a [in, out] weight and an [out] bias")
    return weight, bias


def _read_state_dict(folder: Path) -> dict[str, Tensor]:
    safe = folder / "model.safetensors"
    if safe.is_file():
        return load_file(safe)
    path = folder / "pytorch_model.bin"
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ExportError(f"{folder}: neither model.safetensors nor pytorch_model.bin") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ExportError(f"{path}: not a file of tensors: {error}") from error
    return state


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: not a readable checkpoint config: {error}") from error
    if not isinstance(content, dict):
        raise ExportError(f"{path}: {type(content).__name__}, should be an object")
    return content


def _weights_sha256(*modules: nn.Module) -> str:
    digest = hashlib.sha256()
    for number, module in enumerate(modules):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{number}.{name} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _output(normalized: bool) -> nn.Module:
    return L2Normalized() if normalized else Unnormalized()
