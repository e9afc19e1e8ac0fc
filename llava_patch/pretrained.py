"""The one way to call `from_pretrained` on a folder: local files, and no code that the folder brings or names.

A folder can bring code in two ways. `auto_map` in one of its JSON files names a class in a Python file; where nobody
says `trust_remote_code=False`, transformers asks at the terminal whether to run it, and does after a "y". And
`attn_implementation` in `config.json` can name a kernel `OWNER/NAME` that would be fetched from a hub and run. A folder
with an `auto_map` loads where transformers has the class that its JSON names besides; a tokenizer of another class
would silently be replaced by the generic one, so that is refused too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

AUTO_MAP = "auto_map"
KERNEL_KEYS = ("attn_implementation", "experts_implementation")
"""Keys, perhaps with `_` in front or more behind, that can name a kernel: a text, or a table with one for each part."""
CLASS_KEYS = ("tokenizer_class", "processor_class", "image_processor_type")
"""Keys beside `auto_map` that name the class to read the folder with."""

Table = tuple[Path, dict[str, Any]]
"""A JSON object, and the file that holds it."""


WRONG_TYPES = (TypeError, LookupError, AttributeError, StrictDataclassError)
"""What transformers and PEFT raise, without a file's name, where a JSON file holds a value of another type."""


class ForeignCodeError(ValueError):
    """A folder that loads only by running code of its own, or with a kernel from a hub; names file and class."""


def from_folder(kind: Any, folder: str | Path, **options: Any) -> Any:
    """`kind.from_pretrained(folder, **options)` without a network and without code from the folder.

    `kind`: a class of transformers or PEFT with `from_pretrained`. Errors are those of `kind`, and ForeignCodeError;
    a value of the wrong type in one of the folder's JSON files is a ValueError that names the folder.
    """
    folder = Path(folder)
    tables = list(_tables(folder))
    for file, key, kernel in _kernels(tables):
        raise ForeignCodeError(f"{file}: {key}: {kernel!r} is a kernel from a hub, which is never run; remove it")
    for file, named in _classes(tables, only_unknown=True):
        raise _refused(file, named, "transformers has no such class")
    trust = {"trust_remote_code": False} if kind.__name__.startswith("Auto") else {}  # the others never look for code
    try:
        return kind.from_pretrained(folder, local_files_only=True, **trust, **options)
    except (ValueError, OSError, *WRONG_TYPES) as error:
        for file, named in _classes(tables):
            raise _refused(file, named, str(error).strip().partition("\n")[0]) from error
        if isinstance(error, WRONG_TYPES):
            told = " ".join(str(error).split())[:300]
            raise ValueError(f"{folder}: {kind.__name__} finds a value of the wrong type: {told}") from error
        raise


def _refused(file: Path, named: str, why: str) -> ForeignCodeError:
    return ForeignCodeError(
        f"{file}: {AUTO_MAP} names {named}, code of the checkpoint's own, which is never run; take a folder that "
        f"transformers reads by itself ({why})"
    )


def _tables(folder: Path) -> Iterator[Table]:
    """The folder's JSON objects, at any depth. What is no JSON is left to the loader and its message."""
    for file in sorted(folder.glob("*.json")):
        try:
            left = [json.loads(file.read_text(encoding="utf-8"))]
        except (OSError, ValueError, RecursionError):
            continue
        while left:
            part = left.pop()
            if isinstance(part, dict):
                yield file, part
            inner = part.values() if isinstance(part, dict) else part
            left += [one for one in inner if isinstance(one, dict | list)] if isinstance(part, dict | list) else []


def _classes(tables: Iterable[Table], *, only_unknown: bool = False) -> Iterator[tuple[Path, str]]:
    """File and classes of every `auto_map`; `only_unknown`: where transformers lacks the class named besides."""
    import transformers

    for file, table in tables:
        if not table.get(AUTO_MAP):
            continue
        besides = [name for key in CLASS_KEYS if isinstance(name := table.get(key), str)]
        if not only_unknown or any(not hasattr(transformers, name) for name in besides):
            yield file, json.dumps(table[AUTO_MAP])


def _kernels(tables: Iterable[Table]) -> Iterator[tuple[Path, str, str]]:
    for file, table in tables:
        for key, value in table.items():
            if key.lstrip("_").startswith(KERNEL_KEYS):
                named = value.values() if isinstance(value, dict) else [value]
                yield from ((file, key, one) for one in named if isinstance(one, str) and "/" in one)
