"""Make the picture of the README from a run of the demo: the same images before training and after it.

python docs/pictures.py --run runs/demo/version_0 --out docs/images/demo_before_after.png
"""

import argparse
from pathlib import Path

from PIL import Image

# The height of a gallery's title and of its first row of tiles, at the gallery's default tile size, in pixels.
FIRST_ROW = 510


def before_and_after(run: Path) -> Image.Image:
    """The first row of a run's first gallery above the first row of its last one."""
    galleries = sorted((run / "gallery").glob("step_*.png"))
    before, after = (Image.open(path).convert("RGB") for path in (galleries[0], galleries[-1]))
    picture = Image.new("RGB", (before.width, 2 * FIRST_ROW), "white")
    for place, gallery in enumerate((before, after)):
        picture.paste(gallery.crop((0, 0, gallery.width, FIRST_ROW)), (0, place * FIRST_ROW))
    return picture


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, required=True, help="run folder of the demo")
    options.add_argument("--out", type=Path, required=True, help="the picture to write")
    arguments = options.parse_args()
    before_and_after(arguments.run).save(arguments.out, optimize=True)
