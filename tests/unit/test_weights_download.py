"""An archive comes whole or not at all, however the line behaves."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minmo.weights import NoProgress, WeightsError
from minmo.weights.artifacts import Artifact
from minmo.weights.download import Patience, fetch

CONTENT = bytes(range(256)) * 8192  # 2 MiB: several blocks
HASTY = Patience(attempts=3, backoff_s=0.001, silence_s=5.0, deadline_s=20.0)


def artifact(content: bytes = CONTENT) -> Artifact:
    return Artifact(
        registry="pypi",
        package="parts",
        version="1",
        sha256=hashlib.sha256(content).hexdigest(),
        size=len(content),
        licence="MIT",
        purpose="a test",
        members=(),
    )


class Server(ThreadingHTTPServer):
    """Serves CONTENT; `faults` are taken one a request: a status, or a length to cut at."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.faults: list[tuple[str, int]] = []
        self.knows_ranges = True

    def address(self, credentials: str = "") -> str:
        return f"http://{credentials}127.0.0.1:{self.server_address[1]}/parts.whl"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        kind, value = self.server.faults.pop(0) if self.server.faults else ("none", 0)
        if kind == "status":
            self.send_error(value)
            return
        start = int(wanted[6:-1]) if wanted and self.server.knows_ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:value] if kind == "cut" else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server: Server, folder: Path, patience: Patience = HASTY) -> Path:
    return fetch(artifact(), server.address, folder, NoProgress(), patience)


def part_of(folder: Path) -> Path:
    return folder / "parts-1.whl.part"


def test_a_download_ends_with_the_whole_archive_and_no_part(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert not part_of(tmp_path).exists()


def test_an_archive_that_is_there_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    get(server, tmp_path)
    get(server, tmp_path)
    assert len(server.ranges) == 1


def test_a_cut_connection_is_resumed_where_it_broke(server: Server, tmp_path: Path) -> None:
    server.faults = [("cut", 700_000), ("cut", 500_000)]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=700000-", "bytes=1200000-"]


def test_the_part_of_an_earlier_run_is_resumed(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(CONTENT[:1000])
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_a_whole_part_is_taken_without_a_request(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).write_bytes(CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == []


def test_a_server_without_ranges_sends_it_all_again(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    part_of(tmp_path).write_bytes(b"x" * 1000)
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_ctrl_c_leaves_a_part_that_the_next_run_resumes(server: Server, tmp_path: Path) -> None:
    class Impatient(NoProgress):
        def reached(self, task: str, done_bytes: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(artifact(), server.address, tmp_path, Impatient(), HASTY)
    kept = part_of(tmp_path).stat().st_size
    assert 0 < kept < len(CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges[1:] == [f"bytes={kept}-"]


def test_a_wrong_checksum_deletes_the_file_and_says_both(server: Server, tmp_path: Path) -> None:
    other = artifact(b"y" * len(CONTENT))
    with pytest.raises(WeightsError) as error:
        fetch(other, server.address, tmp_path, NoProgress(), HASTY)
    assert f"expected sha256 {other.sha256}" in str(error.value)
    assert f"found {artifact().sha256}" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.faults = [("status", 503), ("status", 429)]
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_refusal_is_final_and_shows_no_credentials(server: Server, tmp_path: Path) -> None:
    server.faults = [("status", 403)]
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1 refused parts-1\.whl with 403") as error:
        fetch(artifact(), lambda: server.address("me:secret@"), tmp_path, NoProgress(), HASTY)
    assert "secret" not in str(error.value)
    assert len(server.ranges) == 1


def test_it_gives_up_after_tries_that_brought_nothing(server: Server, tmp_path: Path) -> None:
    server.faults = [("cut", 700_000)] + [("status", 500)] * 3
    with pytest.raises(WeightsError, match=r"stopped at 0\.7 of 2\.1 MB.*resumes"):
        get(server, tmp_path)
    assert part_of(tmp_path).stat().st_size == 700_000


def test_it_keeps_its_deadline(server: Server, tmp_path: Path) -> None:
    server.faults = [("status", 500)]
    with pytest.raises(WeightsError, match="its deadline"):
        get(server, tmp_path, Patience(backoff_s=60.0, deadline_s=1.0))


def test_an_offline_machine_is_told_so(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        port = closed.server_address[1]
    with pytest.raises(WeightsError, match="is this machine online"):
        fetch(artifact(), lambda: f"http://127.0.0.1:{port}/", tmp_path, NoProgress(), HASTY)


def test_a_disk_without_room_is_noticed_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1_000_000

    monkeypatch.setattr("minmo.weights.download.shutil.disk_usage", lambda _: Usage)
    with pytest.raises(WeightsError, match=r"needs 2 MB .* where 1 MB are free.*MINMO_HOME"):
        get(server, tmp_path)
    assert server.ranges == []


def test_a_disk_that_fills_up_is_named(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path).symlink_to("/dev/full")
    with pytest.raises(WeightsError, match="is full after"):
        get(server, tmp_path)


def test_a_local_index_gives_a_file(tmp_path: Path) -> None:
    source = tmp_path / "with space.whl"
    source.write_bytes(CONTENT)
    asked: Callable[[], str] = source.as_uri
    got = fetch(artifact(), asked, tmp_path / "downloads", NoProgress(), HASTY)
    assert got.read_bytes() == CONTENT
