"""The command in a process of its own, and what it refuses."""

import re
import signal
import socket
import sys
import urllib.request

import pytest

from tests.processes import Command
from vr1.commands.show.command import main


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    with Command(["show", "--port", "0", "--device", "cpu"], tmp_path, tmp_path) as command:
        line = re.compile(r"^page:.*(http://127\.0\.0\.1:\d+).*\n", re.MULTILINE)
        assert command.wait_until(lambda: line.search(command.out)), command.errors
        address = line.search(command.out)[1]
        with urllib.request.urlopen(address) as answer:
            assert b"the embedded model" in answer.read()
        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 0, command.errors


def test_a_port_in_use_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port), "--device", "cpu"]) == 2
    assert f"--port {port} cannot be listened on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "no/such/folder/anywhere"], "no config.json there"),
        (["--model", "a", "b", "c"], "one, or two side by side"),
        (["--device", "cuda"], "finds no GPU"),
        (["--family", "Qwen9"], "neither a file nor a class"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_missing_package_is_named_with_its_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr("vr1.commands.show.command.find_spec", lambda name: None if name == "uvicorn" else name)
    assert main([]) == 2
    assert "the page needs uvicorn; install it by `pip install -e '.[show]'" in capsys.readouterr().err
