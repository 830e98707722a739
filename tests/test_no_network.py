"""Tests reach no other machine, nor do the processes that they start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener, urlopen

import pytest

# Addresses that belong to nobody (RFC 5737, 3849).
ELSEWHERE = [('192.0.2.1', 80), ('2001:db8::1', 80)]


@pytest.mark.parametrize('address', ELSEWHERE, ids=lambda address: address[0])
def test_connections_to_other_machines_are_refused(address):
    family = socket.AF_INET6 if ':' in address[0] else socket.AF_INET
    with socket.socket(family) as connection:
        with pytest.raises(OSError, match='reach no other machine'):
            connection.connect(address)
        with pytest.raises(OSError, match='reach no other machine'):
            connection.connect_ex(address)
    with pytest.raises(OSError, match='reach no other machine'):
        socket.create_connection(address, timeout=1)


def test_datagrams_to_other_machines_are_refused():
    with (
        socket.socket(type=socket.SOCK_DGRAM) as connection,
        pytest.raises(OSError, match='reach no other machine'),
    ):
        connection.sendto(b'', ('192.0.2.1', 53))


def test_names_of_other_machines_are_not_looked_up():
    for look_up in (
        socket.gethostbyname,
        lambda name: socket.getaddrinfo(name, 80),
        lambda name: socket.create_connection((name, 80)),
    ):
        with pytest.raises(OSError, match='reach no other machine'):
            look_up('host.invalid')


def test_downloads_are_refused_with_a_proxy_and_without():
    with pytest.raises(URLError, match='refused'):
        urlopen('http://host.invalid/', timeout=1)
    with pytest.raises(URLError, match='reach no other machine'):
        build_opener(ProxyHandler({})).open('http://host.invalid/', timeout=1)


@pytest.mark.parametrize('host', ['127.0.0.1', 'localhost'])
def test_this_machine_is_reached(host):
    with (
        socket.create_server(('127.0.0.1', 0)) as server,
        socket.create_connection((host, server.getsockname()[1])) as connection,
    ):
        assert connection.getpeername() == server.getsockname()


@pytest.mark.skipif(not hasattr(socket, 'AF_UNIX'), reason='needs Unix sockets')
def test_unix_sockets_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path has to be short
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as one:
        server.bind('socket')
        server.listen()
        one.connect('socket')
        assert one.getpeername() == 'socket'


def test_started_processes_are_cut_off_too():
    code = 'import socket; socket.create_connection(("192.0.2.1", 80), timeout=1)'
    inner = (
        f'import subprocess, sys; sys.exit(subprocess.call(["python", "-c", {code!r}]))'
    )
    for command in (code, inner.replace('"python"', repr(sys.executable))):
        done = subprocess.run(
            [sys.executable, '-c', command],
            capture_output=True,
            text=True,
            env=os.environ,
        )
        assert done.returncode == 1
        assert 'NetworkRefusedError' in done.stderr
