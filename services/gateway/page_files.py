"""The page: its files, read once, with the headers that keep it safe."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from aiohttp import hdrs, web

FOLDER = Path(__file__).with_name("page")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".wasm": "application/wasm",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".woff2": "font/woff2",
}
# Scripts, worklets and sockets of this origin alone; nothing inline, nothing of anybody else.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' 'wasm-unsafe-eval'",
        "worker-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "media-src 'self' blob:",
        "manifest-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=(), "
    "display-capture=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class _File:
    data: bytes
    kind: str
    tag: str


class Page:
    """The files of the page.

    Only what lies in the folder at the start is there: no path of a request reaches the disk.

    Args:
        folder: of the page, with ``index.html``.
        watch: reads the files again at every request, for who works on them.
    """

    def __init__(self, folder: Path = FOLDER, *, watch: bool = False) -> None:
        self._folder = folder
        self._watch = watch
        self._files = _read(folder)

    async def serve(self, request: web.Request) -> web.Response:
        """Answers a request for a file; ``/`` is ``index.html``."""
        if self._watch:
            self._files = _read(self._folder)
        name = request.match_info["name"] or "index.html"
        file = self._files.get(name)
        if file is None:
            raise web.HTTPNotFound(text="There is no such page.\n", headers=HEADERS)
        headers = {hdrs.ETAG: file.tag, hdrs.CACHE_CONTROL: "no-cache", **HEADERS}
        if file.tag in [tag.strip() for tag in request.headers.get("If-None-Match", "").split(",")]:
            return web.Response(status=304, headers=headers)
        return web.Response(body=file.data, headers={hdrs.CONTENT_TYPE: file.kind, **headers})


def _read(folder: Path) -> dict[str, _File]:
    files = {}
    for path in sorted(folder.rglob("*")):
        kind = _TYPES.get(path.suffix)
        if kind is None or not path.is_file():
            continue
        data = path.read_bytes()
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        files[path.relative_to(folder).as_posix()] = _File(data, kind, tag)
    return files
