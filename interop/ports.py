"""Ports of this machine that nobody has."""

import random
import socket

# Below those that the kernel gives to connections that go out (32768 and up): one of these would be taken before somebody listens there.
RANGE = range(15000, 32000)


def free_ports(count):
    """So many, all at once."""
    sockets = []
    try:
        while len(sockets) < count:
            one = socket.socket()
            try:
                one.bind(("127.0.0.1", random.choice(RANGE)))
            except OSError:
                one.close()
                continue
            sockets.append(one)
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def free_port():
    [port] = free_ports(1)
    return port
