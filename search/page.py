"""The page: search and comparison in a browser, on this machine only and without the internet.

Built with Gradio. Its analytics are off, its fonts are the system's, and a content security policy keeps the
browser from asking anything of another machine.
"""

from __future__ import annotations

import html
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

# Before Gradio is imported: it asks its makers for its newest version otherwise.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipserve.client import Client
from clipserve.errors import ClipServeError
from search import heat_map
from search.errors import SearchError
from search.examples import LABELS, QUERIES
from search.finder import Finder, Found
from search.paths import printable
from search.table import Hit, open_table

HOST = "127.0.0.1"

# Gradio's own code needs 'unsafe-inline' and 'unsafe-eval'; nothing is loaded from elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)

# The direction of a text follows its own letters.
STYLE = """
textarea, input, td *, .gallery-item * { unicode-bidi: plaintext; text-align: start }
.status p { margin: 0 } .problem { color: #b91c1c; font-weight: 600 }
"""

GalleryItems = list[tuple[Image.Image, str]]


class ContentSecurityPolicy:
    """ASGI middleware that sends `POLICY` with every response."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, and the policy with the response."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self._app(scope, receive, send_with_policy)


class Page:
    """What the page's buttons do.

    Args:
        connect: makes a client of the server.
        folder: of the table; it may be made while the page is open.
    """

    def __init__(self, connect: Callable[[], Client], folder: Path):
        # Two, since the first accepts answers in the table's space only.
        self._searching = connect()
        self._comparing = connect()
        self._folder = folder

    def by_text(self, text: str, limit: int, min_score: float, path: str) -> tuple[GalleryItems, str]:
        """Pictures that a text describes, and a line of status."""
        if not text.strip():
            return [], _status("Type what to look for, in any language, or drop a picture.")
        return self._answer(lambda finder: finder.by_texts([text])[0], limit, min_score, path)

    def by_image(
        self, image: str | None, limit: int, min_score: float, path: str
    ) -> tuple[GalleryItems, str]:
        """Pictures like another, and a line of status."""
        if image is None:
            return [], _status("Drop a picture, or type what to look for.")
        return self._answer(lambda finder: finder.by_image(Path(image)), limit, min_score, path)

    def _answer(
        self, query: Callable[[Finder], Found], limit: int, min_score: float, path: str
    ) -> tuple[GalleryItems, str]:
        try:
            table = open_table(self._folder)
            found = query(Finder(self._searching, table, int(limit), min_score, path))
            if not found.hits:
                return [], _status(f"Nothing found among {len(table)} pictures.")
            return [_gallery_item(hit) for hit in found.hits], _status(
                f"{len(found.hits)} of {len(table)} pictures, the most similar first."
            )
        except (ClipServeError, OSError) as error:
            return [], _problem(error)

    def probabilities(
        self, image: str | None, labels: str, template: str
    ) -> tuple[dict[str, float] | None, str]:
        """How likely each label is for a picture, and a line of status."""
        try:
            names = _lines(labels)
            if image is None or not names:
                raise SearchError("a picture and at least one label are needed")
            answer = self._comparing.similarity(
                [Path(image)], labels=names, template=template.strip() or "{}"
            )
            chances = dict(zip(names, answer.probabilities[0].tolist(), strict=True))
            return chances, _status(f"softmax over {len(names)} labels, logit scale {answer.logit_scale:g}")
        except (ClipServeError, OSError) as error:
            return None, _problem(error)

    def matrix(self, images: Sequence[str] | None, texts: str) -> str:
        """A heat map of every picture with every text."""
        try:
            rows = [Path(image) for image in images or []]
            columns = _lines(texts)
            if not rows or not columns:
                raise SearchError("at least one picture and one text are needed")
            answer = self._comparing.similarity(rows, columns)
            return heat_map.render(rows, columns, answer.cosine_similarity)
        except (ClipServeError, OSError) as error:
            return _problem(error)


def build(page: Page) -> gr.Blocks:
    """The page's two tabs."""
    blocks: gr.Blocks = gr.Blocks(title="clipserve search", analytics_enabled=False)
    with blocks:
        with gr.Tab("Search"):
            _build_search(page)
        with gr.Tab("Compare"):
            _build_comparison(page)
    return blocks


def _build_search(page: Page) -> None:
    with gr.Row():
        with gr.Column(scale=3):
            text = gr.Textbox(label="What to look for, in any language", autofocus=True, elem_id="query")
            with gr.Row():
                limit = gr.Slider(1, 100, value=12, step=1, label="Pictures at most")
                min_score = gr.Slider(-1, 1, value=-1, step=0.01, label="Least similarity (cosine)")
                path = gr.Textbox(label="Part of the path (* and ? are wildcards)")
            button = gr.Button("Search", variant="primary")
        with gr.Column(scale=1):
            image = gr.Image(
                label="… or a picture", type="filepath", sources=["upload", "clipboard"], height=230
            )
    status = gr.HTML(_status("Type what to look for, in any language, or drop a picture."))
    gallery = gr.Gallery(label="Pictures", columns=4, object_fit="contain", height="auto", elem_id="found")
    options = [limit, min_score, path]
    outputs = [gallery, status]
    # What was asked last is answered, also where an answer is still awaited.
    gr.on([text.submit, button.click], page.by_text, [text, *options], outputs, trigger_mode="always_last")
    image.change(page.by_image, [image, *options], outputs, trigger_mode="always_last")
    gr.Examples([[query] for query in QUERIES], text, label="Examples", examples_per_page=len(QUERIES))


def _build_comparison(page: Page) -> None:
    first = LABELS[0]
    with gr.Row():
        image = gr.Image(label="Picture", type="filepath", sources=["upload", "clipboard"], height=260)
        with gr.Column():
            labels = gr.Textbox(
                "\n".join(first.labels), lines=4, label="Labels, one on each line", elem_id="labels"
            )
            template = gr.Textbox(
                first.template, label="Template: {} stands for the label", elem_id="template"
            )
            button = gr.Button("Compare", variant="primary")
        with gr.Column():
            bars = gr.Label(label="Probabilities", elem_id="bars")
            status = gr.HTML()
    button.click(page.probabilities, [image, labels, template], [bars, status])
    gr.Examples(
        [["\n".join(example.labels), example.template] for example in LABELS],
        [labels, template],
        label="Labels and templates in other languages",
    )
    gr.Markdown("### Several pictures with several texts")
    with gr.Row():
        images = gr.File(
            file_count="multiple", file_types=["image"], label="Pictures", height=180, elem_id="images"
        )
        texts = gr.Textbox("\n".join(QUERIES[:3]), lines=6, label="Texts, one on each line", elem_id="texts")
    show = gr.Button("Show the matrix", variant="primary")
    matrix = gr.HTML(elem_id="matrix")
    show.click(page.matrix, [images, texts], matrix)


def serve_page(connect: Callable[[], Client], folder: Path, port: int) -> None:
    """Serves the page on 127.0.0.1 until interrupted.

    Raises:
        SearchError: the port is taken.
    """
    # Uploads and thumbnails go when the page does.
    with tempfile.TemporaryDirectory(prefix="clipserve-page-") as temporary:
        os.environ["GRADIO_TEMP_DIR"] = temporary
        blocks = build(Page(connect, folder))
        try:
            _, url, _ = blocks.launch(
                server_name=HOST,
                server_port=port,
                theme=gr.themes.Default(
                    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
                ),
                css=STYLE,
                footer_links=[],
                share=False,
                ssr_mode=False,
                quiet=True,
                prevent_thread_lock=True,
                app_kwargs={
                    "middleware": [
                        # A page elsewhere whose name is made to point here is turned away.
                        Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
                        Middleware(ContentSecurityPolicy),
                    ]
                },
            )
        except OSError as error:
            raise SearchError(f"port {port} is taken; name another: make ui PORT={port + 1}") from error
        print(f"the page is at {url}  (Ctrl-C ends it)", flush=True)
        blocks.block_thread()


def _gallery_item(hit: Hit) -> tuple[Image.Image, str]:
    shown = printable("/".join(hit.path.split("/")[-2:]))
    return Image.open(io.BytesIO(hit.thumbnail)), f"{hit.score:.3f}  {shown}"


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _status(text: str) -> str:
    return f'<p class="status">{html.escape(text)}</p>'


def _problem(error: Exception) -> str:
    return f'<p class="status problem" role="alert">{html.escape(str(error))}</p>'
