"""What libraries say that no user can act on, kept from the output of the commands. Called once, by `main`."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping

UNSAID: Mapping[str, str] = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
    "httpx": "HTTP Request: ",  # a line for every call to a server
    "httpx2": "HTTP Request: ",
    "DeepSpeed": "Setting accelerator to CPU",  # on stdout, where a command's own output goes
}
"""Beginning of a message by its logger; everything else that the logger says is heard."""
SETTINGS: Mapping[str, str] = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # a bar for every file that is written; ours tell how far a command is
    "TOKENIZERS_PARALLELISM": "false",  # a warning at every fork of a data loader
}
"""Environment variables that are read when a library is imported; a value of the user's own stays."""


def silence() -> None:
    """Before any of the libraries is imported. A filter outlives what they do to their loggers; a level would not."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for logger in UNSAID:
        logging.getLogger(logger).addFilter(_is_heard)
    warnings.filterwarnings("ignore", category=FutureWarning)  # deprecations among our dependencies


def _is_heard(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(UNSAID[record.name])
