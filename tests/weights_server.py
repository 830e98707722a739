"""A server on this machine that plays the hosts of published weights.

``https://HOST/PATH`` is served as ``http://127.0.0.1:PORT/HOST/PATH``; the Hugging Face
hub is the host ``hub``.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = '5' * 40  # the hub names the commit of what it serves
PAGE = b'<html>this domain is for sale</html>'


@dataclass
class Hosts:
    """What the server plays.

    Attributes:
        files: content by path, which begins with the host.
        moods: what a host does instead of serving files: ``'page'`` (a web page for
            whatever is asked for), ``'hang'`` (no answer), ``'cut'`` (breaks off),
            ``'wrong'`` (other content) or ``'busy'`` (status 503). Hosts without files
            answer with status 404.
        asked: number of downloads by path.
        address: of the server.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    moods: dict[str, str] = field(default_factory=dict)
    asked: Counter = field(default_factory=Counter)
    address: str = ''


@contextmanager
def serve() -> Iterator[Hosts]:
    """Serve what the hosts are told to, until the end of the context."""
    hosts, over = Hosts(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            path = urlsplit(self.path).path.strip('/')
            host = path.partition('/')[0]
            mood = hosts.moods.get(host)
            content = hosts.files.get(path)
            hosts.asked[path] += with_body
            if mood == 'hang':
                over.wait()
                return
            if mood == 'page':
                content = PAGE
            if mood == 'busy' or content is None:
                self.send_error(503 if mood == 'busy' else 404)
                return
            sent = b'other' + content if mood == 'wrong' else content
            self.send_response(200)
            self.send_header('Content-Length', str(len(sent) + 9 * (mood == 'cut')))
            if host == 'hub' and mood != 'page':
                self.send_header('X-Repo-Commit', COMMIT)
                self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
            self.end_headers()
            if with_body:
                self.wfile.write(sent)

        def log_message(self, *args) -> None:
            """Keep the server silent."""

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        hosts.address = f'http://127.0.0.1:{server.server_address[1]}'
        yield hosts
        over.set()
        server.shutdown()
        thread.join()
