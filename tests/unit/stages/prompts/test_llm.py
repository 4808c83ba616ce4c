"""Prompts from a language model: asked over a real connection, judged one by one, kept, and repeated without asking."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llm_server import ChatServer, Cut, prompts, wanted

from variegate.errors import RecipeError, TaskFailed
from variegate.pipeline import Context
from variegate.progress import QuietReporter
from variegate.recipe import LLMSection, Recipe
from variegate.records import ClassInfo, content_id
from variegate.stages.prompts.asking import Judged, Wish, judge, read_answer, wishes
from variegate.stages.prompts.naming import Names, with_slot
from variegate.stages.prompts.stage import check, estimate, run
from variegate.store import RunFolder

NAMES = ["car", "carrot", "hot dog", "dog"]
CLASSES = [ClassInfo(label, name, f"{label:04d}") for label, name in enumerate(NAMES)]
KEY = "sk-test-4242424242"


class Teller(QuietReporter):
    """Remembers the lines that a person would read."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def line(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def ask(drawing: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run the prompts stage in a run folder; gives texts of each class, the summary and what was said."""

    def call(out: str = "run", classes: list[ClassInfo] = CLASSES, seed: int = 0, **llm: Any) -> dict[str, Any]:
        section = {"model": "tiny", "per_class": 4, "parallel": 2, **llm}
        recipe = Recipe.model_validate(
            {
                "seed": seed,
                "backend": {"model": str(drawing), "device": "cpu"},
                "prompts": {"method": "llm", "llm": section},
            }
        )
        teller = Teller()
        with RunFolder.create(tmp_path / out) as folder:
            folder.put_dataset(classes, [])
            summary = run(Context(recipe, folder, teller))
            raw = folder.path("prompts/prompts.jsonl").read_text()
        rows = [json.loads(line) for line in raw.splitlines()]
        texts = {info.name: [row["prompt"] for row in rows if row["label"] == info.label] for info in classes}
        return {"texts": texts, "summary": summary, "said": " | ".join(teller.said), "raw": raw, "recipe": recipe}

    return call


def test_every_class_gets_its_number_of_prompts_that_name_it(ask: Callable[..., dict[str, Any]]) -> None:
    with ChatServer() as server:
        found = ask(endpoint=server.url, contexts=["usual", "uncommon"])
    assert {name: len(texts) for name, texts in found["texts"].items()} == dict.fromkeys(NAMES, 4)
    assert all(re.search(rf"\b{name}\b", text) for name, texts in found["texts"].items() for text in texts)
    assert len(server.requests) == 8 and found["summary"]["llm"]["asked_now"] == 8
    contexts = {"hardly ever" in body["messages"][0]["content"] for body in server.requests}
    assert contexts == {True, False}
    assert all(body["response_format"]["json_schema"]["strict"] for body in server.requests)
    for body in server.requests:
        bounds = body["response_format"]["json_schema"]["schema"]["properties"]["prompts"]
        assert bounds["minItems"] == bounds["maxItems"] == wanted(body)[1], (
            "else small models say nothing, or never end"
        )
    assert found["summary"]["llm"]["tokens_in"] > 0 and not found["summary"]["warnings"]


def test_a_class_named_inside_another_word_is_no_mention_as_diagens_carrot_is_no_car() -> None:
    names = Names(NAMES)
    assert names.others("a photo of a fresh carrot on a board", "carrot") == []
    assert names.others("a carrot beside two cars", "carrot") == ["car"]
    assert names.others("a hot dog on a plate", "hot dog") == []
    assert names.others("a dog beside a Hot-Dog stand", "dog") == ["hot dog"]
    assert names.others("dogs and a dog", "dog") == []
    assert Names(["knife", "wolf", "mouse", "berry"]).others("wolves, mice, knives, berries", "x") == [
        "wolf", "mouse", "knife", "berry"
    ]  # fmt: skip
    assert with_slot("a photo of a carrot", "car") is None
    apart, composed = (
        "cre\u0300me bru\u0302le\u0301e",
        "crème brûlée",
    )  # as a Mac's folders have it, and as a model answers
    assert (
        with_slot(f"a photo of a {composed}", apart)
        == with_slot(f"a photo of a {apart}", composed)
        == "a photo of a {name}"
    )
    assert with_slot("A CELL  phone, {lit}, beside another cell-phone", "cell_phone") == (
        "A {name}, {{lit}}, beside another {name}"
    )


def test_a_key_that_no_header_can_hold_and_a_proxy_that_cannot_be_used_are_told_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from variegate.stages.prompts.endpoint import key_problems

    section = LLMSection(endpoint="https://api.example.com/v1", model="m")
    monkeypatch.setenv("OPENAI_API_KEY", "\u201csk-secret\u201d")
    (problem,) = key_problems(section)
    assert "holds signs that no key has" in problem.what and "secret" not in str(problem)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert key_problems(section) == []
    for proxy in ("foo://x", "http://proxy:port"):
        monkeypatch.setenv("ALL_PROXY", proxy)
        (problem,) = key_problems(section)
        assert "cannot be asked" in problem.what and "prox" in problem.remedy


def test_prompts_that_name_another_class_are_dropped_and_asked_for_again(ask: Callable[..., dict[str, Any]]) -> None:
    def mixing(number: int, body: dict[str, Any]) -> str:
        name, _ = wanted(body)
        other = "dogs" if name != "dog" else "carrots"
        good = prompts(body)
        return json.dumps({"prompts": [f"a photo of a {name} among {other}", *good[:2]]})

    with ChatServer(mixing) as server:
        found = ask(endpoint=server.url)
    assert all(len(texts) == 4 for texts in found["texts"].values())
    assert not any("among" in text for texts in found["texts"].values() for text in texts)
    assert "names another class (dog)" in found["said"]
    assert len(server.requests) > len(NAMES)


def test_a_refill_is_a_new_request_where_diagen_parses_the_same_answer_again(
    ask: Callable[..., dict[str, Any]],
) -> None:
    def short(number: int, body: dict[str, Any]) -> str:
        return json.dumps({"prompts": prompts(body)[:1]})

    with ChatServer(short) as server:
        found = ask(endpoint=server.url, classes=CLASSES[:1], tries=20)
    bodies = [json.dumps(body, sort_keys=True) for body in server.requests]
    assert len(set(bodies)) == len(bodies) >= 4
    assert len({body["seed"] for body in server.requests}) == len(bodies)
    assert [wanted(body)[1] for body in server.requests[:2]] == [6, 5]  # what is missing, and two to spare
    assert found["texts"]["car"][0] in server.requests[1]["messages"][0]["content"]
    assert len(set(found["texts"]["car"])) == 4


def test_repeated_prompts_count_once_whatever_their_case_and_spaces() -> None:
    judged, wish = Judged(), Wish(CLASSES[0], "usual", 9)
    said = [
        "1. A red car,  in snow.",
        "a red CAR in snow",
        '"a blue car"',
        "a red carrot",
        "a car beside a dog",
        "car " * 9,
    ]
    judge(said, wish, judged, 9, Names(NAMES), lambda text: len(text) < 40)
    assert judged.texts == ["A red {name}, in snow", "a blue {name}"]
    assert dict(judged.dropped) == {
        "repeats another one": 1,
        "does not say the class": 1,
        "names another class (dog)": 1,
        "is too long for the drawing model": 1,
    }


def test_contexts_share_the_prompts_evenly() -> None:
    section = Recipe.model_validate(
        {
            "prompts": {
                "method": "llm",
                "llm": {"cache": "x", "per_class": 7, "contexts": ["usual", "at sea", "uncommon"]},
            }
        }
    ).prompts.llm
    assert [(wish.context, wish.count) for wish in wishes(section, CLASSES[0])] == [
        ("usual", 3),
        ("at sea", 2),
        ("uncommon", 2),
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"prompts": ["a", "b"]}', (("a", "b"), True)),
        ('Here:\n```json\n["a", "b"]\n```', (("a", "b"), False)),
        ('<think>["no"]</think>{"Prompts": ["a"]}', (("a",), False)),
        ('{"prompts": ["a", "b', (None, False)),
        ('{"prompts": "a"}', (None, False)),
        ("[1, 2] and nothing else", (None, False)),
        ("", (None, False)),
        ("[" * 5000, (None, False)),
    ],
)  # fmt: skip
def test_answers_are_read_strictly_first_and_leniently_then(text: str, found: tuple) -> None:
    reading = read_answer(text)
    assert (reading.prompts, reading.by_schema) == found


def test_broken_json_is_asked_for_again_and_said(ask: Callable[..., dict[str, Any]]) -> None:
    def broken_first(number: int, body: dict[str, Any]) -> str | None:
        return '{"prompts": ["a photo of a' if number <= 2 else None

    with ChatServer(broken_first) as server:
        found = ask(endpoint=server.url)
    assert all(len(texts) == 4 for texts in found["texts"].values())
    assert "2 of 6 answers held no list of prompts" in found["said"] and len(server.requests) == 6


def test_a_server_without_structured_output_is_asked_without_and_that_is_said_once(
    ask: Callable[..., dict[str, Any]],
) -> None:
    def old(number: int, body: dict[str, Any]) -> tuple | None:
        if "response_format" in body:
            return 400, {}, json.dumps({"error": {"message": "response_format is not supported"}})
        return None

    with ChatServer(old) as server:
        found = ask(endpoint=server.url, parallel=1)
    assert all(len(texts) == 4 for texts in found["texts"].values())
    assert found["said"].count("refuses answers by a JSON schema (400: response_format is not supported)") == 1
    assert "4 of 4 answers were not the JSON asked for; the lists in their text were taken" in found["said"]
    assert sum("response_format" in body for body in server.requests) == 2, "with the number and without"


def test_a_server_whose_schemas_have_no_bounds_is_asked_for_the_same_list(ask: Callable[..., dict[str, Any]]) -> None:
    def unbounded(number: int, body: dict[str, Any]) -> tuple | None:
        if "minItems" in json.dumps(body):
            return 400, {}, json.dumps({"error": {"message": "'minItems' is not permitted"}})
        return None

    with ChatServer(unbounded) as server:
        found = ask(endpoint=server.url, parallel=1)
    assert all(len(texts) == 4 for texts in found["texts"].values()) and len(server.requests) == 5
    said = "a JSON schema that says how many (400: 'minItems' is not permitted); asking without the number"
    assert found["said"].count(said) == 1 and "were not the JSON asked for" not in found["said"]


def test_a_server_that_breaks_at_schemas_is_not_tried_with_another(
    ask: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from variegate.stages.prompts import endpoint

    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.0)

    def broken(number: int, body: dict[str, Any]) -> tuple | None:
        return (500, {}, "no grammar") if "response_format" in body else None

    with ChatServer(broken) as server:
        found = ask(endpoint=server.url, parallel=1)
    assert all(len(texts) == 4 for texts in found["texts"].values())
    assert sum("response_format" in body for body in server.requests) == endpoint.RETRIES + 1
    assert found["said"].count("refuses answers by a JSON schema (500: no grammar); asking without") == 1


def test_a_busy_server_is_waited_for(ask: Callable[..., dict[str, Any]]) -> None:
    def busy(number: int, body: dict[str, Any]) -> tuple | None:
        if number in (1, 2):
            return 429, {"Retry-After": "0"}, json.dumps({"error": {"message": "slow down"}})
        if number == 3:
            raise Cut
        return None

    with ChatServer(busy) as server:
        found = ask(endpoint=server.url, classes=CLASSES[:1], parallel=1)
    assert len(found["texts"]["car"]) == 4 and len(server.requests) == 4
    assert found["summary"]["llm"]["asked_now"] == 1


def test_a_dead_server_is_named_at_once(ask: Callable[..., dict[str, Any]]) -> None:
    with ChatServer() as server:
        url = server.url
    start = time.monotonic()
    with pytest.raises(TaskFailed, match=f"{url} cannot be reached .*0 answers are kept in .*llm.jsonl"):
        ask(endpoint=url)
    assert time.monotonic() - start < 10


def test_a_server_that_dies_in_the_middle_costs_only_what_is_missing(
    ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    servers: list[ChatServer] = []

    def dying(number: int, body: dict[str, Any]) -> None:
        if number == 3:
            servers[0].close()
            raise Cut

    with ChatServer(dying) as first:
        servers.append(first)
        with pytest.raises(TaskFailed, match="2 answers are kept"):
            ask(endpoint=first.url, parallel=1)
    kept = tmp_path / "run" / "prompts" / "llm.jsonl"
    assert len(kept.read_text().splitlines()) == 2
    kept.write_bytes(kept.read_bytes() + b'{"id": "half a li')  # and the process was killed while it wrote
    with ChatServer() as second:
        resumed = ask(endpoint=second.url, parallel=1)
        whole = ask("other", endpoint=second.url, parallel=1)
    assert resumed["summary"]["llm"]["asked_now"] == 2 and len(second.requests) == 6
    assert resumed["raw"] == whole["raw"]


def test_kept_answers_repeat_a_run_without_a_server(ask: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    def messy(number: int, body: dict[str, Any]) -> str | None:
        return "no list" if number == 1 else None

    with ChatServer(messy) as server:
        first = ask(endpoint=server.url, parallel=4)
    answers = tmp_path / "run" / "prompts" / "llm.jsonl"
    again = ask("again", cache=str(answers))
    assert again["raw"] == first["raw"] and again["summary"]["llm"]["asked_now"] == 0
    assert len((tmp_path / "again/prompts/llm.jsonl").read_text().splitlines()) == len(answers.read_text().splitlines())
    third = ask("third", cache=str(tmp_path / "again/prompts/llm.jsonl"), endpoint=server.url)  # its server is gone
    assert third["raw"] == first["raw"]
    with pytest.raises(RecipeError, match="lacks an answer to a later request, and neither .* name one of them"):
        ask("fourth", cache=str(answers), about="in winter")


def test_kept_answers_serve_every_seed_and_files_with_the_seed_in_their_ids(
    ask: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Every draw of a comparison has a seed of its own."""

    def slow(number: int, body: dict[str, Any]) -> str | None:
        return "no list" if number <= 2 else json.dumps({"prompts": prompts(body)[:3]})

    with ChatServer(slow) as server:
        first = ask(endpoint=server.url, parallel=1)
    answers = tmp_path / "run" / "prompts" / "llm.jsonl"
    assert ask("other seed", cache=str(answers), seed=7)["raw"] == first["raw"]
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len({json.dumps(row["request"]["messages"]) for row in rows}) == len(rows) - 2, "asked three times"
    old = [row | {"id": content_id(row["request"])} for row in rows]
    answers.write_text("".join(json.dumps(row) + "\n" for row in [*old, old[0]]))
    assert ask("old file", cache=str(answers), seed=8)["raw"] == first["raw"]


def test_a_cache_that_does_not_serve_the_recipe_is_refused_before_anything_slow(
    drawing: Path, tmp_path: Path, ask: Callable[..., dict[str, Any]]
) -> None:
    with ChatServer() as server:
        ask(endpoint=server.url, model="m", per_class=10)
    cache = str(tmp_path / "run" / "prompts" / "llm.jsonl")
    check(recipe_for(drawing, cache=cache), CLASSES, 3, 0, tmp_path / "new")
    with pytest.raises(RecipeError, match=r"lacks answers to 4 first requests, such as for 'car' \(uncommon\)"):
        check(recipe_for(drawing, cache=cache, contexts=["usual", "uncommon"], per_class=20), CLASSES, 3, 0)
    elsewhere = recipe_for(drawing, cache=cache, endpoint="https://api.example.com/v1", about="in winter")
    with pytest.raises(RecipeError, match="environment variable OPENAI_API_KEY"):
        check(elsewhere, CLASSES, 3, 0)


def test_many_prompts_come_in_several_requests(ask: Callable[..., dict[str, Any]]) -> None:
    with ChatServer() as server:
        found = ask(endpoint=server.url, classes=CLASSES[:1], per_class=60, tries=3)
    assert len(set(found["texts"]["car"])) == 60
    assert wanted(server.requests[0])[1] == 40 and wanted(server.requests[1])[1] == 22
    assert estimate(found["recipe"], CLASSES[:1])["llm_requests"] == 2


def test_many_threads_and_one_give_the_same_prompts(ask: Callable[..., dict[str, Any]]) -> None:
    with ChatServer() as server:
        one, many = (ask(str(count), endpoint=server.url, parallel=count)["raw"] for count in (1, 8))
    assert one == many


def test_a_class_that_gets_nothing_ends_the_run_with_its_name_where_diagen_drops_it(
    ask: Callable[..., dict[str, Any]],
) -> None:
    def about_dogs(number: int, body: dict[str, Any]) -> str | None:
        return json.dumps({"prompts": ["a photo of a dog"]}) if wanted(body)[0] == "carrot" else None

    with ChatServer(about_dogs) as server, pytest.raises(TaskFailed) as failed:
        ask(endpoint=server.url, tries=3, parallel=1)
    assert "no prompt for class 'carrot' after 3 requests (3 does not say the class)" in str(failed.value)


def test_a_class_with_too_few_goes_on_and_is_named(ask: Callable[..., dict[str, Any]]) -> None:
    with ChatServer(lambda number, body: json.dumps({"prompts": [f"a photo of a {wanted(body)[0]}"]})) as server:
        found = ask(endpoint=server.url, tries=2)
    assert all(len(texts) == 1 for texts in found["texts"].values())
    assert "4 classes have fewer than 4 prompts: car has 1 (1 repeats another one)" in found["said"]


# ------------------------------------------------------------------------------------------ keys and refusals


def test_the_key_comes_from_the_environment_and_is_written_nowhere(
    ask: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    def telltale(number: int, body: dict[str, Any]) -> str:
        return json.dumps({"prompts": [f"{text} {KEY}" for text in prompts(body)]})

    with ChatServer(telltale) as server:
        ask(endpoint=server.url, key_env="MY_KEY")
    assert set(server.keys) == {f"Bearer {KEY}"}
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 2 and not any(KEY.encode() in path.read_bytes() for path in files)

    def refusing(number: int, body: dict[str, Any]) -> tuple:
        return 401, {}, json.dumps({"error": {"message": f"wrong key {KEY}"}})

    with ChatServer(refusing) as server, pytest.raises(RecipeError) as caught:
        ask("refused", endpoint=server.url, key_env="MY_KEY")
    assert "answers 401: wrong key ***" in str(caught.value) and "MY_KEY" in str(caught.value)
    assert KEY not in str(caught.value)


def recipe_for(folder: Path, **llm: Any) -> Recipe:
    return Recipe.model_validate(
        {"backend": {"model": str(folder)}, "prompts": {"method": "llm", "llm": {"model": "m", **llm}}}
    )


def test_a_missing_key_is_found_before_anything_slow_and_kept_answers_need_none(
    drawing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[..., dict[str, Any]]
) -> None:
    recipe = recipe_for(drawing, endpoint="https://api.example.com/v1")
    with pytest.raises(
        RecipeError, match="environment variable OPENAI_API_KEY with the key for https://api.example.com"
    ):
        check(recipe, CLASSES, 3, 0)
    with ChatServer() as server:
        ask(endpoint=server.url, model="m", per_class=10)
        check(recipe_for(drawing, endpoint=server.url), CLASSES, 3, 0)  # this machine asks for no key
    check(recipe, CLASSES, 3, 0, tmp_path / "run")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    check(recipe, CLASSES, 3, 0)
    with pytest.raises(RecipeError, match="in clear text"):
        check(recipe_for(drawing, endpoint="http://api.example.com/v1"), CLASSES, 3, 0)


def test_a_run_is_refused_before_anything_slow_when_its_server_is_not_there(drawing: Path, tmp_path: Path) -> None:
    with ChatServer() as server:
        recipe = recipe_for(drawing, endpoint=server.url)
        check(recipe, CLASSES, 3, 0, tmp_path / "run")
    with pytest.raises(RecipeError, match=f"{server.url}: cannot be reached .Connection refused. — start the server"):
        check(recipe, CLASSES, 3, 0, tmp_path / "run")
    check(recipe, CLASSES, 3, 0)  # plan connects to nobody
    assert not server.requests


def test_an_unknown_model_and_a_wrong_address_are_quoted(ask: Callable[..., dict[str, Any]]) -> None:
    with ChatServer() as server, pytest.raises(RecipeError, match="404: no route /chat/completions.*ends in /v1"):
        ask("a", endpoint=server.url.removesuffix("/v1"))
    page = pytest.raises(RecipeError, match="no chat completion.*does the address end in /v1")
    with ChatServer(lambda number, body: (200, {}, "<html>hello</html>")) as server, page:
        ask("b", endpoint=server.url)


@pytest.mark.parametrize(
    ("llm", "said"),
    [
        ({"endpoint": "127.0.0.1:8000"}, "is no address"),
        ({"endpoint": "http://127.0.0.1:port/v1"}, "is no address"),
        ({"endpoint": "http://user:pw@127.0.0.1/v1"}, "keys belong into the environment"),
        ({"endpoint": "http://127.0.0.1/v1?api_key=3"}, "keys belong into the environment"),
        ({"endpoint": "http://127.0.0.1/v1", "local": "x"}, "keep one"),
        ({"endpoint": "http://127.0.0.1/v1", "model": ""}, "endpoint needs model"),
        ({"cache": "x", "contexts": ["a", "a"]}, "must be different"),
        ({}, "go together: they say who answers"),
    ],
)
def test_a_section_that_contradicts_itself_is_refused(llm: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        recipe_for(tmp_path, **llm)


# ------------------------------------------------------------------------------------------ cost


def test_plan_counts_requests_and_dollars_and_asks_nobody(drawing: Path, tmp_path: Path, ask: Callable) -> None:
    with ChatServer() as server:
        recipe = recipe_for(drawing, endpoint=server.url, contexts=["usual", "x"], usd_per_million=[100.0, 1000.0])
        answer = estimate(recipe, CLASSES)
        assert not server.requests
        found = ask(endpoint=server.url, model="m", per_class=10, contexts=["usual", "x"])
    assert answer["llm_requests"] == 8 == len(server.requests)
    real = found["summary"]["llm"]
    assert 0.8 < answer["llm_tokens_in"] / real["tokens_in"] < 1.2
    assert answer["llm_usd"] == pytest.approx(
        answer["llm_tokens_in"] * 1e-4 + answer["llm_tokens_out"] * 1e-3, abs=1e-3
    )
    kept = recipe.model_copy(
        update={"prompts": recipe.prompts.model_copy(
            update={"llm": recipe.prompts.llm.model_copy(update={"cache": str(tmp_path / "run/prompts/llm.jsonl")})}
        )}
    )  # fmt: skip
    assert estimate(kept, CLASSES)["llm_requests"] == 0


def test_diagen_fault_a_kind_of_context_that_is_asked_like_another_or_not_at_all(ask: Callable[..., dict]) -> None:
    """Its adjective mode asks the question for settings, and its uncommon settings have no question."""
    with ChatServer() as server:
        ask(endpoint=server.url, contexts=["usual", "uncommon", "under water", "behind glass"])
    asked = {body["messages"][0]["content"] for body in server.requests if '"dog"' in body["messages"][0]["content"]}
    assert len(asked) == 4
    for words in ("hardly ever", "in this context: under water", "in this context: behind glass"):
        assert sum(words in message for message in asked) == 1
