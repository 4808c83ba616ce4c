"""How processes end: at Ctrl-C whatever holds them up, and without taking torch apart.

Python raises KeyboardInterrupt between any two instructions of the main thread, also inside the locks of `threading`, of which
one may then stay taken for ever and a pool of threads wait for it; and not at all while a library computes. Files are written
whole and every stage goes on from what is there, so a process that does not end by itself in time may be ended.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from typing import NoReturn

GRACE_S = 10.0
ONE_PRESS_S = 0.5  # launchers pass on what the terminal has sent already
STOPPED = 130  # as shells report a command that Ctrl-C ended
STOPPED_TEXT = "stopped; nothing finished is lost. Run the same command again to go on."


def heed_ctrl_c(grace_s: float = GRACE_S) -> None:
    """From now on this process ends within `grace_s` of Ctrl-C, and at once at a second one; for the main thread."""
    told, telling = socket.socketpair()
    telling.setblocking(False)
    signal.set_wakeup_fd(telling.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(told, grace_s), daemon=True, name="ctrl-c").start()


def is_from_ctrl_c(exc: BaseException | None) -> bool:
    """Whether an exception is an interrupt, or was raised while one was on its way up."""
    while exc is not None and not isinstance(exc, KeyboardInterrupt):
        exc = exc.__cause__ or exc.__context__
    return exc is not None


def leave(status: int) -> NoReturn:
    """End this process as Python would, less what it does with a million objects of torch: more than a second."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _watch(told: socket.socket, grace_s: float) -> None:
    _await_ctrl_c(told)
    time.sleep(ONE_PRESS_S)
    told.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        told.recv(1024)
    told.settimeout(grace_s)
    with contextlib.suppress(TimeoutError):
        _await_ctrl_c(told)
    os.write(2, f"{STOPPED_TEXT}\n".encode())  # sys.stderr may be locked by what holds the command up
    os._exit(STOPPED)


def _await_ctrl_c(told: socket.socket) -> None:
    while told.recv(1) != bytes([signal.SIGINT]):
        pass
