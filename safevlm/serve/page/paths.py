"""Where the page is, and which of its paths are answered.

The library that draws the page answers many more paths (proxies, sharing, histories, editors); they do not exist here.
"""

from __future__ import annotations

ROOT = "/ui"
LOGIN, LOGOUT = f"{ROOT}/login", f"{ROOT}/logout"
FILE = f"{ROOT}/gradio_api/file="
UPLOAD = f"{ROOT}/gradio_api/upload"
HEARTBEAT = f"{ROOT}/gradio_api/heartbeat/"
"""Is open as long as a page is; what follows is the page's name."""
EVENTS = f"{ROOT}/gradio_api/queue/data"
WELCOME = (f"{ROOT}/", f"{ROOT}/config")
"""Where a visitor gets a name."""
EXACT = {
    "GET": (
        *WELCOME,
        f"{ROOT}/theme.css",
        f"{ROOT}/manifest.json",
        f"{ROOT}/gradio_api/info",
        EVENTS,
        f"{ROOT}/gradio_api/upload_progress",
        f"{ROOT}/gradio_api/startup-events",
        LOGIN,
    ),
    "POST": (
        f"{ROOT}/gradio_api/queue/join",
        f"{ROOT}/gradio_api/run/predict",
        UPLOAD,
        f"{ROOT}/gradio_api/cancel",
        f"{ROOT}/gradio_api/reset",
        LOGIN,
        LOGOUT,
    ),
}
BELOW = {
    "GET": (f"{ROOT}/assets/", f"{ROOT}/static/", f"{ROOT}/svelte/", HEARTBEAT, FILE),
    "POST": (),
}
"""All paths that begin so."""
PUBLIC = (f"{ROOT}/assets/", f"{ROOT}/static/", f"{ROOT}/svelte/", f"{ROOT}/theme.css", LOGIN)
"""Begin what everybody may have: files of the library, and the way in."""


def covers(path: str) -> bool:
    """Whether a path is the page's, answered or not."""
    return path in ("/", ROOT) or path.startswith(f"{ROOT}/")


def is_answered(method: str, path: str) -> bool:
    method = "GET" if method == "HEAD" else method
    return path in EXACT.get(method, ()) or path.startswith(BELOW.get(method, ()) or ("\0",))
