"""What a COCO source has to say about the file it read."""

from dataclasses import dataclass

from vr1.data.problems import Problems


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CocoReport:
    """What was read, what was left out and what was put right.

    Attributes:
        records: number of questions.
        images: number of images that they are about.
        objects: number of objects on those images, crowd regions included.
        problems: faulty records, by kind; all of them are left out.
        notes: what else was left out, merged, cut or renumbered.
    """

    records: int
    images: int
    objects: int
    problems: Problems
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """The report as a few lines of text."""
        lines = [f"{self.problems.source}: {self.records} records on {self.images} images with {self.objects} objects"]
        lines.extend(f"  note: {note}" for note in self.notes)
        if len(self.problems):
            lines.append(f"left out of {self.problems}")
        return "\n".join(lines)
