"""Ports of this machine that nobody has."""

import socket


def free_ports(count):
    """So many, all at once."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def free_port():
    [port] = free_ports(1)
    return port
