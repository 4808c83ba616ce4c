"""One course of learning: encode, train with checkpoints, preview, and remember what was seen. Needs torch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from variegate.backends.adapter import ADAPTER
from variegate.backends.diffusion import DiffusionBackend
from variegate.captions import prior_texts
from variegate.copies import SIZE_PX, Calibration, calibrate, count_copies
from variegate.errors import TaskFailed
from variegate.images import resize_square
from variegate.judge import Judge, class_agreement, train_judge
from variegate.pipeline import Context
from variegate.records import RealImage, seed_from
from variegate.stages.adapt.checkpoints import State, last_checkpoint, read_checkpoint, write_checkpoint
from variegate.stages.adapt.fit import Fit, Views, distilling, milestones, settled
from variegate.stages.adapt.material import PREVIEW, Material, labels_of, load_pixels
from variegate.stages.adapt.preview import draw_preview, plan_preview, preview_warnings, sheet
from variegate.stages.adapt.sampling import image_weights
from variegate.stages.adapt.team import Lesson, join, together
from variegate.stages.adapt.trainee import Trainee
from variegate.stages.adapt.views import CACHE, encode, encode_views, fitting, mask_views, read_cached


@dataclass(frozen=True, slots=True)
class Taught:
    """What a one-step model is taught with: pairs, and the values that its parent has learned."""

    pairs: Views
    held_out: Views | None
    values: Mapping[str, torch.Tensor]  # by the trainee's parameter names


class Course:
    """Trains every group of classes in turn: all at once (joint), or each class alone.

    With `taught` it is the one-step model that learns, from its parent's drawings.
    """

    def __init__(
        self, context: Context, backend: DiffusionBackend, material: Material, key: str, taught: Taught | None = None
    ) -> None:
        self.context, self.backend, self.material, self.key = context, backend, material, key
        self.recipe, self.folder, self.taught = context.recipe, context.folder, taught
        courses = 1 if self.recipe.adapt.joint else len(material.classes)
        self.section = settled(self.recipe.adapt, backend.facts.width, math.ceil(len(material.train) / courses))
        self.seed = seed_from(self.recipe.seed, "adapt")
        self.team = join(backend.spec.device)
        self.prior = None
        if taught is None:
            # latents first: the autoencoder and the base model are as they came
            self.views = replace(self._views(material.train, material.captions), telling=material.telling)
            self.held_out = self._held_out()
            self.prior = self._prior()
        else:
            self.section = distilling(self.section)
            self.views, self.held_out = taught.pairs, taught.held_out
        self.judge = self._teach() if self.section.previews else None
        self.trainee = Trainee(backend, self.section, material.placeholders, material.words, self.seed)
        self.plan = plan_preview(material.captions, labels_of(material.train), seed_from(self.recipe.seed, "preview"))
        self.log: list[dict[str, Any]] = []
        self.previewed: int | None = None  # the step whose weights the latest preview shows
        self.seen: dict[str, Any] = {}  # what it showed
        self.steps_done, self.kept_step, self.rate = 0, 0, 0.0  # kept: the step whose weights are shipped
        self.num_parameters = sum(p.numel() for p in self.trainee.named_parameters().values())

    # ---------------------------------------------------------------- material

    def _views(self, images: Sequence[RealImage], captions: Sequence[Sequence[str]]) -> Views:
        section = self.section
        with self.context.reporter.bar("encoding", len(images)) as bar:
            latents = encode_views(
                self.backend,
                images,
                self.folder.root,
                section,
                self.recipe.dataset,
                seed=self.seed,
                advance=bar.advance,
            )
        masks = None
        if section.mask == "foreground":
            edge, latent_px = self.backend.spec.size_px, self.backend.latent_px
            masks = mask_views(images, section, self.recipe.dataset, edge=edge, latent_px=latent_px, seed=self.seed)
        return Views(latents, captions, image_weights(labels_of(images), section.balance), masks)

    def _held_out(self) -> Views | None:
        if not self.material.held_out or not self.section.evaluations:
            return None
        return self._views(self.material.held_out, self.material.held_out_captions)

    def _prior(self) -> Views | None:
        """Images of the model as it is, drawn once and cached as latents."""
        prior = self.section.prior
        if not prior.images:
            return None
        from safetensors.torch import save

        from variegate.files import write_atomic
        from variegate.records import content_id

        spec, texts = self.backend.spec, prior_texts(self.section, self.material.words)
        name = content_id("prior", spec.fingerprint, spec.to_json() | {"path": ""}, texts, self.seed)
        path = self.folder.root / CACHE / f"{name}.safetensors"
        found = read_cached(path)
        if found is None:
            seeds = [seed_from(self.seed, "prior", k) for k in range(prior.images)]
            with self.context.reporter.bar("drawing prior images", prior.images) as bar, fitting("drawing"):
                pixels = self.backend.draw_from_text(texts, seeds, batch=spec.batch, advance=bar.advance)
            found = {"latents": encode(self.backend, pixels).half().contiguous()}
            write_atomic(path, save(found))
        latents = found["latents"][:, None]
        return Views(latents, [[text] for text in texts], np.full(len(latents), 1 / len(latents)))

    def _teach(self) -> Judge | None:
        """A judge on the base model's features, taught by the training images."""
        train = self.material.train
        pixels = load_pixels(self.recipe, train, self.backend.spec.size_px)
        with fitting("describing images"):
            features = np.concatenate([self.backend.features(pixels), self.backend.features(pixels[:, :, ::-1])])
        labels, groups = labels_of(train) * 2, [image.id for image in train] * 2
        return train_judge(features, np.array(labels), groups, seed=seed_from(self.seed, "judge"))

    def _groups(self) -> list[np.ndarray]:
        """Which training images each run learns from."""
        labels = np.array(labels_of(self.material.train))
        if self.section.joint:
            return [np.arange(len(labels))]
        return [np.flatnonzero(labels == label) for label in sorted(set(labels.tolist()))]

    # ---------------------------------------------------------------- learning

    def run(self) -> None:
        """Train what is not trained yet; raises TaskFailed naming the step and the last good checkpoint."""
        groups, section = self._groups(), self.section
        state, notes = read_checkpoint(self.folder.root, self.key)
        for note in notes:
            self.context.reporter.line(f"adapt: {note}")
        done = state.step if state else 0
        first = min(max(done - 1, 0) // section.steps, len(groups) - 1)  # a group's last state is still its own
        self.steps_done = first * section.steps
        if state:
            self.log, self.seen = list(state.facts["course_log"]), dict(state.facts["seen"])
            self.previewed = state.facts["previewed"]
        else:
            self._forget_previews()
        doing = "adapting" if self.taught is None else "distilling"
        with self.context.reporter.bar(doing, section.steps * len(groups), unit="steps", done=done) as bar:
            start, resumed = time.monotonic(), done
            for number in range(first, len(groups)):
                fit = self._fit(groups, number)
                if state:
                    fit.restore(_within(state, state.step - number * section.steps))
                elif self.taught is not None:
                    values = {f"value/{name}": value for name, value in self.taught.values.items()}
                    fit.restore(State(0, values), fresh=True)
                with together("adapt"):
                    self._call_team(fit, number, fresh=state is None)
                    state = None
                    self._train(fit, number, bar)
                self.log += (
                    [{"class": number, **line} for line in fit.progress.log] if len(groups) > 1 else fit.progress.log
                )
                self.kept_step = self.steps_done + fit.kept_step
                self.steps_done += fit.progress.step
                fit.finish()
            taken = max(self.steps_done - resumed, 0) * section.batch
            self.rate = taken / max(time.monotonic() - start, 1e-6)
        if section.previews and self.previewed != self.kept_step:  # none yet, or one of weights that are not kept
            self._preview(self.kept_step)

    def _call_team(self, fit: Fit, number: int, *, fresh: bool) -> None:
        if self.team.size == 1 or fit.progress.step >= self.section.steps or fit.progress.stopped:
            return
        material = self.material
        names = (material.placeholders, material.words, self.seed, number)
        state = fit.state()
        state = replace(state, tensors={name: value.cpu() for name, value in state.tensors.items()})
        self.team.tell(Lesson(self.section, *names, fit.views, self.prior, state, fresh, self.taught is not None))

    def _fit(self, groups: Sequence[np.ndarray], number: int) -> Fit:
        views = self.views
        if len(groups) > 1:
            own = groups[number]
            masks = None if views.masks is None else views.masks[torch.from_numpy(own)]
            captions = [views.captions[k] for k in own]
            views = Views(views.latents[torch.from_numpy(own)], captions, np.full(len(own), 1 / len(own)), masks)
        say = lambda line: self.context.reporter.line(f"adapt: {line}")  # noqa: E731
        held_out = self.held_out if len(groups) == 1 else None
        return Fit(
            self.trainee,
            self.section,
            views,
            held_out,
            self.prior,
            seed=self.seed,
            number=number,
            team=self.team,
            say=say,
        )

    def _train(self, fit: Fit, number: int, bar: Any) -> None:
        section, first = self.section, number * self.section.steps
        saves, previews = milestones(section.steps, section.checkpoints), milestones(section.steps, section.previews)
        stops = sorted(saves | (previews if section.joint else set()) | {section.steps})
        for stop in stops:
            if stop <= fit.progress.step or fit.progress.stopped:
                continue
            try:
                fit.run(stop, on_step=lambda _: bar.advance(1))
                fit.check()
            except TaskFailed as exc:
                text = f"{exc.reason} (last good checkpoint: {last_checkpoint(self.folder.root, self.key)})"
                raise TaskFailed(exc.task, text) from exc
            if stop in previews and section.joint and not fit.progress.stopped:
                with fit.averaged():
                    self._preview(stop)
            if stop in saves or stop == section.steps:
                state = fit.state()
                facts = {**state.facts, "course_log": self.log, "seen": self.seen, "previewed": self.previewed}
                write_checkpoint(self.folder.root, State(first + state.step, state.tensors, facts), self.key)

    # ---------------------------------------------------------------- looking

    def _preview(self, step: int) -> None:
        """Draw the grid, keep it under its step and as the latest, and count near-copies of training images."""
        with fitting("drawing previews"):
            pixels = draw_preview(self.trainee, self.plan)
        page = sheet(pixels)
        self.folder.write(f"{ADAPTER}/preview-{step:06d}.png", page)
        self.folder.write(PREVIEW, page)
        self.previewed = step
        flat = pixels.reshape(-1, *pixels.shape[2:])
        self.seen = {"preview_copies": self._copies(flat), "preview_images": len(flat)}
        if self.judge is not None and not self.judge.is_weak:
            with self.trainee.as_base(), fitting("describing images"):
                features = self.backend.features(flat)
            targets = np.repeat(self.plan.labels, pixels.shape[1])
            agreement = float(class_agreement(self.judge, features, targets).mean())
            self.seen |= {
                "preview_agreement": round(agreement, 4),
                "judge_accuracy": round(self.judge.held_out_accuracy, 4),
            }
        self.context.reporter.event("preview", step=step, **self.seen)

    def _forget_previews(self) -> None:
        """Those of another course in the same folder."""
        for path in (self.folder.path(PREVIEW), *self.folder.path(ADAPTER).glob("preview-[0-9]*.png")):
            path.unlink(missing_ok=True)

    def _copies(self, drawn: np.ndarray) -> int:
        small = np.stack([resize_square(one, SIZE_PX) for one in drawn])
        return count_copies(small, *self._copied)

    @cached_property
    def _copied(self) -> tuple[np.ndarray, Calibration]:
        """The training images, and what a copy of one of them is."""
        train = self.material.train
        real = load_pixels(self.recipe, train, SIZE_PX)
        return real, calibrate(real, [image.id for image in train], seed=self.seed)

    def scores(self) -> dict[str, Any]:
        """What is known of how good the adapter is."""
        losses = [line["held_out_loss"] for line in self.log if "held_out_loss" in line]
        if not losses:
            return dict(self.seen)
        kept = {"held_out_step": self.kept_step} if self.section.early_stop is not None else {}
        return self.seen | {
            "held_out_first": losses[0], "held_out_last": losses[-1], "held_out_best": min(losses), **kept
        }  # fmt: skip

    @property
    def warnings(self) -> list[str]:
        return [*self.material.warnings, *preview_warnings(self.seen, len(self.material.classes))]


def _within(state: State, step: int) -> State:
    """A course's state as one group's: its steps counted from the group's start."""
    return State(step, state.tensors, state.facts)
