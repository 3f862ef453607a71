"""A web server on this machine that speaks as much of the Hugging Face hub as a download asks for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    """Keeps the paths that were asked for in `requests`."""

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self.requests: list[str] = []


@contextmanager
def hub_server(repository: str, folder: Path) -> Iterator[HubServer]:
    """A hub with one repository of one commit, whose files are those of a folder; `requests` lists what was asked.

    Args:
        repository: its name.
        folder: read at each request.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(with_body=True)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def answer(self, *, with_body: bool) -> None:
            path = urlsplit(self.path).path
            server.requests.append(path)
            if path.startswith(f"/api/models/{repository}/tree/"):
                files = [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": blob_name(file)}
                    for file in sorted(folder.iterdir())
                ]
                return self.send(200, json.dumps(files).encode(), with_body=with_body)
            if path.startswith(f"/api/models/{repository}"):
                facts = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": []}
                return self.send(200, json.dumps(facts).encode(), with_body=with_body)
            file = folder / Path(path).name
            if path.startswith(f"/{repository}/resolve/{COMMIT}/") and file.is_file():
                return self.send(200, file.read_bytes(), with_body=with_body, name=blob_name(file))
            return self.send(404, b"{}", with_body=with_body, code="RepoNotFound")

        def send(self, status: int, body: bytes, *, with_body: bool, name: str = "", code: str = "") -> None:
            self.send_response(status)
            headers = {"Content-Length": str(len(body)), "Content-Type": "application/json", "X-Repo-Commit": COMMIT}
            headers |= {"ETag": f'"{name}"'} if name else {}
            headers |= {"X-Error-Code": code} if code else {}
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HubServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def blob_name(file: Path) -> str:
    return sha1(b"blob %d\0" % file.stat().st_size + file.read_bytes()).hexdigest()
