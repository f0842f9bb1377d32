"""The page under visitors who are many, who leave, and who send what is too large."""

import asyncio
import io
import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from other_processes import start
from PIL import Image
from slow_page import SLOW, SlowPage, serve

from face2scene.cli.app import MOST_REFERENCES, AppController, build, launch
from face2scene.cli.visitors import Limits, VisitorLimits, remove_old, visitor
from face2scene.common.reproducibility import REPOSITORY
from face2scene.image_io.photos import ImageError
from face2scene.inference.pipeline import Face2ScenePipeline


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def slow_page():
    page = SlowPage()
    blocks = build(page, guidance=1.1)
    address = launch(blocks, host="127.0.0.1", port=free_port(), waiting=8, largest_mb=1, wait=False)
    yield page, address
    blocks.close()
    page.close()


def requested(address: str, path: str, body: bytes, kind: str = "application/json") -> tuple[int, bytes]:
    request = urllib.request.Request(f"{address}gradio_api/{path}", body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def uploaded(address: str, name: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    head = f'--edge\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    body = head + file.getvalue() + b"\r\n--edge--\r\n"
    status, reply = requested(address, "upload", body, "multipart/form-data; boundary=edge")
    assert status == 200, reply
    return json.loads(reply)[0]


def ask(address: str, photo: str) -> tuple[int, dict]:
    data = {"data": [{"path": photo, "meta": {"_type": "gradio.FileData"}}, None, 1.1, 1]}
    status, reply = requested(address, "call/restore", json.dumps(data).encode())
    return status, json.loads(reply)


def listen(address: str, event: str, seconds: float) -> str:
    """What the server says of a request, until it is done or the visitor leaves after so many seconds."""
    said = b""
    try:
        with urllib.request.urlopen(f"{address}gradio_api/call/restore/{event}", timeout=seconds) as stream:
            until = time.monotonic() + seconds
            while time.monotonic() < until and (line := stream.readline()):
                said += line
    except TimeoutError:
        pass
    return said.decode()


def test_leaving_visitor_frees_the_worker(slow_page):
    page, address = slow_page
    slow, quick = uploaded(address, "slow.png"), uploaded(address, "quick.png")
    left = ask(address, slow)[1]["event_id"]
    listen(address, left, 1.0)
    start = time.monotonic()
    assert "event: complete" in listen(address, ask(address, quick)[1]["event_id"], 40)
    assert time.monotonic() - start < 30  # SLOW steps would take 60
    assert 0 < page.steps < SLOW


def test_one_visitor_does_not_fill_the_queue(slow_page):
    _, address = slow_page
    slow = uploaded(address, "slow.png")
    answers = [ask(address, slow) for _ in range(Limits().waiting + 1)]
    assert [status for status, _ in answers] == [200] * Limits().waiting + [429]
    assert "requests are waiting already" in answers[-1][1]["detail"]
    for _, answer in answers[:-1]:  # the visitor comes, and leaves
        listen(address, answer["event_id"], 0.5)


def test_nothing_goes_past_the_queue(slow_page):
    _, address = slow_page
    status, _ = requested(address, "run/restore", b'{"data": [null, null, 1.1, 1]}')
    assert status == 404


def test_uploads_are_private(slow_page):
    page, address = slow_page
    path = uploaded(address, "quick.png")
    assert os.path.commonpath([path, page.folder]) == str(page.folder)
    assert page.folder.stat().st_mode & 0o777 == 0o700


def test_old_files_are_removed(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/photo.png").write_bytes(b"x")
    remove_old(tmp_path)
    assert (tmp_path / "a/b/photo.png").exists()
    remove_old(tmp_path, seconds=0)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def page():
    return AppController(Face2ScenePipeline.from_pretrained(REPOSITORY / "checkpoints/tiny"), max_pixels=40_000)


def image_at(path, width, height):
    Image.new("L", (width, height)).save(path)
    return str(path)


def test_large_photo_is_refused_undecoded(page, tmp_path):
    large = image_at(tmp_path / "large.png", 8000, 8000)
    data = bytearray((tmp_path / "large.png").read_bytes())
    data[data.index(b"IDAT") + 8 :] = b"not to be read"  # decoding it would be another error
    (tmp_path / "large.png").write_bytes(data)
    small = image_at(tmp_path / "small.png", 64, 64)
    for call in (
        lambda: page.find_faces(large, None),
        lambda: page.find_faces(small, [large]),
        lambda: page.restore(large, None, 1.1, 1, lambda *_: None),
        lambda: page.restore(small, [large], 1.1, 1, lambda *_: None),
    ):
        with pytest.raises(ImageError, match="8000 x 8000 pixels, more than the limit"):
            call()


def test_enlargement_counts(page, tmp_path):
    with pytest.raises(ImageError, match="200 x 200 pixels, more than the limit"):
        page.restore(image_at(tmp_path / "a.png", 200, 200), None, 1.1, 4, lambda *_: None)


def test_references_are_limited(page, tmp_path):
    small = image_at(tmp_path / "small.png", 64, 64)
    with pytest.raises(ValueError, match="are enough"):
        page.find_faces(small, [small] * (MOST_REFERENCES + 1))


def answered(limits: VisitorLimits, path="/gradio_api/upload", client="1.2.3.4", length=b"10", method="POST") -> int:
    """Status of a request: 200 if it reached the page."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        raise AssertionError("the body was read")

    headers = [(b"content-length", length)] if length is not None else []
    scope = {"type": "http", "method": method, "path": path, "client": (client, 1), "headers": headers}
    asyncio.run(limits(scope, receive, send))
    return sent[0]["status"] if sent else 200


async def passes(scope, receive, send):
    pass


def test_requests_and_bytes_are_limited():
    limits = VisitorLimits(passes, Limits(requests=3, megabytes=1), list)
    assert [answered(limits) for _ in range(4)] == [200, 200, 200, 429]
    assert answered(limits, client="1.2.3.5") == 200
    assert answered(limits, method="GET") == 200
    assert answered(limits, client="1.2.3.6", length=b"999999") == 200
    assert answered(limits, client="1.2.3.6", length=b"2") == 429
    assert answered(limits, client="1.2.3.7", length=None) == 429
    assert answered(limits, client="1.2.3.7", length=b"-5") == 429


def test_ipv6_neighbours_are_one_visitor():
    assert visitor("2001:db8::1") == visitor("2001:db8::ffff") != visitor("2001:db8:0:1::1")
    assert visitor("10.0.0.1") == "10.0.0.1"


def test_sigterm_deletes_uploads(tmp_path):
    port, told = free_port(), tmp_path / "folder"
    server = start(serve, port, told)
    address = f"http://127.0.0.1:{port}/"
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=30).close()
            break
        except OSError:
            time.sleep(0.2)
    ask(address, uploaded(address, "slow.png"))
    folder = Path(told.read_text())
    assert list(folder.rglob("slow.png"))
    os.kill(server.pid, signal.SIGTERM)
    server.join(30)
    assert server.exitcode == 143
    assert not folder.exists()
