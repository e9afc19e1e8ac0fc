"""Reading what a user wrote: the one way from a file's bytes to checked values.

    bytes, bounded  →  UTF-8  →  YAML or JSON, strictly  →  a dataclass

What is wrong is a FileError, a ValueError of one line: `file:line: key.path: what is wrong; what is allowed`.

`read_yaml(path, Shape)` and `read_json(path, Shape)` do all of it; `read_yaml(path)` stops before the dataclass.
`json_lines(path)` reads JSONL; `checked(Shape, value, where)` holds a value from elsewhere against a shape.
"""

from safevlm.files.documents import json_line, json_lines, read_json, read_yaml
from safevlm.files.shapes import checked
from safevlm.files.strict_json import load_json
from safevlm.files.strict_yaml import load_yaml
from safevlm.files.templates import check_template
from safevlm.files.text import FileError, read_text, undecodable_line

__all__ = [
    "FileError",
    "check_template",
    "checked",
    "json_line",
    "json_lines",
    "load_json",
    "load_yaml",
    "read_json",
    "read_text",
    "read_yaml",
    "undecodable_line",
]
