"""The model card of an exported model: the ``README.md`` of its folder, in the form of the Hugging Face hub."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from vr1.runs.facts import versions
from vr1.runs.tables import figure_text, markdown_table

_PACKAGES = ("vr1", "torch", "transformers", "peft", "lightning", "bitsandbytes")
_NOT_RECORDED = "Not recorded: the run was not started by `python -m vr1`."
# An absolute path inside a text: at its start, or after a space, quote, bracket, comma, colon or equals sign.
_ABSOLUTE_PATH = re.compile(r"""(?:(?<=^)|(?<=[\s=:,'"\[{(]))~?(?:/[^/\s'",:\]})]+)+/?""")


def model_card(run: dict[str, Any], step: int, adapters: bool, command: str = "", package: str = "") -> str:
    """A model card in Markdown, with the front matter that the Hugging Face hub reads.

    Absolute paths of the machine are shortened to their last part.

    Args:
        run: what `vr1.checkpoints.state.add_run` stored: ``policy`` (settings), ``figures`` by name, ``module``,
            ``prompt`` (see `vr1.families.Family.prompt_info`), and, of runs of the command line, ``command`` and
            ``config`` (YAML).
        step: optimizer steps that were made.
        adapters: the folder holds only adapters.
        command: the command that wrote the folder, if it was not the run itself.
        package: the package that registers the model's class, if it is not transformers itself.

    Example:
        >>> from vr1.families import Qwen25VL
        >>> policy, figures = {"path": "/home/me/base", "quantize": None}, {"val/map": 0.25}
        >>> run = {"policy": policy, "figures": figures, "module": "GRPOModule", "prompt": Qwen25VL().prompt_info()}
        >>> card = model_card(run, step=10, adapters=False)
        >>> "# base, trained with vr1" in card, "/home" in card, "| val/map | 0.250 |" in card
        (True, False, True)
    """
    policy = _shortened(run["policy"])
    config = _shortened(yaml.safe_load(run["config"])) if run.get("config") else None
    commands = "\n".join(_shortened_command(line) for line in (run.get("command"), command) if line)
    base = policy["path"]
    sections = [
        _front_matter(base if base == run["policy"]["path"] else None, adapters),
        f"# {base.split('/')[-1]}, trained with vr1",
        f"{'Adapters for' if adapters else 'A fine-tuned'} `{base}`, trained by `{run['module']}` of vr1"
        f" (Vision-R1, arXiv 2503.18013) for {step} optimizer steps.",
        *([_FOUR_BITS] if policy["quantize"] and adapters else []),
        "## Prompt\n\n" + _prompt(run["prompt"]),
        "## Use\n\nRun this in the folder of the model:\n\n" + _code("python", _example(run["prompt"], package)),
        "## Figures\n\n" + _figures(run["figures"]),
        "## Data\n\n" + (_yaml(config["data"]) if config and config.get("data") else _NOT_RECORDED),
        "## Command\n\n" + _code("bash", commands or _NOT_RECORDED),
        "## Policy\n\n" + _yaml(dict(policy)),
        "## Configuration\n\n" + (_yaml(config) if config else _NOT_RECORDED),
        "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in versions(_PACKAGES).items()) + ".",
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


_FOUR_BITS = (
    "The adapters were trained on the base in 4 bits (NF4, double quantisation; vision tower and `lm_head` are not"
    " quantised). They also work on the base in full precision, with slightly different answers."
)
_FRAMES = {
    "input": "pixels of the image as the processor resized it",
    "image": "pixels of the image as stored",
}


def _prompt(prompt: dict[str, Any]) -> str:
    """The questions that the model was trained on, and what the numbers of its answers mean."""
    frame = _FRAMES.get(prompt["frame"]) or f"0 to {prompt['frame']:g} along both axes of the image"
    rows = [
        ["one category", f"`{prompt['one']}`"],
        ["several categories", f"`{prompt['several']}`"],
        ["a referring expression", f"`{prompt['referring']}`"],
    ]
    return f"{markdown_table(['question', 'text'], rows)}\n\nCoordinates in answers: {frame}."


def _example(prompt: dict[str, Any], package: str) -> str:
    """A script that loads the model and answers one question."""
    imported = f"import {package}  # registers the model's class\n" if package else ""
    return f"""
{imported}from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
image = Image.new("RGB", (640, 480), "white")  # or Image.open("photo.jpg").convert("RGB")
question = {prompt["one"].replace("CATEGORY", "cat")!r}
if processor.chat_template is None:
    text = processor.image_token + question
else:
    content = [{{"type": "image"}}, {{"type": "text", "text": question}}]
    text = processor.apply_chat_template([{{"role": "user", "content": content}}], add_generation_prompt=True)
inputs = processor(text=[text], images=[image], return_tensors="pt").to(model.device, model.dtype)
tokens = model.generate(**inputs, max_new_tokens=512, do_sample=False)
answer = tokens[0, inputs["input_ids"].shape[1]:]
print(processor.tokenizer.decode(answer, skip_special_tokens={not prompt["special_tokens"]}))
"""


def _front_matter(base: str | None, adapters: bool) -> str:
    """The header that the hub reads; a base that was a local folder is not named."""
    head = {
        **({"base_model": base} if base else {}),
        "library_name": "peft" if adapters else "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["object-detection", "grpo", "vr1"],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _figures(figures: dict[str, float]) -> str:
    """The figures of validation first; times and counters of single steps say nothing about the model."""
    shown = {name: value for name, value in figures.items() if "/" in name and not name.startswith(("perf/", "rule/"))}
    if not shown:
        return "None were logged."
    names = sorted(shown, key=lambda name: (not name.startswith("val/"), name))
    return markdown_table(["metric", "value"], [[name, figure_text(shown[name])] for name in names])


def _code(language: str, text: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def _yaml(value: Any) -> str:
    return _code("yaml", yaml.safe_dump(value, sort_keys=False))


def _shortened(value: Any) -> Any:
    """Plain values with every absolute path shortened to its last part."""
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "~/")):
        return Path(value).name
    return _ABSOLUTE_PATH.sub(lambda match: Path(match[0]).name, value)


def _shortened_command(command: str) -> str:
    """A shell command with every absolute path shortened to its last part."""
    arguments = []
    for argument in shlex.split(command):
        name, equals, value = argument.partition("=")
        is_option = equals and name.startswith("--")
        arguments.append(f"{name}={_shortened(value)}" if is_option else _shortened(argument))
    return shlex.join(arguments)
