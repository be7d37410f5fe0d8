"""The lab's own name server, which knows nothing of the mesh: answers `outside.example` and refuses the rest.

Usage: resolver.py ADDRESS
"""

from __future__ import annotations

import socket
import struct
import sys
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset


def answer(wire: bytes) -> bytes:
    """The reply to one question."""
    query = dns.message.from_wire(wire)
    reply = dns.message.make_response(query, recursion_available=True)
    question = query.question[0]
    if question.name.to_text().lower() == "outside.example.":
        if question.rdtype == dns.rdatatype.A:
            reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", "A", "192.0.2.7"))
    else:
        reply.set_rcode(dns.rcode.NXDOMAIN)
    return reply.to_wire()


def serve_tcp(server: socket.socket) -> None:
    """One question a connection is enough for the lab."""
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as stream:
            (size,) = struct.unpack("!H", stream.read(2))
            reply = answer(stream.read(size))
            connection.sendall(struct.pack("!H", len(reply)) + reply)


if __name__ == "__main__":
    tcp = socket.create_server((sys.argv[1], 53))
    threading.Thread(target=serve_tcp, args=(tcp,), daemon=True).start()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((sys.argv[1], 53))
    while True:
        data, peer = udp.recvfrom(4096)
        udp.sendto(answer(data), peer)
