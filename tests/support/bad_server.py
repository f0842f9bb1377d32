"""A server on this machine that answers as it is told, also against the rules of HTTP."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TAG = '"version 1"'


class Misbehaving:
    """What the server does: each fault is a method that answers one request of `content`.

    Args:
        plan: faults in turn, the last one for all further requests.
    """

    def __init__(self, content: bytes, *plan: str):
        self.content, self.plan, self.ranges = content, list(plan), []

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        fault = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        same = request.headers.get("If-Range") in (None, TAG)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and same else 0
        getattr(self, fault)(request, start)

    def _head(self, request, start=0, **headers):
        if start >= len(self.content) > 0:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
        else:
            request.send_response(206 if start else 200)
            request.send_header("ETag", TAG)
            if start:
                request.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()

    def whole(self, request, start):
        body = self.content[start:]
        self._head(request, start, Content_Length=str(len(body)))
        request.wfile.write(body)

    def cut(self, request, start):
        body = self.content[start:]
        self._head(request, start, Content_Length=str(len(body)))
        request.wfile.write(body[: max(1, len(body) // 2)])

    def cut_at_once(self, request, start):
        self._head(request, start, Content_Length=str(len(self.content) - start))

    def cut_chunks(self, request, start):
        self._head(request, start, Transfer_Encoding="chunked")
        request.wfile.write(b"100\r\n" + self.content[start : start + 50])

    def odd_chunks(self, request, start):
        self._head(request, start, Transfer_Encoding="chunked")
        request.wfile.write(b"no number\r\n" + self.content)

    def odd_status(self, request, start):
        request.wfile.write(b"ICE 999 what\r\n\r\n")

    def silent(self, request, start):
        pass

    def endless_header(self, request, start):
        request.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n")

    def many_headers(self, request, start):
        request.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 500 + b"\r\n")

    def no_content(self, request, start):
        request.send_response(204)
        request.end_headers()

    def other_range(self, request, start):
        request.send_response(206)
        request.send_header("Content-Range", f"bytes 7-{len(self.content)}/99")
        request.end_headers()
        request.wfile.write(self.content[7:])

    def web_page(self, request, start):
        self._head(request, 0, Content_Type="text/html; charset=utf-8", Content_Length="4")
        request.wfile.write(b"<hi>")

    def unnumbered_length(self, request, start):
        self._head(request, 0, Content_Length="many")
        request.wfile.write(self.content[:100])

    def longer(self, request, start):
        self._head(request, 0)
        request.wfile.write(self.content + b"more")

    def announced_longer(self, request, start):
        self._head(request, 0, Content_Length=str(10**12))
        request.wfile.write(self.content)

    def shorter(self, request, start):
        self._head(request, 0, Content_Length="10")
        request.wfile.write(self.content[:10])

    def busy(self, request, start):
        request.send_error(503)

    def circle(self, request, start):
        request.send_response(302)
        request.send_header("Location", request.path)
        request.end_headers()

    def other_scheme(self, request, start):
        request.send_response(302)
        request.send_header("Location", "file:///etc/passwd")
        request.end_headers()


@contextmanager
def serving(answer):
    """Serve GET and HEAD by `answer(handler)` on a free port; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.close_connection = True
            answer(self)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
