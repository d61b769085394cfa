"""Trains the demo's CLIP pair on drawn pictures: `python -m demo.train`.

The originals' recipe in small. First a *teacher*, a CLIP whose two towers learn from pairs of a freshly
drawn picture and an English caption. Then a *student*, a DistilBERT that learns to put captions in 40
languages where the teacher puts the English ones. Both are written as the sentence-transformers hub
lays out `clip-ViT-B-32` and `clip-ViT-B-32-multilingual-v1`. Scenes that the world holds out are neither
drawn nor captioned.

A run that was stopped goes on from its last checkpoint in the work folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import string
from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    DistilBertConfig,
    DistilBertModel,
    DistilBertTokenizer,
    PreTrainedModel,
    get_cosine_schedule_with_warmup,
)
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from clipserve.command import run_command
from demo.captions import Vocabulary, load_vocabularies
from demo.scenes import draw
from demo.world import RUNNING_EXAMPLE, Scene, all_scenes

ROOT = Path(__file__).parent
IMAGE_SIZE = 112  # pixels; three things in a row are then two patches wide each
EMBEDDING = 512
MAX_TOKENS = {"teacher": 77, "student": 128}
CHECKPOINT_EVERY = 100  # steps

Batch = TypeVar("Batch")


# --- captions --------------------------------------------------------------------------------------


def trained_scenes() -> list[Scene]:
    """The scenes that are not held out, in the world's order."""
    return [scene for scene in all_scenes() if not scene.held_out]


def caption(vocabulary: Vocabulary, scene: Scene, rng: Random) -> str:
    """One of the ways to say `scene`: any wording, at times as "a picture of", at times capitalised."""
    if scene in RUNNING_EXAMPLE and rng.random() < 0.25:
        return vocabulary.example[RUNNING_EXAMPLE.index(scene)]
    text = rng.choice(vocabulary.captions(scene))
    if scene.thing is not None and rng.random() < 0.25:
        text = rng.choice(vocabulary.picture_of).format(text)
    return capitalised(text, vocabulary.code) if rng.random() < 0.5 else text


def capitalised(text: str, code: str) -> str:
    """`text` with a capital first letter, which is a dotted one for Turkish and Azerbaijani i."""
    dotted = code in ("tr", "az") and text[0] == "i"
    return ("İ" if dotted else text[0].upper()) + text[1:]


# --- tokenizers --------------------------------------------------------------------------------------


def train_english_tokenizer(folder: Path) -> None:
    """Writes CLIP's `vocab.json` and `merges.txt` for a byte-level BPE of the English captions."""
    english = load_vocabularies()["en"]
    texts = [text for scene in trained_scenes() for text in english.captions(scene)]
    tokenizer = CLIPTokenizer().backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator([*texts, *english.phrases()], trainer)
    merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    # As in CLIP, every byte is a token both inside and at the end of a word, so that any text has one.
    tokens = [*alphabet, *(byte + "</w>" for byte in alphabet), *map("".join, merges)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    specials = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    _write_json(folder / "special_tokens_map.json", specials)
    more = {"model_max_length": MAX_TOKENS["teacher"], "tokenizer_class": "CLIPTokenizer"}
    _write_json(folder / "tokenizer_config.json", {**specials, **more})


def train_multilingual_tokenizer(folder: Path) -> None:
    """Writes a WordPiece tokenizer of all languages' captions in DistilBERT's files.

    Capitals carry no meaning in captions, so lower-casing keeps the vocabulary small. Accents stay: without
    them Hindi, Bengali and Thai would lose their vowel signs and Vietnamese its tones.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.BertNormalizer(lowercase=True, strip_accents=False)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rng = Random(0)
    texts = []
    for vocabulary in load_vocabularies().values():
        if vocabulary.code == "th":
            # Thai puts no spaces between words, so that whole captions would become tokens. A phrase
            # comes alone and behind a letter instead, to be learnt as a word's head and as its tail.
            phrases = [p for p in vocabulary.phrases() if p not in vocabulary.example]
            texts += [*phrases, *("x" + phrase for phrase in phrases)]
        else:
            texts += vocabulary.phrases()
            texts += [caption(vocabulary, s, rng) for s in trained_scenes() for _ in range(8)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=7000, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocab = tokenizer.get_vocab()
    # Every letter can begin and continue a word, so that free text has few unknown words.
    letters = sorted({*"".join(texts).lower(), *string.ascii_lowercase, *string.digits, "İ".lower()[1]})
    both = [form for letter in letters if letter.strip() for form in (letter, "##" + letter)]
    tokens = dict.fromkeys([*sorted(vocab, key=lambda token: vocab[token]), *both])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*tokens, ""]), encoding="utf-8")
    DistilBertTokenizer(
        str(folder / "vocab.txt"), do_lower_case=True, strip_accents=False,
        model_max_length=MAX_TOKENS["student"],
    ).save_pretrained(folder)  # fmt: skip


# --- models ------------------------------------------------------------------------------------------


def new_teacher(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP of 3.2 million parameters."""
    tokens = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3,
            "num_attention_heads": 2, "max_position_embeddings": MAX_TOKENS["teacher"]}  # fmt: skip
    vision = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 5,
              "num_attention_heads": 3, "image_size": IMAGE_SIZE, "patch_size": 16}  # fmt: skip
    model = CLIPModel(
        CLIPConfig(
            text_config={**text, **tokens, "projection_dim": EMBEDDING},
            vision_config={**vision, "projection_dim": EMBEDDING},
            projection_dim=EMBEDDING,
        )
    )
    # On a CPU and at these lengths the fused kernel's backward pass takes a third of all time.
    model.set_attn_implementation("eager")
    return model


class Student(nn.Module):
    """DistilBERT, the mean over its tokens, and a linear map into the teacher's space."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        # No dropout: the task is to hit given points, and wordings vary enough by themselves.
        config = DistilBertConfig(
            vocab_size=vocab_size, max_position_embeddings=MAX_TOKENS["student"], dim=192,
            hidden_dim=768, n_layers=3, n_heads=3, dropout=0.0, attention_dropout=0.0,
        )  # fmt: skip
        self.bert = DistilBertModel(config)
        self.bert.set_attn_implementation("eager")
        self.dense = nn.Linear(config.dim, EMBEDDING, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeds (n, length) token ids and their 0/1 mask as (n, 512)."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        embedding: Tensor = self.dense((hidden * mask).sum(1) / mask.sum(1))
        return embedding


# --- batches -----------------------------------------------------------------------------------------


class Pictures(Dataset[tuple[Tensor, list[str]]]):
    """Batches of freshly drawn pictures with their English captions; the index is the step.

    A batch holds a scene once at most, or equal captions would stand against each other. It takes all
    trained counts of a thing in a place together, since telling two from three is the hardest part.
    """

    def __init__(self, steps: int, size: int, seed: int) -> None:
        self.steps, self.size, self.seed = steps, size, seed
        self.english = load_vocabularies()["en"]
        groups = defaultdict(list)
        for scene in trained_scenes():
            groups[scene.setting, scene.thing].append(scene)
        self.groups = list(groups.values())

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, list[str]]:
        """Pictures, uint8 (n, 3, 112, 112), and n captions."""
        rng = Random(f"{self.seed} {step}")
        groups = rng.sample(self.groups, len(self.groups))
        scenes = [scene for group in groups for scene in group][: self.size]
        pictures = np.stack([self._picture(scene, rng) for scene in scenes])
        captions = [caption(self.english, scene, rng) for scene in scenes]
        return torch.from_numpy(pictures).permute(0, 3, 1, 2), captions

    @staticmethod
    def _picture(scene: Scene, rng: Random) -> np.ndarray[Any, np.dtype[np.uint8]]:
        # Some are drawn larger and scaled down, as the processor does with users' pictures.
        size = IMAGE_SIZE * rng.choice((1, 1, 1, 2))
        picture = draw(scene, rng.getrandbits(48), (size, size))
        return np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))


def sentences(steps: range, size: int, seed: int) -> Iterable[list[tuple[int, str]]]:
    """A batch for each step: `size` times (index into `trained_scenes()`, caption in any language)."""
    scenes, vocabularies = trained_scenes(), list(load_vocabularies().values())
    for step in steps:
        rng = Random(f"{seed} {step}")
        picked = [rng.randrange(len(scenes)) for _ in range(size)]
        yield [(i, caption(rng.choice(vocabularies), scenes[i], rng)) for i in picked]


# --- training ----------------------------------------------------------------------------------------


def fit(
    model: nn.Module,
    batches: Callable[[int], Iterable[Batch]],
    loss_of: Callable[[Batch], Tensor],
    steps: int,
    rate: float,
    checkpoint: Path,
) -> None:
    """Trains `model` in place, from `checkpoint` on if there is one.

    Args:
        model: What to train, in float32; the products run in bfloat16.
        batches: Gives the batches from a step on.
        loss_of: The loss of a batch, a scalar.
        steps: How many batches there are in all.
        rate: Peak of the learning rate, which rises for a twentieth of the steps, then falls to 0.
        checkpoint: Written every 100 steps and at the end.
    """
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=rate, betas=(0.9, 0.98), fused=True,
    )  # fmt: skip
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        done = saved.pop("done")
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    model.train()
    bar = tqdm(batches(done), checkpoint.stem, steps, initial=done, mininterval=5)
    for step, batch in enumerate(bar, done + 1):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if step % CHECKPOINT_EVERY == 0 or step == steps:
            states = {name: part.state_dict() for name, part in parts.items()}
            fresh = checkpoint.with_suffix(".new")
            torch.save({"done": step, **states}, fresh)
            fresh.replace(checkpoint)  # a stop in the middle leaves the old one whole
    model.eval()


def train_teacher(work: Path, steps: int, seed: int) -> tuple[CLIPModel, CLIPTokenizer]:
    """The CLIP and its tokenizer, whose files stay in `work`/english."""
    torch.manual_seed(seed)
    # Training a tokenizer breaks ties anew each time: a resumed run must keep the one it began with.
    if not (work / "english/tokenizer_config.json").exists():
        train_english_tokenizer(work / "english")
    tokenizer = CLIPTokenizer.from_pretrained(work / "english")
    model = new_teacher(tokenizer)
    mean = 255 * torch.tensor(OPENAI_CLIP_MEAN)[:, None, None]
    std = 255 * torch.tensor(OPENAI_CLIP_STD)[:, None, None]
    pictures = Pictures(steps, 128, seed)

    def batches(done: int) -> DataLoader[tuple[Tensor, list[str]]]:
        order = range(done, steps)
        return DataLoader(pictures, batch_size=None, sampler=order, num_workers=1,
                          prefetch_factor=8)  # fmt: skip

    def loss_of(batch: tuple[Tensor, list[str]]) -> Tensor:
        pixels, captions = batch
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        tokens = tokenizer(captions, padding=True, return_tensors="pt")
        loss: Tensor = model(pixel_values=(pixels - mean) / std, return_loss=True, **tokens).loss
        return loss

    fit(model, batches, loss_of, steps, 1e-3, work / "teacher.pt")
    return model, tokenizer


@torch.inference_mode()
def scene_targets(model: CLIPModel, tokenizer: CLIPTokenizer) -> Tensor:
    """Where the student should put each of the n `trained_scenes()`: (n, 512), of length 1.

    A target is the mean direction of all English wordings, as users may choose any of them.
    """
    english = load_vocabularies()["en"]
    targets = []
    for scene in trained_scenes():
        tokens = tokenizer(english.captions(scene), padding=True, return_tensors="pt")
        wordings = model.get_text_features(**tokens).pooler_output
        targets.append(F.normalize(wordings, dim=-1).mean(0))
    return F.normalize(torch.stack(targets), dim=-1)


def train_student(work: Path, targets: Tensor, steps: int, seed: int) -> Student:
    """The multilingual encoder, whose tokenizer's files stay in `work`/multilingual."""
    torch.manual_seed(seed)
    if not (work / "multilingual/tokenizer_config.json").exists():
        train_multilingual_tokenizer(work / "multilingual")
    tokenizer = DistilBertTokenizer.from_pretrained(work / "multilingual")
    model = Student(len(tokenizer))

    def batches(done: int) -> Iterable[list[tuple[int, str]]]:
        return sentences(range(done, steps), 256, seed)

    def loss_of(batch: list[tuple[int, str]]) -> Tensor:
        scenes, texts = zip(*batch, strict=True)
        tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
        embeddings = model(tokens["input_ids"], tokens["attention_mask"]).float()
        wanted = torch.tensor(scenes)
        # The squared distance is the originals' loss; the second term keeps near scenes apart.
        distance = (embeddings - targets[wanted]).square().sum(-1).mean()
        cosines = F.normalize(embeddings, dim=-1) @ targets.T
        loss: Tensor = distance + 0.2 * F.cross_entropy(30 * cosines, wanted)
        return loss

    fit(model, batches, loss_of, steps, 1e-3, work / "student.pt")
    return model


# --- files -------------------------------------------------------------------------------------------


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_modules(folder: Path, modules: list[tuple[str, str]]) -> None:
    """`modules.json` with (path, class) of each, in the classes' names on the hub."""
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", entries)
    versions = {
        "sentence_transformers": version("sentence-transformers"),
        "transformers": version("transformers"),
        "pytorch": torch.__version__,
    }
    _write_json(folder / "config_sentence_transformers.json", {"__version__": versions})


def _write_weights(folder: Path, model: PreTrainedModel) -> None:
    """Half precision on disk, but a configuration that has them loaded as float32."""
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.to_json_file(folder / "config.json")
    _write_tensors(folder / "model.safetensors", model)


def _write_tensors(path: Path, module: nn.Module) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors leaves it to its owner alone


def write_clip(folder: Path, model: CLIPModel, tokenizer_files: Path) -> None:
    """The layout of sentence-transformers/clip-ViT-B-32."""
    _write_modules(folder, [("0_CLIPModel", "CLIPModel")])
    inner = folder / "0_CLIPModel"
    shutil.copytree(tokenizer_files, inner)
    _write_weights(inner, model)
    CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    ).save_pretrained(inner)


def write_multilingual(folder: Path, model: Student, tokenizer_files: Path) -> None:
    """The layout of sentence-transformers/clip-ViT-B-32-multilingual-v1."""
    shutil.copytree(tokenizer_files, folder)
    _write_modules(folder, [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")])
    _write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": MAX_TOKENS["student"], "do_lower_case": False},
    )
    _write_weights(folder, model.bert)
    pooling = {f"pooling_mode_{mode}": mode == "mean_tokens"
               for mode in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")}  # fmt: skip
    width = model.dense.in_features
    _write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, **pooling})
    dense = {"in_features": width, "out_features": EMBEDDING, "bias": False,
             "activation_function": "torch.nn.modules.linear.Identity"}  # fmt: skip
    _write_json(folder / "2_Dense/config.json", dense)
    linear = nn.Module()
    linear.linear = model.dense
    _write_tensors(folder / "2_Dense/model.safetensors", linear)


def main(argv: list[str] | None = None) -> int:
    """Trains both models and writes them; see `run_command`."""
    parser = argparse.ArgumentParser(prog="python -m demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "checkpoint", help="where to write")
    parser.add_argument("--work", type=Path, default=ROOT.parent / ".train", help="checkpoints")
    parser.add_argument("--teacher-steps", type=int, default=3400)
    parser.add_argument("--student-steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)

    def train() -> None:
        teacher, english = train_teacher(options.work, options.teacher_steps, options.seed)
        targets = scene_targets(teacher, english)
        student = train_student(options.work, targets, options.student_steps, options.seed)
        for name in ("clip", "multilingual"):
            shutil.rmtree(options.out / name, ignore_errors=True)
        write_clip(options.out / "clip", teacher, options.work / "english")
        write_multilingual(options.out / "multilingual", student, options.work / "multilingual")

    return run_command("train", train, "interrupted; the same command goes on from the last checkpoint")


if __name__ == "__main__":
    raise SystemExit(main())
