"""``python -m vr1 show``: a local page on which one or two models are tried on images."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from vr1.errors import UserError, report_user_error

DTYPES = ("float32", "bfloat16", "float16")


def main(argv: Sequence[str]) -> int:
    """Load the models and serve the page until Ctrl+C.

    Args:
        argv: the arguments after ``python -m vr1 show``.

    Returns:
        The exit status: 0, or 2 after a one-line message for an error that the user can fix.
    """
    parser = _parser()
    settings, class_arguments = parser.parse_known_args(argv)
    # Imported here, so that --help does not wait for torch.
    from vr1.commands.class_arguments import rewards_and_family
    from vr1.detector import Detector

    try:
        for package in ("starlette", "uvicorn"):
            if find_spec(package) is None:
                raise UserError(
                    f"the page needs {package}; install it by `pip install -e '.[show]' -c constraints.txt`"
                )
        from vr1.commands.show.page import build_app
        from vr1.commands.show.server import LOOPBACK, serve

        if len(settings.model) > 2:
            raise UserError(f"--model names {len(settings.model)} models; the page shows one, or two side by side")
        reward, family = rewards_and_family(class_arguments, parser.prog)
        detectors = []
        for path in settings.model:
            print(f"loading {path or 'the embedded model'}", flush=True)
            detectors.append(
                Detector.load(
                    *filter(None, [path]),
                    family=family,
                    reward=reward,
                    device=settings.device,
                    dtype=settings.dtype,
                    max_pixels=settings.max_pixels,
                    max_new_tokens=settings.max_new_tokens,
                )
            )
        hosts = LOOPBACK if settings.host in LOOPBACK else ("*",)
        serve(build_app(detectors, hosts), settings.host, settings.port, settings.open)
    except Exception as error:
        return report_user_error(parser.prog, error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vr1 show",
        allow_abbrev=False,
        description="Serve a page on this machine: drop an image, name what to find, see boxes, scores and the answer"
        " as it was written; draw true boxes, and see the rewards of the answer.",
        epilog="--family and --rewards take a class or a file, as for `vr1 score`.",
    )
    parser.add_argument(
        "--model",
        nargs="+",
        default=[""],
        metavar="MODEL",
        help="a run, a checkpoint, a folder of a model or of adapters, or a hub name; two are shown side by side;"
        " default: the model that is part of vr1",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; only this machine by default")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    parser.add_argument("--dtype", choices=DTYPES, help="precision of the weights; default: that of the run")
    parser.add_argument("--max_pixels", type=int, help="largest model input in pixels; default: that of the run")
    parser.add_argument("--max_new_tokens", type=int, default=512, help="longest answer in tokens")
    return parser
