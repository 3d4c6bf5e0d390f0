"""Says by its exit status whether a service is healthy: ``healthcheck.py URL``.

For containers, whose engine asks every few seconds: only the standard library, and as little of it
as possible. ``$NAME`` in the address is taken from the environment, as the service does it.
"""

import http.client
import os
import sys

_SECONDS = 4.0


def main(address: str) -> int:
    """Asks once over HTTP; 0 is healthy, 1 is not, and then stderr says why."""
    host, _, path = os.path.expandvars(address).removeprefix("http://").partition("/")
    try:
        connection = http.client.HTTPConnection(host, timeout=_SECONDS)
        connection.request("GET", f"/{path}")
        answer = connection.getresponse()
        said = answer.read(1000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        print(f"{host} does not answer: {error}", file=sys.stderr)
        return 1
    if answer.status != http.client.OK:
        print(f"{answer.status} {said}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
