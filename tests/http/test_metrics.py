"""What can be seen from outside: metrics, the dashboard over them, and where a request's time went."""

from __future__ import annotations

import json
import re
import time

import httpx
import pytest
import yaml

from serving.local import ROOT
from tests.http.api import JSON, Api, b64, picture


def scrape(api: Api) -> str:
    return httpx.get(f"{api.server.properties['metrics_address']}/metrics", timeout=30).text


@pytest.mark.torchserve_only("its metrics address")
def test_metrics(api: Api) -> None:
    """Also those of refusals, the cache and truncation; each under its documented name."""
    for _ in range(2):
        body = {"images": [b64(picture(1)), "?"], "texts": ["a dog", "dog " * 500]}
        api.post_json("clip_similarity", body)
    api.post("clip_text", "a dog", "text/plain")
    api.post("clip_image", b"no picture")
    wanted = {
        *(f'{name}{{ModelName="clip_similarity"' for name in ("ClipTextCacheHits", "ClipTextsTruncated")),
        *(f'Clip{stage}Milliseconds{{ModelName="clip_similarity"' for stage in ("Decode", "Tokenise")),
        *(f'Clip{stage}Milliseconds{{ModelName="clip_text"' for stage in ("Parse", "Inference", "Serialise")),
        'ClipErrors{ModelName="clip_image",Code="unsupported_image_format"',
        'ClipErrors{ModelName="clip_similarity",Code="invalid_base64"',
        'ts_queue_latency_microseconds{model_name="clip_text"',
    }
    for _ in range(100):  # workers report once a second, through TorchServe's log reader
        text = scrape(api)
        if all(name in text for name in wanted):
            break
        time.sleep(0.1)
    missing = [name for name in wanted if name not in text]
    assert not missing


@pytest.mark.torchserve_only("its metrics.yaml")
def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    metrics = yaml.safe_load((ROOT / "metrics.yaml").read_text())
    known = {m["name"] for part in ("ts_metrics", "model_metrics") for m in metrics[part]["counter"]}
    panels = json.loads((ROOT / "docs" / "grafana.json").read_text())["panels"]
    asked = {
        name
        for p in panels
        for t in p["targets"]
        for name in re.findall(r"\b(?:Clip|ts_|Requests)\w+", t["expr"])
    }
    assert asked <= known
    assert len(asked) > 12


def test_times_are_told_to_those_who_ask(api: Api) -> None:
    asked = api.post("clip_text", json.dumps({"input": "dog"}), JSON, headers={"X-Clipserve-Timing": "1"})
    stages = dict(part.split(";dur=") for part in asked.headers["server-timing"].split(", "))
    assert {"parse", "tokenise", "inference", "serialise"} <= set(stages)
    assert all(float(milliseconds) >= 0 for milliseconds in stages.values())
    assert "server-timing" not in api.post_json("clip_text", {"input": "dog"}).headers
