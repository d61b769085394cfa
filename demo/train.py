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
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import CLIPModel, CLIPTokenizer, DistilBertTokenizer, get_cosine_schedule_with_warmup
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from clipserve.command import run_command
from demo.captions import caption, load_vocabularies
from demo.layouts import write_clip, write_multilingual
from demo.models import IMAGE_SIZE, Student, new_teacher
from demo.scenes import draw
from demo.tokenization import train_english_tokenizer, train_multilingual_tokenizer
from demo.world import Scene, trained_scenes

ROOT = Path(__file__).parent
CHECKPOINT_EVERY = 100  # steps

Batch = TypeVar("Batch")


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
