"""Refuses connections to other machines; this one's own addresses are left alone.

With ``TEST_HOSTS``, the address of a server of ``tests/weights_server.py``, urllib asks
that server instead of other machines.

Python imports a module of this name when it starts. ``tests/conftest.py`` imports it
for the tests, and puts its folder on the ``PYTHONPATH`` of the processes that they
start.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from urllib.request import OpenerDirector

# The events of Python's audit hooks that lead out, and where their address stands.
EVENTS = {
    'socket.connect': 1,
    'socket.sendto': 1,
    'socket.sendmsg': 1,
    'socket.getaddrinfo': 0,
    'socket.gethostbyname': 0,
}


class NetworkRefusedError(OSError):
    """A test wanted to reach another machine."""


def is_local(address: object) -> bool:
    """Whether an address, or a host's name, is of this machine.

    Args:
        address: as sockets take it: ``(host, port, ...)``, a host, a path of a Unix
            socket, or None.
    """
    if isinstance(address, tuple):
        address = address[0] if address else None
    if isinstance(address, bytes):
        address = address.decode(errors='replace')
    if not isinstance(address, str):
        return True  # None is this machine; other families' addresses are no names
    if address in ('', 'localhost', socket.gethostname()) or address.startswith('/'):
        return True
    try:
        ip = ipaddress.ip_address(address.partition('%')[0])
    except ValueError:
        return False
    return ip.is_loopback or ip.is_unspecified


def refuse(event: str, arguments: tuple) -> None:
    """Raises for an event that leads to another machine."""
    place = EVENTS.get(event)
    if place is None:
        return
    if event != 'socket.getaddrinfo' and getattr(
        arguments[0], 'family', None
    ) == getattr(socket, 'AF_UNIX', -1):
        return
    if not is_local(arguments[place]):
        raise NetworkRefusedError(
            f'tests reach no other machine, and this one wanted to: {event} '
            f'{arguments[place]!r}'
        )


sys.addaudithook(refuse)


def redirected_urllib(opened):
    """Returns urllib's opener, which asks ``TEST_HOSTS/HOST`` for ``https://HOST``."""

    def open_here(self, request, *args, **kwargs):
        url = request.full_url
        if url.startswith('https://'):
            request.full_url = url.replace('https:/', os.environ['TEST_HOSTS'], 1)
        return opened(self, request, *args, **kwargs)

    return open_here


if 'TEST_HOSTS' in os.environ:
    OpenerDirector.open = redirected_urllib(OpenerDirector.open)
