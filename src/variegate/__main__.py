"""Entry point: settings that must stand before torch is loaded, then the command line."""

import os
import sys


def main() -> None:
    # Waiting threads that sleep: one busy neighbour otherwise makes a forward pass ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # but not at once: sleeping between small kernels costs a third
    from variegate.cli import run_cli
    from variegate.interrupt import heed_ctrl_c

    heed_ctrl_c()
    sys.exit(run_cli())


if __name__ == "__main__":
    main()
