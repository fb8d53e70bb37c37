"""``python -m vr1``."""

import sys

from vr1.cli import main

if __name__ == "__main__":
    sys.exit(main())
