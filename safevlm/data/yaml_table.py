"""YAML without repeated keys.

PyYAML keeps the last of two equal keys and says nothing, so that a whole section of a file can vanish. Here that is an
error with the line. Keys that read the same are equal, whether quoted or not: `1` and `'1'`.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


class UniqueKeyLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` that raises `yaml.constructor.ConstructorError` (a YAMLError) for a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[Hashable, yaml.Mark] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            for key in {key_node.value, self.construct_object(key_node)}:
                if key in first:
                    raise yaml.constructor.ConstructorError(
                        None,
                        None,
                        f"key {key_node.value!r} stands twice, the first time in line {first[key].line + 1}; "
                        "leave one out",
                        key_node.start_mark,
                    )
            first |= dict.fromkeys((key_node.value, self.construct_object(key_node)), key_node.start_mark)
        return super().construct_mapping(node, deep)


def load_yaml(content: bytes | str, where: str) -> object:
    """What one YAML document holds. ValueError, beginning with `where` and the line: not YAML, or a repeated key."""
    try:
        return yaml.load(content, Loader=UniqueKeyLoader)  # noqa: S506  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        what = "" if isinstance(error, yaml.constructor.ConstructorError) else "not YAML: "
        raise ValueError(f"{place}: {what}{error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:  # ValueError: an impossible date
        raise ValueError(f"{where}: not YAML: {' '.join(str(error).split())}") from error
