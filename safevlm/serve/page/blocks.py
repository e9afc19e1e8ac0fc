"""The page itself, drawn by Gradio. Nothing of it calls home, shares itself, or keeps what was said."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # is read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import gradio as gr  # noqa: E402 - after what it reads
from fastapi import FastAPI  # noqa: E402

from safevlm.serve.errors import ApiError  # noqa: E402
from safevlm.serve.page import bubbles, paths  # noqa: E402
from safevlm.serve.page.asking import Asker, PageQuestion, Shown  # noqa: E402
from safevlm.serve.page.sessions import Sessions  # noqa: E402
from safevlm.serve.page.visitors import visitor_of  # noqa: E402

CSS = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")
TITLE = "SafeVLM"
SETTINGS = "Guard: defense and policy"
IMAGES = [".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"]
SYSTEM_FONT = ("system-ui", "sans-serif")
MONOSPACE = ("ui-monospace", "monospace")


def mount_page(app: FastAPI, asker: Asker, sessions: Sessions, examples: Sequence[tuple[str, Path]]) -> None:
    """Adds the page to a server. `examples`: a question and an image each, in the folder of uploads."""
    # Gradio asks whenever it makes a part of the page anew, which it does for every visitor
    os.environ["GRADIO_TEMP_DIR"] = str(asker.uploads.folder)
    page = _blocks(asker, sessions, examples)
    gr.mount_gradio_app(
        app,
        page,
        paths.ROOT,
        root_path=paths.ROOT,  # else some of its answers name files without it
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        max_file_size=asker.model.limits.image_bytes,
        allowed_paths=[],
        theme=gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=SYSTEM_FONT, font_mono=MONOSPACE),
        css_paths=[CSS],
        head=f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>",
    )


def _blocks(asker: Asker, sessions: Sessions, examples: Sequence[tuple[str, Path]]) -> gr.Blocks:
    async def answer(
        message: dict[str, Any],
        history: list[dict[str, Any]],
        defense: str,
        policy: str,
        compares: bool,
        request: gr.Request,
    ) -> AsyncGenerator[Shown]:
        try:
            caller = sessions.caller(request.headers.get("cookie", ""))
        except ApiError:
            yield [bubbles.trouble("you are logged out; load the page again")]
            return
        visitor, tab = visitor_of(request.headers.get("cookie", "")), str(request.session_hash)
        question = PageQuestion(caller, visitor, tab, history, message, defense, policy, compares)
        async for shown in asker.answer(question):
            yield shown

    offers, limits = asker.offers, asker.model.limits
    with gr.Blocks(title=TITLE, analytics_enabled=False, fill_height=True, elem_id="page") as page:
        gr.Markdown(f"# {TITLE}\n`{asker.model.name}` behind a guard that sees every image", elem_id="head")
        chat = gr.ChatInterface(
            answer,
            multimodal=True,
            chatbot=gr.Chatbot(
                label="Conversation",
                show_label=False,
                elem_id="conversation",
                height="auto",
                buttons=["copy"],
                allow_file_downloads=False,
                feedback_options=None,
                latex_delimiters=[],
                allow_tags=False,
                layout="bubble",
            ),
            textbox=gr.MultimodalTextbox(
                label="Your question",
                placeholder="Ask about an image …",
                elem_id="question",
                file_types=IMAGES,
                file_count="multiple",
                sources=["upload"],
                stop_btn=True,
                autofocus=True,
                max_plain_text_length=limits.characters,
                html_attributes=gr.InputHTMLAttributes(enterkeyhint="send"),
            ),
            additional_inputs=[
                gr.Dropdown(list(offers.defenses), value=offers.defenses[0], label="Defense", render=False),
                gr.Dropdown(list(offers.policies), value=offers.policies[0], label="Policy", render=False),
                gr.Checkbox(False, label="Compare with the bare model", visible=offers.bare is not None, render=False),
            ],
            additional_inputs_accordion=gr.Accordion(
                "Guard: defense and policy", open=False, elem_id="guard", render=False
            ),
            examples=[[{"text": text, "files": [str(image)]}, None, None, None] for text, image in examples] or None,
            cache_examples=False,
            run_examples_on_click=False,
            concurrency_limit=None,
            flagging_mode="never",
            save_history=False,
            analytics_enabled=False,
            api_visibility="undocumented",
            api_name="chat",
        )
        chat.chatbot.clear(_forgetting(asker), api_visibility="private")
    page.queue(max_size=limits.waiting, api_open=False)
    return page


def _forgetting(asker: Asker) -> Any:
    def forget(request: gr.Request) -> None:
        asker.uploads.forget(visitor_of(request.headers.get("cookie", "")), str(request.session_hash))

    return forget
