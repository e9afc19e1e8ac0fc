"""YAML without its traps, and no more of it than JSON can say: tables, lists, texts, finite numbers, true, false, null.

PyYAML keeps the last of two equal keys and says nothing, so that a whole section of a file can vanish. Here that is an
error with the line. Keys that read the same are equal, whether quoted or not: `1` and `'1'`. Dates stay texts; `.inf`,
`.nan`, tags, and aliases that would grow a small file into a large table are errors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from safevlm.files.text import DEPTH, FileError, decoded, half_character, short, size

LIMIT = 256 << 10
"""Bytes; PyYAML reads some 170 KiB a second."""
PARTS = 100_000
"""Values of a document with every alias written out."""
PLAIN = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


class StrictLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` that raises ConstructorError (a YAMLError) for all that is called an error above."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own name and place for it
        first: [pair for pair in pairs if pair[0] in PLAIN]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, content: str) -> None:
        super().__init__(content)
        self.depth = 0
        self.parts: dict[int, int] = {}
        """Values in a node, itself and those of its aliases included, by the node's identity."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        start, is_alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        self.depth += 1
        if self.depth > DEPTH:
            raise ConstructorError(None, None, f"lists and tables nested more than {DEPTH} deep", start)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and id(node) not in self.parts:
            raise ConstructorError(None, None, "an alias stands inside of what it means", start)
        if node is not None and id(node) not in self.parts:
            self.parts[id(node)] = 1 + sum(self.parts.get(id(part), 1) for part in _parts(node))
            if self.parts[id(node)] > PARTS:
                told = f"more than {PARTS:,} values with its aliases written out; write less"
                raise ConstructorError(None, None, told, start)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in PLAIN:
            told = f"tag {short(node.tag)} is not read here; leave it out"
            raise ConstructorError(None, None, told, node.start_mark)
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError) as error:  # PyYAML looks bools up in a table, and reads a number's first sign
            told = f"{short(node.value)} is not what its tag says"
            raise ConstructorError(None, None, told, node.start_mark) from error
        if isinstance(value, float) and not math.isfinite(value):
            raise ConstructorError(None, None, f"{short(node.value)} is not a finite number", node.start_mark)
        if isinstance(value, str) and (half := half_character(value)):
            raise ConstructorError(None, None, f"{half} is half a character; write it whole", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        first: dict[Hashable, yaml.Mark] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if isinstance(key, bool | float) or key is None:
                told = f"key {short(key_node.value)} reads as no name; put it into quotes"
                raise ConstructorError(None, None, told, key_node.start_mark)
            for name in {key_node.value, key}:
                if name in first:
                    told = f"key {short(key_node.value)} stands twice, the first time in line {first[name].line + 1}"
                    raise ConstructorError(None, None, f"{told}; leave one out", key_node.start_mark)
            first |= dict.fromkeys((key_node.value, key), key_node.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1 reads `1e-3` as a text, since it has no dot
StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(?:\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_yaml(content: bytes | str, where: str) -> Any:
    """What one YAML document holds. FileError: `where:line: what is wrong`."""
    text = content if isinstance(content, str) else decoded(content, where)
    if len(text) > LIMIT:
        raise FileError(f"{where}: larger than {size(LIMIT)}, the most that a YAML file may have")
    try:
        return yaml.load(text, Loader=StrictLoader)  # noqa: S506  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        what = "" if isinstance(error, ConstructorError) else "not YAML: "
        raise FileError(f"{place}: {what}{_one_line(error.problem or error.context)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise FileError(f"{where}:{line}: not YAML: {_one_line(error.reason)} (#x{error.character:04x})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise FileError(f"{where}: not YAML: {_one_line(error)}") from error


def line_at(text: str, path: tuple[str | int, ...]) -> int | None:
    """The line of a key or of an item in a YAML text that can be read; None where it does not stand there."""
    node = yaml.compose(text, Loader=StrictLoader)
    line = node.start_mark.line if node is not None else 0
    for step in path:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(step)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            found = (node.value[step], node.value[step])
        if found is None:
            return None
        line, node = found[0].start_mark.line, found[1]
    return int(line) + 1


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
