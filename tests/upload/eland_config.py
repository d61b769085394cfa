"""Makes eland's own objects of a configuration for Elasticsearch, and prints what they would send.

    python eland_config.py config.json

A name that eland does not know, or a kind of tokenizer that it has not, ends it with an error.
"""

import json
import sys
from pathlib import Path

from run_lines import leave_out_the_exporter

leave_out_the_exporter()

from eland.ml.pytorch import nlp_ml_model as eland  # noqa: E402

TOKENIZATIONS = {
    "bert": eland.NlpBertTokenizationConfig,
    "xlm_roberta": eland.NlpXLMRobertaTokenizationConfig,
}


def main(path):
    """Prints JSON."""
    config = json.loads(Path(path).read_text(encoding="utf-8"))
    [(task, options)] = config["inference_config"].items()
    assert task == "text_embedding"
    [(kind, tokenization)] = options.pop("tokenization").items()
    config["inference_config"] = eland.TextEmbeddingInferenceOptions(
        tokenization=TOKENIZATIONS[kind](**tokenization), **options
    )
    config["input"] = eland.TrainedModelInput(**config["input"])
    print(json.dumps(eland.NlpTrainedModelConfig(prefix_strings=None, **config).to_dict()))


if __name__ == "__main__":
    main(*sys.argv[1:])
