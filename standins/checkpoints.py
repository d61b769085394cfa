"""Writes checkpoints in the hub's exact layouts with seeded random weights.

Tiny ones keep tests fast; the full-size shapes are those of the published checkpoints.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from demo.captions import load_vocabularies

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


@dataclass(frozen=True)
class ClipShape:
    """Sizes of a CLIP."""

    image_size: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    projection_dim: int
    vocabulary: int
    context_length: int


TINY_CLIP = ClipShape(48, 16, 64, 2, 2, 48, 2, 2, 32, 600, 77)
VIT_B_32 = ClipShape(224, 32, 768, 12, 12, 512, 12, 8, 512, 49408, 77)
VIT_L_14 = ClipShape(224, 14, 1024, 24, 16, 768, 12, 12, 768, 49408, 77)


@dataclass(frozen=True)
class TextShape:
    """Sizes of a multilingual text encoder."""

    width: int
    layers: int
    heads: int
    vocabulary: int
    positions: int = 512
    embedding_dim: int = 512


TINY_TEXT = TextShape(48, 2, 2, 2000, 140, 32)
DISTILBERT_MULTILINGUAL = TextShape(768, 6, 12, 119547)
M_BERT_BASE = TextShape(768, 12, 12, 119547)
XLM_R_LARGE = TextShape(1024, 24, 16, 250002, 514)


def corpus() -> list[str]:
    """The vocabulary's phrases in 40 languages: something to train tokenizers on."""
    return [phrase for v in load_vocabularies().values() for phrase in v.phrases()]


def write_clip(folder: Path, shape: ClipShape = TINY_CLIP, seed: int = 0) -> Path:
    """sentence-transformers' legacy CLIP layout: `modules.json` and `0_CLIPModel`."""
    folder.mkdir(parents=True)
    inner = folder / "0_CLIPModel"
    _write_clip_model(inner, shape, seed)
    _json(
        folder / "modules.json",
        [{"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}],
    )
    _json(
        folder / "config_sentence_transformers.json",
        {
            "__version__": {
                "sentence_transformers": "2.0.0",
                "transformers": "4.7.0",
                "pytorch": "1.9.0+cu102",
            }
        },
    )
    return folder


def write_multilingual(folder: Path, shape: TextShape = TINY_TEXT, seed: int = 1) -> Path:
    """sentence-transformers' text layout: DistilBERT, masked mean, Dense without bias, 128 tokens."""
    torch.manual_seed(seed)
    config = transformers.DistilBertConfig(
        vocab_size=shape.vocabulary,
        dim=shape.width,
        n_layers=shape.layers,
        n_heads=shape.heads,
        hidden_dim=4 * shape.width,
        max_position_embeddings=shape.positions,
    )
    transformers.DistilBertModel(config).save_pretrained(folder)
    _write_wordpiece(folder, shape.vocabulary, with_fast_file=True)
    _json(folder / "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    _json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
        ],
    )
    _json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": shape.width,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    _json(
        folder / "2_Dense" / "config.json",
        {
            "in_features": shape.width,
            "out_features": shape.embedding_dim,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    weight = torch.randn(shape.embedding_dim, shape.width) / shape.width**0.5
    # The published checkpoint carries this pickle; newer ones carry safetensors.
    torch.save({"linear.weight": weight}, folder / "2_Dense" / "pytorch_model.bin")
    return folder


def write_student(folder: Path, *, roberta: bool, length: int = 128, seed: int = 4) -> Path:
    """sentence-transformers' text layout around a BERT or an XLM-R, as multilingual students are saved today.

    Args:
        length: `max_seq_length`.
    """
    shape = TINY_TEXT
    torch.manual_seed(seed)
    kind: Any = transformers.XLMRobertaConfig if roberta else transformers.BertConfig
    config = kind(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=shape.positions,
        pad_token_id=1 if roberta else 0,
    )
    model = transformers.XLMRobertaModel(config) if roberta else transformers.BertModel(config)
    model.save_pretrained(folder)
    if roberta:
        _write_unigram(folder, shape.vocabulary)
    else:
        _write_wordpiece(folder, shape.vocabulary, with_fast_file=True)
    _json(folder / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    names = ["Transformer", "Pooling", "Dense"]
    _json(
        folder / "modules.json",
        [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{name}" if i else "",
                "type": f"sentence_transformers.models.{name}",
            }
            for i, name in enumerate(names)
        ],
    )
    _json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": shape.width, "pooling_mode_mean_tokens": True},
    )
    _json(
        folder / "2_Dense" / "config.json",
        {
            "in_features": shape.width,
            "out_features": shape.embedding_dim,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    head = torch.nn.Linear(shape.width, shape.embedding_dim)
    torch.save(
        {f"linear.{name}": tensor for name, tensor in head.state_dict().items()},
        folder / "2_Dense" / "pytorch_model.bin",
    )
    return folder


def sentencepiece_model(size: int = 1900) -> bytes:
    """A Unigram model as XLM-R is published with, in SentencePiece's own format."""
    import io

    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=written,
        vocab_size=size,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
        num_threads=1,
    )
    return written.getvalue()


def write_m_clip_bert(folder: Path, shape: TextShape = TINY_TEXT, seed: int = 2) -> Path:
    """M-CLIP's M-BERT layout: a BERT, and its linear head as a pickle of NumPy arrays."""
    import pickle

    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=shape.positions,
    )
    transformers.BertModel(config).save_pretrained(folder)
    _write_wordpiece(folder, shape.vocabulary, with_fast_file=False)
    weight = torch.randn(shape.width, shape.embedding_dim) / shape.width**0.5
    bias = torch.randn(shape.embedding_dim) / 10
    with (folder / "M-BERT-Base-69-ViT Linear Weights.pkl").open("wb") as stream:
        pickle.dump([weight.numpy(), bias.numpy()], stream)
    return folder


def write_m_clip_xlm_roberta(folder: Path, shape: TextShape = TINY_TEXT, seed: int = 3) -> Path:
    """M-CLIP's XLM-R layout: transformer and LinearTransformation in one state dict."""
    torch.manual_seed(seed)
    config = transformers.XLMRobertaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        max_position_embeddings=shape.positions,
        type_vocab_size=1,
        pad_token_id=1,
        layer_norm_eps=1e-5,
    )
    model = transformers.XLMRobertaModel(config)
    head = torch.nn.Linear(shape.width, shape.embedding_dim)
    state = {f"transformer.{k}": v for k, v in model.state_dict().items()}
    state |= {f"LinearTransformation.{k}": v for k, v in head.state_dict().items()}
    folder.mkdir(parents=True)
    # The published file is a torch pickle of tensors.
    torch.save({k: v.contiguous() for k, v in state.items()}, folder / "pytorch_model.bin")
    _json(
        folder / "config.json",
        {
            "architectures": ["MultilingualCLIP"],
            "model_type": "M-CLIP",
            "modelBase": "tiny-xlm-roberta",
            "numDims": shape.embedding_dim,
            "transformerDimensions": shape.width,
        },
    )
    # The published repository names its base by hub id only; its config lies in the hub's cache of that
    # base. A local checkpoint carries the base's config beside it.
    config.save_pretrained(folder / "tiny-xlm-roberta")
    _write_unigram(folder, shape.vocabulary)
    return folder


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def _write_clip_model(folder: Path, shape: ClipShape, seed: int) -> None:
    torch.manual_seed(seed)
    vocabulary = _write_clip_tokenizer(folder, shape)
    eos = vocabulary["<|endoftext|>"]
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.text_width,
            "intermediate_size": 4 * shape.text_width,
            "num_hidden_layers": shape.text_layers,
            "num_attention_heads": shape.text_heads,
            "max_position_embeddings": shape.context_length,
            "projection_dim": shape.projection_dim,
            # The published config names 2 for historical reasons: pooling is at the highest token id.
            "eos_token_id": 2,
            "bos_token_id": 0,
            "pad_token_id": 1,
        },
        vision_config={
            "hidden_size": shape.vision_width,
            "intermediate_size": 4 * shape.vision_width,
            "num_hidden_layers": shape.vision_layers,
            "num_attention_heads": shape.vision_heads,
            "image_size": shape.image_size,
            "patch_size": shape.patch_size,
            "projection_dim": shape.projection_dim,
        },
        projection_dim=shape.projection_dim,
        logit_scale_init_value=4.6052,
    )
    assert eos == shape.vocabulary - 1 or shape is not TINY_CLIP
    transformers.CLIPModel(config).save_pretrained(folder)
    _json(
        folder / "preprocessor_config.json",
        {
            "crop_size": shape.image_size,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
            "resample": 3,
            "size": shape.image_size,
        },
    )


def _write_clip_tokenizer(folder: Path, shape: ClipShape) -> dict[str, int]:
    """`vocab.json` and `merges.txt` as CLIP has them: a small BPE filled up to the wanted size."""
    bpe = Tokenizer(
        models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token="<|endoftext|>")
    )
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=min(shape.vocabulary, 4000) - 2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    trained = json.loads(bpe.to_str())["model"]
    # CLIP's own order: all byte symbols, the same with </w>, then merges, then the two special tokens.
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = symbols + [s + "</w>" for s in symbols]
    merges = []
    for merge in trained["merges"]:
        left, right = merge if isinstance(merge, list) else merge.split(" ")
        if len(tokens) >= shape.vocabulary - 2:
            break
        if left in tokens and right in tokens and left + right not in tokens:
            merges.append(f"{left} {right}")
            tokens.append(left + right)
    tokens += [f"unused{i}</w>" for i in range(shape.vocabulary - 2 - len(tokens))]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    _json(folder / "special_tokens_map.json", special)
    _json(
        folder / "tokenizer_config.json",
        {
            **special,
            "model_max_length": shape.context_length,
            "tokenizer_class": "CLIPTokenizer",
            "do_lower_case": True,
        },
    )
    return vocabulary


def _write_wordpiece(folder: Path, size: int, *, with_fast_file: bool) -> None:
    """A cased multilingual BERT tokenizer: `vocab.txt`, and `tokenizer.json` where the layout has it."""
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=False)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    wordpiece.train_from_iterator(
        corpus(),
        trainers.WordPieceTrainer(vocab_size=min(size, 6000), special_tokens=special, show_progress=False),
    )
    vocabulary = wordpiece.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens += [f"[unused{i}]" for i in range(size - len(tokens))]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    _json(
        folder / "tokenizer_config.json",
        {
            "do_lower_case": False,
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "model_max_length": 512,
            "tokenizer_class": "BertTokenizer" if not with_fast_file else "DistilBertTokenizer",
            "unk_token": "[UNK]",
            "sep_token": "[SEP]",
            "pad_token": "[PAD]",
            "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        },
    )
    if with_fast_file:
        full = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
        full.normalizer = wordpiece.normalizer
        full.pre_tokenizer = wordpiece.pre_tokenizer
        full.decoder = decoders.WordPiece()
        full.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
        full.add_special_tokens(special)
        full.save(str(folder / "tokenizer.json"))


def _write_unigram(folder: Path, size: int) -> None:
    """XLM-R's tokenizer: a Unigram model behind Metaspace, as `tokenizer.json`."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.NFKC()
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    unigram.train_from_iterator(
        corpus(),
        trainers.UnigramTrainer(
            vocab_size=min(size, 2000), special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    vocabulary = unigram.get_vocab()
    unigram.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])],
    )
    unigram.save(str(folder / "tokenizer.json"))
    names = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "sep_token": "</s>",
        "cls_token": "<s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    _json(
        folder / "tokenizer_config.json",
        {**names, "model_max_length": 512, "tokenizer_class": "XLMRobertaTokenizer"},
    )
