"""Stages: the encoder alone, on inputs that lie on the device, beside the original and `torch.compile`.

All variants of a batch size are measured in turns, so that what else the machine does weighs on all.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

# Once, before a stage forks: `torch.compile` would import it in each.
import torch._dynamo
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.card import WARM_UP, seconds_per_call, synchronize
from benchmarks.gpu.originals import image_embeddings, sentence_transformer, text_embeddings
from benchmarks.gpu.plan import CLIP, Plan
from benchmarks.gpu.proofs import load
from benchmarks.gpu.stages import PartlyFailedError, Skipped, Step, Steps, reason_of
from clipserve.encoder_spec import Modality, Precision
from clipserve.loading import load_for_inference
from export_scripts.formats import FORMATS
from export_scripts.formats.base import Inputs
from export_scripts.parity.subjects import SUBJECTS, Subject

TOKENS = 16  # of a caption in the 40 languages, about

# Compiled once for all batches from here on: a batch of one is a compilation of its own.
COMPILED_FROM = 8
# Of these the kernels are counted.
PROFILED = (1, 32, 256)

Given = dict[str, tuple[Tensor, ...]]
Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Variant:
    """Something that embeds.

    Attributes:
        run: its inputs to vectors.
        takes: which of the prepared inputs.
        from_batch: the least that it is measured with.
        captured: its kernels are recorded once for each batch, and replayed.
    """

    run: Callable[..., Tensor]
    takes: str = "ours"
    from_batch: int = 1
    captured: bool = False


Build = Callable[[], Variant]


def of(modality: Modality) -> Steps:
    """The stage of one modality."""
    return partial(_steps, modality)


def _steps(modality: Modality, plan: Plan) -> Iterator[Step]:
    subject = cache(partial(_subject, plan, modality))
    yield "flops", partial(_flops, subject)
    variants: dict[str, Variant] = {}
    for name, build in _builders(plan, modality, subject).items():
        yield f"made.{name}", partial(_made, plan, variants, name, build)
        # What is compiled last may take what is left: by then the rest has been measured.
        if name == "original_fp16":
            yield from _batches(plan, modality, subject, variants, "")
            yield from _profiles(plan, modality, subject, variants)
    yield from _batches(plan, modality, subject, variants, "compiled.")


def _subject(plan: Plan, modality: Modality) -> Subject:
    return SUBJECTS[modality](load(plan, CLIP))


def _flops(subject: Callable[[], Subject]) -> dict[str, float]:
    """Floating-point operations of one item in our encoder, as PyTorch counts them."""
    example = tuple(tensor[:1] for tensor in subject().example)
    if len(example) > 1:
        example = _tokens(1, "cpu")
    counter = FlopCounterMode(display=False)
    # The fused attention of CPUs is not counted, its plain form is.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        subject().checkpoint.build(True).requires_grad_(False)(*example)
    return {"per_item": float(counter.get_total_flops())}


def _builders(plan: Plan, modality: Modality, subject: Callable[[], Subject]) -> dict[str, Build]:
    """What makes each variant; those that are compiled last."""
    ours: dict[str, Build] = {
        f"ours_{precision}": partial(_exported, plan, modality, precision) for precision in plan.precisions
    }
    return {
        **ours,
        "ours_bf16": partial(_traced, plan, subject),
        "ours_fp16_graph": partial(_graph, plan, modality),
        "original_fp16": partial(_original, plan, modality),
        "compiled_original_fp16": partial(_compiled_original, plan, modality),
        "compiled_ours_fp16": partial(_compiled_ours, plan, subject),
    }


def _made(plan: Plan, variants: dict[str, Variant], name: str, build: Build) -> dict[str, float]:
    begin = time.perf_counter()
    variants[name] = build()
    synchronize(plan)
    return {"seconds": time.perf_counter() - begin}


def _exported(plan: Plan, modality: Modality, precision: Precision) -> Variant:
    """As a worker loads it."""
    path = plan.file(CLIP, modality, precision).path
    return Variant(load_for_inference(path, torch.device(plan.device)))


def _traced(plan: Plan, subject: Callable[[], Subject]) -> Variant:
    """The same in bf16, which the exporter does not have for a GPU: to see what it would bring."""
    form, given = FORMATS["torchscript"], subject()
    path = plan.work / f"{given.modality}-bf16.pt"
    example = tuple(tensor.to(plan.device) for tensor in given.example)
    encoder = given.checkpoint.build(True).to(plan.device).eval()
    with torch.no_grad():
        form.make(encoder, "bf16", Inputs(given.checkpoint.preprocessing.inputs, example), path)
    return Variant(form.load(path, torch.device(plan.device)))


def _graph(plan: Plan, modality: Modality) -> Variant:
    """The exported encoder as a CUDA graph: what is left when launching kernels costs nothing."""
    if plan.dry:
        raise Skipped("CUDA graphs are of GPUs")
    exported = _exported(plan, modality, "fp16")
    return Variant(exported.run, captured=True)


def _original(plan: Plan, modality: Modality) -> Variant:
    """The original's modules in half precision, as they come; pixels in float, normalised."""
    image, text = plan.folders(CLIP)
    if modality == "image":
        model: Any = sentence_transformer(image, plan.device)[0]
        return Variant(partial(image_embeddings, model.model.to(_half(plan)).eval()), "original")
    return Variant(partial(text_embeddings, sentence_transformer(text, plan.device).to(_half(plan)).eval()))


def _half(plan: Plan) -> torch.dtype:
    """On a CPU bfloat16, which all of its operators have."""
    return torch.bfloat16 if plan.dry else torch.float16


def _compiled_original(plan: Plan, modality: Modality) -> Variant:
    variant = _original(plan, modality)
    return Variant(_compile(plan, variant.run), variant.takes, COMPILED_FROM)


def _compiled_ours(plan: Plan, subject: Callable[[], Subject]) -> Variant:
    encoder: nn.Module = subject().checkpoint.build(True).to(plan.device).to(_half(plan)).eval()
    return Variant(_compile(plan, encoder), from_batch=COMPILED_FROM)


def _compile(plan: Plan, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    # A dry run looks at what is captured, and has no compiler write kernels for a CPU.
    compiled = torch.compile(run, backend="eager" if plan.dry else "inductor")

    def marked(*inputs: Tensor) -> Tensor:
        for tensor in inputs:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        result: Tensor = compiled(*inputs)
        return result

    return marked


def _batches(
    plan: Plan,
    modality: Modality,
    subject: Callable[[], Subject],
    variants: dict[str, Variant],
    prefix: str,
) -> Iterator[Step]:
    for batch in plan.sizes.batches:
        if batch >= COMPILED_FROM or not prefix:
            yield f"{prefix}{batch}", partial(_in_turns, plan, modality, subject, variants, batch)


def _in_turns(
    plan: Plan, modality: Modality, subject: Callable[[], Subject], variants: dict[str, Variant], batch: int
) -> dict[str, Any]:
    """Items per second of each variant, and what its first call took, in which it meets this size.

    Raises:
        PartlyFailedError: one of them cannot.
    """
    given = _given(plan, modality, subject(), batch)
    runs: dict[str, Run] = {}
    first: dict[str, float] = {}
    failed: dict[str, str] = {}
    with torch.inference_mode():
        for name, variant in variants.items():
            if batch < variant.from_batch:
                continue
            try:
                runs[name], first[name] = _ready(plan, variant, given[variant.takes])
            except Exception as error:
                failed[name] = reason_of(error)
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(plan.sizes.rounds):
            for name, run in runs.items():
                rates[name].append(batch / seconds_per_call(plan, run, plan.sizes.seconds))
    found = {
        name: {
            "rate": statistics.median(of),
            "least": min(of),
            "most": max(of),
            "first_ms": 1000 * first[name],
        }
        for name, of in rates.items()
    }
    if failed:
        raise PartlyFailedError(found, failed)
    return found


def _ready(plan: Plan, variant: Variant, inputs: tuple[Tensor, ...]) -> tuple[Run, float]:
    """A variant on its inputs, warm; and the seconds of its first call."""
    run = partial(variant.run, *inputs)
    begin = time.perf_counter()
    run()
    synchronize(plan)
    first = time.perf_counter() - begin
    for _ in range(WARM_UP):
        run()
    if variant.captured:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay, first
    return run, first


def _given(plan: Plan, modality: Modality, subject: Subject, batch: int) -> Given:
    """Inputs on the device: as our encoder takes them, and as the original does."""
    if modality == "text":
        return {"ours": _tokens(batch, plan.device)}
    (example,) = subject.example
    pixels = torch.randint(0, 256, (batch, *example.shape[1:]), dtype=torch.uint8, device=plan.device)
    return {"ours": (pixels,), "original": ((pixels.to(_half(plan)) / 127.5 - 1),)}


def _tokens(batch: int, device: str) -> tuple[Tensor, ...]:
    ids = torch.randint(10, 500, (batch, TOKENS), dtype=torch.int64, device=device)
    return ids, torch.ones_like(ids)


def _profiles(
    plan: Plan, modality: Modality, subject: Callable[[], Subject], variants: dict[str, Variant]
) -> Iterator[Step]:
    for batch in PROFILED:
        yield f"profile.{batch}", partial(_profile, plan, modality, subject, variants, batch)


def _profile(
    plan: Plan, modality: Modality, subject: Callable[[], Subject], variants: dict[str, Variant], batch: int
) -> dict[str, float]:
    """Kernels of one pass in fp16, and the share of its time in which one runs: the rest is launching."""
    if plan.dry:
        raise Skipped("a CPU has no kernels to be launched")
    run = partial(variants["ours_fp16"].run, *_given(plan, modality, subject(), batch)["ours"])
    passes = 10
    with torch.inference_mode():
        for _ in range(WARM_UP):
            run()
        wall = seconds_per_call(plan, run, plan.sizes.seconds)
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            for _ in range(passes):
                run()
            synchronize(plan)
    kernels = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    busy = sum(event.self_device_time_total for event in kernels) / passes / 1e6
    return {
        "kernels": sum(event.count for event in kernels) / passes,
        "busy_ms": 1000 * busy,
        "wall_ms": 1000 * wall,
        "busy_share": busy / wall,
    }
