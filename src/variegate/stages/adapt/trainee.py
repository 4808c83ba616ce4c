"""The drawing model with what is trained in it: token rows before the text encoder, LoRA in U-Net and text encoder.

Everything else is frozen. The frozen weights are in bf16 where the processor has it, what is trained is always fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from variegate.backends.adapter import LORA, TOKENS, expand, pool_at_the_end, read_adapter, text_encoders
from variegate.backends.denoise import Text, stack_texts
from variegate.backends.diffusion import DiffusionBackend
from variegate.errors import ModelError, Problem
from variegate.recipe import AdaptSection
from variegate.stages.adapt.merged_lora import merged_products
from variegate.stages.adapt.targets import endings
from variegate.stages.adapt.tokens import TokenEmbedding, add_tokens, first_rows, grouped, token_names

LORA_NAME = "variegate"


@dataclass(slots=True)
class Encoder:
    """A text encoder with its tokenizer; `rows` is None where no tokens are learned."""

    tokenizer: Any
    model: Any
    rows: TokenEmbedding | None = None
    ids: dict[str, torch.Tensor] = field(default_factory=dict)  # caption -> token ids
    lock: Lock = field(default_factory=Lock)  # a tokenizer refuses two threads at a time

    def token_ids(self, caption: str) -> torch.Tensor:
        with self.lock:
            if caption not in self.ids:
                self.ids[caption] = self.tokenizer(
                    caption,
                    padding="max_length",
                    truncation=True,
                    max_length=self.tokenizer.model_max_length,
                    return_tensors="pt",
                ).input_ids[0]
            return self.ids[caption]


class Trainee:
    """What `fit` trains; made from an open backend, whose pipeline it changes in place."""

    def __init__(
        self,
        backend: DiffusionBackend,
        section: AdaptSection,
        placeholders: Sequence[str],
        words: Sequence[str],
        seed: int,
    ) -> None:
        self.backend, self.section, self.placeholders = backend, section, tuple(placeholders)
        self.pipe, self.unet = backend.pipe, backend.pipe.unet
        self.device = backend.device
        self.sdxl = backend.facts.family == "sdxl"
        self.encoders = [Encoder(*pair) for pair in text_encoders(self.pipe)]
        for part in (self.unet, self.pipe.vae, *(encoder.model for encoder in self.encoders)):
            part.requires_grad_(False)
        if section.has_tokens:
            self._add_tokens(words, seed)
        if section.has_lora:
            with _seeded(seed):
                self._add_lora()
        for parameter in self.named_parameters().values():
            parameter.requires_grad_(True)  # peft freezes all the rest of a text encoder, its new token rows too
        if section.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.vectors = dict.fromkeys(self.placeholders, section.vectors) if section.has_tokens else {}
        self._texts: dict[str, Text] = {}  # captions encoded once, where nothing trained sits before them

    # ---------------------------------------------------------------- building

    def _add_tokens(self, words: Sequence[str], seed: int) -> None:
        names = token_names(self.placeholders, self.section.vectors)
        for number, encoder in enumerate(self.encoders):
            matrix = encoder.model.get_input_embeddings()
            generator = torch.Generator().manual_seed((seed + number) % 2**63)
            rows = first_rows(
                encoder.tokenizer, matrix.weight.cpu(), words, self.section.vectors, self.section.init, generator
            )
            add_tokens(encoder.tokenizer, names, matrix.num_embeddings)
            encoder.rows = TokenEmbedding(matrix, rows).to(self.device)
            encoder.rows.rows.data = encoder.rows.rows.data.float()
            encoder.model.set_input_embeddings(encoder.rows)
            pool_at_the_end(encoder.tokenizer, encoder.model)

    def _add_lora(self) -> None:
        from peft import LoraConfig

        section, targets = self.section, endings(self.section.targets)
        alpha = section.alpha or section.rank
        settings: dict[str, Any] = {"r": section.rank, "lora_alpha": alpha, "lora_dropout": section.dropout}
        try:
            self.unet.add_adapter(LoraConfig(**settings, target_modules=list(targets)), LORA_NAME)
        except ValueError as exc:
            text = f"the U-Net takes no LoRA at {', '.join(targets)} ({str(exc).splitlines()[0]})"
            raise ModelError(
                Problem("adapt.targets", text, "use to_q, to_k, to_v, to_out.0, proj_in, conv1, ...")
            ) from exc
        if section.text_encoder_lora:
            for encoder in self.encoders:
                config = LoraConfig(**settings, target_modules=["q_proj", "k_proj", "v_proj", "out_proj"])
                encoder.model.add_adapter(config, LORA_NAME)
        for _, parameter in self._lora_parameters():
            parameter.data = parameter.data.float()

    # ---------------------------------------------------------------- parameters

    def token_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(f"tokens.{k}", e.rows.rows) for k, e in enumerate(self.encoders) if e.rows is not None]

    def lora_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        return sorted(self._lora_parameters())

    def _lora_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        roots = {"unet": self.unet} | {_encoder_name(k): e.model for k, e in enumerate(self.encoders)}
        for root, model in roots.items():
            for name, parameter in model.named_parameters():
                if f".{LORA_NAME}." in name:
                    yield f"{root}.{name}", parameter

    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Everything trained, in a fixed order."""
        return dict([*self.token_parameters(), *self.lora_parameters()])

    def learned_tokens(self) -> list[dict[str, torch.Tensor]]:
        """{placeholder: rows} for each text encoder, as written; empty without tokens."""
        section = self.section
        return [grouped(e.rows.rows, self.placeholders, section.vectors) for e in self.encoders if e.rows is not None]

    def learned_lora(self) -> dict[str, torch.Tensor]:
        """diffusers' names, alpha / rank folded into B, so that every loader reads the same update."""
        scale = (self.section.alpha or self.section.rank) / self.section.rank
        found = {}
        for name, parameter in self.lora_parameters():
            key = name.replace(f".{LORA_NAME}.", ".")
            found[key] = parameter.detach() * (scale if ".lora_B." in key else 1.0)
        return found

    # ---------------------------------------------------------------- running

    def _with_lora(self) -> list[Any]:
        section = self.section
        encoders = [encoder.model for encoder in self.encoders] if section.text_encoder_lora else []
        return [self.unet, *encoders] if section.has_lora else []

    @contextmanager
    def computing(self, training: bool) -> Iterator[None]:
        """Autocast to the frozen weights' dtype; on the CPU plain attention is faster for few positions."""
        for part in (self.unet, *(encoder.model for encoder in self.encoders)):
            part.train(training)
        try:
            with self._autocast(), _attention(self.device.type), self._lora_casts(), self._merged():
                yield
        finally:
            for part in (self.unet, *(encoder.model for encoder in self.encoders)):
                part.eval()

    @property
    def lanes(self) -> int:
        """How many parts of a batch may be computed side by side: on a CPU one core gets through a part of its own faster
        than two through one after the other, kernel by kernel (docs/log.md, 2026-11-29)."""
        parts = (self.unet, *(encoder.model for encoder in self.encoders))
        draws = any(isinstance(layer, torch.nn.Dropout) and layer.p for part in parts for layer in part.modules())
        # dropout draws from the one generator of all threads, in no order
        return 1 if self.device.type != "cpu" or draws else self.backend.spec.threads

    def same_dropout(self) -> AbstractContextManager[None]:
        """Around a prediction, so that the next one drops what it does; without dropout nothing is done."""
        if not self.section.dropout:
            return nullcontext()
        return torch.random.fork_rng([self.device] if self.device.type == "cuda" else [])

    @contextmanager
    def lane(self, threads: int) -> Iterator[None]:
        """Inside `computing`, in a thread of its own: autocast and a share of the cores belong to a thread."""
        torch.set_num_threads(threads)
        with self._autocast():
            yield

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.backend.dtype, enabled=self.backend.dtype != torch.float32)

    @contextmanager
    def _lora_casts(self) -> Iterator[None]:
        """Leave casting to autocast: peft would bring every input to fp32 first, a tenth of the time of a step."""
        from peft.helpers import disable_input_dtype_casting

        with ExitStack() as stack:
            for part in self._with_lora():
                stack.enter_context(disable_input_dtype_casting(part))
            yield

    def _merged(self) -> AbstractContextManager[None]:
        """Up to a tenth of a step on a CPU (docs/log.md, 2026-11-29); with dropout the two ways are not the same."""
        if self.device.type == "cpu" and self.section.has_lora and not self.section.dropout:
            return merged_products(self.unet, LORA_NAME)
        return nullcontext()

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The model as it came, for describing images: LoRA switched off, no learned token in the prompt."""
        adapted = self._with_lora()
        self.backend.forget_texts()
        for part in adapted:
            part.disable_adapters()
        try:
            yield
        finally:
            for part in adapted:
                part.enable_adapters()
            self.backend.forget_texts()

    @property
    def trains_text(self) -> bool:
        """Whether something trained sits before the prompt's embedding."""
        return self.section.has_tokens or (self.section.has_lora and self.section.text_encoder_lora)

    def encode(self, captions: Sequence[str]) -> Text:
        """The captions' embeddings, with gradients where something trained sits before them."""
        if self.trains_text:
            distinct = list(dict.fromkeys(captions))
            text = self._encode(distinct)
            places = torch.tensor([distinct.index(caption) for caption in captions], device=self.device)
            return Text(text.tokens[places], None if text.pooled is None else text.pooled[places])
        missing = [caption for caption in dict.fromkeys(captions) if caption not in self._texts]
        with torch.no_grad():
            for caption in missing:
                text = self._encode([caption])
                self._texts[caption] = Text(text.tokens[0], None if text.pooled is None else text.pooled[0])
        return stack_texts([self._texts[caption] for caption in captions])

    def _encode(self, captions: Sequence[str]) -> Text:
        """As diffusers' encode_prompt: the last hidden state, or SDXL's last but one of both encoders."""
        texts = [expand(caption, self.vectors) for caption in captions]
        hidden, pooled = [], None
        for encoder in self.encoders:
            ids = torch.stack([encoder.token_ids(text) for text in texts]).to(self.device)
            out = encoder.model(ids, output_hidden_states=self.sdxl)
            hidden.append(out.hidden_states[-2] if self.sdxl else out[0])
            pooled = out[0] if self.sdxl else None
        return Text(torch.cat(hidden, dim=-1), pooled)

    def predict(self, noisy: torch.Tensor, times: torch.Tensor, text: Text) -> torch.Tensor:
        """The U-Net's output [N, C, h, w]."""
        extra: dict[str, Any] = {}
        if text.pooled is not None:
            edge = float(self.backend.spec.size_px)
            sizes = torch.tensor([[edge, edge, 0.0, 0.0, edge, edge]], device=self.device, dtype=text.pooled.dtype)
            extra["added_cond_kwargs"] = {"text_embeds": text.pooled, "time_ids": sizes.expand(len(noisy), -1)}
        inputs = noisy.to(self.backend.dtype)
        return self.unet(inputs, times, encoder_hidden_states=text.tokens, return_dict=False, **extra)[0]

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Images from text with the present weights; uint8 [N, S, S, 3]."""
        self.backend.forget_texts()
        with self.computing(training=False):
            return self.backend.draw_from_text(prompts, seeds, batch=len(prompts))


def learned_values(folder: Path, alpha: float | None, rank: int) -> dict[str, torch.Tensor]:
    """An adapter's values by the names of a trainee's parameters, for another one of the same shape to go on from."""
    facts = read_adapter(folder)
    values = {}
    for number, path in enumerate(folder / name for name in TOKENS):
        if facts.has_tokens and path.is_file():
            rows = load_file(path)
            values[f"tokens.{number}"] = torch.cat(
                [rows[name].reshape(-1, rows[name].shape[-1]) for name in facts.placeholders]
            )
    scale = (alpha or rank) / rank
    for name, value in load_file(folder / LORA).items():
        for half in ("lora_A", "lora_B"):
            if f".{half}." in name:
                values[name.replace(f".{half}.", f".{half}.{LORA_NAME}.")] = value / (
                    scale if half == "lora_B" else 1.0
                )
    return values


def _encoder_name(number: int) -> str:
    return "text_encoder" if number == 0 else f"text_encoder_{number + 1}"


def _attention(kind: str) -> Any:
    return sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else nullcontext()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's own generator, set for a block and put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        yield


seeded = _seeded
