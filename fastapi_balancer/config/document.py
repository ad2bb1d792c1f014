"""Reads a YAML file into plain data that knows on which line each key stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fastapi_balancer.environment import expand
from fastapi_balancer.errors import ConfigError
from fastapi_balancer.problems import Key, Problem

_TAG = "tag:yaml.org,2002:"
# What JSON has too. Dates stay text, since a request's body could not hold them.
_TYPES = ("null", "bool", "int", "float", "str", "seq", "map")
_QUOTED = re.compile(r"'([^']*)'")
_HARMLESS = re.compile(r".?|<[a-z ]+>")  # one character, or the name of a token
_NOT_RESOLVED = (f"{_TAG}timestamp", f"{_TAG}value")


@dataclass(frozen=True, slots=True)
class Document:
    """A file's data, and where it stands in the file."""

    source: str
    data: object
    root: yaml.Node | None
    faults: dict[int, str]  # id of a node -> what is wrong with it

    @classmethod
    def read(cls, path: str | Path, environ: Mapping[str, str]) -> Document:
        """Read a file. Raises `ConfigError` when it cannot be read as YAML at all."""
        source = str(path)
        text = _text(path, source)
        loader = None
        try:
            loader = _Loader(text, environ)
            root = loader.get_single_node()
            data = {} if root is None else loader.construct_document(root)
        except yaml.YAMLError as error:
            raise ConfigError(f"{source}{_syntax(error, text)}") from None
        except RecursionError:
            raise ConfigError(f"{source}: nested too deeply") from None
        finally:
            if loader is not None:
                loader.dispose()
        return cls(source, data, root, loader.faults)

    @property
    def problems(self) -> list[Problem]:
        """What is wrong whatever the keys mean: duplicate keys, variables that are not set."""
        found: list[Problem] = []
        if self.root is not None and self.faults:
            self._collect((), self.root, found, set())
        return found

    def position(self, path: tuple[Key, ...]) -> tuple[int, int] | None:
        """Line and column of a key; of the nearest one above it if it is not there."""
        steps = self._steps(path)
        if not steps:
            return None
        mark = steps[-1][0].start_mark
        return mark.line + 1, mark.column + 1

    def is_reported(self, path: tuple[Key, ...]) -> bool:
        """Whether the value at `path` is one of those that `problems` names already."""
        steps = self._steps(path)
        value = steps[-1][1] if steps else self.root
        return len(steps) == len(path) and id(value) in self.faults

    def _steps(self, path: tuple[Key, ...]) -> list[tuple[yaml.Node, yaml.Node]]:
        """The nodes along `path`, as far as it goes: of each key, and of its value."""
        steps: list[tuple[yaml.Node, yaml.Node]] = []
        node = self.root
        for key in path:
            step = next((s for k, s in reversed(_children(node)) if k == str(key)), None)
            if step is None:
                break
            steps.append(step)
            node = step[1]
        return steps

    def _collect(
        self, path: tuple[Key, ...], node: yaml.Node, found: list[Problem], seen: set[int]
    ) -> None:
        if id(node) in seen:
            return  # an alias: reported where its anchor stands
        seen.add(id(node))
        if id(node) in self.faults:
            found.append(Problem(path, self.faults[id(node)]))
        for name, (key, value) in _children(node):
            if key is not value and id(key) in self.faults:
                found.append(Problem((*path, name), self.faults[id(key)]))
            self._collect((*path, name), value, found, seen)


def _children(node: yaml.Node | None) -> list[tuple[str, tuple[yaml.Node, yaml.Node]]]:
    if isinstance(node, yaml.MappingNode):
        return [(str(key.value), (key, value)) for key, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return [(str(index), (item, item)) for index, item in enumerate(node.value)]
    return []


class _Loader(yaml.SafeLoader):
    """Makes data of JSON's types, expands `${NAME}` in text, and notes what is wrong at a node."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML declares it so
        first: [(tag, regexp) for tag, regexp in resolvers if tag not in _NOT_RESOLVED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str, environ: Mapping[str, str]) -> None:
        super().__init__(text)
        self.environ = environ
        self.faults: dict[int, str] = {}

    def construct_document(self, node: yaml.Node) -> object:
        """Construct depth first, so that a node that contains itself is an error."""
        return self.construct_object(node, deep=True)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping; a key that stands twice is noted as a fault."""
        if not isinstance(node, yaml.MappingNode):
            raise _refusal(node, "keys with values are expected here")
        own = [key for key, _ in node.value if key.tag != f"{_TAG}merge"]
        first: dict[Hashable, yaml.Node] = {}
        for key in own:
            name = self._key(key)
            earlier = first.setdefault((type(name), name), key)  # 1 and true are equal in Python
            if earlier is not key:
                line = earlier.start_mark.line + 1
                self.faults[id(key)] = f"stands twice; it stands in line {line} already"
        self.flatten_mapping(node)
        return {
            self._key(key): self.construct_object(value, deep=True) for key, value in node.value
        }

    def text(self, node: yaml.Node) -> str:
        """Construct text, with the environment's variables in it."""
        text = str(self.construct_scalar(node))  # type: ignore[arg-type]  # it checks the kind
        try:
            return expand(text, self.environ)
        except ConfigError as error:
            self.faults[id(node)] = str(error)
            return text

    def _key(self, node: yaml.Node) -> Hashable:
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}str":
            return str(node.value)  # keys are not expanded
        key = self.construct_object(node, deep=True)
        if not isinstance(key, Hashable):
            raise _refusal(node, "a key is text, not a list or keys with values")
        return key


def _checked(tag: str, kind: str) -> Callable[[_Loader, yaml.Node], object]:
    construct = yaml.SafeLoader.yaml_constructors[tag]

    def constructor(loader: _Loader, node: yaml.Node) -> object:
        try:
            return construct(loader, node)
        except (ValueError, KeyError, IndexError):
            raise _refusal(node, f"this is not {kind}; put text in quotes") from None

    return constructor


_Loader.yaml_constructors = {
    **{f"{_TAG}{name}": yaml.SafeLoader.yaml_constructors[f"{_TAG}{name}"] for name in _TYPES},
    f"{_TAG}bool": _checked(f"{_TAG}bool", "true or false"),
    f"{_TAG}int": _checked(f"{_TAG}int", "a whole number"),
    f"{_TAG}float": _checked(f"{_TAG}float", "a number"),
    f"{_TAG}str": _Loader.text,
    None: yaml.SafeLoader.yaml_constructors[None],
}


def _refusal(node: yaml.Node, text: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


def _text(path: str | Path, source: str) -> str:
    try:
        raw = Path(path).read_bytes()
        return raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{source}: no such file; looked in {Path.cwd()}") from None
    except IsADirectoryError:
        raise ConfigError(f"{source}: a directory; name the YAML file in it") from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{source}:{line}: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{source!r}: not the name of a file") from None


def _syntax(error: yaml.YAMLError, text: str) -> str:
    """Say what PyYAML found, without the words of the file that it repeats: they may be secret."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f":{line}: not YAML: a control character"
    if not isinstance(error, yaml.MarkedYAMLError):
        return ": not YAML"
    mark = error.problem_mark or error.context_mark
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    problem = _QUOTED.sub(
        lambda quoted: quoted[0] if _HARMLESS.fullmatch(quoted[1]) else "'…'",
        error.problem or error.context or "",
    )
    return f"{place}: not YAML: {problem}{_hint(problem)}"


def _hint(problem: str) -> str:
    if "…" in problem:
        return "; text that begins with * & or ! must be in quotes"
    if problem.endswith("but got '{'"):
        return "; between { } and [ ] a ${NAME} must be in quotes"
    return ""
