"""A batch on disk, to see what a training step went wrong on."""

import json
from pathlib import Path
from typing import Any

import torch


def save_batch(folder: Path, batch: Any, experience: Any, tokenizer: Any, **told: Any) -> Path:
    """Write the images, the questions and answers as JSON, and the tensors.

    Args:
        folder: made where it is missing.
        batch: a `vr1.prompts.PromptBatch`.
        experience: the `vr1.experience.Experience` of its completions; None where there is none.
        tokenizer: decodes the completions.
        told: plain values for the JSON file.

    Returns:
        The folder: ``batch.json``, a picture a record, and ``tensors.pt`` (loads with ``weights_only=True``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (record, instruction) in enumerate(zip(batch.records, batch.instructions, strict=True)):
        record.image.save(folder / f"{number}.png")
        row = {"picture": f"{number}.png", "origin": record.origin, "image_id": record.image_id}
        row |= {"instruction": instruction, "labels": list(record.labels), "boxes_xyxy": record.boxes_xyxy.tolist()}
        if experience is not None:
            answers = [
                tokens[kept] for tokens, kept in zip(experience.tokens[number], experience.mask[number], strict=True)
            ]
            row["completions"] = tokenizer.batch_decode([answer.tolist() for answer in answers])
            row["advantages"] = experience.advantages[number].tolist()
        rows.append(row)
    text = json.dumps({**told, "records": rows}, indent=2, ensure_ascii=False)
    (folder / "batch.json").write_text(text + "\n", encoding="utf-8")
    tensors = {"tokens": batch.tokens.cpu(), "mask": batch.mask.cpu()}
    tensors |= {name: value.cpu() for name, value in batch.vision.items()}
    torch.save({"prompts": tensors, "experience": experience and experience.state_dict()}, folder / "tensors.pt")
    return folder
