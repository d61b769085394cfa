"""What an `open_clip_config.json` may say: each value is obeyed, known to change no vector, or refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipserve.errors import ExportError
from export_scripts.checkpoints.reading import read_json

CONFIG = "open_clip_config.json"

# Of open_clip's own attention blocks, which no published configuration has.
PLAIN_BLOCKS: Mapping[str, Any] = {
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "output_tokens": False,
}


@dataclass(frozen=True)
class Section:
    """One section of a configuration.

    Attributes:
        path: names it in messages, such as `…/open_clip_config.json: vision_cfg`.
        values: what it says.
    """

    path: str
    values: Mapping[str, Any]

    def read(
        self, obeyed: Mapping[str, Any], fixed: Mapping[str, Any], unused: Collection[str] = ()
    ) -> dict[str, Any]:
        """The values that are obeyed.

        Args:
            obeyed: these, with open_clip's defaults.
            fixed: those that are supported at one value only.
            unused: those that no vector depends on.

        Raises:
            ExportError: another value, or one that nobody knows.
        """
        for name, value in self.values.items():
            if name in fixed and value != fixed[name]:
                raise self.refusal(name, fixed[name])
            if name not in {*obeyed, *fixed, *unused}:
                raise ExportError(
                    f"{self.path}: {name} {value!r} is not known here: it can be neither obeyed nor left out"
                )
        return {name: self.values.get(name, default) for name, default in obeyed.items()}

    def refusal(self, name: str, *supported: Any) -> ExportError:
        """Of the value that it has under a name."""
        return ExportError(
            f"{self.path}: {name} {self.values.get(name)!r} is not supported; supported is "
            f"{' or '.join(map(repr, supported))}"
        )


@dataclass(frozen=True)
class Config:
    """A configuration.

    Attributes:
        folder: of the checkpoint.
        embedding_dim: length of an embedding.
        quick_gelu: whether open_clip's own towers have OpenAI's approximation of GELU.
        vision, text, preprocessing: its sections.
    """

    folder: Path
    embedding_dim: int
    quick_gelu: bool
    vision: Section
    text: Section
    preprocessing: Section

    @property
    def edge(self) -> int:
        """Height and width of the pictures, pixels.

        Raises:
            ExportError: they are not square.
        """
        size: Any = self.vision.values.get("image_size", 224)
        edges = set(size) if isinstance(size, list) else {size}
        if len(edges) != 1 or not all(isinstance(edge, int) for edge in edges):
            raise self.vision.refusal("image_size", "a number")
        return int(edges.pop())


def matches(folder: Path) -> bool:
    """Whether a folder has this layout, whatever else it has: the model was trained so."""
    return (folder / CONFIG).is_file()


def read_config(folder: Path) -> Config:
    """Reads a folder's configuration.

    Raises:
        ExportError: missing, damaged, or it says what nobody knows.
    """
    path = folder / CONFIG
    content = read_json(path)
    whole = Section(str(path), content)
    whole.read({"model_cfg": {}, "preprocess_cfg": {}}, {})
    model = _section(whole, "model_cfg")
    if "multimodal_cfg" in model.values:
        raise ExportError(
            f"{path}: a CoCa (multimodal_cfg) is not supported: its text encoder has a class token at its "
            "end, and a decoder for captions that embeds nothing; take a CLIP of the same data"
        )
    known = model.read(
        {"embed_dim": None, "quick_gelu": False},
        {"nonscalar_logit_scale": False},
        # Sections, how names of weights begin, and what weights once began with.
        ("vision_cfg", "text_cfg", "custom_text", "init_logit_scale", "init_logit_bias"),
    )
    if not isinstance(known["embed_dim"], int):
        raise model.refusal("embed_dim", "a number")
    return Config(
        folder,
        known["embed_dim"],
        bool(known["quick_gelu"]),
        _section(model, "vision_cfg"),
        _section(model, "text_cfg"),
        _section(whole, "preprocess_cfg"),
    )


def _section(outer: Section, name: str) -> Section:
    values = outer.values.get(name, {})
    if not isinstance(values, dict):
        raise ExportError(f"{outer.path}: {name} is no object")
    return Section(f"{outer.path.removesuffix(': model_cfg')}: {name}", values)


def check_timm(section: Section, *, pool: str, proj: str | None) -> None:
    """Checks what a configuration says of a tower of timm's beside its name.

    Args:
        pool, proj: the values of `timm_pool` and `timm_proj` that are supported.

    Raises:
        ExportError: it says something else.
    """
    said = section.read(
        {"timm_pool": "avg", "timm_proj": "linear"},
        {},
        (
            "timm_model_name", "image_size", "timm_model_pretrained", "timm_drop", "timm_drop_path",
            "timm_proj_bias", "patch_dropout",
        ),
    )  # fmt: skip
    for setting, supported in (("timm_pool", pool), ("timm_proj", proj)):
        if said[setting] != supported:
            raise section.refusal(setting, supported)


def activation(section: Section, quick_gelu: bool, act_kwargs: Mapping[str, Any] | None) -> str:
    """In transformers' names.

    Raises:
        ExportError: another one.
    """
    if not act_kwargs:
        return "quick_gelu" if quick_gelu else "gelu"
    if quick_gelu or act_kwargs != {"approximate": "tanh"}:
        raise section.refusal("act_kwargs", None, {"approximate": "tanh"})
    return "gelu_pytorch_tanh"


def norm_eps(section: Section, norm_kwargs: Mapping[str, Any] | None) -> float:
    """Of layer norms.

    Raises:
        ExportError: they are otherwise special.
    """
    found = {"eps": 1e-5} | dict(norm_kwargs or {})
    if found.keys() != {"eps"}:
        raise section.refusal("norm_kwargs", None, {"eps": 1e-6})
    return float(found["eps"])
