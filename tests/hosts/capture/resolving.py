"""Run inside a namespace: name servers, resolvers and clients around the agent's DNS.

server ADDRESS ANSWER [PORT]          every A below `.example` and `.consul` is ANSWER, the rest does not exist
agent CONFIG UPSTREAM [SEARCH]        the agent's DNS with two mesh names, behind its capture, until a line comes
keep ADDRESS                          one UDP socket for life: each line of standard input is a name, its A is printed
"""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import dns.message
import dns.rcode
import dns.rrset

MESH = {"reviews.default.svc.cluster.local": ["240.240.0.1", "2001:2::1"], "api.example": ["240.240.0.2"]}


def server(address: str, result: str, port: int) -> None:
    def reply(wire: bytes) -> bytes:
        query = dns.message.from_wire(wire)
        response = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        if not question.name.to_text().endswith((".example.", ".consul.")):
            response.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == 1:
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", result))
        return response.to_wire()

    def streams() -> None:
        while True:
            connection, _ = tcp.accept()
            with connection:
                wire = connection.recv(65535)
                answer = reply(wire[2:])
                connection.sendall(len(answer).to_bytes(2) + answer)

    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, port))
    tcp = socket.create_server((address, port))
    threading.Thread(target=streams, daemon=True).start()
    print("ready", flush=True)
    while True:
        wire, source = udp.recvfrom(1500)
        udp.sendto(reply(wire), source)


def agent(path: str, upstream: str, search: tuple[str, ...]) -> None:
    import trio

    from agent.host import config
    from agent.host.capture.table import Capture, rules_for
    from agent.host.dns.forward import Forwarder
    from agent.host.dns.names import Addresses, Names
    from agent.host.dns.server import DnsServer

    parsed = config.load(Path(path))
    table = {name: Addresses.of(addresses) for name, addresses in MESH.items()}
    view = Names(table, {}, "default", "cluster.local")
    users: dict[str | int, int] = {
        work.user: int(work.user) for work in parsed.workloads if work.user is not None
    }

    async def run() -> None:
        forwarder = Forwarder(lambda: (upstream,))
        capture = Capture(rules_for(parsed, users, ()))
        async with trio.open_nursery() as nursery:
            await nursery.start(DnsServer(view, forwarder, lambda: search).serve, 15053)
            await nursery.start(DnsServer(Names.shared([view]), forwarder, lambda: search).serve, 15054)
            capture.up()
            print("ready", flush=True)
            await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
            capture.down()
            nursery.cancel_scope.cancel()

    trio.run(run)


def keep(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        client.connect((address, 53))
        print("ready", flush=True)
        for line in sys.stdin:
            try:
                client.send(dns.message.make_query(line.strip(), "A").to_wire())
                answer = dns.message.from_wire(client.recv(1500)).answer
                print(" ".join(item.to_text() for each in answer for item in each) or "nothing", flush=True)
            except OSError as error:
                print(type(error).__name__, flush=True)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "server":
        server(arguments[0], arguments[1], int((arguments[2:] or ["53"])[0]))
    elif command == "agent":
        agent(arguments[0], arguments[1], tuple(arguments[2:]))
    else:
        keep(arguments[0])
