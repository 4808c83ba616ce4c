"""Somebody wants better prompts: banks, a file of another tool, a language model on this machine; and what goes wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from driving import PLAIN_ARGUMENTS, settings, variegate
from llm_server import ChatServer

LLM = ("prompts.method=llm", "prompts.llm.model=tiny", "prompts.llm.per_class=3")


def told(out: Path) -> dict[str, list[str]]:
    """What was drawn for each class, from the exported table."""
    rows = [json.loads(line) for line in (out / "synthetic/train/metadata.jsonl").read_text().splitlines()]
    return {
        row["class_name"]: sorted(r["prompt"] for r in rows if r["class_name"] == row["class_name"]) for row in rows
    }


def test_a_bank_and_its_typo(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    photos, out = make_folder(), tmp_path / "out"
    arguments = (
        "generate",
        photos,
        *PLAIN_ARGUMENTS,
        "--out",
        out,
        "--set",
        "prompts.text=a photo of a {name} {environment}, {style}",
    )
    said = variegate(*arguments, *settings("prompts.environments=anmals", "prompts.styles=light"))
    assert said.status == 2 and "'anmals' is neither a bank nor a file — did you mean 'animals'?" in said.err
    assert not out.exists()
    banks = settings("prompts.environments=birds-and-insects", "prompts.styles=light")
    said = variegate(*arguments, *banks)
    assert said.status == 2 and "prompts.styles: no text of generate.mask_text says {style}" in said.err
    said = variegate(*arguments, *banks, *settings("generate.mask=none"))
    assert said.status == 0, said.text
    assert all(text.startswith("a photo of a ant ") for text in told(out)["ant"])
    places, styles = zip(*(text.rsplit(", ", 1) for text in told(out)["ant"]), strict=True)
    assert len(set(places)) == len(set(styles)) == len(places) > 2, "longer lists than images: nothing comes twice"


def test_diagens_file_is_imported_and_drawn_with(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text(
        "class_name;class_idx;prompt\nant;1;a wet {name}\nbee;1;a {name} at dusk\nbee;2;a {name}\n"
    )
    said = variegate("import", tmp_path / "prompts.csv", "--out", tmp_path / "imported", "--json")
    assert said.status == 0, said.text
    _, _, _, *advice = json.loads(said.out)["next"].split()
    said = variegate("generate", make_folder(), *PLAIN_ARGUMENTS, *advice, "--out", tmp_path / "out")
    assert said.status == 0, said.text
    assert set(told(tmp_path / "out")["ant"]) == {"a wet ant"}
    counts = [told(tmp_path / "out")["bee"].count(text) for text in ("a bee", "a bee at dusk")]
    assert min(counts) > 0 and abs(counts[0] - counts[1]) <= 1


def test_a_server_on_this_machine_writes_the_prompts(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    photos = make_folder()
    with ChatServer() as server:
        ask = settings(*LLM, f"prompts.llm.endpoint={server.url}", "prompts.llm.usd_per_million=[1, 2]")
        planned = variegate("plan", photos, *PLAIN_ARGUMENTS, *ask, "--no-measure", "--json")
        assert planned.status == 0 and not server.requests, planned.text
        answer = json.loads(planned.out)
        assert answer["llm_requests"] == 2 and answer["llm_usd"] > 0
        said = variegate("generate", photos, *PLAIN_ARGUMENTS, *ask, "--out", tmp_path / "a")
    assert said.status == 0 and len(server.requests) == 2, said.text
    replay = settings(*LLM, f"prompts.llm.cache={tmp_path / 'a/prompts/llm.jsonl'}")
    said = variegate("generate", photos, *PLAIN_ARGUMENTS, *replay, "--out", tmp_path / "b")
    assert said.status == 0 and told(tmp_path / "a") == told(tmp_path / "b"), said.text
    assert len(set(told(tmp_path / "a")["bee"])) == 3 and all("bee" in text for text in told(tmp_path / "a")["bee"])


def test_nobody_answers_and_no_key(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    photos, out = make_folder(), tmp_path / "out"
    with ChatServer() as server:
        url = server.url
    arguments = ("generate", photos, *PLAIN_ARGUMENTS, "--out", out, *settings(*LLM))
    said = variegate(*arguments, "--set", f"prompts.llm.endpoint={url}")
    assert said.status == 2 and f"{url}: cannot be reached (Connection refused) — start the server" in said.err
    assert not out.exists(), "found before anything slow"
    said = variegate(
        *arguments, "--set", "prompts.llm.endpoint=https://llm.example.org/v1", "--out", tmp_path / "other"
    )
    assert said.status == 2 and "OPENAI_API_KEY" in said.err and not (tmp_path / "other").exists()
    said = variegate(*arguments, "--set", "prompts.llm.endpont=http://x/v1")
    assert said.status == 2 and "did you mean 'endpoint'?" in said.err


def test_stopped_in_the_middle_the_answers_stay(
    make_folder: Callable[..., Path], tmp_path: Path, process: Callable[..., subprocess.Popen]
) -> None:
    photos, out = make_folder(), tmp_path / "out"

    def slow(number: int, body: dict) -> None:
        if number == 2:
            time.sleep(60)

    with ChatServer(slow) as server:
        ask = settings(*LLM, f"prompts.llm.endpoint={server.url}", "prompts.llm.parallel=2", "prompts.llm.tries=1")
        arguments = ("generate", photos, *PLAIN_ARGUMENTS, "--out", out, *ask)
        child = process(*arguments)
        kept = out / "prompts" / "llm.jsonl"
        deadline = time.monotonic() + 200
        while not (kept.is_file() and kept.read_text().endswith("\n")):
            assert time.monotonic() < deadline and child.poll() is None, child.communicate()
            time.sleep(0.05)
        start = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
        assert child.returncode == 130 and "Traceback" not in err and time.monotonic() - start < 30, err
    first = kept.read_text()
    with ChatServer() as server:
        said = variegate(*arguments, "--set", f"prompts.llm.endpoint={server.url}")
    assert said.status == 0 and len(server.requests) == 1, said.text
    assert kept.read_text().startswith(first)
