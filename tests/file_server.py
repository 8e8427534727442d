"""A file server on loopback that can resume, and that breaks off or lies when it is told to."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """Serves one file at every address, or files by their last name; breaks off the first answers after some bytes."""

    data: bytes | dict[str, bytes]
    break_after: list[int] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    tag: str = '"one"'
    status: int = 200

    @contextmanager
    def running(self) -> Iterator[str]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def do_HEAD(self) -> None:
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/archive"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        data = self.data[request.path.rpartition("/")[2]] if isinstance(self.data, dict) else self.data
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        start = 0
        if asked and request.headers.get("If-Range") == self.tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        body = data[start:]
        request.send_response(206 if start else self.status)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("ETag", self.tag)
        request.end_headers()
        request.wfile.write(body[: self.break_after.pop(0)] if self.break_after else body)
        request.close_connection = True
