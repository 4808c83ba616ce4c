"""Recipe files: YAML read strictly, --set laid over it, and every problem explained with its place and the near key.

`load_recipe` raises one RecipeError holding all problems. Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from variegate.errors import Problem, RecipeError
from variegate.recipe import Overrides, Recipe, Section

RECIPES = Path(__file__).parent / "recipes"
MAX_RECIPE_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """YAML 1.2 booleans and floats, no duplicate keys, no aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.constructor.ConstructorError(None, None, "aliases (*name) are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: dict[str, Any] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                text = "a key must be a word; put quotes around text that holds braces or brackets"
                raise yaml.constructor.ConstructorError(None, None, text, key_node.start_mark)
            if key_node.value in seen:
                line = seen[key_node.value].start_mark.line + 1
                text = f"key {key_node.value!r} stands twice (first on line {line})"
                raise yaml.constructor.ConstructorError(None, None, text, key_node.start_mark)
            seen[key_node.value] = key_node
        return super().construct_mapping(node, deep)


def _yaml_1_2(loader: type[_Loader]) -> None:
    resolvers = {}
    for letter, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items():
        dropped = (
            "tag:yaml.org,2002:bool",
            "tag:yaml.org,2002:float",
            "tag:yaml.org,2002:int",
            "tag:yaml.org,2002:timestamp",
        )
        resolvers[letter] = [(tag, pattern) for tag, pattern in pairs if tag not in dropped]
    loader.yaml_implicit_resolvers = resolvers
    loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
    loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
    number = (
        r"^[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"
    )
    loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(number), list("-+.0123456789"))


_yaml_1_2(_Loader)


def parse_yaml(text: str, where: str) -> Any:
    """Read one YAML document safely; raises RecipeError with file and line."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as exc:
        mark = getattr(exc, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        reason = getattr(exc, "problem", None) or str(exc)
        raise RecipeError(Problem(place, f"not valid YAML: {reason}")) from exc
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
    ) as exc:  # a tag that does not fit its value, nesting without end
        raise RecipeError(Problem(where, f"not valid YAML: {str(exc) or type(exc).__name__}")) from exc


def parse_values(text: str, where: str) -> list[Any]:
    """Values with commas between them, each read as YAML, equal ones once; raises RecipeError.

    >>> parse_values("0.5,[0.3, 0.7],a b,0.5", "--over")
    [0.5, [0.3, 0.7], 'a b']
    """
    different = {json.dumps(value, sort_keys=True): value for value in parse_yaml(f"[{text}]", where)}
    return list(different.values())


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """The file of a shipped recipe or a path; raises RecipeError with the nearest name."""
    shipped = RECIPES / f"{name}.yaml"
    if name in recipe_names():
        return shipped
    path = Path(name)
    if path.is_file():
        return path
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        raise RecipeError(Problem(name, "no such recipe file", "variegate recipes ls shows the shipped ones"))
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped: {', '.join(recipe_names())}"
    raise RecipeError(Problem(name, "no shipped recipe and no file of this name", hint))


def load_recipe(name: str = "variegate", overrides: Iterable[str] = (), data: str | None = None) -> Recipe:
    """Read a shipped recipe or a file, apply KEY=VALUE overrides and DATA, and check everything.

    Raises RecipeError holding all problems, each with its file and line or the --set it came from.
    """
    path = find_recipe(name)
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise RecipeError(Problem(str(path), f"larger than {MAX_RECIPE_BYTES:,} bytes", "is this a recipe?"))
    shown = name if path.parent == RECIPES else str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise RecipeError(Problem(str(path), f"not a text file: {exc}", "give a YAML recipe")) from exc
    values = parse_yaml(text, shown)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError(Problem(shown, f"a recipe is a mapping of sections, got {type(values).__name__}"))
    return build_recipe(values, overrides, data, shown, _line_numbers(text, shown))


def build_recipe(
    values: dict[str, Any],
    overrides: Iterable[str],
    data: str | None,
    shown: str = "recipe",
    origins: dict[str, str] | None = None,
) -> Recipe:
    """The values of a recipe with KEY=VALUE overrides and DATA put in, checked; raises RecipeError with all problems.

    `origins` tells where each key stands. A section without keys, as when all are commented out, has its defaults.
    """
    origins = {} if origins is None else origins
    _fill_empty(values, Recipe)
    problems = _apply_overrides(values, overrides, origins)
    if data is not None:
        if not isinstance(values.setdefault("dataset", {}), dict):
            problems.append(
                Problem(origins.get("dataset", shown), "dataset is no section", "write dataset: {path: ...}")
            )
            raise RecipeError(problems)
        values["dataset"]["path"] = data
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as exc:
        problems.extend(_explain(error, origins, shown) for error in exc.errors())
        raise RecipeError(problems) from exc
    if problems:
        raise RecipeError(problems)
    return recipe


def _fill_empty(values: Any, section: type[Section]) -> None:
    """Sections whose keys are all commented out, which YAML reads as null."""
    for key, field in section.model_fields.items():
        if isinstance(values, dict) and key in values and isinstance(field.default, Section):
            values[key] = {} if values[key] is None else values[key]
            _fill_empty(values[key], type(field.default))


def idle_settings(recipe: Recipe, overrides: Iterable[str]) -> list[str]:
    """KEY=VALUE settings that change nothing in this recipe, each as a sentence with the reason.

    >>> idle_settings(load_recipe("diff-gen"), ["generate.strength=0.3", "train.steps=9"])
    ['generate.strength has no effect: diff-gen starts from pure noise']
    """
    method, found = recipe.generate.method, []
    rules = (  # prefixes of keys, whether they are idle, why
        (
            ("generate.strength",),
            method != "none" and not recipe.generate.from_image,
            f"{method} starts from pure noise",
        ),
        (("generate.", "refine", "curate"), method == "none", "generate.method is none, so nothing is drawn"),
        (("adapt.",), recipe.adapt.method == "none", "adapt.method is none, so nothing is learned"),
        (
            ("train.mixing.fraction",),
            recipe.train.mixing.policy == "concat",
            "concat takes every image as often as any",
        ),
        (
            ("train.mixing.", "train.label.gamma", "train.label.kappa"),
            not any(arm.has_synthetic for arm in recipe.evaluate.arm_sections),
            "no arm learns from synthetic images",
        ),
    )
    for key in (item.partition("=")[0].strip() for item in overrides):
        reasons = [why for prefixes, is_idle, why in rules if is_idle and key.startswith(prefixes)]
        if reasons and key not in ("generate.method", "adapt.method"):
            found.append(f"{key} has no effect: {reasons[0]}")
    return found


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every key written out, in stage order."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines like 'generate.strength: 0.5 -> 0.7' for every key whose value differs."""
    lines: list[str] = []
    for key in list(dict.fromkeys([*old, *new])):
        before, after = old.get(key), new.get(key)
        if isinstance(before, list) and isinstance(after, list) and isinstance((before or after or [0])[0], Mapping):
            before, after = (dict(enumerate(steps)) for steps in (before, after))
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += difference(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _line_numbers(text: str, shown: str) -> dict[str, str]:
    """Dotted key -> 'file:line'."""
    places: dict[str, str] = {}

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                dotted = f"{prefix}{key.value}"
                places[dotted] = f"{shown}:{key.start_mark.line + 1}"
                walk(value, dotted + ".")
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                places[f"{prefix}{index}"] = f"{shown}:{value.start_mark.line + 1}"
                walk(value, f"{prefix}{index}.")

    walk(yaml.compose(text, Loader=_Loader), "")
    return places


def _apply_overrides(values: dict, overrides: Iterable[str], origins: dict[str, str]) -> list[Problem]:
    problems = []
    for item in overrides:
        key, equals, raw = item.partition("=")
        if not equals or not key.strip():
            problems.append(Problem(f"--set {item}", "expected KEY=VALUE", "for example --set generate.strength=0.5"))
            continue
        try:
            value = parse_yaml(raw, f"--set {item}")
            if isinstance(value, dict) and None in value.values():
                value = raw  # prompts.text={name}: a placeholder, not a mapping
            _put(values, key.strip().split("."), value)
        except RecipeError as exc:
            problems.extend(exc.problems)
        except TypeError as exc:
            problems.append(Problem(f"--set {item}", str(exc)))
        for inner in [place for place in origins if place.startswith(f"{key.strip()}.")]:
            del origins[inner]  # replaced with the whole it stood in
        origins[key.strip()] = f"--set {item}"
    _drop_masks(values, origins)
    return problems


def _drop_masks(values: dict, origins: Mapping[str, str]) -> None:
    """An override takes the recipe's own mask keys along where it leaves them nothing to do: generate.mask=none or object (what
    errs inwards for a background leaves a rim of the object), a generate.method that has no use for the mask, or a
    prompts.method, whose prompts mask_text would stand before."""
    generate = values.get("generate")
    if not isinstance(generate, dict):
        return
    given = {key for key in generate if origins.get(f"generate.{key}", "").startswith("--set")}
    method, mask, own = str(generate.get("method", "real-aug")), generate.get("mask"), [*generate]
    is_used = method.endswith("-aug") or (method.endswith("-mix") and mask == "object")
    idle: list[str] = []
    if "mask" in given:
        of_others = {"none": [key for key in own if key.startswith("mask_")], "object": ["mask_text", "mask_grow"]}
        idle = of_others.get(str(mask), [])
    elif "method" in given and not is_used:
        idle = [key for key in own if key.startswith("mask")]
    if origins.get("prompts.method", "").startswith("--set"):  # other prompts are asked for
        idle.append("mask_text")
    for key in set(idle) - given:
        generate.pop(key, None)


def _put(values: dict | list, keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1], 1):
        inner = values[_place(values, keys[:depth])] if isinstance(values, list) else values.setdefault(key, {})
        if not isinstance(inner, dict | list):
            raise TypeError(f"{'.'.join(keys[:depth])} is no section")
        values = inner
    if isinstance(values, list):
        values[_place(values, keys)] = value
    else:
        values[keys[-1]] = value


def _place(values: list, keys: list[str]) -> int:
    """The index that the last of the keys is."""
    if not keys[-1].isdigit() or int(keys[-1]) >= len(values):
        raise TypeError(f"{'.'.join(keys)}: no such item in a list of {len(values)}")
    return int(keys[-1])


def _explain(error: Any, origins: Mapping[str, str], shown: str) -> Problem:
    """One pydantic error as where, what and remedy."""
    loc = [str(part) for part in error["loc"] if not _is_union_branch(part)]
    path = [part for place, part in enumerate(loc) if place != 2 or loc[0] != "refine"]  # there stands the operation
    dotted = ".".join(path)
    where = next((origins[key] for key in _prefixes(path) if key in origins), shown)
    place = f"{where}: {dotted}" if dotted else where
    if error["type"] == "extra_forbidden":
        known = _keys_at(loc[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        return Problem(
            place, "unknown key", f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        )
    what = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return Problem(place, what)
    if error["type"] in {"union_tag_not_found", "union_tag_invalid"}:
        return _explain_tag(error, place)
    if error["type"] == "literal_error":
        near = difflib.get_close_matches(str(error["input"]), _quoted(error["ctx"]["expected"]), n=1)
        remedy = f"did you mean {near[0]!r}?" if near else ""
        return Problem(place, f"{what[0].lower()}{what[1:]}, got {error['input']!r}", remedy)
    is_placeholder = isinstance(error["input"], dict) and None in error["input"].values()
    remedy = "put quotes around text that holds braces" if is_placeholder else ""
    return Problem(place, f"{what[0].lower()}{what[1:]}, got {error['input']!r}", remedy)


def _explain_tag(error: Any, place: str) -> Problem:
    """An item of a list of tagged sections without its tag, or with one that is not known."""
    key = error["ctx"]["discriminator"].strip("'")
    if error["type"] == "union_tag_not_found":
        return Problem(place, f"has no {key}", f"say which one it is with {key}: ...")
    near = difflib.get_close_matches(error["ctx"]["tag"], _quoted(error["ctx"]["expected_tags"]), n=1)
    remedy = f"did you mean {near[0]!r}?" if near else f"known: {error['ctx']['expected_tags']}"
    return Problem(place, f"unknown {key} {error['ctx']['tag']!r}", remedy)


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _is_union_branch(part: Any) -> bool:
    return isinstance(part, str) and (
        part in {"float", "int", "str", "bool", "ArmSection"} or part.startswith(("list[", "constrained"))
    )


def _prefixes(path: list[str]) -> list[str]:
    return [".".join(path[:end]) for end in range(len(path), 0, -1)]


def _keys_at(path: list[str]) -> list[str]:
    """Known keys of the section at a dotted path, in which a list of tagged sections has the tag behind the index."""
    models: list[type[Section]] = [Recipe]
    for part in path:
        if part.isdigit():
            continue
        tagged = [
            model for model in models if any(get_args(f.annotation) == (part,) for f in model.model_fields.values())
        ]
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = tagged or _sections([kind for field in fields for kind in (field.annotation, *_overridden(field))])
        if not models:
            return []
    return list(models[0].model_fields)


def _overridden(field: Any) -> list[type[Section]]:
    """The section whose keys a mapping may have."""
    return [mark.section for mark in field.metadata if isinstance(mark, Overrides)]


def _sections(annotations: Iterable[Any]) -> list[type[Section]]:
    """Sections named anywhere in type annotations."""
    found: list[type[Section]] = []
    for kind in annotations:
        is_section = isinstance(kind, type) and issubclass(kind, Section)
        found += [kind] if is_section else _sections(get_args(kind))
    return found
