"""``python -m vr1``, and the script ``vr1``."""

import os
import sys

from vr1.cli import main


def run() -> None:
    """Run the command of this process, and exit with its status.

    Python itself puts the working folder on the path for ``python -m vr1`` only; here the script finds the user's
    modules there too.
    """
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    sys.exit(main())


if __name__ == "__main__":
    run()
