"""The README of an exported model: where it comes from, how it did, and how to load it."""

from typing import Any

import yaml

from vr1.markdown import markdown_table
from vr1.runs.facts import versions

_PACKAGES = ("vr1", "torch", "transformers", "peft", "lightning", "bitsandbytes")


def model_card(run: dict[str, Any], step: int, adapters: bool, command: str = "") -> str:
    """A model card in Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        run: what `vr1.checkpoint.add_run` stored: ``policy`` (settings), ``figures`` by name, ``module``, and, of runs
            of the command line, ``command`` and ``config`` (YAML).
        step: optimizer steps that were made.
        adapters: the folder holds adapters alone.
        command: how the folder was written, if not by the run itself.

    Example:
        >>> policy, figures = {"path": "some/base", "quantize": None}, {"val/map": 0.25}
        >>> run = {"policy": policy, "figures": figures, "module": "GRPOModule"}
        >>> card = model_card(run, step=10, adapters=False)
        >>> "base_model: some/base" in card, "| val/map | 0.25 |" in card
        (True, True)
    """
    policy, config = run["policy"], run.get("config", "")
    data = (yaml.safe_load(config) or {}).get("data") if config else None
    sections = [
        _front_matter(policy["path"], adapters),
        f"# {policy['path'].rstrip('/').split('/')[-1]}, trained with vr1",
        f"{'Adapters for' if adapters else 'A fine-tuned'} `{policy['path']}`, trained by `{run['module']}` of vr1"
        f" (Vision-R1, arXiv 2503.18013) for {step} optimizer steps.",
        "## Load it\n\n" + _code("python", _LOAD_ADAPTERS if adapters else _LOAD),
        "## Figures\n\n" + _table(run["figures"]),
        "## Data\n\n" + (_code("yaml", yaml.safe_dump(data, sort_keys=False)) if data else _UNTOLD),
        "## Command\n\n" + _code("bash", "\n".join(filter(None, (run.get("command"), command))) or _UNTOLD),
        "## Policy\n\n" + _code("yaml", yaml.safe_dump(dict(policy), sort_keys=False)),
        "## Configuration\n\n" + (_code("yaml", config) if config else _UNTOLD),
        "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in versions(_PACKAGES).items()) + ".",
    ]
    if policy["quantize"] and adapters:
        sections.insert(4, _FOUR_BITS)
    return "\n\n".join(section.strip() for section in sections) + "\n"


_UNTOLD = "Not recorded: the run was not started by `python -m vr1`."
_LOAD = """
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("this folder")
processor = AutoProcessor.from_pretrained("this folder")
"""
_LOAD_ADAPTERS = """
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained("the base model")
model = PeftModel.from_pretrained(base, "this folder")
processor = AutoProcessor.from_pretrained("this folder")
"""
_FOUR_BITS = (
    "The adapters were trained on the base in 4 bits (NF4, double quantisation; vision tower and `lm_head` left as they"
    " are). On the base in full precision they work too, with slightly other answers."
)


def _front_matter(base: str, adapters: bool) -> str:
    head = {
        "base_model": base,
        "library_name": "peft" if adapters else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["object-detection", "grpo", "vr1"],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def _table(figures: dict[str, float]) -> str:
    """The figures of validation first; times and counters of single steps say nothing of the model."""
    told = {name: value for name, value in figures.items() if "/" in name and not name.startswith(("perf/", "rule/"))}
    if not told:
        return "None were logged."
    ordered = sorted(told, key=lambda name: (not name.startswith("val/"), name))
    return markdown_table(["metric", "value"], [[name, f"{told[name]:.4g}"] for name in ordered])
