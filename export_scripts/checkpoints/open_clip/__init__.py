"""open_clip's layout: `open_clip_config.json`, `open_clip_model.safetensors` or its pickle, and a tokenizer.

Read without open_clip, whose forward passes are those of models in transformers under other names: a tower
becomes one of these, and is exported as such. That they are the same is held by numbers that open_clip itself
gave (`tests/export_scripts/checkpoints/open_clip/`).

| file | |
|---|---|
| `config` | what a configuration may say; anything else is refused |
| `weights` | the state dict, and a transformer's layers in transformers' names |
| `images`, `texts` | the towers, a row a kind |
| `timm_siglip`, `timm_pe_core` | image towers that open_clip takes from timm |
| `transforms`, `tokens` | open_clip's preparation of pictures and texts |
| `loading` | both sides of a folder |
"""
