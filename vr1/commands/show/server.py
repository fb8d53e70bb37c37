"""Serves an application on one address of this machine until it is interrupted."""

import socket
import webbrowser
from contextlib import suppress

import uvicorn
from starlette.applications import Starlette

from vr1.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost")


def serve(app: Starlette, host: str, port: int, open_browser: bool) -> None:
    """Listen, print the address, and answer requests until Ctrl+C.

    Args:
        app: the application.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        open_browser: open the page in the browser.

    Raises:
        UserError: the address or port cannot be used.
    """
    try:
        listener = socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {host} --port {port} cannot be listened on ({error}); give another port, or 0 for a free one"
        ) from error
    address = f"http://{host}:{listener.getsockname()[1]}"
    if host not in LOOPBACK:
        print(f"everybody who reaches {host} can use these models: there is no password")
    print(f"page: {address}  (Ctrl+C ends)", flush=True)
    if open_browser:
        webbrowser.open(address)
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    # After it has closed its connections, the server interrupts the program again.
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
