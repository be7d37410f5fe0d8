"""Run inside a namespace: listeners that say where a connection was going, callers, and a holder of rules."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

SO_ORIGINAL_DST = 80


def original(connection: socket.socket) -> str:
    peer = connection.getpeername()[0]
    if peer.startswith("::ffff:"):
        raw = connection.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
        port, address = struct.unpack_from("!H4s", raw, 2)
        return f"{socket.inet_ntop(socket.AF_INET, address)} {port}"
    raw = connection.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
    port = struct.unpack_from("!H", raw, 2)[0]
    return f"{socket.inet_ntop(socket.AF_INET6, raw[8:24])} {port}"


def accept(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        try:
            text = original(connection)
        except OSError:
            text = "direct"
        with connection:
            connection.sendall(f"{listener.getsockname()[1]} {text}".encode())


def answer(server: socket.socket) -> None:
    while True:
        data, source = server.recvfrom(1500)
        server.sendto(b"dns:" + data, source)


def serve(ports: list[str]) -> None:
    for port in ports:
        kind, _, number = port.rpartition("/")
        if kind == "udp":
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                server = socket.socket(family, socket.SOCK_DGRAM)
                server.bind((address, int(number)))
                threading.Thread(target=answer, args=(server,), daemon=True).start()
        else:
            listener = socket.create_server(("::", int(number)), family=socket.AF_INET6, dualstack_ipv6=True)
            threading.Thread(target=accept, args=(listener,), daemon=True).start()
    print("ready", flush=True)
    signal.pause()


def hold(arguments: argparse.Namespace) -> None:
    from agent.host import config
    from agent.host.capture.table import Capture, rules_for

    parsed = config.load(Path(arguments.config))
    users: dict[str | int, int] = {
        user: int(user) for work in parsed.workloads for user in [work.user] if user is not None
    }
    capture = Capture(rules_for(parsed, users, tuple(arguments.agent_uid)))
    capture.up()
    assert capture.active
    if arguments.child:
        subprocess.Popen(["sleep", "20"], close_fds=False, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: (capture.down(), print("down", flush=True)))
    print("ready", flush=True)
    while True:
        signal.pause()


def resolve(address: str) -> None:
    """A resolver on port 53 of an address: every A is 192.0.2.7, over UDP truncated where the name says so."""
    import dns.flags
    import dns.message
    import dns.rrset

    def reply(wire: bytes, stream: bool) -> bytes:
        query = dns.message.from_wire(wire)
        response = dns.message.make_response(query)
        name = query.question[0].name
        if not stream and name.to_text().startswith("long."):
            response.flags |= dns.flags.TC
        else:
            response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.7"))
        return response.to_wire()

    def datagrams() -> None:
        while True:
            wire, source = udp.recvfrom(1500)
            udp.sendto(reply(wire, False), source)

    def streams() -> None:
        while True:
            connection, _ = tcp.accept()
            with connection:
                wire = connection.recv(65535)
                answer = reply(wire[2:], True)
                connection.sendall(len(answer).to_bytes(2) + answer)

    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, 53))
    tcp = socket.create_server((address, 53))
    for work in (datagrams, streams):
        threading.Thread(target=work, daemon=True).start()
    print("ready", flush=True)
    signal.pause()


def names(arguments: argparse.Namespace) -> None:
    """The agent's DNS with one mesh name, behind its capture."""
    import trio

    from agent.host import config
    from agent.host.capture.table import Capture, rules_for
    from agent.host.dns.forward import Forwarder
    from agent.host.dns.names import Addresses, Names
    from agent.host.dns.server import DnsServer

    async def run() -> None:
        table = {"reviews.default.svc.cluster.local": Addresses.of(["240.240.0.1", "2001:2::1"])}
        server = DnsServer(
            Names(table, {}, "default", "cluster.local"), Forwarder(lambda: (arguments.upstream,))
        )
        capture = Capture(rules_for(config.load(Path(arguments.config)), {}, ()))
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, 15053)
            capture.up()
            print("ready", flush=True)

    trio.run(run)


def call(arguments: argparse.Namespace) -> None:
    if arguments.uid:
        os.setgid(arguments.uid)
        os.setuid(arguments.uid)
    family = socket.AF_INET6 if ":" in arguments.address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        if arguments.mark:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, arguments.mark)
        if arguments.source:
            connection.bind((arguments.source, 0))
        try:
            connection.connect((arguments.address, arguments.port))
            print(connection.recv(200).decode())
        except ConnectionRefusedError:
            print("refused")


def ask(address: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        # Connected: an answer from another address than the one asked would not be seen.
        client.connect((address, 53))
        client.send(b"question")
        print(client.recv(200).decode())


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("serve").add_argument("ports", nargs="+")
    holder = commands.add_parser("hold")
    holder.add_argument("config")
    holder.add_argument("--child", action="store_true")
    holder.add_argument("--agent-uid", type=int, action="append", default=[])
    caller = commands.add_parser("call")
    caller.add_argument("address")
    caller.add_argument("port", type=int)
    caller.add_argument("--mark", type=int, default=0)
    caller.add_argument("--uid", type=int, default=0)
    caller.add_argument("--source", default="")
    commands.add_parser("ask").add_argument("address")
    commands.add_parser("resolve").add_argument("address")
    naming = commands.add_parser("names")
    naming.add_argument("config")
    naming.add_argument("upstream")
    arguments = parser.parse_args()
    if arguments.command == "serve":
        serve(arguments.ports)
    elif arguments.command == "hold":
        hold(arguments)
    elif arguments.command == "call":
        call(arguments)
    elif arguments.command == "resolve":
        resolve(arguments.address)
    elif arguments.command == "names":
        names(arguments)
    else:
        ask(arguments.address)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    main()
