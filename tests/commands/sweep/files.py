"""A sweep whose trials take no time: a script that logs its arguments."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
# Logs the product of its settings. In the working folder, `crash` makes trial 1 fail, `stop` the trial it names wait.
SCRIPT = """
import sys, time
from pathlib import Path

arguments = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
folder = Path(arguments["trainer.logger.save_dir"], arguments["trainer.logger.version"])
with open("calls.txt", "a") as file:
    file.write(folder.name + "\\n")
if folder.name == "trial_001" and Path("crash").exists():
    sys.exit("something went wrong")
if Path("stop").exists() and Path("stop").read_text() == folder.name:
    time.sleep(600)
value = float(arguments["a.lr"]) * float(arguments.get("a.size", 1))
(folder / "metrics.csv").write_text(f"step,val/map\\n0,9\\n5,{value}\\n")
"""
PARAMETERS = {"a.lr": {"values": [0.1, 0.2]}, "a.size": {"values": [1, 2, 3]}}


def write_sweep(folder, **changes):
    """A sweep file over the script; a key that is None is left out."""
    (folder / "script.py").write_text(SCRIPT)
    settings = {
        "name": "mine",
        "method": "grid",
        "metric": {"name": "val/map", "goal": "maximize"},
        "command": ["${env}", "${interpreter}", "script.py", "${args}"],
        "parameters": PARAMETERS,
    } | changes
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
    return path


def started(path, *arguments):
    """The command in a process of its own."""
    # A shell starts its jobs in the background deaf to interrupts, and the tests may be such a job.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from vr1.commands.sweep.command import main; sys.exit(main(sys.argv[1:]))"
    )
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    arguments = [sys.executable, "-c", code, str(path), *arguments]
    return subprocess.Popen(arguments, cwd=path.parent, env=os.environ | paths, stdout=subprocess.DEVNULL)
