"""A worker that speaks the real frames and serves nothing: it refuses `bad` and dies of `crash`."""

from __future__ import annotations

import os
import socket
import sys

from agent.worker import control


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    descriptor = os.memfd_create("stats")
    os.write(descriptor, b"numbers")
    socket.send_fds(sock, [control.encode(control.STATS)], [descriptor])
    reader, generations = control.FrameReader(), []
    while data := sock.recv(65536):
        for kind, payload in reader.feed(data):
            if kind == control.CONFIG:
                config = control.Config.decode(payload)
                names = {
                    name for work in config.workloads for held in work.resources.values() for name in held
                }
                if "crash" in names and not generations:
                    os._exit(7)
                if "bad" in names:
                    sock.sendall(
                        control.encode_json(control.REFUSED, generation=config.generation, reason="bad")
                    )
                else:
                    generations.append(config.generation)
                    ports = [int(name.removeprefix("port ")) for name in names if name.startswith("port ")]
                    sock.sendall(
                        control.encode_json(control.APPLIED, generation=config.generation, listening=ports)
                    )
            elif kind == control.QUERY:
                question = control.decode_json(payload)
                answer = {"pid": os.getpid(), "uid": os.getuid(), "generations": generations}
                sock.sendall(control.encode_json(control.ANSWER, id=question["id"], answer=answer))
            elif kind == control.DRAIN:
                return


main()
