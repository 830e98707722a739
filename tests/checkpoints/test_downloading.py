"""Checkpoints are fetched from the web, once, and only as they should be."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mmseg_twins.checkpoints.downloading import HASH, fetch
from mmseg_twins.cli.convert import main
from mmseg_twins.errors import CheckpointError

CONTENT = b'\x80\x02some weights' * 1000  # begins as a checkpoint does
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}
    requests: Counter = Counter()

    def do_GET(self) -> None:
        self.requests[self.path] += 1
        content = self.files.get(self.path.split('?')[0])
        if content is None:
            self.send_error(404)
            return
        promised = len(content) + (100 if 'cut' in self.path else 0)
        self.send_response(200)
        self.send_header('Content-Length', str(promised))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args) -> None:
        """Keeps what the tests print on stderr to the tests."""


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A server on this machine, and a cache of its own."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('no_proxy', '*')
    with HTTPServer(('127.0.0.1', 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        Handler.files, Handler.requests = {}, Counter()
        yield f'http://127.0.0.1:{server.server_address[1]}'
        server.shutdown()
        thread.join()


def cached(tmp_path: Path) -> list[str]:
    folder = tmp_path / 'torch' / 'hub' / 'checkpoints'
    return sorted(path.name for path in folder.glob('[!.]*'))


def test_file_lands_in_pytorchs_cache_once(server, tmp_path):
    name = f'weights_20220308-{DIGEST[:8]}.pth'
    Handler.files[f'/{name}'] = CONTENT

    path = fetch(f'{server}/{name}?download=1', progress=False)
    again = fetch(f'{server}/{name}?download=1', progress=False)

    assert path == again == tmp_path / 'torch' / 'hub' / 'checkpoints' / name
    assert path.read_bytes() == CONTENT
    assert sum(Handler.requests.values()) == 1


def test_earlier_download_with_another_hash_is_replaced(server, tmp_path):
    name = f'weights-{DIGEST[:8]}.pth'
    Handler.files[f'/{name}'] = CONTENT
    fetch(f'{server}/{name}', progress=False).write_bytes(b'damaged')

    assert fetch(f'{server}/{name}', progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ('name', 'digits'),
    [
        ('alt_gvt_small_20220308-7e1c3695.pth', '7e1c3695'),
        ('resnet-20220308.pth', None),  # a date
        ('twins-svt-b.pth', None),
        ('model.safetensors', None),
        (f'a-{DIGEST}.safetensors', DIGEST),
    ],
)
def test_hash_is_told_from_other_parts_of_a_name(name, digits):
    match = HASH.search(name)

    assert (match[1] if match else None) == digits


def test_converted_download_names_its_url(server, classifier, store, capsys):
    digest = hashlib.sha256(classifier.read_bytes()).hexdigest()
    Handler.files[f'/svt-{digest[:8]}.pth'] = classifier.read_bytes()
    url = f'{server}/svt-{digest[:8]}.pth'

    assert main([url, str(store)]) == 0

    assert url in capsys.readouterr().out
    assert store.exists()


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        (
            'weights-0123456789.pth',
            CONTENT,
            f'begins with {DIGEST[:10]}, expected 0123456789; the download is not kept',
        ),
        ('cut.pth', CONTENT, '.it ended after 14000 of 14100 bytes'),
        ('page.pth', b'<html>moved</html>', 'is not a checkpoint.* like a web page'),
        ('text.pth', b'no weights at all', 'is not a checkpoint'),
        ('empty.pth', b'', 'is empty'),
        ('none.pth', None, 'could not be downloaded .HTTP Error 404'),
    ],
)
def test_what_is_no_checkpoint_is_refused_and_not_kept(
    name, content, message, server, tmp_path
):
    Handler.files[f'/{name}'] = content

    with pytest.raises(CheckpointError, match=message):
        fetch(f'{server}/{name}', progress=False)

    assert cached(tmp_path) == []


def test_a_failed_download_is_one_sentence_of_the_command(server, store, capsys):
    assert main([f'{server}/none.pth', str(store)]) == 1

    out, err = capsys.readouterr()
    assert (out, err.count('\n')) == ('', 1)
    assert 'could not be downloaded (HTTP Error 404' in err


def test_silent_host_is_one_sentence(server):
    # Nothing listens on the port of a server that is closed again.
    with HTTPServer(('127.0.0.1', 0), Handler) as closed:
        port = closed.server_address[1]

    with pytest.raises(CheckpointError, match='could not be downloaded'):
        fetch(f'http://127.0.0.1:{port}/weights.pth')


@pytest.mark.parametrize(
    'url',
    [
        'ftp://host/weights.pth',
        'file:///etc/passwd',
        's3://bucket/weights.pth',
        'http://host/',
        'http:///weights.pth',
        'http://[::1/weights.pth',
    ],
)
def test_only_http_is_fetched(url):
    with pytest.raises(CheckpointError, match='begins with http:// or https://'):
        fetch(url)
