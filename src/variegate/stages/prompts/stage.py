"""Prompts stage: render every prompt, check it against the model's text encoders, write prompts/prompts.jsonl.

The generate stage deals these prompts out; a person can read the file to see what the model will be told.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from variegate.backends.adapter import ADAPTER, adapter_problems, expand, parts_used, read_adapter, token_vectors
from variegate.backends.base import locate
from variegate.backends.folder import find_model, model_fingerprint
from variegate.backends.tokenizers import load_tokenizers
from variegate.errors import Problem, RecipeError, UserError
from variegate.files import file_sha256
from variegate.phrases import GROUPS, KINDS, Kind, Phrases, different, phrases_of
from variegate.pipeline import Context
from variegate.prompt_lists import ClassTexts, read_prompts, texts_by_class
from variegate.recipe import LLMSection, PromptsSection, Recipe
from variegate.records import ClassInfo
from variegate.stages.prompts.answers import FILE as ANSWERS
from variegate.stages.prompts.answers import Answers, read_answers
from variegate.stages.prompts.asking import Wish, dollars, request_id, request_of, tokens_of, wishes
from variegate.stages.prompts.llm import Answerer, Collected, Collector, collect, nobody_to_ask
from variegate.stages.prompts.naming import Names
from variegate.stages.prompts.templates import (
    Lengths,
    Material,
    cut_warning,
    missing_captions,
    render_all,
    too_long,
)
from variegate.store import RunFolder, explained
from variegate.templates import class_word, placeholders, render

NAME = "prompts"
FILE = "prompts/prompts.jsonl"


def inputs(recipe: Recipe) -> dict[str, Any]:
    """The model's own hash is here because its tokenizers count; through it every later stage notices other weights."""
    keys = {
        "prompts": recipe.prompts.model_dump(),
        "drawn": _drawn(recipe),
        "parts": parts_used(recipe.generate.method),
    }
    if not _drawn(recipe):
        return keys
    if recipe.generate.mask_text is not None:
        keys["around"] = recipe.generate.mask_text
    return keys | {
        "model": model_fingerprint(*locate(recipe.backend)),
        "phrases": [_phrases(recipe.prompts, kind).phrases for kind in KINDS],
        "files": [
            file_sha256(Path(path).expanduser()) if path else ""
            for path in (recipe.prompts.file, recipe.prompts.llm.cache)
        ],
        "seed": recipe.seed if recipe.prompts.method == "llm" else None,
    }


def run(context: Context) -> dict[str, Any]:
    recipe, folder = context.recipe, context.folder
    if not _drawn(recipe):
        return {"line": "nothing to say: no images are drawn", "prompts": 0}
    classes, images = folder.classes(), folder.real_images("train")
    words, vectors = _words(recipe, folder, classes)
    ruler = _ruler(recipe, vectors)
    texts, notes, facts = _texts(context, classes, words, ruler)
    groups = sorted({image.group for image in images if image.group})
    places, styles = (_phrases(recipe.prompts, kind, groups) for kind in KINDS)
    notes += [note for key, one in (("environments", places), ("styles", styles)) for note in one.repeats(key)]
    lines = render_all(Material(texts, places.phrases, styles.phrases), classes, images, words)
    lengths = ruler(line.prompt for line in lines)
    folder.write(FILE, "".join(json.dumps(asdict(line), ensure_ascii=False) + "\n" for line in lines))
    folder.put_artefact(NAME, "prompts", FILE)
    for note in notes:
        context.reporter.line(f"{NAME}: {note}")
    longest = max(lengths.tokens.values())
    line = (
        f"{len(lengths.tokens):,} prompts for {len(classes):,} classes, the longest {longest} of {lengths.limit} tokens"
    )
    cut = [cut_warning(lengths)] if lengths.cut else []
    return {
        "line": "; ".join([line, *cut]),
        "prompts": len(lengths.tokens),
        "longest_tokens": longest,
        "max_tokens": lengths.limit,
        "warnings": [*cut, *notes],
        **facts,
    }


def check(
    recipe: Recipe, classes: Sequence[ClassInfo], num_images: int, num_uncaptioned: int, root: Path | None = None
) -> None:
    """Raise UserError for texts that cannot be filled, that leave the model no token for the class, or that nobody can give.

    A few names or captions that are too long are only worth a warning, given when the stage runs. `root` is the run
    folder, whose kept answers may make a key needless; without it, as for plan, nobody is connected to.
    """
    section, around = recipe.prompts, recipe.generate.mask_text
    if section.method == "llm":
        problems = _llm_problems(section.llm, root, classes)
    else:
        listed = [list(one) for one in _listed(section, classes, around).texts]
        places, styles = (_phrases(section, kind, [GROUPS]).phrases for kind in KINDS)
        material = Material(listed, places, styles)
        where = "prompts.text" if section.method == "template" else str(section.file)
        where = where if around is None else "generate.mask_text"
        problems = missing_captions(where, material.all_texts(), num_images, num_uncaptioned)
        problems += material.phrase_problems(where, needless=section.environments != GROUPS)
        problems += _silent_tokens(recipe, material, where) if around is None else []
        if section.method == "template":
            problems += _too_long(recipe, material)
    if problems:
        raise RecipeError(problems)


def estimate(recipe: Recipe, classes: Sequence[ClassInfo]) -> dict[str, Any]:
    """What asking a language model would cost, as far as its first requests tell; nothing is asked. Keys end in their unit."""
    section = recipe.prompts.llm
    if recipe.prompts.method != "llm" or not _drawn(recipe):
        return {}
    kept = read_answers(Path(section.cache).expanduser()) if section.cache else {}
    wanted = [wish for info in classes for wish in wishes(section, info)]
    requests = [_first_request(section, wish) for wish in wanted]
    left = [(one, wish) for one, wish in zip(requests, wanted, strict=True) if request_id(one) not in kept]
    asked = [one for one, wish in left for _ in range(wish.requests)]
    tokens_in, tokens_out = tokens_of(section, asked, sum(wish.count for _, wish in left))
    answer = {"llm_requests": len(asked), "llm_tokens_in": tokens_in, "llm_tokens_out": tokens_out}
    cost = dollars(section, tokens_in, tokens_out)
    return answer if cost is None else answer | {"llm_usd": round(cost, 4)}


# ------------------------------------------------------------------------------------------ texts and phrases


def _phrases(section: PromptsSection, kind: Kind, groups: Sequence[str] = ()) -> Phrases:
    """What {environment} or {style} may say: the recipe's phrases, a bank's, a file's, or the groups of the images."""
    given = section.environments if kind == "environments" else section.styles
    if kind == "environments" and given == GROUPS:
        return Phrases(tuple(groups), 0)
    return phrases_of(given, kind) if given else different(())


def _texts(
    context: Context, classes: Sequence[ClassInfo], words: Sequence[str], ruler: Ruler
) -> tuple[Sequence[Sequence[str]], list[str], dict[str, Any]]:
    """Texts of each class, what to say about them, and facts for the summary."""
    if context.recipe.prompts.method == "llm":
        found = _ask_all(context, classes, words, ruler)
        return found.texts, list(found.notes), {"llm": _llm_facts(context.recipe.prompts.llm, found)}
    listed = _listed(context.recipe.prompts, classes, context.recipe.generate.mask_text)
    return listed.texts, list(listed.notes), {}


def _listed(section: PromptsSection, classes: Sequence[ClassInfo], around: str | None) -> ClassTexts:
    """The recipe's own texts for every class, or those of its file; raises DataError for a class without any.

    `around` stands instead of them: the text of backgrounds, which say nothing of a class.
    """
    if around is not None:
        return ClassTexts(((around,),) * len(classes), ())
    if section.method == "template":
        return ClassTexts((tuple(section.texts),) * len(classes), ())
    path = Path(str(section.file)).expanduser()
    names = Names(info.name for info in classes)
    found = texts_by_class(read_prompts(path), [info.name for info in classes], path)
    pairs = [(info.name, text) for info, own in zip(classes, found.texts, strict=True) for text in own]
    strays = [(own, other, text) for own, text in pairs for other in names.others(text, own)[:1]]
    if not strays:
        return found
    own, other, text = strays[0]
    what = (
        f"{len(strays):,} of {len(pairs):,} prompts name another class: {own!r} is told {text!r}, which says {other!r}"
    )
    return ClassTexts(found.texts, (*found.notes, f"{path}: {what}"))


def _silent_tokens(recipe: Recipe, material: Material, where: str) -> list[Problem]:
    """Prompts that would not say the learned tokens they are drawn with."""
    silent = [text for text in material.all_texts() if "name" not in placeholders(text)]
    if not silent or not _draws_with_tokens(recipe):
        return []
    text = f"{len(silent):,} prompts never say {{name}}, so the learned tokens would not be drawn with: {silent[0]!r}"
    without = "an adapter without tokens" if recipe.adapt.method == "file" else "adapt.method=lora"
    return [Problem(where, text, f"put {{name}} where the class is named, or use {without}")]


def _draws_with_tokens(recipe: Recipe) -> bool:
    """Whether learned tokens stand for the classes; an adapter that cannot be read is refused where it is taken."""
    if recipe.adapt.method != "file":
        return recipe.adapt.has_tokens
    path = Path(str(recipe.adapt.path))
    return parts_used(recipe.generate.method) != "none" and not adapter_problems(path) and read_adapter(path).has_tokens


def _too_long(recipe: Recipe, material: Material) -> list[Problem]:
    """Texts that fill the model's context without any name in them; the longest phrases stand for all."""
    word = " ".join(["<class_0>"] * recipe.adapt.vectors) if recipe.adapt.has_tokens else ""
    given = recipe.prompts.environments
    place = "" if given == GROUPS else max(material.environments, key=len, default="")
    style = max(material.styles, key=len, default="")
    lengths = _ruler(recipe, {"<class_0>": 1})(
        render(text, name=word, environment=place, style=style) for text in material.all_texts()
    )
    return [too_long(lengths)] if lengths.cut else []


# ------------------------------------------------------------------------------------------ language model


def _served(section: LLMSection) -> LLMSection:
    """The section with the name its answers are kept under: a local model goes by its folder's."""
    name = section.model or (Path(section.local).name if section.local else "")
    return section.model_copy(update={"model": name})


def _first_request(section: LLMSection, wish: Wish) -> dict[str, Any]:
    """What is asked first of a wish; its seed is the recipe's, which neither its id nor its cost depends on."""
    return request_of(_served(section), wish, (), 0, 0)


def _unanswered(section: LLMSection, kept: Collection[str], classes: Sequence[ClassInfo]) -> list[Wish]:
    """Wishes whose first request no kept answer serves. What comes after depends on the answers."""
    wanted = [wish for info in classes for wish in wishes(section, info)]
    return [wish for wish in wanted if request_id(_first_request(section, wish)) not in kept]


def _llm_problems(section: LLMSection, root: Path | None, classes: Sequence[ClassInfo]) -> list[Problem]:
    """Whoever is to answer cannot: a key, a folder or a file that is missing. Kept answers may make a key needless."""
    problems: list[Problem] = []
    files = [Path(section.cache).expanduser()] if section.cache else []
    files += [root / ANSWERS] if root is not None and (root / ANSWERS).is_file() else []
    kept: set[str] = set()
    for path in files:
        try:
            kept |= set(read_answers(path))
        except UserError as exc:
            problems += exc.problems
    missing = [] if problems else _unanswered(section, kept, classes)
    if missing and not section.endpoint and not section.local:
        one = missing[0]
        what = f"answers to {len(missing):,} first requests, such as for {one.info.name!r} ({one.context})"
        problems.append(nobody_to_ask(what))
    if section.local:
        from variegate.stages.prompts.local_model import local_problems

        problems += local_problems(Path(section.local).expanduser())
    if section.endpoint and missing:
        from variegate.stages.prompts.endpoint import key_problems, reach_problems

        problems += key_problems(section)
        problems += reach_problems(section) if root is not None else []
    return problems


def _ask_all(context: Context, classes: Sequence[ClassInfo], words: Sequence[str], ruler: Ruler) -> Collected:
    recipe, folder, stop = context.recipe, context.folder, threading.Event()
    section = _served(recipe.prompts.llm)

    def fits(info: ClassInfo, text: str) -> bool:
        return not ruler([render(text, name=words[info.label])]).cut

    def say(text: str) -> None:
        context.reporter.line(f"{NAME}: {text}")

    others = Path(section.cache).expanduser() if section.cache else None
    with explained(folder.root), Answerer(section, recipe.backend.device, stop, say) as ask:
        answers = Answers(folder.path(ANSWERS), others)
        collector = Collector(section, answers, ask, Names(info.name for info in classes), fits, recipe.seed)
        with context.reporter.bar("asking", len(classes), "classes") as bar:
            found = collect(collector, classes, stop, bar.advance)
    folder.put_artefact(NAME, "answers", ANSWERS)
    return found


def _llm_facts(section: LLMSection, found: Collected) -> dict[str, Any]:
    tally = found.tally
    facts: dict[str, Any] = {"requests": tally.requests, "asked_now": tally.asked}
    facts |= {"tokens_in": tally.tokens_in, "tokens_out": tally.tokens_out, "dropped": dict(tally.dropped)}
    cost = dollars(section, tally.tokens_in, tally.tokens_out)
    return facts if cost is None else facts | {"usd": round(cost, 4)}


# ------------------------------------------------------------------------------------------ words and lengths


Ruler = Callable[[Iterable[str]], Lengths]


def _words(recipe: Recipe, folder: RunFolder, classes: Sequence[ClassInfo]) -> tuple[list[str], dict[str, int]]:
    """What {name} says for each class, and how many vectors each learned token has."""
    use = folder.path(ADAPTER) if parts_used(recipe.generate.method) != "none" else None
    facts = read_adapter(use) if use else None
    placeholders = facts.placeholders if facts else ()
    words = [
        class_word(info, placeholders, recipe.adapt.superclass or (facts.superclass if facts else ""))
        for info in classes
    ]
    return words, token_vectors(use) if use else {}


def _ruler(recipe: Recipe, vectors: Mapping[str, int]) -> Ruler:
    """Counts tokens of every distinct prompt, by the encoder that counts the most; `vectors` of each learned token."""
    tokenizers = load_tokenizers(find_model(recipe.backend.model, recipe.backend.revision))
    for tokenizer in tokenizers:
        tokenizer.add_tokens(expand(" ".join(vectors), vectors).split())
    limit = min((tokenizer.model_max_length for tokenizer in tokenizers), default=0)

    def measure(prompts: Iterable[str]) -> Lengths:
        tokens = dict.fromkeys(sorted(set(prompts)), 0)
        texts = [expand(prompt, vectors) for prompt in tokens]
        for tokenizer in tokenizers:
            for prompt, ids in zip(tokens, tokenizer(texts)["input_ids"], strict=True):
                tokens[prompt] = max(tokens[prompt], len(ids))
        return Lengths(tokens, limit)

    return measure


def _drawn(recipe: Recipe) -> bool:
    return recipe.generate.method != "none"
