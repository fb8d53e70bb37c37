"""From start to the first batch of a data set as large as COCO, made on the spot.

    python benchmarks/coco_sized.py

Writes a json of 118,000 images and 860,000 boxes to a temporary folder, with a few hundred image files and links to
them for the others, opens it as a training run does and takes the first batch. Prints peak memory and seconds of each
step: wall time, and processor time, which does not depend on other jobs of the machine. ``--polygons true`` adds
outlines to every box, as in COCO's own file.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

IMAGES, BOXES, CATEGORIES, FILES = 118_000, 860_000, 80, 100


def write(folder: Path, images: int, boxes: int, polygons: bool) -> None:
    """Write ``annotations/instances_train2017.json`` and ``train2017`` in COCO's layout."""
    rng = np.random.default_rng(0)
    for name in ("annotations", "train2017"):
        (folder / name).mkdir()
    sizes = rng.choice([(640, 480), (480, 640), (640, 427), (500, 375)], images)
    files: dict[tuple[int, int], list[Path]] = {}
    for number, (width, height) in enumerate(sizes.tolist()):
        path = folder / "train2017" / f"{number:012d}.jpg"
        known = files.setdefault((width, height), [])
        if len(known) < FILES:
            pixels = rng.integers(0, 255, (height // 8, width // 8, 3), np.uint8)
            Image.fromarray(pixels).resize((width, height)).save(path, quality=90)
            known.append(path)
        else:
            os.link(known[number % FILES], path)
    owners = rng.integers(0, images, boxes)
    shares = rng.uniform(0.01, 0.5, (boxes, 4))
    corners = np.round(shares * np.tile(sizes[owners], 2), 2).tolist()
    annotations = [
        {"id": number + 1, "image_id": int(owner), "category_id": int(category), "bbox": box, "area": box[2] * box[3]}
        | {"iscrowd": int(number % 100 == 0)}
        | ({"segmentation": [[round(box[0] + point, 2) for point in range(40)]]} if polygons else {})
        for number, (owner, category, box) in enumerate(
            zip(owners, rng.integers(1, CATEGORIES + 1, boxes), corners, strict=True)
        )
    ]
    document = {
        "images": [
            {"id": number, "file_name": f"{number:012d}.jpg", "width": width, "height": height}
            for number, (width, height) in enumerate(sizes.tolist())
        ],
        "categories": [{"id": number, "name": f"kind {number}"} for number in range(1, CATEGORIES + 1)],
        "annotations": annotations,
    }
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(document))


def open_first_batch(folder: Path, task: str, workers: int) -> None:
    """Run what a training does until its first batch, without a model; print time and memory of each step."""
    start = _now()
    from torch.utils.data import DataLoader

    from vr1.data import CocoDataModule, Selection
    from vr1.data.sampler import RepeatedBatches

    imported = _report("import", start)
    data = CocoDataModule(folder, task=task, selection=Selection(max_objects=30))  # type: ignore[arg-type]
    source = data.build("train")
    opened = _report(f"open {len(source):,} records", imported)  # type: ignore[arg-type]
    batches = RepeatedBatches(len(source), batch_size=16, seed=0)  # type: ignore[arg-type]
    loader = DataLoader(source, batch_sampler=batches, collate_fn=list, num_workers=workers)
    batch = next(iter(loader))
    _report(f"first batch of {len(batch)}", opened)
    _report("in all", start)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _report(step: str, since: tuple[float, float]) -> tuple[float, float]:
    wall, busy = (now - then for now, then in zip(_now(), since, strict=True))
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(
        f"{step:<26} {wall:7.1f} s, {busy:6.1f} s of processor, peak {max(own, children) / 2**20:.2f} GiB", flush=True
    )
    return _now()


def main(
    images: int = IMAGES,
    boxes: int = BOXES,
    polygons: bool = False,
    task: str = "detection",
    workers: int = 1,
    folder: Path | None = None,
) -> None:
    """Write the data, or use those of a folder, and measure in a separate process.

    Args:
        images: number of images.
        boxes: number of boxes.
        polygons: add an outline of 20 points to each box.
        task: detection or grounding.
        workers: worker processes of the loader.
        folder: data written before; None writes them to a temporary folder.
    """
    if folder is not None:
        open_first_batch(folder, task, workers)
        return
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary), images, boxes, polygons)
        size = (Path(temporary) / "annotations" / "instances_train2017.json").stat().st_size
        print(f"{images:,} images, {boxes:,} boxes, {size / 1e6:.0f} MB of json", flush=True)
        # A separate process, so that the memory for writing the data does not count.
        command = [sys.executable, __file__, "--folder", temporary, "--task", task, "--workers", str(workers)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    auto_cli(main)
