"""A server on this machine that plays the hosts of published weights.

``https://HOST/PATH`` is served as ``http://127.0.0.1:PORT/HOST/PATH``. All else is the
Hugging Face hub, called ``hub`` here, to which files can be uploaded as well.
"""

from __future__ import annotations

import base64
import hashlib
import json
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
    over: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        """Forget files, moods and downloads, and let hanging answers end."""
        self.over.set()
        self.over = threading.Event()
        for one in (self.files, self.moods, self.asked):
            one.clear()


@contextmanager
def serve() -> Iterator[Hosts]:
    """Serve what the hosts are told to, until the end of the context."""
    hosts = Hosts()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            path = urlsplit(self.path).path.strip('/')
            if '.' not in path.partition('/')[0]:
                path = f'hub/{path}'
            host = path.partition('/')[0]
            if path.startswith('hub/api/models/') and path.endswith('/revision/main'):
                self.send_json({'id': path, 'sha': COMMIT, 'tags': [], 'siblings': []})
                return
            mood = hosts.moods.get(host)
            content = hosts.files.get(path)
            hosts.asked[path] += with_body
            if mood == 'hang':
                hosts.over.wait()
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

        def do_POST(self) -> None:
            """Answer what huggingface_hub asks to upload a commit."""
            sent = self.rfile.read(int(self.headers['Content-Length']))
            path = urlsplit(self.path).path.strip('/')
            if not self.headers.get('authorization'):
                self.send_error(401)
                return
            if path.endswith('/repos/create'):
                name = f'{json.loads(sent)["organization"]}/{json.loads(sent)["name"]}'
                self.send_json({'url': f'{hosts.address}/{name}', 'name': name})
            elif '/preupload/' in path:
                names = [file['path'] for file in json.loads(sent)['files']]
                modes = [
                    'lfs' if 'safetensors' in name else 'regular' for name in names
                ]
                self.send_json({
                    'files': [
                        {'path': name, 'uploadMode': mode, 'shouldIgnore': False}
                        for name, mode in zip(names, modes, strict=True)
                    ]
                })  # fmt: skip
            elif path.endswith('/objects/batch'):
                objects = [
                    {**one, 'actions': {'upload': {'href': self.lfs(one['oid'])}}}
                    for one in json.loads(sent)['objects']
                ]
                self.send_json({'transfer': 'basic', 'objects': objects})
            elif path.endswith('/validate-yaml'):
                self.send_json({'errors': [], 'warnings': []})
            elif not path.endswith('/commit/main'):
                self.send_error(404)
            else:
                repository = path.split('/models/')[1].removesuffix('/commit/main')
                for line in map(json.loads, sent.decode().splitlines()):
                    self.commit(f'hub/{repository}/resolve/main', line)
                address = f'{hosts.address}/{repository}/commit/{COMMIT}'
                self.send_json({'commitUrl': address, 'commitOid': COMMIT})

        def do_PUT(self) -> None:
            """Store a large file."""
            sent = self.rfile.read(int(self.headers['Content-Length']))
            hosts.files[self.path.strip('/')] = sent
            self.send_json({})

        def lfs(self, digest: str) -> str:
            return f'{hosts.address}/lfs/{digest}'

        def commit(self, folder: str, line: dict) -> None:
            value = line['value']
            if line['key'] == 'file':
                content = base64.b64decode(value['content'])
                hosts.files[f'{folder}/{value["path"]}'] = content
            elif line['key'] == 'lfsFile':
                content = hosts.files[f'lfs/{value["oid"]}']
                hosts.files[f'{folder}/{value["path"]}'] = content

        def send_json(self, value: dict) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header('Content-Type', 'application/json')
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args) -> None:
            """Keep the server silent."""

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        hosts.address = f'http://127.0.0.1:{server.server_address[1]}'
        yield hosts
        hosts.reset()
        server.shutdown()
        thread.join()
