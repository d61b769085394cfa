"""Loads a checkpoint pair: eager originals, with everything their specs need to say.

Weights come through the libraries' own loaders: sentence-transformers for its two layouts, transformers for
the others; open_clip's are given transformers' names here. Names, cache and offline behaviour are the hub
library's own.

| layout | told by | image | text |
|---|---|---|---|
| open_clip | `open_clip_config.json` | yes | its own text tower |
| sentence-transformers CLIP | `modules.json` around a `CLIPModel` | yes | its own text tower |
| sentence-transformers text | `modules.json`: Transformer, Pooling, Dense | | yes |
| families of two towers | `model_type` in `config.json`, one of `FAMILIES` | yes | its own text tower |
| M-CLIP BERT | `config.json` of type `bert`, and a pickled linear head | | yes |
| M-CLIP XLM-R | `config.json` of type `M-CLIP` | | yes |

`loading` has the table of layouts, of which each is a file. `pair` is what they give, `hub` where checkpoints
lie, `licenses` what they may be used for, `reading` and `numpy_pickle` how the files of strangers are read,
and `text` what all text sides share.
"""
