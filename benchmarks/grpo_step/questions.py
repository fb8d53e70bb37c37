"""The records that both sides train on."""

from dataclasses import replace

from grpo_step.settings import StepSettings
from vr1.data.synthetic import SceneSource, SceneStyle
from vr1.prompts import PromptEncoder
from vr1.types import DetectionRecord


def questions(settings: StepSettings, encoder: PromptEncoder, steps: int) -> list[DetectionRecord]:
    """Scenes for some optimizer steps, each with the same question, long enough for ``prompt_tokens``."""
    side = min(settings.image)
    style = SceneStyle(canvas_sizes=(settings.image,), object_size=(side / 8, side / 3), num_categories=(2, 2))
    source = SceneSource(length=steps * settings.prompts, style=style)
    records = [source[index] for index in range(len(source))]
    names: tuple[str, ...] = ("circle", "square")
    while True:
        asked = replace(records[0], categories=names)
        if encoder([asked]).tokens.shape[1] >= settings.prompt_tokens:
            break
        names = (*names, f"thing{len(names)}")
    return [replace(record, categories=names) for record in records]
