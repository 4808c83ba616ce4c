"""Ctrl-C ends a command also where it left a lock taken, and what it made of itself on the way is not called a bug."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from variegate import cli
from variegate.ending import ONE_PRESS_S, STOPPED, STOPPED_TEXT, is_from_ctrl_c

STUCK = """
import os, signal, sys, threading
from variegate.ending import heed_ctrl_c

heed_ctrl_c(float(sys.argv[1]))
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted\\n"))
taken = threading.Lock()
taken.acquire()
os.write(1, b"ready\\n")
taken.acquire()
"""


@pytest.mark.parametrize(("grace_s", "times"), [(0.3, 1), (1000.0, 2)])
def test_a_command_that_is_stuck_ends(grace_s: float, times: int) -> None:
    command = [sys.executable, "-c", STUCK, str(grace_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted\n"
        if times == 2:
            child.send_signal(signal.SIGINT)  # at the same time, as launchers do: no second one
            assert child.stdout.readline() == "interrupted\n"
            time.sleep(2 * ONE_PRESS_S)
            child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (STOPPED, f"{STOPPED_TEXT}\n")


def test_without_ctrl_c_nothing_is_ended() -> None:
    script = "import time; from variegate.ending import heed_ctrl_c; heed_ctrl_c(0.0); time.sleep(0.3); print('done')"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "done\n"


def test_a_lock_that_breaks_on_the_way_is_the_interrupts_doing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> int:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("release unlocked lock")

    monkeypatch.setattr(cli, "app", interrupted)
    assert cli.run_cli([]) == STOPPED
    assert capsys.readouterr().err == f"{STOPPED_TEXT}\n"


def test_other_errors_are_not_the_interrupts_doing() -> None:
    error = ValueError("7")
    error.__cause__ = OSError("8")
    assert not is_from_ctrl_c(error)
    assert is_from_ctrl_c(KeyboardInterrupt())


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_are_no_errors(closed: str) -> None:
    found = subprocess.run(
        f"{sys.executable} -m variegate recipes ls {closed}", shell=True, capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert ("da-fusion" in found.stdout) == (closed == "2>&-")
