"""ssh, exec, forward: into running work, over the server's own address."""

import contextlib
import os
import signal
import socket
import sys
import termios
import threading
import tty
from typing import Annotated, Any

import msgspec
import typer

from headframe.cli.jobs import Name
from headframe.cli.session import REFUSED, err, fail, login
from headframe.client.shells import ConnectionClosed, Refused, open_exec, open_forward

CHUNK = 64 * 1024


def add(app: typer.Typer) -> None:
    """Register this module's verbs."""
    app.command()(ssh)
    app.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})(run_beside)
    app.command()(forward)


def ssh(name: Name) -> None:
    """A shell in running work: a workspace, or a job to look into. Leaving it ends the shell, not the work."""
    raise SystemExit(_attached(name, []))


def run_beside(
    name: Name, command: Annotated[list[str], typer.Argument(help="The command and its words.")], *,
    terminal: Annotated[bool, typer.Option("--tty", "-t", help="With a terminal.")] = False,
) -> None:  # fmt: skip
    """Run a command beside running work: its output, its exit code."""
    words = command[1:] if command[:1] == ["--"] else command
    raise SystemExit(_attached(name, words) if terminal else _piped(name, words))


def forward(
    name: Name, ports: Annotated[list[str], typer.Argument(help="8888, or 9000:8888 for another port here.")], *,
    host: Annotated[str, typer.Option(help="Where to listen here.")] = "127.0.0.1",
) -> None:  # fmt: skip
    """Reach ports at which running work listens, such as Jupyter's, until Ctrl-C."""
    pairs = [_pair(each) for each in ports]
    doors: list[socket.socket] = []
    here = 0
    try:
        for here, there in pairs:
            door = socket.create_server((host, here))
            doors.append(door)
            err.print(f"{host}:{door.getsockname()[1]} → {name} port {there} (Ctrl-C ends it)", markup=False)
            threading.Thread(target=_accepting, args=(door, name, there), daemon=True).start()
        signal.pause()
    except OSError as error:
        fail(f"{host}:{here} can't be listened at: {error.strerror}", "name another port: 9000:8888", 2)
    except KeyboardInterrupt:
        err.print()
    finally:
        for door in doors:
            door.close()


def _pair(text: str) -> tuple[int, int]:
    here, colon, there = text.partition(":")
    if not here.isdigit() or (colon and not there.isdigit()) or not 0 < int(there or here) < 65_536 or not 0 <= int(here) < 65_536:
        fail(f"{text!r} is no port", "write 8888, or 9000:8888", 2)
    return int(here), int(there or here)


def _accepting(door: socket.socket, name: str, port: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = door.accept()
            threading.Thread(target=_bridged, args=(client, name, port), daemon=True).start()


def _bridged(client: socket.socket, name: str, port: int) -> None:
    try:
        with open_forward(login(), name, port) as line, client:

            def inward() -> None:
                with contextlib.suppress(Exception):
                    for data in line:
                        if isinstance(data, str):
                            said = msgspec.json.decode(data, type=dict[str, Any])
                            err.print(f"{name} port {port}: {said.get('error', data)}", style="yellow", markup=False)
                        else:
                            client.sendall(data)
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

            threading.Thread(target=inward, daemon=True).start()
            while data := client.recv(CHUNK):
                line.send(data)
    except Refused as error:
        err.print(f"{name} port {port}: {error}", style="yellow", markup=False)
    except (OSError, ConnectionClosed):
        pass  # one side left: so does the other


def _piped(name: str, command: list[str]) -> int:
    """Standard input, output and errors as they are here."""
    with _line(name, command, 0, 0) as line:

        def typed() -> None:
            with contextlib.suppress(Exception):
                while data := os.read(0, CHUNK):
                    line.send(data)
                line.send('{"shut":true}')

        threading.Thread(target=typed, daemon=True).start()
        try:
            return _said(line)
        except KeyboardInterrupt:
            with contextlib.suppress(ConnectionClosed):
                line.send('{"signal":2}')
            return _said(line)


def _attached(name: str, command: list[str]) -> int:
    """With this terminal: raw, so that every key goes there, and set back whatever happens."""
    if not sys.stdin.isatty():
        return _piped(name, command)
    size = os.get_terminal_size(0)
    kept = termios.tcgetattr(0)
    with _line(name, command, size.lines, size.columns) as line:

        def resized(*_: object) -> None:
            now = os.get_terminal_size(0)
            with contextlib.suppress(ConnectionClosed):
                line.send(msgspec.json.encode({"resize": [now.lines, now.columns]}).decode())

        def typed() -> None:
            with contextlib.suppress(Exception):
                while data := os.read(0, CHUNK):
                    line.send(data)

        signal.signal(signal.SIGWINCH, resized)
        try:
            tty.setraw(0, termios.TCSADRAIN)  # what was typed meanwhile is not lost
            threading.Thread(target=typed, daemon=True).start()
            return _said(line)
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, kept)


@contextlib.contextmanager
def _line(name: str, command: list[str], rows: int, columns: int) -> Any:
    try:
        with open_exec(login(), name, command, rows, columns, os.environ.get("TERM", "xterm-256color")) as line:
            yield line
    except Refused as error:
        fail(str(error), error.next_step, REFUSED)


def _said(line: Any) -> int:
    """What it says, to where it belongs; its exit code."""
    with contextlib.suppress(ConnectionClosed):
        for data in line:
            if isinstance(data, bytes):
                os.write(data[0], data[1:])
                continue
            told = msgspec.json.decode(data, type=dict[str, Any])
            if "code" in told:
                return int(told["code"])
            raise Refused(str(told.get("error", "refused")), str(told.get("next", "")))
    raise Refused("the server ended the connection", "is the work still running? `headframe ps`")
