"""Pages of the reference that are made from the code at every build, so that they cannot get stale.

A hook of MkDocs (`hooks` in ``mkdocs.yml``). Each function returns a page as Markdown and needs nothing of MkDocs:

- ``reference/configs.md``: every file in ``configs/``, with its opening comment and its settings;
- ``reference/commands.md``: every command, with its help;
- ``tutorials/*.md``: every notebook of `tutorials/`, its text and its code;
- ``results/stored.md``: the stored results of benchmarks, `benchmarks/results/*.json`;
- ``reference/families.md``: every model family, with a question and an answer;
- ``reference/api/*.md``: every public class and function, by package; mkdocstrings fills in the docstrings.
"""

import contextlib
import importlib
import io
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIGS, PACKAGE = ROOT / "configs", ROOT / "vr1"
# Packages and modules without a page of their own: what is behind the command line, and the embedded model.
WITHOUT_PAGE = {"cli", "commands", "embedded", "runs", "distributed", "timing", "seeding"}
# The first paragraph of a page is the docstring of its package; these come first, in reading order.
TUTORIALS = ("your_photographs", "your_reward", "reading_a_run", "qlora_on_one_gpu")
READING_ORDER = ("types", "data", "families", "prompts", "policy", "rollout", "detections", "matching", "rewards")
READING_ORDER += ("advantage", "losses", "modules", "optimizers", "checkpoints", "strategies", "metrics", "drawing")


def configs_page() -> str:
    """Every configuration: its opening comment, commands as code, and its settings."""
    parts = [
        "# Configurations",
        "Later `--config` files override earlier ones, and all of them `configs/base.yaml`, which every run reads"
        " first. Each file begins with its command; this page is made from the files.",
    ]
    for path in sorted(CONFIGS.rglob("*.yaml"), key=lambda path: (path.parent != CONFIGS, path)):
        opening, settings = split_config(path.read_text(encoding="utf-8"))
        parts += [f"## {path.relative_to(CONFIGS).as_posix()}", opening]
        parts.append(details(f"configs/{path.relative_to(CONFIGS).as_posix()}", "yaml", settings))
    return "\n\n".join(parts) + "\n"


def split_config(text: str) -> tuple[str, str]:
    r"""The opening comment of a configuration as Markdown, and the settings after it.

    Example:
        >>> split_config("# What it is.\n#\n#   python -m vr1 fit\n#\ntrainer:\n")
        ('What it is.\n\n```bash\npython -m vr1 fit\n```', 'trainer:\n')
    """
    lines = text.splitlines()
    comment = []
    while lines and lines[0].startswith("#"):
        comment.append(lines.pop(0)[1:])
    blocks: list[tuple[bool, list[str]]] = []
    for line in comment:
        is_code = line.startswith("   ") or (line.startswith("  --") or line.startswith("  python"))
        if not line.strip():
            blocks.append((False, []))
        elif blocks and blocks[-1][0] == is_code and blocks[-1][1]:
            blocks[-1][1].append(line)
        else:
            blocks.append((is_code, [line]))
    texts = [
        f"```bash\n{unindent(block)}\n```" if is_code else escape(" ".join(line.strip() for line in block))
        for is_code, block in blocks
        if block
    ]
    return "\n\n".join(texts), "\n".join(lines) + "\n"


def unindent(lines: list[str]) -> str:
    """The lines without the indentation that all of them have."""
    width = min(len(line) - len(line.lstrip()) for line in lines)
    return "\n".join(line[width:] for line in lines)


def escape(text: str) -> str:
    """Text of a comment as Markdown: what looks like code becomes code, and nothing becomes a tag or emphasis."""
    option, path = r"--\w[\w.-]*\w(?:=\w+)?", r"[\w.*-]+/(?:[\w./*-]*[\w/])?"
    name = r"\$?[a-zA-Z]\w*(?:\.[a-zA-Z]\w*|_\w+)+"
    pattern = rf"(?<![\w`./$-])({option}|{path}|{name})(?![\w`])"
    parts = text.split("`")
    parts[::2] = [re.sub(pattern, r"`\1`", part) for part in parts[::2]]
    return "`".join(parts).replace("<", "&lt;")


def details(title: str, language: str, text: str) -> str:
    """A block that opens on a click."""
    body = "\n".join(f"    {line}".rstrip() for line in f"```{language}\n{text.rstrip()}\n```".splitlines())
    return f'??? note "{title}"\n\n{body}'


def tutorial_pages() -> dict[str, str]:
    """A page that lists the notebooks, and a page for each of them, by its path in the documentation."""
    paths = sorted((ROOT / "tutorials").glob("*.py"), key=lambda path: TUTORIALS.index(path.stem))
    pages = {f"tutorials/{path.stem}.md": notebook_page(path) for path in paths}
    listed = [f"- [{page.splitlines()[0].lstrip('# ')}]({Path(name).name})" for name, page in pages.items()]
    opening = [
        "# Tutorials",
        "Notebooks as plain Python, which editors open cell by cell and `python` runs as they are, from the folder of"
        " the clone. As files of Jupyter:",
        "```bash\npip install jupytext\njupytext --to ipynb tutorials/*.py\n```",
        "\n".join(listed),
    ]
    return {"tutorials/index.md": "\n\n".join(opening) + "\n", **pages}


def notebook_page(path: Path) -> str:
    """The cells of a notebook as Markdown: its text, and its code in blocks."""
    parts = []
    for cell in re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        kind, _, body = cell.partition("\n")
        if "[markdown]" in kind:
            parts.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()))
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    parts.append(f"The notebook: `tutorials/{path.name}`.")
    return "\n\n".join(parts) + "\n"


def stored_page() -> str:
    """The stored results of benchmarks: the last validation of each run, with the machine and the command."""
    parts = [
        "# Stored results",
        "The figures that other pages quote, run by run: the last validation of each seed. The files have every"
        " validation. A benchmark that is run again can be compared with them; machines differ by [some"
        " hundredths](demo.md#how-far-machines-differ).",
    ]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        names = sorted({name for seeds in stored["runs"].values() for steps in seeds.values() for name in steps["0"]})
        rows = [f"| run | seed | step | {' | '.join(f'`{name}`' for name in names)} |", "|---" * (3 + len(names)) + "|"]
        for method, seeds in stored["runs"].items():
            for seed, steps in seeds.items():
                last = max(steps, key=int)
                cells = " | ".join(f"{steps[last][name]:.3f}" for name in names)
                rows.append(f"| {method} | {seed} | {last} | {cells} |")
        versions = ", ".join(f"{name} {version}" for name, version in stored["versions"].items())
        machine = f"{stored['hardware']}; {versions}; {stored['date']}. The file: `benchmarks/results/{path.name}`."
        parts += [f"## {path.stem}", stored["what"], "\n".join(rows), f"```bash\n{stored['command']}\n```", machine]
    return "\n\n".join(parts) + "\n"


def commands_page() -> str:
    """Every command of `vr1`, with its help as it prints it."""
    from vr1.cli import COMMANDS, TRAINER_COMMANDS

    parts = [
        "# Commands",
        "Each is run as `python -m vr1 COMMAND`, or `vr1 COMMAND`; this page is made from their `--help`.",
        f"```\n{printed_by('--help')}\n```",
    ]
    for name, does in TRAINER_COMMANDS.items():
        parts += [f"## {name}", f"{does[0].upper()}{does[1:]}. Settings: [those that matter most](settings.md)."]
        parts.append(details(f"vr1 {name} --help", "text", printed_by(name, "--help")))
    for name in COMMANDS:
        parts += [f"## {name}", f"```\n{printed_by(name, '--help')}\n```"]
    return "\n\n".join(parts) + "\n"


def printed_by(*arguments: str) -> str:
    """What a command prints, in a terminal of 100 columns."""
    from vr1.cli import main

    printed, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main(arguments)
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue()).strip()


def families_page() -> str:
    """Every model family: which models select it, its frame, a question and an answer."""
    import numpy as np

    from vr1 import families

    every = [getattr(families, name) for name in families.__all__]
    own = [one for one in every if isinstance(one, type) and issubclass(one, families.Family)]
    made = [one() for one in own if one not in (families.Family, families.CustomFamily)]
    frames = {"input": "pixels of the model's input", "image": "pixels of the image"}
    rows = ["| family | model types | coordinates |", "|---|---|---|"]
    texts = []
    for family in sorted(made, key=lambda family: (not family.model_types, type(family).__name__)):
        name = type(family).__name__
        size = family.frame_size((640, 480), (644, 476))
        answer = family.write(np.array([[0.1, 0.2, 0.5, 0.75]]) * np.tile(size, 2), ["cat"])
        kinds = ", ".join(f"`{kind}`" for kind in family.model_types) or "none: texts only"
        frame = frames[family.frame] if isinstance(family.frame, str) else f"0 to {family.frame:g}"
        rows.append(f"| [`{name}`](#{name.lower()}) | {kinds} | {frame} |")
        texts.append(
            f"## {name}\n\nThe question about cats and dogs, and an answer:\n\n"
            f"````text\n{family.instruction(['cat', 'dog'])}\n````\n\n````text\n{answer}\n````"
        )
    opening = [
        "# Model families",
        "The wording of the question, the form of the answer and the frame of its coordinates follow from the model's"
        " config; `--model.family vr1.families.Qwen3VL` overrides the choice. Any other model is described by"
        " [`CustomFamily`](../how_to/add_family.md#without-code). Except for Qwen2.5-VL, the families have only been"
        " run as tiny models in the tests.",
    ]
    return "\n\n".join([*opening, "\n".join(rows), *texts]) + "\n"


def api_pages() -> dict[str, str]:
    """A page for each package and module of vr1, and one for the callbacks, by its path in the documentation."""
    names = {path.stem if path.suffix else path.name for path in PACKAGE.iterdir() if is_public(path)} - WITHOUT_PAGE
    order = [*[name for name in READING_ORDER if name in names], *sorted(names - set(READING_ORDER))]
    pages = {f"reference/api/{name}.md": api_page(f"vr1.{name}") for name in order}
    return {**pages, "reference/api/callbacks.md": api_page("callbacks")}


def is_public(path: Path) -> bool:
    """Whether it is a package, or a module without an underscore."""
    return not path.name.startswith("_") and (path.suffix == ".py" or (path / "__init__.py").is_file())


def api_page(name: str) -> str:
    """The public classes and functions of a module, or of every module of a package."""
    module = importlib.import_module(name)
    parts = [f"# {name}", (module.__doc__ or "").strip()]
    folder = Path(module.__file__ or "").parent
    own = sorted(path for path in folder.rglob("*.py") if is_public(path)) if hasattr(module, "__path__") else []
    modules = [name, *(".".join((name, *path.relative_to(folder).with_suffix("").parts)) for path in own)]
    if exported := getattr(module, "__all__", None):
        parts.append(f"`from {name} import` " + ", ".join(linked(module, one) for one in exported) + ".")
    for one in modules:
        public = [key for key, value in vars(importlib.import_module(one)).items() if is_documented(one, key, value)]
        if public:
            parts.append(f"## {one}")
            parts += [f"::: {one}.{key}" for key in public]
    return "\n\n".join(part for part in parts if part) + "\n"


def is_documented(module: str, name: str, value: Any) -> bool:
    """Whether it is a public class or function of this module, and not one that it imports."""
    return not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == module


def linked(module: Any, name: str) -> str:
    """A name that a package exports, with a link to its docstring where it is a class or a function."""
    value = getattr(module, name)
    home = getattr(value, "__module__", "")
    documented = home.startswith(module.__name__) and is_documented(home, name, value)
    return f"[`{name}`][{home}.{name}]" if documented else f"`{name}`"


def pages() -> dict[str, str]:
    """All generated pages as Markdown, by path in the documentation."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    made = {"configs": configs_page(), "commands": commands_page(), "families": families_page()}
    return {
        **{f"reference/{name}.md": text for name, text in made.items()},
        "results/stored.md": stored_page(),
        **tutorial_pages(),
        **api_pages(),
    }


def on_config(config: Any) -> Any:
    """Add the pages of classes to the navigation: called by MkDocs."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    classes = {"Classes": [{Path(path).stem: path} for path in api_pages()]}
    next(section["Reference"] for section in config.nav if "Reference" in section).append(classes)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages: called by MkDocs."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files
