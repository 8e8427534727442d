"""A CLIP model of transformers that is small enough for a test, with a tokenizer of its own."""

from typing import Final

from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

PROJECTION: Final = 16
_TOKENS: Final = 24
_SHARED: Final = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "projection_dim": PROJECTION,
}


def tiny_clip(size: int = 32, patch: int = 8) -> tuple[CLIPModel, CLIPTokenizer]:
    """Towers with random weights for images of ``size`` pixels, and a tokenizer learned from two captions."""
    captions = ["axial ct of the brain", "mr of the knee with a tear"] * 20
    tokenizer = CLIPTokenizer().train_new_from_iterator(captions, 300, show_progress=False)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = _SHARED | special | {"vocab_size": len(tokenizer), "max_position_embeddings": _TOKENS}
    vision = _SHARED | {"image_size": size, "patch_size": patch}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION)), tokenizer
