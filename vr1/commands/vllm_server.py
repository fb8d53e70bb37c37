"""The command ``python -m vr1 vllm_server``: start a server of vLLM for the rollouts of a training."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from vr1.errors import UserError, report_user_error

_ENVIRONMENT = {
    # The server takes weights and empties its caches.
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def main(argv: Sequence[str]) -> int:
    """Run the command: the server takes the place of this process.

    Args:
        argv: arguments after ``python -m vr1 vllm_server``: those of ``vr1 fit``.

    Returns:
        The exit status where no server is started: 0 after ``--print``, 2 for a user's error, which is printed in one
        line.
    """
    own, arguments = _parser().parse_known_args(argv)
    try:
        path, options = server_arguments(arguments)
    except (ValueError, OSError) as error:
        return report_user_error("vr1 vllm_server", error)
    variables = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    if not own.print:
        # What `vllm serve` runs, which itself does not start where vLLM was installed as vllm-cpu.
        program = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", path]
        os.execve(sys.executable, [*program, *options], os.environ | variables)
    print(shlex.join([*(f"{name}={value}" for name, value in variables.items()), "vllm", "serve", path, *options]))
    return 0


def server_arguments(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """What a server of vLLM needs to serve the model of a training.

    Args:
        arguments: those of ``vr1 fit``.

    Returns:
        The path or name of the model, and the arguments of ``vllm serve`` after it.

    Raises:
        UserError: the training has another sampler or no address, or vLLM is not there or cannot serve this model.
    """
    # Imported here, so that --help does not wait for torch.
    import torch

    from vr1.commands.plan.needs import needs_of
    from vr1.commands.trainer import settings_of
    from vr1.prompts import PromptEncoder
    from vr1.rollout import VLLMSampler, Workload
    from vr1.rollout.vllm.checks import TOKEN, check_model, check_version, engine_device, is_loopback

    needs, sampler = needs_of(arguments), None
    if isinstance(needs.sampler, VLLMSampler):
        sampler = needs.sampler
    if sampler is None or sampler.url is None:
        raise UserError(
            "this training does not use a server; add `--config configs/vllm.yaml --model.sampler.url"
            " http://127.0.0.1:8000` here and to `vr1 fit`"
        )
    check_version(sampler.untested_version)
    evaluation = settings_of(["fit", *arguments]).model.init_args.evaluation
    source = needs.policy
    workload = Workload(
        source=source,
        encoder=PromptEncoder(source.processor(), source.family(), needs.max_prompt_tokens),
        dtype=needs.compute_dtype,
        max_prompt_tokens=needs.max_prompt_tokens,
        max_new_tokens=max(needs.completion_tokens, evaluation.max_new_tokens),
        device=torch.device(engine_device() or "cpu"),
    )
    check_model(workload, sampler.engine_dtype(needs.compute_dtype), sampler.cache_gib)
    address = urlsplit(sampler.url)
    host = str(address.hostname)
    if not is_loopback(host) and TOKEN not in os.environ:
        raise UserError(f"model.sampler.url={sampler.url}: set {TOKEN} to a secret, here and for the training")
    options = {
        "host": host,
        "port": address.port or 8000,
        "worker_extension_cls": "vr1.rollout.vllm.worker.WorkerExtension",
        **sampler.engine_options(workload),
    }
    return source.path, [part for name, value in options.items() for part in _argument(name, value)]


def _argument(name: str, value: Any) -> list[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", json.dumps(value) if isinstance(value, dict | list) else str(value)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vr1 vllm_server",
        allow_abbrev=False,
        description="Start a server of vLLM on the devices of this shell (CUDA_VISIBLE_DEVICES), for the rollouts of a"
        " training on others. It has the training's model, length, precision and adapters, and gets its weights before"
        " every rollout. It listens at model.sampler.url, and takes requests with the token in VLLM_API_KEY if there is"
        " one.",
        epilog="All other arguments are those of `vr1 fit`: vr1 vllm_server --config FILE --config configs/vllm.yaml"
        " --model.sampler.url http://127.0.0.1:8000",
    )
    parser.add_argument("--print", action="store_true", help="print the command of vLLM, and do not start it")
    return parser
