"""Loads a checkpoint pair: eager originals, with everything their specs need to say.

Weights come through the libraries' own loaders: sentence-transformers for its two layouts, transformers for
M-CLIP's. Names, cache and offline behaviour are the hub library's own.

| layout | told by | image | text |
|---|---|---|---|
| sentence-transformers CLIP | `modules.json` around a `CLIPModel` | yes | its own text tower |
| sentence-transformers text | `modules.json`: Transformer, Pooling, Dense | | yes |
| M-CLIP BERT | `config.json` of type `bert`, and a pickled linear head | | yes |
| M-CLIP XLM-R | `config.json` of type `M-CLIP` | | yes |

A last Normalize in the first two is taken off: whether an export normalises is said by its spec.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import tokenizers
import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from PIL import Image
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import Tensor, nn
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

from clipserve.encoder_spec import FloatArray, ImagePreprocessing, TextPreprocessing, sha256
from clipserve.errors import ExportError
from clipserve.tokens import Tokenizer, largest_token_id
from export_scripts.encoders.clip import (
    Architecture,
    ClipTextArchitecture,
    ClipTextEncoder,
    ImageEncoder,
    L2Normalized,
    MeanPooledTextEncoder,
    Unnormalized,
    check_supported,
    clip_text_architecture,
    image_architecture,
    mean_pooled_architecture,
)
from export_scripts.identity import (
    UNUSED_WEIGHTS,
    image_sha256,
    space_id,
    text_sha256,
    used_weights,
    weights_sha256,
)

DEMO = "demo"
DEMO_IMAGE = Path(__file__).parents[2] / "demo" / "checkpoint" / "clip"
DEMO_TEXT = Path(__file__).parents[2] / "demo" / "checkpoint" / "multilingual"

# On the hub, of the names without a slash.
DEFAULT_OWNER = "sentence-transformers/"

# The text encoder that a published image checkpoint is served with unless TEXT_MODEL says otherwise.
DEFAULT_TEXT_MODELS = {"clip-ViT-B-32": "clip-ViT-B-32-multilingual-v1"}

# Names under which OpenAI's checkpoints are published.
CLIP_B_32 = frozenset({"clip-vit-b-32", "clip-vit-base-patch32"})
CLIP_L_14 = frozenset({"clip-vit-l-14", "clip-vit-large-patch14"})

# The image checkpoints that published text encoders were trained for, as their model cards say; by the last
# part of their names in lower case. Equal size is not equal space.
TRAINED_FOR: dict[str, frozenset[str]] = {
    "clip-vit-b-32-multilingual-v1": CLIP_B_32,
    "m-bert-base-vit-b": CLIP_B_32,
    "xlm-roberta-large-vit-b-32": CLIP_B_32,
    "xlm-roberta-large-vit-l-14": CLIP_L_14,
    "labse-vit-l-14": CLIP_L_14,
    "xlm-roberta-large-vit-b-16plus": frozenset({"clip-vit-b-16-plus-240", "vit-b-16-plus-240"}),
}

# Formats of the same weights that are never read here.
UNUSED_FILES = ["onnx/*", "openvino/*", "*.h5", "*.msgpack", "*.ot"]
PICKLED = "pytorch_model*.bin"

M_CLIP_TYPE = "M-CLIP"

# What M-CLIP's linear heads may be made of, as NumPy writes it.
FLOAT_CODES = ("f2", "f4", "f8")

TOKENIZER_JSON, SENTENCEPIECE = "tokenizer.json", "sentencepiece.bpe.model"
VOCABULARY_FILES = (TOKENIZER_JSON, "vocab.txt", "vocab.json", SENTENCEPIECE)


@dataclass(frozen=True)
class ImageCheckpoint:
    """The image side of a pair.

    Attributes:
        name: as given by the user, or the folder's name.
        embedding_dim: length of an embedding.
        logit_scale: exponentiated.
        weights_sha256: of the weights that the encoder reads.
        checkpoint_sha256: see `EncoderSpec`.
        reference: the eager original: pictures to un-normalised float32 `[N, D]`.
        build: makes the traceable encoder, float32; `normalized` as in the spec.
    """

    name: str
    embedding_dim: int
    logit_scale: float
    weights_sha256: str
    checkpoint_sha256: str
    preprocessing: ImagePreprocessing
    reference: Callable[[Sequence[Image.Image]], FloatArray]
    build: Callable[[bool], nn.Module]


@dataclass(frozen=True)
class TextCheckpoint:
    """The text side of a pair.

    Attributes:
        name: as given by the user, or the folder's name.
        embedding_dim: length of an embedding.
        weights_sha256: of the weights that the encoder reads.
        checkpoint_sha256: see `EncoderSpec`.
        image_weights_sha256: `ImageCheckpoint.weights_sha256` of the image encoder in the same checkpoint;
            None where it has none.
        tokenizer: text of its `tokenizer.json`.
        reference: the eager original on tokens: `input_ids`, `attention_mask` to un-normalised `[N, D]`.
        reference_encode: the eager original on texts, with the checkpoint's own tokenizer.
        build: makes the traceable encoder, float32; `normalized` as in the spec.
    """

    name: str
    embedding_dim: int
    weights_sha256: str
    checkpoint_sha256: str
    image_weights_sha256: str | None
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
        """See `EncoderSpec.space_id`."""
        return space_id(self.image.checkpoint_sha256, self.text.checkpoint_sha256)

    @property
    def doubt(self) -> str | None:
        """One sentence where the two, though of one size, are known to be trained for others; else None.

        A CLIP's text tower belongs to its own image encoder, which is compared by its weights. Others are
        known by name only.
        """
        trained_for = TRAINED_FOR.get(_last_part(self.text.name))
        if self.text.image_weights_sha256 not in (None, self.image.weights_sha256):
            reason = f"was trained beside an image encoder of other weights than {self.image.name}"
        elif trained_for is not None and _last_part(self.image.name) not in trained_for:
            reason = (
                f"was trained for {' or '.join(sorted(trained_for))}, and the image encoder is called "
                f"{self.image.name}"
            )
        else:
            return None
        return (
            f"{self.text.name} {reason}: equal size is not equal space, and similarities may mean nothing; "
            "name the TEXT_MODEL of this image encoder"
        )


def load_pair(model: str, text_model: str | None = None) -> CheckpointPair:
    """Loads a pair.

    Args:
        model: `demo`, a name on the hub, or a folder: a CLIP checkpoint.
        text_model: likewise, a text checkpoint. Without it `DEFAULT_TEXT_MODELS` decides, else the CLIP
            checkpoint's own text tower.

    Raises:
        ExportError: a checkpoint cannot be had, is of no supported layout, or the two do not pair.
    """
    model = _short(model)
    text_model = _short(text_model) if text_model else DEFAULT_TEXT_MODELS.get(model, model)
    image = load_image_checkpoint(_folder(model, DEMO_IMAGE), _name(model))
    text = load_text_checkpoint(_folder(text_model, DEMO_TEXT), _name(text_model))
    if image.embedding_dim != text.embedding_dim:
        raise ExportError(
            f"{model} gives {image.embedding_dim}-d embeddings and {text.name} {text.embedding_dim}-d "
            "ones: they are no pair; name a TEXT_MODEL trained for this image encoder"
        )
    return CheckpointPair(model_id_of(model), image, text)


def model_id_of(model: str) -> str:
    """`EncoderSpec.model_id` of a pair whose image checkpoint is given so."""
    # Letters, digits, dots and dashes: it becomes part of file names.
    return re.sub(r"[^\w.-]+", "-", _name(_short(model)))


def _short(given: str) -> str:
    """A name on the hub without its default owner: both ways to write it are one. A folder as given."""
    return given if Path(given).is_dir() else given.removeprefix(DEFAULT_OWNER)


def _last_part(name: str) -> str:
    """Of a name on the hub, in lower case."""
    return name.rpartition("/")[2].lower()


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
    return hub_folder(name if "/" in name else DEFAULT_OWNER + name)


def hub_folder(name: str, *, only: str | None = None) -> Path:
    """The folder of a hub repository in the hub's cache; with `only` this one file of it is fetched.

    Raises:
        ExportError: there is no such repository, or it is out of reach and not in the cache.
    """
    unused = UNUSED_FILES
    try:
        if only is None:
            folder = Path(snapshot_download(name, ignore_patterns=[*UNUSED_FILES, f"*{PICKLED}"]))
            # Of weights that lie there twice, safetensors are read; a pickle is fetched where it is alone.
            safe = {path.parent.relative_to(folder) for path in folder.rglob("*.safetensors")}
            unused = [*UNUSED_FILES, *sorted((parent / PICKLED).as_posix() for parent in safe)]
        return Path(snapshot_download(name, ignore_patterns=unused, allow_patterns=only))
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
    _check_clip_modules(model, folder)
    # transformers types its configurations and submodules too loosely to check.
    config: Any = clip.config
    inner: Any = model[0]
    architecture, weights = image_architecture(clip), _image_weights_sha256(clip)
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
        weights_sha256=weights,
        checkpoint_sha256=image_sha256(architecture, weights, preprocessing),
        preprocessing=preprocessing,
        reference=reference,
        build=lambda normalized: ImageEncoder(clip, architecture, preprocessing, _output(normalized)),
    )


def _image_weights_sha256(clip: transformers.CLIPModel) -> str:
    return weights_sha256(used_weights(clip.vision_model, clip.visual_projection))


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
    """A checkpoint as sentence-transformers loads it, in float32, without a last Normalize."""
    with _in_our_words(folder, "sentence-transformers cannot load it"):
        _check_sentencepiece(folder / _first_module_path(folder))
        # A configuration that names a half precision would round float32 weights.
        model = SentenceTransformer(
            str(folder), device="cpu", local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
        inner: Any = getattr(model[0], "model", None)
        if isinstance(inner, transformers.PreTrainedModel):
            check_supported(inner)
            _check_complete(type(inner), folder / _first_module_path(folder))
    prompt = model.prompts.get(model.default_prompt_name or "")
    if prompt:
        raise ExportError(
            f"{folder}: its default prompt {prompt!r} is put before every text, which is not supported; "
            "put it before texts yourself, and set default_prompt_name to null in "
            "config_sentence_transformers.json"
        )
    last: Any = model[-1]
    if isinstance(last, Normalize) and _on_embeddings(last):
        model.pop(-1)
    return model.float().eval()


def _on_embeddings(module: Any) -> bool:
    """Whether a module of sentence-transformers works on the embedding of a text, in place."""
    return {module.module_input_name, module.module_output_name} == {"sentence_embedding"}


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
        raise ExportError(f"{folder}: weights are missing: {_first(missing)}")
    _check_vocabulary(folder)


def _check_vocabulary(folder: Path) -> None:
    if not any((folder / name).is_file() for name in VOCABULARY_FILES):
        raise ExportError(f"{folder}: no tokenizer; it should have one of {', '.join(VOCABULARY_FILES)}")


def _check_sentencepiece(folder: Path) -> None:
    """Checks that a SentencePiece model that stands alone can be converted.

    transformers takes one that it cannot read for a tiktoken file, and asks for that library.

    Raises:
        ExportError: the library is not installed, or the file is no such model.
    """
    path = folder / SENTENCEPIECE
    if not path.is_file() or (folder / TOKENIZER_JSON).is_file():
        return
    if not (is_sentencepiece_available() and is_protobuf_available()):
        raise ExportError(
            f"{path}: the packages sentencepiece and protobuf are needed to convert this tokenizer; run "
            "'pip install sentencepiece protobuf', or put its tokenizer.json beside it"
        )
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise ExportError(f"{path}: not a SentencePiece model") from error


def _clip(model: SentenceTransformer) -> transformers.CLIPModel | None:
    inner = getattr(model[0], "model", None)
    return inner if isinstance(inner, transformers.CLIPModel) else None


def _check_clip_modules(model: SentenceTransformer, folder: Path) -> None:
    if len(model) != 1:
        names = ", ".join(type(module).__name__ for module in model)
        raise ExportError(f"{folder}: modules {names}; supported behind a CLIP is Normalize only")


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
    crop = list(dict(processor.crop_size or {}).values())
    # Of a smaller picture the original crops beyond the edge, in black.
    resized = edge is not None and edge >= max(crop, default=0)
    if missing or not resized or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise ExportError(
            f"{folder}: preprocessing other than CLIP's own is not supported (missing: {missing}, size: "
            f"{dict(processor.size)}, crop: {crop}, rescale_factor: {processor.rescale_factor})"
        )
    return ImagePreprocessing(
        shortest_edge=edge,
        crop_height=processor.crop_size["height"],
        crop_width=processor.crop_size["width"],
        resample=_resample(processor.resample, folder),
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )


def _resample(number: Any, folder: Path) -> str:
    try:
        return Image.Resampling(int(number)).name.lower()
    except (TypeError, ValueError) as error:
        raise ExportError(
            f"{folder}: resample {number!r} is none of Pillow's filters, which are numbers"
        ) from error


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
    original = _clip_text_tower(model, clip, folder) if clip else _transformer_and_dense(model, folder)
    context_length = min(_limit(model.max_seq_length), original.positions)
    # Some say no length, or one beyond the positions, of which the original would raise.
    model.max_seq_length = context_length
    return _text_checkpoint(
        name, original, model.tokenizer, context_length, folder, reference, reference_encode
    )


@dataclass(frozen=True)
class _TextOriginal:
    """What a text checkpoint has, whatever its layout.

    Attributes:
        architecture: see `export_scripts.encoders`.
        weights: see `used_weights`.
        embedding_dim: length of an embedding.
        vocabulary_size: rows of the embedding table.
        positions: the most tokens that there are positions for.
        image_weights_sha256, build: see `TextCheckpoint`.
    """

    architecture: Architecture
    weights: dict[str, Tensor]
    embedding_dim: int
    vocabulary_size: int
    positions: int
    image_weights_sha256: str | None
    build: Callable[[bool], nn.Module]


def _text_checkpoint(
    name: str,
    original: _TextOriginal,
    tokenizer: Any,
    context_length: int,
    folder: Path,
    reference: Callable[[Tensor, Tensor], FloatArray],
    reference_encode: Callable[[Sequence[str]], FloatArray],
) -> TextCheckpoint:
    definition, preprocessing = _tokenizer(tokenizer, context_length, original.vocabulary_size, folder)
    architecture = original.architecture
    if isinstance(architecture, ClipTextArchitecture):
        end_token = _end_token(architecture.end_token, definition, preprocessing, folder)
        architecture = replace(architecture, end_token=end_token)
    weights = weights_sha256(original.weights)
    return TextCheckpoint(
        name=name,
        embedding_dim=original.embedding_dim,
        weights_sha256=weights,
        checkpoint_sha256=text_sha256(architecture, weights, preprocessing, definition),
        image_weights_sha256=original.image_weights_sha256,
        preprocessing=preprocessing,
        tokenizer=definition,
        reference=reference,
        reference_encode=reference_encode,
        build=original.build,
    )


def _clip_text_tower(model: SentenceTransformer, clip: transformers.CLIPModel, folder: Path) -> _TextOriginal:
    _check_clip_modules(model, folder)
    config: Any = clip.config
    architecture = clip_text_architecture(clip)
    return _TextOriginal(
        architecture=architecture,
        weights=used_weights(clip.text_model, clip.text_projection),
        embedding_dim=config.projection_dim,
        vocabulary_size=_vocabulary_size(clip.text_model),
        positions=config.text_config.max_position_embeddings,
        image_weights_sha256=_image_weights_sha256(clip),
        build=lambda normalized: ClipTextEncoder(clip, architecture, _output(normalized)),
    )


def _transformer_and_dense(model: SentenceTransformer, folder: Path) -> _TextOriginal:
    modules: list[Any] = list(model)
    kinds = [type(module) for module in modules]
    if kinds != [Transformer, Pooling, Dense]:
        names = ", ".join(kind.__name__ for kind in kinds)
        raise ExportError(
            f"{folder}: modules {names}; supported are Transformer, Pooling, Dense, and Normalize behind them"
        )
    transformer, pooling, dense = modules
    if pooling.pooling_mode != "mean":
        raise ExportError(f"{folder}: pooling {pooling.pooling_mode!r}; supported is 'mean'")
    if not isinstance(dense.activation_function, nn.Identity):
        activation = type(dense.activation_function).__name__
        raise ExportError(f"{folder}: Dense with activation {activation}; supported is Identity")
    if dense.use_residual or not _on_embeddings(dense):
        raise ExportError(
            f"{folder}: Dense with use_residual {dense.use_residual}, from {dense.module_input_name} to "
            f"{dense.module_output_name}; supported is one without, on sentence_embedding"
        )
    return _mean_pooled(transformer.model, dense.linear)


def _mean_pooled(transformer: transformers.PreTrainedModel, head: nn.Linear) -> _TextOriginal:
    config: Any = transformer.config
    architecture = mean_pooled_architecture(transformer)
    positions = config.max_position_embeddings
    if architecture.padding_id is not None:
        # RoBERTa's positions start behind the padding id: of 514 it uses 512.
        positions -= architecture.padding_id + 1
    return _TextOriginal(
        architecture=architecture,
        weights=used_weights(transformer, head),
        embedding_dim=head.out_features,
        vocabulary_size=_vocabulary_size(transformer),
        positions=positions,
        image_weights_sha256=None,
        build=lambda normalized: MeanPooledTextEncoder(transformer, architecture, head, _output(normalized)),
    )


def _vocabulary_size(transformer: Any) -> int:
    """Rows of the embedding table."""
    rows: int = transformer.get_input_embeddings().num_embeddings
    return rows


def _limit(max_length: Any) -> int:
    """The most tokens that a tokenizer or a sentence-transformers configuration admits; None is no limit."""
    return sys.maxsize if max_length is None else int(max_length)


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
        transformer = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
        check_supported(transformer)
        _check_complete(type(transformer), folder)
    if weight.shape[0] != transformer.config.hidden_size:
        raise ExportError(
            f"{heads[0]}: takes {weight.shape[0]} numbers, the transformer gives "
            f"{transformer.config.hidden_size}; the two are no pair"
        )
    head = nn.Linear(weight.shape[0], weight.shape[1])
    head.weight = nn.Parameter(torch.from_numpy(weight.T.astype(np.float32).copy()))
    head.bias = nn.Parameter(torch.from_numpy(bias.astype(np.float32).copy()))
    return _m_clip(folder, name, transformer, head)


def _load_m_clip_xlm_roberta(folder: Path, name: str, config: dict[str, Any]) -> TextCheckpoint:
    with _in_our_words(folder, "its weights do not fit its config.json"):
        base = folder / config["modelBase"]
        base_config = transformers.AutoConfig.from_pretrained(
            base if base.is_dir() else _folder_of_base(config["modelBase"])
        )
        transformer = transformers.AutoModel.from_config(base_config, dtype=torch.float32)
        check_supported(transformer)
        head = nn.Linear(config["transformerDimensions"], config["numDims"])
        container = nn.ModuleDict({"transformer": transformer, "LinearTransformation": head})
        found = container.load_state_dict(_read_state_dict(folder), strict=False)
        missing = [key for key in found.missing_keys if not key.startswith(f"transformer.{UNUSED_WEIGHTS}")]
        # Older files carry position ids, which are no weights.
        strange = [key for key in found.unexpected_keys if not key.endswith(".position_ids")]
        if missing or strange:
            raise ExportError(
                f"{folder}: its weights do not fit its config.json: missing {_first(missing)}, not expected "
                f"{_first(strange)}"
            )
    return _m_clip(folder, name, transformer, head)


def _first(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])} ({len(names)} in all)" if names else "none"


def _folder_of_base(name: str) -> Path:
    repository = name if "/" in name else f"FacebookAI/{name}"
    # Its weights are in the checkpoint itself.
    return hub_folder(repository, only="config.json")


def _m_clip(
    folder: Path, name: str, transformer: transformers.PreTrainedModel, head: nn.Linear
) -> TextCheckpoint:
    transformer.float().eval()
    head.eval()
    original, eager = _mean_pooled(transformer, head), _MeanPoolingOriginal(transformer, head)
    _check_vocabulary(folder)
    _check_sentencepiece(folder)
    with _in_our_words(folder, "transformers cannot load its tokenizer"):
        auto = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    context_length = min(_limit(auto.model_max_length), original.positions)

    def reference(input_ids: Tensor, attention_mask: Tensor) -> FloatArray:
        with torch.inference_mode():
            embedding: Tensor = eager(input_ids, attention_mask)
        return embedding.numpy()

    def reference_encode(texts: Sequence[str]) -> FloatArray:
        tokens = auto(
            list(texts), padding=True, truncation=True, max_length=context_length, return_tensors="pt"
        )
        return reference(tokens["input_ids"], tokens["attention_mask"])

    return _text_checkpoint(name, original, auto, context_length, folder, reference, reference_encode)


def _tokenizer(
    tokenizer: Any, context_length: int, vocabulary_size: int, folder: Path
) -> tuple[str, TextPreprocessing]:
    """`tokenizer.json` of a fast tokenizer; converted by transformers where only older files exist."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(f"{folder}: its tokenizer has no 'tokenizers' form")
    for setting, supported in (
        ("padding_side", "right"),
        ("truncation_side", "right"),
        # Steers the library from outside: the tokenizer's own definition does not say it.
        ("split_special_tokens", False),
    ):
        if getattr(tokenizer, setting, supported) != supported:
            raise ExportError(
                f"{folder}: {setting} {getattr(tokenizer, setting)!r} in tokenizer_config.json; supported is "
                f"{supported}"
            )
    backend.no_padding()
    backend.no_truncation()
    special = backend.num_special_tokens_to_add(False)
    if context_length <= special:
        raise ExportError(
            f"{folder}: a length of {context_length} tokens (max_seq_length or model_max_length), of which "
            f"{special} are special ones, leaves no room for a text"
        )
    if tokenizer.pad_token_id is None:
        raise ExportError(f"{folder}: its tokenizer has no padding token; name it in tokenizer_config.json")
    largest = max(largest_token_id(backend), tokenizer.pad_token_id)
    if largest >= vocabulary_size:
        raise ExportError(
            f"{folder}: the tokenizer's largest token id is {largest} "
            f"({backend.id_to_token(largest)!r}), the embedding table has {vocabulary_size} rows: a text "
            "with that token would fail; resize the table (resize_token_embeddings) or take the token out"
        )
    definition = backend.to_str()
    return definition, TextPreprocessing(
        context_length=context_length,
        vocabulary_size=vocabulary_size,
        pad_token_id=tokenizer.pad_token_id,
        tokenizer_sha256=sha256(definition.encode("utf-8")),
    )


def _end_token(
    end_token: int | None, definition: str, preprocessing: TextPreprocessing, folder: Path
) -> int | None:
    """The token at which a CLIP's text tower is pooled, for its identity.

    Where the highest id of the vocabulary ends a text, pooling at the highest id is pooling there: published
    configurations of the same checkpoint name one or the other.

    Returns:
        As in `ClipTextArchitecture`.

    Raises:
        ExportError: it is not where the tokenizer ends a text. The original would give embeddings, and of all
            texts nearly the same: that of their first token.
    """
    ids = Tokenizer(definition, preprocessing).tokenize("a").ids
    pooled = ids.index(max(ids)) if end_token is None else ids.index(end_token) if end_token in ids else -1
    if pooled != len(ids) - 1 or (end_token is None and preprocessing.pad_token_id > ids[-1]):
        rule = "the highest token id" if end_token is None else f"token {end_token}"
        raise ExportError(
            f"{folder}: it pools at {rule} (eos_token_id of text_config), and its tokenizer ends a text with "
            f"token {ids[-1]} and pads with {preprocessing.pad_token_id}; the two are no pair"
        )
    ends_at_highest = largest_token_id(tokenizers.Tokenizer.from_str(definition)) == ids[-1]
    return ids[-1] if ends_at_highest else end_token


class _Dtype:
    """Stands for `numpy.dtype` while a linear head is unpickled: a float's size and byte order."""

    def __init__(self, code: object, *flags: object):
        if code not in FLOAT_CODES:
            raise pickle.UnpicklingError(f"numbers of type {str(code)[:20]!r}, which are no floats")
        self.name = f"<{code}"

    def __setstate__(self, state: object) -> None:
        # (version, byte order, ...): NumPy's own would take from here flags, offsets and what an item is.
        if not isinstance(state, tuple) or state[1:2] not in (("<",), (">",)):
            raise pickle.UnpicklingError("a type of numbers with more than a byte order")
        self.name = state[1] + self.name[1:]


class _Array:
    """Stands for `numpy.ndarray` while a linear head is unpickled: a dtype, a shape and bytes."""

    def __init__(self, *of: object):
        """Of `_reconstruct`'s arguments, which say nothing."""
        self.value: npt.NDArray[Any] | None = None

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array that is not in NumPy's form")
        _, shape, dtype, column_major, data = state
        self.fill(data, dtype, shape, "F" if column_major else "C")

    def fill(self, data: object, dtype: object, shape: object, order: object) -> None:
        """Takes contents that fit each other, and copies them."""
        if not (
            isinstance(data, bytes)
            and isinstance(dtype, _Dtype)
            and isinstance(shape, tuple)
            and all(type(edge) is int and edge >= 0 for edge in shape)
            and len(shape) <= 3
            and order in ("C", "F")
        ):
            raise pickle.UnpicklingError("an array that is not a shape and bytes of floats")
        numbers = np.frombuffer(data, np.dtype(dtype.name))
        if math.prod(shape) != numbers.size:
            raise pickle.UnpicklingError(f"{numbers.size} numbers for shape {shape}")
        self.value = numbers.reshape(shape, order="F" if order == "F" else "C")


def _from_buffer(data: object, dtype: object, shape: object, order: object, *axes: object) -> _Array:
    """Stands for NumPy's `_frombuffer`, of pickle protocol 5."""
    if any(axis is not None for axis in axes):
        raise pickle.UnpicklingError("an array with its axes in another order")
    array = _Array()
    array.fill(data, dtype, shape, order)
    return array


def _encode(text: object, encoding: object) -> bytes:
    """Stands for `_codecs.encode`, with which protocols 0 to 2 write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("bytes that are not written as latin1")
    return text.encode("latin1")


# Pure Python: the compiled one reserves memory for places that a few bytes announce.
class _ArrayUnpickler(pickle._Unpickler):
    """Knows what NumPy arrays of floats are pickled with, by stand-ins of its own, and nothing else.

    None of NumPy's own functions runs on what a file says: their `__setstate__` trusts it with pointers.
    """

    STAND_INS: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.numeric", "_frombuffer"): _from_buffer,
        ("numpy.core.numeric", "_frombuffer"): _from_buffer,
        ("_codecs", "encode"): _encode,
    }

    # Bytes, which are read and so bounded by the file: a bytearray is made as long as announced.
    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
    }

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in.

        Raises:
            UnpicklingError: there is none.
        """
        try:
            return self.STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, which is no array") from None


def _read_linear_head(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """M-CLIP's `[weight [in, out], bias [out]]`, floats of 2, 4 or 8 bytes.

    Raises:
        ExportError: anything but two float arrays that fit each other.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
    except Exception as error:
        # A hostile or damaged pickle can raise anything; none of its code has run.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportError(f"{path}: refused, not a pickle of two arrays: {reason}") from error
    items = content if isinstance(content, list | tuple) else ()
    arrays = [item.value for item in items if isinstance(item, _Array) and item.value is not None]
    if not len(items) == len(arrays) == 2:
        raise ExportError(f"{path}: refused, not a pickle of two arrays")
    weight, bias = arrays
    if weight.ndim != 2 or bias.shape != weight.shape[1:]:
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


def _output(normalized: bool) -> nn.Module:
    return L2Normalized() if normalized else Unnormalized()
