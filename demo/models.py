"""The demo's two models before they are trained: a small CLIP, and a small DistilBERT in its space."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, DistilBertConfig, DistilBertModel

IMAGE_SIZE = 112  # pixels; three things in a row are then two patches wide each
EMBEDDING = 512
MAX_TOKENS = {"teacher": 77, "student": 128}


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
