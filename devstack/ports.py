"""Free loopback ports that two stacks on one machine do not hand out twice.

A port found by binding to 0 comes from the range of outgoing connections: while a killed server is down, any client
may be given its port as a local one, and the restart fails. These ports lie below that range.
"""

import os
import random
import socket
import sys

_RANGE = range(17_000, 32_000)

# On Linux an abstract socket marks a port as handed out until this process ends, however it ends.
_claims: dict[int, int] = {}  # the socket's descriptor by port
_random = random.SystemRandom()


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # A closed connection of the last server (TIME_WAIT) does not take a port; a listening server does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _claim(port: int) -> bool:
    if port in _claims:
        return False
    if sys.platform != "linux":
        return _is_free(port)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        try:
            claim.bind(f"\0orders-backup-devstack-{port}")
        except OSError:
            return False
        if not _is_free(port):
            return False
        _claims[port] = claim.detach()  # stays open until `release` or the end of the process
    return True


def free_port(preferred: int | None = None) -> int:
    """A port on 127.0.0.1 that nothing listens on and no other stack was given; `preferred` if it is such a one."""
    if preferred is not None and preferred in _RANGE and _claim(preferred):
        return preferred
    for _ in range(1_000):
        port = _random.choice(_RANGE)
        if _claim(port):
            return port
    raise OSError(f"no free port on 127.0.0.1 between {_RANGE.start} and {_RANGE.stop - 1}")


def release(port: int) -> None:
    """Give a port back; a port that was not handed out here is ignored."""
    claim = _claims.pop(port, None)
    if claim is not None:
        os.close(claim)


def listens(port: int) -> bool:
    """Whether something accepts connections on a loopback port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
