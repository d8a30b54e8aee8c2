"""Two stacks on one machine never get the same port."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from devstack import ports


def test_a_port_is_handed_out_once() -> None:
    handed_out = [ports.free_port() for _ in range(50)]

    for port in handed_out:
        ports.release(port)
    assert len(set(handed_out)) == 50


def test_a_port_that_somebody_listens_on_is_not_handed_out() -> None:
    port = ports.free_port()
    ports.release(port)
    with socket.create_server(("127.0.0.1", port)):
        other = ports.free_port(preferred=port)

    ports.release(other)
    assert other != port


def test_a_preferred_port_is_given_again_after_its_release() -> None:
    port = ports.free_port()
    ports.release(port)

    again = ports.free_port(preferred=port)

    ports.release(again)
    assert again == port


@pytest.mark.skipif(sys.platform != "linux", reason="claims between processes need abstract sockets")
def test_a_port_handed_out_here_is_not_handed_out_in_another_process() -> None:
    port = ports.free_port()

    other = subprocess.run(
        [sys.executable, "-c", f"from devstack.ports import free_port; print(free_port(preferred={port}))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )

    ports.release(port)
    assert int(other.stdout) != port
