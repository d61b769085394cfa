"""The programs with a calling convention of their own that encoders are exported for: one row each.

| FORMAT | pictures | texts | back | beside the encoder | what cuts a text |
|---|---|---|---|---|---|
| `aias` | float32, normalised | a dictionary | a tensor | `vocab.txt` | the graph |
| `opensearch` | – | a dictionary | a dictionary | `tokenizer.json`, a configuration | `tokenizer.json` |
| `elasticsearch` | – | four tensors, XLM-R two | a tensor | a vocabulary, a configuration | the latter |

Another row needs nothing else here: a file beside this one with its conventions, and a page in docs.
"""

from __future__ import annotations

from export_scripts.packages import aias, elasticsearch, opensearch
from export_scripts.packages.conventions import Contract

CONTRACTS: dict[str, Contract] = {
    contract.name: contract
    for contract in (
        Contract(
            name="aias",
            program="the AIAS SDK",
            torch="1.13.1",
            devices=("cpu", "cuda"),
            conventions={"image": aias.pictures, "text": aias.texts},
            lay_out=aias.lay_out,
            encoders=("*.pt", "*/*.pt"),
        ),
        Contract(
            name="opensearch",
            program="OpenSearch",
            torch="2.5.1",
            devices=("cpu",),
            conventions={"text": opensearch.texts},
            lay_out=opensearch.lay_out,
            encoders=("*.zip",),
        ),
        Contract(
            name="elasticsearch",
            program="Elasticsearch",
            torch="2.7.1",
            devices=("cpu",),
            conventions={"text": elasticsearch.texts},
            lay_out=elasticsearch.lay_out,
            encoders=(f"*/{elasticsearch.MODEL_FILE}",),
        ),
    )
}
