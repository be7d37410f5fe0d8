"""Run inside a namespace: connections that stand while rules come and go.

echo PORT…            servers that return what they get
talk ADDRESS PORT     one connection: each line of standard input goes out, and its echo (or the error) is printed
relay CONFIG          the rules of a configuration, and a worker in small that outlives the process holding them: it takes
                      redirected connections on 15001 and 15006 and joins them to where they were going
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.hosts.capture.traffic import original

MARK = 0x539
SOURCE = "127.0.0.6"


def serve(port: int, handle: object) -> None:
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=handle, args=(connection,), daemon=True).start()  # type: ignore[arg-type]

    threading.Thread(target=accept, daemon=True).start()


def echo(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data)


def talk(address: str, port: int) -> None:
    with socket.create_connection((address, port), timeout=3) as connection:
        print("ready", flush=True)
        for line in sys.stdin:
            try:
                connection.sendall(line.encode())
                print(connection.recv(1000).decode().strip() or "ended", flush=True)
            except OSError as error:
                print(f"{type(error).__name__}: {error}", flush=True)


def relay(connection: socket.socket) -> None:
    """Join it to its original destination, as the proxy does: marked on its way out, from 127.0.0.6 to the application."""
    address, port = original(connection).split()
    inbound = connection.getsockname()[1] == 15006
    onward = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    onward.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    if inbound:
        onward.bind((SOURCE, 0))
    onward.connect((address, int(port)))

    def copy(source: socket.socket, target: socket.socket) -> None:
        while data := source.recv(65536):
            target.sendall(data)

    threading.Thread(target=copy, args=(onward, connection), daemon=True).start()
    copy(connection, onward)


def hold_and_relay(path: str) -> None:
    from agent.host import config
    from agent.host.capture.keeper import Keeper
    from agent.host.capture.table import Capture, rules_for

    keeper = Keeper()
    worker = subprocess.Popen(
        [sys.executable, __file__, "worker"], pass_fds=keeper.descriptors, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    capture = Capture(rules_for(config.load(Path(path)), {}, ()))
    capture.up()
    print("ready", flush=True)
    print(worker.pid, flush=True)
    signal.pause()


def main() -> None:
    command, *arguments = sys.argv[1:]
    if command == "talk":
        talk(arguments[0], int(arguments[1]))
    elif command == "relay":
        hold_and_relay(arguments[0])
    else:
        handle = relay if command == "worker" else echo
        for port in (15001, 15006) if command == "worker" else map(int, arguments):
            serve(port, handle)
        print("ready", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
