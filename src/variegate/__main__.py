"""Entry point: settings that must stand before torch is loaded, then the command line."""

import gc
import os
import sys


def main() -> None:
    # Waiting threads that sleep: one busy neighbour otherwise makes a forward pass ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # but not at once: sleeping between small kernels costs a third
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    gc.set_threshold(10_000)  # what torch loads is a million objects, each looked at again and again
    from variegate.cli import run_cli
    from variegate.ending import heed_ctrl_c, leave

    heed_ctrl_c()
    leave(run_cli())


if __name__ == "__main__":
    main()
