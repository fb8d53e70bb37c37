"""The real data sets, which lie beside a developer's checkout and not in a user's.

The folder is there as a whole or not at all: where it is there, a file that is missing in it fails its test.
"""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not beside this checkout")
