"""Registry files -> Specs. The loader walks YAML nodes, so that every error has file, line and column."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import yaml

from structures.language.expressions import nearest
from structures.spec import Spec, SpecError

ENTRY_POINTS = "structures.registries"  # each loads to the path of a YAML file
FIELDS = ("title", "source", "variant_of", "options", "sizes", "index", "gate", "init", "pad", "einsum")
MAX_BYTES = 2**18
MAX_ENTRIES = 256
MAX_DEPTH = 10

_OCTAL = re.compile(r"[-+]?0[0-9_]+\Z")
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_added: dict[str, dict[str, Spec]] = {}  # file -> its entries, in the order of loading


class RegistryError(SpecError):
    """A registry file that cannot be read, or an entry in it that cannot be."""


def names() -> list[str]:
    """The names of all entries: built in, added by packages, and loaded by the user."""
    return sorted(_entries())


def get(name: str) -> Spec:
    """The entry called `name`, in upper or lower case.

    Raises:
        KeyError: there is none; the message has the nearest name.
    """
    entries = _entries()
    found = entries.get(name) or entries.get(str(name).lower())
    if found is None:
        raise KeyError(f"unknown structure {name!r}{nearest(str(name), entries)}")
    return found


def is_builtin(name: str) -> bool:
    """Whether the entry called `name` is the one that comes with this package."""
    return _entries().get(name) is _builtin().get(name)


def load(path: str | os.PathLike[str], *, replace: bool = False) -> list[str]:
    """Add the entries of a YAML file; loading a file again replaces what it added before.

    Args:
        replace: let entries take the place of built-in ones, or of another file's, of the same name.
    Returns:
        the names of its entries.
    Raises:
        RegistryError: the file or an entry is wrong, or a name is taken. Nothing is added then.
    """
    if "\0" in os.fspath(path):
        raise RegistryError(f"{os.fspath(path)!r}: cannot be read: there is a NUL in the path")
    file = os.path.realpath(path)
    specs = read(path)
    taken = {**_builtin(), **_packaged()}
    for other, entries in _added.items():
        if other != file:
            taken |= entries
    for name, spec in specs.items():
        if name in taken and not replace:
            raise RegistryError(
                f"{spec.where()}: {name} is already an entry of {taken[name].file}; rename it, or ask for replace=True"
            )
    _added.pop(file, None)
    _added[file] = specs
    return list(specs)


def read(path: str | os.PathLike[str]) -> dict[str, Spec]:
    """The entries of a YAML file, without adding them.

    Raises:
        RegistryError: with file:line:column, what was found and what is allowed.
    """
    return _Reader(str(path)).read()


def _entries() -> dict[str, Spec]:
    entries = {**_builtin(), **_packaged()}
    for added in _added.values():
        entries |= added
    return entries


@lru_cache(maxsize=1)
def _builtin() -> dict[str, Spec]:
    here = Path(__file__).parent
    file = here / "registry.yaml"  # inside a wheel
    return read(file if file.exists() else here.parent / "registry.yaml")


@lru_cache(maxsize=1)
def _packaged() -> dict[str, Spec]:
    """Entries that installed packages add; a broken package is named in a warning and left out."""
    found: dict[str, Spec] = {}
    for point in _entry_points():
        try:
            added = _load_entry_point(point)
        except (Exception, SystemExit) as error:  # whatever another package raises must not take the others down
            warnings.warn(
                f"structures: the entry point {point.name!r} ({point.value}) is broken: {error}", stacklevel=2
            )
            continue
        for name, spec in added.items():
            if name in found or name in _builtin():
                warnings.warn(
                    f"structures: the entry point {point.name!r} adds {name!r}, which is taken; left out", stacklevel=2
                )
            else:
                found[name] = spec
    return found


def _entry_points() -> Iterator[EntryPoint]:
    seen = set()
    for package in distributions():
        name = package.metadata["Name"]
        if name in seen:
            continue  # found on two paths: Python imports the first
        seen.add(name)
        try:
            yield from package.entry_points.select(group=ENTRY_POINTS)
        except Exception as error:  # metadata that cannot be parsed: whatever it raises concerns that package alone
            warnings.warn(f"structures: the entry points of the package {name!r} cannot be read: {error}", stacklevel=2)


def _load_entry_point(point: EntryPoint) -> dict[str, Spec]:
    path = point.load()
    if not isinstance(path, str | os.PathLike):
        raise RegistryError(f"it loads to {type(path).__name__}, not to the path of a YAML file")
    return read(path)


class _Reader:
    """Reads one file; every check names the place in it."""

    def __init__(self, file: str):
        self.file = file

    def read(self) -> dict[str, Spec]:
        root = self._compose(self._text())
        if not isinstance(root, yaml.MappingNode):
            raise self._error(f"a registry is a mapping of names to entries, found {_kind(root)}", root)
        if len(root.value) > MAX_ENTRIES:
            raise self._error(f"a registry file has at most {MAX_ENTRIES} entries, found {len(root.value)}", root)
        return {name: self._entry(name, key, value) for name, key, value in self._items(root, "structure")}

    def _text(self) -> str:
        try:
            if os.path.exists(self.file) and not (os.path.isfile(self.file) or os.path.isdir(self.file)):
                raise RegistryError(f"{self.file}: cannot be read: not a regular file")  # a pipe would be waited on
            with open(self.file, "rb") as handle:
                data = handle.read(MAX_BYTES + 1)
        except OSError as error:
            raise RegistryError(f"{self.file}: cannot be read: {error.strerror}") from None
        if len(data) > MAX_BYTES:
            raise RegistryError(f"{self.file}: a registry file has at most {MAX_BYTES} bytes")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            column = len(data[data.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8")) + 1
            place = f"{self.file}:{line}:{column}"
            raise RegistryError(f"{place}: not a text file (byte {error.start} is not UTF-8)") from None

    def _compose(self, text: str) -> yaml.Node:
        try:
            depth = 0
            last = (1, 1)  # where the last event ended: what the scanner cannot say of an impossible character
            for event in yaml.parse(text, Loader=yaml.SafeLoader):
                assert event.end_mark is not None
                last = (event.end_mark.line + 1, event.end_mark.column + 1)
                if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                    raise self._error("anchors and aliases are not allowed; write the value out", event)
                tag = getattr(event, "tag", None)
                if tag is not None:
                    raise self._error(f"tags are not allowed, found {tag!r}", event)
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if depth > MAX_DEPTH:
                    raise self._error(f"nested deeper than {MAX_DEPTH}", event)
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            raise RegistryError(f"{self.file}{place}: not YAML: {error.problem}") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            column = error.position - text.rfind("\n", 0, error.position)
            raise RegistryError(f"{self.file}:{line}:{column}: not YAML: {error.reason}") from None
        except (ValueError, OverflowError) as error:
            if isinstance(error, RegistryError):
                raise
            raise RegistryError(f"{self.file}:{last[0]}:{last[1]}: not YAML after this: {error}") from None
        if root is None:
            raise RegistryError(f"{self.file}:1:1: the file is empty; a registry is a mapping of names to entries")
        return root

    def _entry(self, name: str, key: yaml.Node, node: yaml.Node) -> Spec:
        if not _NAME.match(name):
            raise self._error(f"a structure is called by lower-case letters, digits and _, found {name!r}", key)
        if not isinstance(node, yaml.MappingNode):
            raise self._error(f"{name}: an entry is a mapping with an einsum, found {_kind(node)}", node)
        fields: dict[str, object] = {}
        marks: dict[tuple[str, ...], tuple[int, int, bool]] = {(): (*_place(key), False)}
        for field, field_key, value in self._items(node, f"field of {name}"):
            if field not in FIELDS and value.tag.endswith(":null") and getattr(node, "flow_style", False):
                self._string(f"{name}: {field}", value, node)  # a comma has cut an einsum in two
            if field not in FIELDS:
                raise self._error(f"{name}: unknown field {field!r}{nearest(field, FIELDS)}", field_key)
            marks[(field,)] = (*_place(value), False)
            fields[field] = self._field(name, field, value, marks)
        if "einsum" not in fields:
            raise self._error(f"{name}: the entry has no einsum", key)
        return Spec(name=name, file=self.file, marks=tuple(marks.items()), **fields)  # type: ignore[arg-type]

    def _field(
        self, name: str, field: str, node: yaml.Node, marks: dict[tuple[str, ...], tuple[int, int, bool]]
    ) -> object:
        if field == "pad":
            if not isinstance(node, yaml.ScalarNode) or node.value not in ("true", "false"):
                raise self._error(f"{name}: pad is true or false, found {_kind(node)}", node)
            return node.value == "true"
        if field in ("title", "source", "variant_of"):
            return self._string(f"{name}: {field}", node)
        if field == "einsum":
            nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
            marks.update({("einsum", str(i)): _inside(n) for i, n in enumerate(nodes)})
            return tuple(self._string(f"{name}: a term of the einsum", n) for n in nodes)
        if not isinstance(node, yaml.MappingNode):
            raise self._error(f"{name}: {field} is a mapping, found {_kind(node)}", node)
        pairs = []
        for key, _, value in self._items(node, f"name in {field} of {name}"):
            marks[(field, key)] = _inside(value)
            what = f"{name}: {field} {key}"
            read = self._option if field == "options" else self._string
            pairs.append((key, read(what, value, node)))
        return tuple(pairs)

    def _option(self, what: str, node: yaml.Node, parent: yaml.Node) -> object:
        if isinstance(node, yaml.SequenceNode):
            return tuple(self._number(what, item) for item in node.value)
        text = self._string(what, node, parent)
        quoted = getattr(node, "style", None) in ("'", '"')
        if not quoted and _OCTAL.match(text):
            raise self._error(f"{what}: {text!r} has a leading zero, which YAML reads as base 8; leave it out", node)
        return text if quoted or not _is_number(text) else _to_number(text)

    def _number(self, what: str, node: yaml.Node) -> int | float:
        text = self._string(what, node)
        if not _is_number(text):
            raise self._error(f"{what}: a list holds numbers, found {text!r}", node)
        return _to_number(text)

    def _string(self, what: str, node: yaml.Node, parent: yaml.Node | None = None) -> str:
        """The text of a scalar; YAML's readings of plain text as something else than a number are refused."""
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(f"{what}: a single value is expected, found {_kind(node)}", node)
        kind = node.tag.rpartition(":")[2]
        if kind == "null":
            cause = ""
            if getattr(parent, "flow_style", False):
                cause = "; inside {...} a comma ends a value, so write an expression with commas on a line of its own"
            raise self._error(f"{what}: there is no value{cause}", node)
        if kind == "bool":
            raise self._error(f"{what}: YAML reads {node.value!r} as a truth value; quote it or rename it", node)
        if kind in ("int", "float") and ":" in node.value:
            raise self._error(f"{what}: YAML reads {node.value!r} as a number in base 60; quote it", node)
        if kind == "timestamp":
            raise self._error(f"{what}: YAML reads {node.value!r} as a date; quote it", node)
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            raise self._error(f"{what}: half of a surrogate pair is no character", node)
        return str(node.value)

    def _items(self, node: yaml.MappingNode, what: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        first: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = self._string(f"a {what}", key)
            if name in first:
                raise self._error(
                    f"the {what} {name!r} stands twice; the first is in line {_place(first[name])[0]}", key
                )
            first[name] = key
            yield name, key, value

    def _error(self, message: str, at: yaml.Node | yaml.Event) -> RegistryError:
        line, column = _place(at)
        return RegistryError(f"{self.file}:{line}:{column}: {message}")


def _place(at: yaml.Node | yaml.Event) -> tuple[int, int]:
    """Line and column, counted from 1."""
    assert at.start_mark is not None  # the composer marks every node
    return at.start_mark.line + 1, at.start_mark.column + 1


def _inside(at: yaml.Node) -> tuple[int, int, bool]:
    """Line and column of a value's first character, and whether its characters can be counted on from there."""
    line, column = _place(at)
    style = getattr(at, "style", None)
    assert at.start_mark is not None and at.end_mark is not None
    in_one_line = at.start_mark.line == at.end_mark.line and style in (None, "'", '"')
    return line, column + (style in ("'", '"')), in_one_line


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return f"{node.value[:40]!r}" if node.value else "nothing"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _to_number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
