"""A client of the HTTP endpoints: NumPy in and out, tokens renewed, retries only where safe.

```python
from pathlib import Path

from clipserve.client import Client, Management

with Client() as client:
    Management(client).wait_ready()
    images = client.embed_images(["photo.jpg"])                       # float32 [1, 512]
    texts = client.embed_texts(["két kutya a hóban", "雪の中の二匹の犬"])  # float32 [2, 512]
    either = client.embed([Path("photo.jpg"), "two dogs in the snow"])  # float32 [2, 512], in this order
    answer = client.similarity(["photo.jpg"], ["two dogs in the snow", "a cat on a table"])
    answer.probabilities                                              # float64 [1, 2]
```

Elsewhere than in the server's folder, `Client(tokens=Path("/the/servers/folder/key_file.json"))`. It needs no
torch: `pip install .[client]`.
"""

from clipserve.client.calls import Client, ImageInput, Similarity, TextUsage
from clipserve.client.connection import INFERENCE_URL
from clipserve.client.management import Management
from clipserve.client.tokens import KEY_FILE, MANAGEMENT_URL, KeyFile, MissingKeyFileError, RefusedTokenError

__all__ = [
    "INFERENCE_URL",
    "KEY_FILE",
    "MANAGEMENT_URL",
    "Client",
    "ImageInput",
    "KeyFile",
    "Management",
    "MissingKeyFileError",
    "RefusedTokenError",
    "Similarity",
    "TextUsage",
]
