"""Ask a transformers chat model in a local folder: nothing is downloaded, no code of the model's is run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from variegate.errors import Problem, RecipeError
from variegate.stages.prompts.answers import Answer

WHERE = "prompts.llm.local"


def local_problems(folder: Path) -> list[Problem]:
    """What keeps a folder from being loaded, as far as its files tell; empty when nothing does."""
    if not folder.is_dir():
        return [Problem(WHERE, f"{str(folder)!r} is no folder", "name a folder that transformers saved a model in")]
    problems = []
    if not (folder / "config.json").is_file():
        problems.append(Problem(str(folder), "has no config.json", "name a folder that transformers saved a model in"))
    if not any(folder.glob("*.safetensors")):
        problems.append(Problem(str(folder), "has no safetensors weights", "save the model as safetensors"))
    if not _has_chat_template(folder):
        text = "has no chat template, so it is no chat model"
        problems.append(Problem(str(folder), text, "use the instruct or chat variant of the model"))
    return problems


def _has_chat_template(folder: Path) -> bool:
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return (folder / "chat_template.jinja").is_file() or bool(config.get("chat_template"))


class LocalModel:
    """A loaded chat model; call it with a request."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, **options)
            with _no_bars():
                model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True, **options)
        except (OSError, ValueError, KeyError) as exc:
            text = f"cannot be loaded: {' '.join(str(exc).split())[:300]}"
            raise RecipeError(Problem(str(folder), text, "save the model again with save_pretrained")) from exc
        self._model, self._device, self._name = model.to(device).eval(), device, folder.name

    def __call__(self, request: dict[str, Any], count: int) -> Answer:
        """The same request gives the same answer on the same device; torch's own random state is left as it was.

        `count` is in the request's words; no schema binds the model.
        """
        import torch

        inputs = self._tokenizer.apply_chat_template(
            request["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self._device)
        length = inputs["input_ids"].shape[1]
        devices = [self._device] if self._device.startswith("cuda") else []
        with torch.inference_mode(), torch.random.fork_rng(devices=devices):
            torch.manual_seed(request["seed"])
            tokens = self._model.generate(**inputs, **self._options(request, length))[0, length:]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return Answer(text, self._name, False, length, len(tokens))

    def _options(self, request: dict[str, Any], length: int) -> dict[str, Any]:
        room = getattr(self._model.config, "max_position_embeddings", None)
        most = request.get("max_tokens") or 1024
        options: dict[str, Any] = {"max_new_tokens": max(1, min(most, room - length) if room else most)}
        if self._tokenizer.pad_token_id is None:
            options["pad_token_id"] = self._tokenizer.eos_token_id
        if "temperature" in request:
            warm = request["temperature"] > 0
            options |= {"do_sample": warm} | ({"temperature": request["temperature"]} if warm else {})
        return options


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers' loading bar off the terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
