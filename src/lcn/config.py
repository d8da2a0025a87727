"""Typed, nested configuration: YAML in, dotted overrides on top, a resolved dump out.

Every config class derives from `Config` and lives in the module of what it builds. Choosing
between kinds (which backbone, which objective) is a union discriminated by its `name` field.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lcn.errors import ConfigError, nearest

ConfigT = TypeVar("ConfigT", bound=BaseModel)
Share = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]


class Config(BaseModel):
    """A frozen group of settings; unknown keys are errors, field docstrings are the help."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        strict=False,
        allow_inf_nan=False,
    )


def load_config(
    kind: type[ConfigT],
    path: Path | str | None = None,
    overrides: Sequence[str] = (),
    *,
    start: dict[str, Any] | None = None,
) -> ConfigT:
    """Read a config from YAML and apply overrides such as `model.backbone.k1=100`.

    Args:
        kind: the config class.
        path: a YAML file; None starts from `start`, if given, else from the defaults.
        overrides: `dotted.key=value` items, values in YAML syntax, later ones win.
        start: settings as a plain tree; the overrides are written into it.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (the nearest right one is named),
            or a value of the wrong type.
    """
    tree: Any = start or {}
    if path is not None:
        try:
            tree = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys) or {}
        except OSError as error:
            raise ConfigError(f"cannot read config {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(tree, dict):
            raise ConfigError(f"{path}: expected a mapping of settings, got {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    return parse_config(kind, tree, where=str(path) if path else "config")


def parse_config(kind: type[ConfigT], tree: dict[str, Any], where: str = "config") -> ConfigT:
    """Validate a plain tree as `kind`; see `load_config` for what is raised."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + _explain(kind, error)) from error


class _UniqueKeys(yaml.SafeLoader):
    """A key given twice is refused: YAML would keep the last and lose the others."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[Any]()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # no key of ours; refused where it is built
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def dump_config(config: BaseModel) -> str:
    """Return the resolved config as YAML: every setting, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form dotted.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML") from error
    *parents, leaf = key.split(".")
    node: Any = tree
    for name in parents:
        if isinstance(node, list):
            node = node[_place(node, name, override)]
        else:
            node = node.setdefault(name, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"override {override!r}: {name!r} is a value, not a group")
    if isinstance(node, list):
        node[_place(node, leaf, override)] = value
    else:
        node[leaf] = value


def _place(items: list[Any], name: str, override: str) -> int:
    """The position in a list that a part of an override's key names."""
    if not name.isdecimal() or int(name) >= len(items):
        known = f"0 to {len(items) - 1}" if items else "none: the list is empty"
        raise ConfigError(f"override {override!r}: {name!r} is no place in the list ({known})")
    return int(name)


def _explain(kind: type[BaseModel], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            *parents, leaf = problem["loc"]
            known = _fields_at(kind, parents)
            lines.append(f"unknown key {place!r}{nearest(str(leaf), known)}")
        elif problem["type"].startswith("union_tag"):
            context = problem.get("ctx", {})
            tag = str(context.get("tag", "nothing"))
            known = [
                name.strip(" '") for name in str(context.get("expected_tags", "name")).split(",")
            ]
            lines.append(f"{place}: unknown name {tag!r}{nearest(tag, known)}")
        else:
            reason = str(problem["msg"]).removeprefix("Value error, ")
            # A rule about several settings says itself what it got; the group would fill pages.
            group = isinstance(problem["input"], dict | BaseModel)
            got = "" if group else f" (got {problem['input']!r})"
            lines.append(f"{place}: {reason}{got}" if place else f"{reason}{got}")
    return "; ".join(lines)


def _fields_at(kind: type[BaseModel], parents: list[Any]) -> list[str]:
    """Names a group accepts, following the error's path through unions and lists."""
    kinds: list[type[BaseModel]] = [kind]
    for part in parents:
        following: list[type[BaseModel]] = []
        for candidate in kinds:
            field = candidate.model_fields.get(str(part))
            if field is not None:
                following += _models_in(field.annotation)
            elif _tag_of(candidate) == part or isinstance(part, int):
                following.append(candidate)
        kinds = following or kinds
    return [name for candidate in kinds for name in candidate.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, Annotated, list, tuple, dict):
        return [found for inner in get_args(annotation) for found in _models_in(inner)]
    return []


def _tag_of(kind: type[BaseModel]) -> Any:
    field = kind.model_fields.get("name")
    return field.default if field is not None else None
