"""Tasks in this process and in others: results, failures, dead workers, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from squaring import Job, Squarer

from variegate.errors import DataError, TaskFailed
from variegate.executors.local import run_tasks


def squares(results: list) -> dict[int, int]:
    return {job.number: result[0] for job, result in results}


def test_one_worker_is_this_process_and_is_closed(tmp_path: Path) -> None:
    results = list(run_tasks(partial(Squarer, tmp_path / "note"), [Job(k) for k in range(4)]))
    assert squares(results) == {k: k * k for k in range(4)}
    assert {result[1] for _, result in results} == {os.getpid()}
    assert (tmp_path / "note").read_text() == "closed"


def test_two_workers_share_the_tasks() -> None:
    results = list(run_tasks(partial(Squarer, None), [Job(k) for k in range(9)], 2))
    assert squares(results) == {k: k * k for k in range(9)}
    assert os.getpid() not in {result[1] for _, result in results}
    assert len({result[1:] for _, result in results}) == 2, "each has its own number"
    assert list(run_tasks(partial(Squarer, None), [], 2)) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_say_how_far_they_are(workers: int) -> None:
    told: list[int] = []
    for job, _ in run_tasks(partial(Squarer, None), [Job(k) for k in (1, 2, 3)], workers, report=told.append):
        assert job.number in told, "before the task is done"
    assert sorted(told) == [1, 2, 3]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_task_is_named(workers: int, tmp_path: Path) -> None:
    with pytest.raises(TaskFailed, match="job 3 failed: ZeroDivisionError: no such square") as caught:
        list(run_tasks(partial(Squarer, None), [Job(1), Job(3, "raise")], workers, log_dir=tmp_path))
    if workers == 2:
        assert "no such square" in Path(caught.value.log).read_text()
    with pytest.raises(DataError, match="here: is wrong — right it"):
        list(run_tasks(partial(Squarer, None), [Job(1, "user-error")], workers))


def test_a_dead_workers_task_is_tried_once_more(tmp_path: Path) -> None:
    jobs = [Job(1), Job(2, "die-once", str(tmp_path / "died")), Job(3)]
    assert squares(list(run_tasks(partial(Squarer, None), jobs, 2))) == {1: 1, 2: 4, 3: 9}
    assert (tmp_path / "died").exists()


def test_a_task_that_kills_twice_fails(tmp_path: Path) -> None:
    with pytest.raises(
        TaskFailed, match=r"job 2 failed: its worker ended twice \(SIGKILL, most likely for want of memory\)"
    ):
        list(run_tasks(partial(Squarer, None), [Job(2, "die")], 2, log_dir=tmp_path))


PLAIN_SCRIPT = """
import sys
from functools import partial
sys.path.insert(0, {folder!r})
from squaring import Job, Squarer
from variegate.executors.local import run_tasks
print("begin", flush=True)
print(sorted(result[0] for _, result in run_tasks(partial(Squarer, None), [Job(1), Job(2), Job(3)], 2)))
"""


def test_a_plain_script_is_not_run_again_by_its_workers(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PLAIN_SCRIPT.format(folder=str(Path(__file__).parents[1])))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n", 1) == ["begin", "[1, 4, 9]\n"], done.stderr


DRIVER = """
import sys, multiprocessing
from functools import partial
sys.path.insert(0, {folder!r})
from squaring import Job, Squarer
from variegate.executors.local import run_tasks
if __name__ == "__main__":
    for job, result in run_tasks(partial(Squarer, None), [Job(1), Job(2), Job(3, "sleep"), Job(4, "sleep")], 2):
        print(result[1], flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(folder=str(Path(__file__).parents[1])))
    driver = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert driver.stdout is not None
    workers = {int(driver.stdout.readline()) for _ in range(2)}
    driver.send_signal(how)
    driver.wait(10)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)
    driver.stdout.close()


def test_workers_of_workers_end_with_the_first_of_them(tmp_path: Path) -> None:
    """A nested task may start processes; killing the one at the top leaves none of the four below."""
    script = tmp_path / "driver.py"
    jobs = '[Job(1, "nested"), Job(2, "nested")], 2, are_nested=True'
    text = DRIVER.format(folder=str(Path(__file__).parents[1]))
    script.write_text(text.replace('[Job(1), Job(2), Job(3, "sleep"), Job(4, "sleep")], 2', jobs))
    driver = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(below := spawned_below(driver.pid)) < 6 and time.monotonic() < deadline:
        time.sleep(0.1)
    driver.kill()
    driver.wait(10)
    assert len(below) == 6, "two, and two below each"
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in below) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in below)


def spawned_below(parent: int) -> set[int]:
    """Worker processes that a process started, those that they started included."""
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            started_by = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        if started_by == parent and "spawn_main" in command:
            found |= {int(folder.name), *spawned_below(int(folder.name))}
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
