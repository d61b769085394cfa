"""What is made of encoder files for the programs that load them.

| file | for | what it makes |
|---|---|---|
| `archive` | TorchServe | three `.mar`: encoders, handler, the clipserve package |
| `triton` | Triton | a model repository: an encoder as it is, `config.pbtxt` |
| `djl` | the Deep Java Library | a folder and a zip an encoder: the encoder as it is, `serving.properties` |
| `contracts` | programs that call encoders in their own way | what each of them loads |

Each takes what it needs of a `Store`, builds in a staging folder, and is published whole or not at
all. All of them hold the encoder as it was exported: `EncoderSpec.preprocessing.inputs` in, one float tensor
back. A program with another calling convention (a dictionary in, a dictionary back, more inputs) is a row of
the table in `contracts`: a wrapper and the files beside it in a file of its own, exported by `wrapped`.
"""
