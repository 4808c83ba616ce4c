"""Prompts from a transformers chat model in a folder: real loading, real chat template, real generation."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from variegate.errors import RecipeError, TaskFailed
from variegate.pipeline import Context
from variegate.progress import QuietReporter
from variegate.recipe import Recipe
from variegate.records import ClassInfo
from variegate.stages.prompts.local_model import LocalModel
from variegate.stages.prompts.stage import check, run
from variegate.store import RunFolder

CLASSES = [ClassInfo(0, "car", "0000"), ClassInfo(1, "carrot", "0001")]
SPECIAL = ["<unk>", "<eos>", "<bot>"]
SAYS = [
    'Sure: ["a photo of a red car in snow",',
    '"a muddy car at dusk",',
    '"a fresh carrot on a board",',
    '"an old carrot in the rain"]',
]
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }} {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


def build_chat(folder: Path, *, says: bool) -> Path:
    """A Llama of one layer: `says` sets its weights so that each token is followed by the next one of SAYS, whatever came
    before; else they are random."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [*SPECIAL, *SAYS]
    core = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<eos>", additional_special_tokens=["<bot>"]
    )
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=2048, bos_token_id=None, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    if says:
        following = [1, 1, *range(3, len(words)), 1]  # <bot> -> the first line, the last one -> <eos>
        with torch.no_grad():
            model.model.embed_tokens.weight.copy_(torch.eye(len(words), 8))
            model.model.layers[0].self_attn.o_proj.weight.zero_()
            model.model.layers[0].mlp.down_proj.weight.zero_()
            model.lm_head.weight.zero_()
            for token, after in enumerate(following):
                model.lm_head.weight[after, token] = 20.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def recipe_for(drawing: Path, chat: Path, **llm: object) -> Recipe:
    section = {"local": str(chat), "per_class": 2, "tries": 2, "max_tokens": 16, **llm}
    return Recipe.model_validate(
        {"backend": {"model": str(drawing), "device": "cpu"}, "prompts": {"method": "llm", "llm": section}}
    )


def test_a_local_chat_model_writes_the_prompts_and_its_answers_are_kept(drawing: Path, tmp_path: Path) -> None:
    recipe = recipe_for(drawing, build_chat(tmp_path / "chat", says=True))
    check(recipe, CLASSES, 2, 0)
    state = torch.random.get_rng_state()
    with RunFolder.create(tmp_path / "run") as folder:
        folder.put_dataset(CLASSES, [])
        summary = run(Context(recipe, folder, QuietReporter()))
        rows = [json.loads(line) for line in folder.path("prompts/prompts.jsonl").read_text().splitlines()]
        answers = [json.loads(line) for line in folder.path("prompts/llm.jsonl").read_text().splitlines()]
    assert [(row["label"], row["prompt"]) for row in rows] == [
        (0, "a photo of a red car in snow"),
        (0, "a muddy car at dusk"),
        (1, "a fresh carrot on a board"),
        (1, "an old carrot in the rain"),
    ]
    assert [answer["model"] for answer in answers] == ["chat", "chat"] and not answers[0]["structured"]
    assert summary["llm"]["requests"] == 2 and summary["llm"]["tokens_out"] == 2 * (len(SAYS) + 1)
    assert torch.equal(torch.random.get_rng_state(), state), "torch's own random numbers are left alone"
    # the run's answers serve without the model
    shutil.rmtree(tmp_path / "chat")
    replay = recipe_for(
        drawing, tmp_path / "chat", local=None, model="chat", cache=str(tmp_path / "run/prompts/llm.jsonl")
    )
    with RunFolder.create(tmp_path / "replay") as folder:
        folder.put_dataset(CLASSES, [])
        assert run(Context(replay, folder, QuietReporter()))["llm"]["asked_now"] == 0


def test_a_model_that_talks_nonsense_is_asked_anew_and_then_named(drawing: Path, tmp_path: Path) -> None:
    chat = build_chat(tmp_path / "chat", says=False)
    model = LocalModel(chat, "cpu")
    request = {"messages": [{"role": "user", "content": "hello"}], "seed": 5, "temperature": 2.0, "max_tokens": 12}
    assert model(request, 4) == model(request, 4)
    assert len({model({**request, "seed": seed}, 4).answer for seed in range(8)}) > 1
    recipe = recipe_for(drawing, chat, max_tokens=16, tries=3, temperature=0)
    with RunFolder.create(tmp_path / "run") as folder:
        folder.put_dataset([ClassInfo(0, "dog", "0000")], [])
        with pytest.raises(TaskFailed, match="no prompt for class 'dog' after 3 requests"):
            run(Context(recipe, folder, QuietReporter()))
        assert len(folder.path("prompts/llm.jsonl").read_text().splitlines()) == 3


def test_a_folder_that_holds_no_chat_model_is_refused_with_everything_that_is_missing(
    drawing: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="is no folder"):
        check(recipe_for(drawing, tmp_path / "nothing"), CLASSES, 2, 0)
    chat = build_chat(tmp_path / "chat", says=True)
    (chat / "model.safetensors").rename(chat / "pytorch_model.bin")
    (chat / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((chat / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (chat / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError) as caught:
        check(recipe_for(drawing, chat), CLASSES, 2, 0)
    assert "no safetensors" in str(caught.value) and "no chat template" in str(caught.value)
    with pytest.raises(RecipeError, match="cannot be loaded"):
        LocalModel(chat, "cpu")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """transformers' own server with a chat model in a folder: (endpoint, folder)."""
    folder = build_chat(tmp_path / "chat", says=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield await_server(server, port, tmp_path / "server.log"), folder
        finally:
            server.terminate()
            server.wait(30)


def await_server(server: subprocess.Popen, port: int, log: Path, seconds: float = 240.0) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return f"http://127.0.0.1:{port}/v1"
        time.sleep(0.5)
    raise AssertionError(f"the server did not start (exit {server.poll()}): {log.read_text()[-2000:]}")


@pytest.mark.timeout(300)
def test_transformers_own_server_writes_the_prompts(drawing: Path, served: tuple[str, Path], tmp_path: Path) -> None:
    endpoint, chat = served
    recipe = recipe_for(drawing, chat, local=None, endpoint=endpoint, model=str(chat), key_env=None, parallel=1)
    check(recipe, CLASSES, 2, 0, tmp_path)
    with RunFolder.create(tmp_path / "run") as folder:
        folder.put_dataset(CLASSES, [])
        run(Context(recipe, folder, QuietReporter()))
        rows = [json.loads(line) for line in folder.path("prompts/prompts.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [
        "a photo of a red car in snow",
        "a muddy car at dusk",
        "a fresh carrot on a board",
        "an old carrot in the rain",
    ]
