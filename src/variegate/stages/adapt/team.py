"""Several processes that adapt one model together, started by `accelerate launch` or torchrun.

The first process works through the run as ever. The others wait, are sent the lesson (latents and captions, so they need no
access to the data or the run folder), take their slice of every batch, and write nothing. Batches and noise depend on the step
only, so the loss curve is that of one process with the same global batch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from variegate.backends.devices import size_of_team
from variegate.errors import TaskFailed
from variegate.stages.adapt.checkpoints import State

if TYPE_CHECKING:
    from variegate.recipe import Recipe
    from variegate.stages.adapt.fit import Settled, Views

PATIENCE = timedelta(hours=12)  # the others wait while the first one reads data, previews and draws
_OF_THE_TEAM = re.compile("gloo|nccl|connection|broken pipe", re.IGNORECASE)  # errors of messages between processes
_is_broken = False  # whether a process left the others in the middle of a step


@dataclass(frozen=True, slots=True)
class Team:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    def sum_(self, tensor: torch.Tensor) -> None:
        """Add up over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)

    def agree(self, flag: bool) -> bool:
        """What the first process says."""
        return bool(self.tell(flag)) if self.size > 1 else flag

    def tell(self, message: Any) -> Any:
        """Send the first process's message to the others; every process returns it."""
        if self.size == 1:
            return message
        box = [message if self.rank == 0 else None]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]


@dataclass(frozen=True, slots=True)
class Lesson:
    """All that the other processes need for one course; tensors on the CPU."""

    section: Settled
    placeholders: tuple[str, ...]
    words: tuple[str, ...]
    seed: int
    number: int  # of the group of classes
    views: Views
    prior: Views | None
    state: State  # where to start: values may come from a checkpoint or from another group's run
    fresh: bool  # whether the optimiser starts anew
    distilling: bool = False  # into the backend that draws


def join(device: str) -> Team:
    """Meet the other processes, each with its own `device` of one kind; alone where there are none."""
    size = size_of_team()
    if size == 1:
        return Team()
    if not torch.distributed.is_initialized():
        global _is_broken
        _is_broken = False
        on_gpu = device.startswith("cuda")
        if on_gpu:
            torch.cuda.set_device(device)  # messages go through the current one
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    return Team(int(os.environ["RANK"]), size)


@contextmanager
def together(task: str) -> Iterator[None]:
    """Around steps that all processes take, and wait for each other in: an error ends the team, with no message to it.

    Raises TaskFailed where it was another process that ended.
    """
    global _is_broken
    try:
        yield
    except BaseException as exc:
        _is_broken = size_of_team() > 1
        if _is_broken and isinstance(exc, RuntimeError) and _OF_THE_TEAM.search(str(exc)):
            raise TaskFailed(task, f"another process of the team has ended ({str(exc).splitlines()[0]})") from exc
        raise


def dismiss(recipe: Recipe) -> None:
    """Send the others home; those of a broken team have gone, or notice that this process ends."""
    from variegate.stages.adapt.material import training_spec

    if size_of_team() > 1 and not _is_broken:
        join(training_spec(recipe).device).tell(None)
        torch.distributed.destroy_process_group()


def help_out(recipe: Recipe, say: Callable[[str], None] = lambda line: None) -> int:
    """What every process but the first does: follow lessons until sent home; returns how many there were.

    `say` hears what only this process knows, such as that its memory ran out.
    """
    from variegate.backends.diffusion import DiffusionBackend
    from variegate.stages.adapt.fit import Fit
    from variegate.stages.adapt.material import final_spec, training_spec
    from variegate.stages.adapt.trainee import Trainee

    team, count = join(training_spec(recipe).device), 0
    with together("adapt"):
        while (lesson := team.tell(None)) is not None:
            spec = final_spec(recipe) if lesson.distilling else training_spec(recipe)
            with DiffusionBackend.open(spec) as backend:
                trainee = Trainee(backend, lesson.section, lesson.placeholders, lesson.words, lesson.seed)
                fit = Fit(
                    trainee,
                    lesson.section,
                    lesson.views,
                    None,
                    lesson.prior,
                    seed=lesson.seed,
                    number=lesson.number,
                    team=team,
                    say=lambda line: say(f"adapt: process {team.rank}: {line}"),
                )
                fit.restore(lesson.state, fresh=lesson.fresh)
                fit.run(lesson.section.steps)
            count += 1
    torch.distributed.destroy_process_group()
    return count
