"""A worker that speaks the real frames and serves nothing: it refuses `bad` and dies of `crash`; worker 0
cannot use what is `0`."""

from __future__ import annotations

import os
import socket
import sys

from agent.table.build import Refused
from agent.worker import control


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    descriptor = os.memfd_create("stats")
    os.write(descriptor, b"numbers")
    socket.send_fds(sock, [control.encode(control.STATS)], [descriptor])
    reader, generations, last, settings = control.FrameReader(), [], {}, {}
    while data := sock.recv(65536):
        for kind, payload in reader.feed(data):
            if kind == control.CONFIG:
                config = control.Config.decode(payload)
                settings = config.settings
                names = {
                    name for work in config.workloads for held in work.resources.values() for name in held
                }
                if "crash" in names:
                    os._exit(7)
                if "bad" in names:
                    sock.sendall(
                        control.encode_json(control.REFUSED, generation=config.generation, reason="bad")
                    )
                else:
                    generations.append(config.generation)
                    ports = [int(name.removeprefix("port ")) for name in names if name.startswith("port ")]
                    refused = {}
                    for work in config.workloads:
                        bodies = {
                            (url, name): body
                            for url, held in work.resources.items()
                            for name, body in held.items()
                        }
                        left = [
                            key
                            for key, body in bodies.items()
                            if body == b"0" and config.settings["worker"] == 0
                        ]
                        refused[work.key] = [Refused(*key, "", "of worker 0") for key in left]
                        last = {name: body.decode("latin-1") for (_, name), body in bodies.items()}
                    sock.sendall(
                        control.encode_json(
                            control.APPLIED,
                            generation=config.generation,
                            refused=control.refusals_to_json(refused),
                            listening=ports,
                        )
                    )
            elif kind == control.QUERY:
                question = control.decode_json(payload)
                answer = {"pid": os.getpid(), "uid": os.getuid(), "generations": generations, "last": last}
                answer["settings"] = settings
                sock.sendall(control.encode_json(control.ANSWER, id=question["id"], answer=answer))
            elif kind == control.DRAIN:
                return


main()
