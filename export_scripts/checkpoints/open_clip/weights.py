"""open_clip's state dict, and what it holds in transformers' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from clipserve.encoder_spec import Score
from clipserve.errors import ExportError
from export_scripts.checkpoints.reading import first_names, read_state_dict

SAFE, PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"

IMAGE, TEXT = "visual.", "text."

# Masks and position ids that older checkpoints carry: no weights.
LEGACY = ("attn_mask", "text.attn_mask", "text.transformer.embeddings.position_ids")
SCALE, BIAS = "logit_scale", "logit_bias"


@dataclass(frozen=True)
class Weights:
    """A checkpoint's weights, float32.

    Attributes:
        folder: of the checkpoint.
        image, text: of each tower, by their names within it.
        score: see `EncoderSpec`.
    """

    folder: Path
    image: Mapping[str, Tensor]
    text: Mapping[str, Tensor]
    score: Score


def read_weights(folder: Path) -> Weights:
    """Reads a folder's weights.

    Raises:
        ExportError: there are none, or they are damaged.
    """
    state = {
        name.removeprefix("module."): tensor.float()
        for name, tensor in read_state_dict(folder, SAFE, PICKLED).items()
    }
    if SCALE not in state:
        raise ExportError(f"{folder}: weights are missing: {SCALE}")
    scale = float(state[SCALE].double().exp())
    score = Score("sigmoid", scale, float(state[BIAS].double())) if BIAS in state else Score("softmax", scale)
    towers = {name: tensor for name, tensor in state.items() if name not in (*LEGACY, SCALE, BIAS)}
    return Weights(
        folder,
        {name.removeprefix(IMAGE): tensor for name, tensor in towers.items() if name.startswith(IMAGE)},
        # Without `custom_text` the text tower's names begin with nothing.
        {name.removeprefix(TEXT): tensor for name, tensor in towers.items() if not name.startswith(IMAGE)},
        score,
    )


@dataclass(frozen=True)
class LayerNames:
    """Where a transformer's layers are in a state dict, and what is in each; `qkv` is one product of three.

    Attributes:
        scale1, scale2: LayerScale's factors of each width, where there are any.
    """

    layers: str
    norm1: str
    qkv_weight: str
    qkv_bias: str
    out: str
    norm2: str
    up: str
    down: str
    scale1: str
    scale2: str


OPEN_CLIP = LayerNames(
    "transformer.resblocks", "ln_1", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj", "ln_2",
    "mlp.c_fc", "mlp.c_proj", "ls_1.gamma", "ls_2.gamma",
)  # fmt: skip
TIMM = LayerNames(
    "trunk.blocks", "norm1", "attn.qkv.weight", "attn.qkv.bias", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2",
    "ls1.gamma", "ls2.gamma",
)  # fmt: skip


@dataclass(frozen=True)
class ModelNames:
    """Where a model of transformers has its layers, and what is called otherwise in each by another model."""

    layers: str
    norm1: str
    norm2: str
    out: str


CLIP_LIKE = ModelNames("encoder.layers", "layer_norm1", "layer_norm2", "out_proj")


class Renamed:
    """A tower's weights on their way to transformers' names; each is used once, and none is left over.

    Args:
        weights: of the tower.
        folder: of the checkpoint, for messages.
    """

    def __init__(self, weights: Mapping[str, Tensor], folder: Path):
        self._left = dict(weights)
        self._folder = folder
        self.state: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str) -> Tensor:
        """A weight.

        Raises:
            ExportError: there is no such one.
        """
        if name not in self._left:
            raise ExportError(f"{self._folder}: weights are missing: {name}")
        return self._left.pop(name)

    def move(self, names: Mapping[str, str]) -> None:
        """Modules, each of a weight and a bias; their new names by their old."""
        for old, new in names.items():
            for part in ("weight", "bias"):
                self.state[f"{new}.{part}"] = self.take(f"{old}.{part}")

    def move_layers(self, names: LayerNames, to: ModelNames = CLIP_LIKE) -> tuple[int, int]:
        """All layers, with LayerScale multiplied into the products that it stands behind.

        Returns:
            How many layers there are, and the width of their MLP.
        """
        count = len({name.split(".")[names.layers.count(".") + 1] for name in self._of(names.layers)})
        for number in range(count):
            old, new = f"{names.layers}.{number}", f"{to.layers}.{number}"
            self.move(
                {f"{old}.{names.norm1}": f"{new}.{to.norm1}", f"{old}.{names.norm2}": f"{new}.{to.norm2}"}
            )
            for part, name in (("weight", names.qkv_weight), ("bias", names.qkv_bias)):
                thirds = self.take(f"{old}.{name}").chunk(3)
                for which, third in zip("qkv", thirds, strict=True):
                    self.state[f"{new}.self_attn.{which}_proj.{part}"] = third
            self.move({f"{old}.{names.up}": f"{new}.mlp.fc1"})
            for module, moved, scale in (
                (names.out, f"self_attn.{to.out}", names.scale1),
                (names.down, "mlp.fc2", names.scale2),
            ):
                weight, bias = (self.take(f"{old}.{module}.{part}") for part in ("weight", "bias"))
                if f"{old}.{scale}" in self:
                    factors = self.take(f"{old}.{scale}")
                    weight, bias = factors[:, None] * weight, factors * bias
                self.state |= {f"{new}.{moved}.weight": weight, f"{new}.{moved}.bias": bias}
        return count, self.state[f"{to.layers}.0.mlp.fc1.weight"].shape[0] if count else 0

    def move_pooling(self, old: str, new: str) -> None:
        """Attention pooling as timm has it, in the names of SigLIP's."""
        self.state[f"{new}.probe"] = self.take(f"{old}.latent")
        for part in ("weight", "bias"):
            query, key_value = (self.take(f"{old}.{which}.{part}") for which in ("q", "kv"))
            self.state[f"{new}.attention.in_proj_{part}"] = torch.cat([query, key_value])
        self.move(
            {
                f"{old}.proj": f"{new}.attention.out_proj",
                f"{old}.norm": f"{new}.layernorm",
                f"{old}.mlp.fc1": f"{new}.mlp.fc1",
                f"{old}.mlp.fc2": f"{new}.mlp.fc2",
            }
        )

    def load_into(self, model: nn.Module) -> None:
        """Gives a model of transformers all that has been moved.

        Raises:
            ExportError: weights are left over, missing, or of other sizes.
        """
        if self._left:
            raise ExportError(
                f"{self._folder}: its weights do not fit its open_clip_config.json: not expected "
                f"{first_names(sorted(self._left))}"
            )
        try:
            model.load_state_dict(self.state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ExportError(
                f"{self._folder}: its weights do not fit its open_clip_config.json: {reason}"
            ) from error
        model.float().eval()

    def _of(self, prefix: str) -> Iterator[str]:
        return (name for name in self._left if name.startswith(f"{prefix}."))


def unbiased(weight: Tensor) -> Tensor:
    """The bias of a product that has none: zeros."""
    return torch.zeros(weight.shape[0])
