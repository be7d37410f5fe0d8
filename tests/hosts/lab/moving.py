"""A host of the lab gets another address while its agent runs. Run inside the lab's namespaces; prints what others see.

Usage: moving.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.hosts.lab.mesh import Mesh, wait_for
from tests.hosts.lab.namespaces import Lab

NEW = "10.77.0.99"


def main(folder: Path) -> None:
    lab = Lab(folder)
    mesh = Mesh(lab)
    try:
        host = mesh.run_application("reviews-v1", "reviews", "v1").host
        mesh.enrol("reviews-v1")
        mesh.await_agent("reviews-v1")

        def seen() -> list[list[str]]:
            found: list[dict[str, Any]] = mesh.healthy()
            return [list(each["addresses"]) for each in found]

        wait_for("its first registration", seen)
        before = seen()
        host.run(
            "sh", "-ec", f"ip address delete {host.v4}/16 dev eth0; ip address add {NEW}/16 dev eth0; "
            "ip route replace default via 10.77.0.1",
        )  # fmt: skip
        wait_for("its new address", lambda: NEW in [each[0] for each in seen()], 15)
        print(json.dumps({"before": before, "after": seen()}))
    finally:
        mesh.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
