"""Who may connect: API keys, and JSON Web Tokens."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jwt

from minmo.rpc.process import StartError
from minmo.settings import GatewaySettings

SUBPROTOCOL = "realtime"
_KEY_SUBPROTOCOL = "openai-insecure-api-key."
_MIN_SECRET_BYTES = 32
_MAX_CREDENTIAL_CHARACTERS = 8192
_MAX_SUBJECT_CHARACTERS = 256
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_LEEWAY_SECONDS = 10


@dataclass(frozen=True)
class Caller:
    """Who is connected.

    Attributes:
        name: key of the limits; no secret.
        token: what the orchestrator is shown; empty shows nothing.
    """

    name: str
    token: str = ""


class CredentialsError(Exception):
    """The caller is not let in; the text says why, without what was sent."""


class Gatekeeper:
    """Knows who may connect.

    With neither keys nor JWT everybody may, and an address has the limits of a key.

    Args:
        settings: of the gateway.

    Raises:
        StartError: a file of keys cannot be read or used.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self._hashes = {_hash(token) for token in settings.tokens}
        if settings.api_keys_file is not None:
            self._hashes |= _read_keys(settings.api_keys_file)
        self._verifiers = _verifiers(settings)
        self._audience = settings.jwt_audience
        self._issuer = settings.jwt_issuer
        upstream = settings.upstream_token
        self._upstream_token = upstream.get_secret_value() if upstream is not None else ""

    @property
    def open(self) -> bool:
        """Whether everybody is let in."""
        return not (self._hashes or self._verifiers)

    def admit(self, credential: str | None, address: str) -> Caller:
        """Who it is.

        Args:
            credential: that was sent; None for none.
            address: where the caller is.

        Raises:
            CredentialsError: the caller may not connect.
        """
        if self.open:
            # What is sent may still be what the orchestrator asks for.
            return Caller(f"address:{address}", self._upstream_token or credential or "")
        if credential is None:
            raise CredentialsError(
                "You did not provide an API key. Send it as 'Authorization: Bearer KEY', or as the "
                f"WebSocket subprotocol '{_KEY_SUBPROTOCOL}KEY' beside '{SUBPROTOCOL}'."
            )
        given = _hash(credential)
        if given in self._hashes:
            return Caller(f"key:{given[:24]}", self._upstream_token or credential)
        subject = self._subject(credential)
        # A token changes whenever it is renewed; sessions belong to its subject.
        return Caller(f"sub:{subject}", self._upstream_token or f"sub-{_hash(subject)}")

    def _subject(self, token: str) -> str:
        if not self._verifiers or token.count(".") != 2:
            raise CredentialsError("Incorrect API key provided.")
        why: Exception | None = None
        for algorithm, key in self._verifiers.items():
            try:
                claims = jwt.decode(
                    token,
                    key,
                    algorithms=[algorithm],
                    audience=self._audience,
                    issuer=self._issuer,
                    leeway=_LEEWAY_SECONDS,
                    options={"require": ["exp", "sub"], "verify_aud": self._audience is not None},
                )
            except jwt.PyJWTError as error:
                why = error
                continue
            subject = claims["sub"]
            if 0 < len(subject) <= _MAX_SUBJECT_CHARACTERS:
                return str(subject)
            raise CredentialsError("The token's subject is empty or too long.")
        if isinstance(why, jwt.ExpiredSignatureError):
            raise CredentialsError("The token has expired: get a new one.")
        raise CredentialsError("The token is not valid here.")


def credential_of(headers: Mapping[str, str]) -> str | None:
    """What the caller has sent to show who it is; None for nothing.

    Raises:
        CredentialsError: what was sent is none.
    """
    if (authorization := headers.get("Authorization")) is not None:
        scheme, _, credential = authorization.partition(" ")
        if scheme.lower() != "bearer" or not credential.strip():
            raise CredentialsError("Send the API key as 'Authorization: Bearer KEY'.")
        return _checked(credential.strip())
    for name in headers.get("Sec-WebSocket-Protocol", "").split(","):
        if name.strip().startswith(_KEY_SUBPROTOCOL):
            return _checked(name.strip().removeprefix(_KEY_SUBPROTOCOL))
    return None


def _checked(credential: str) -> str:
    printable = credential.isascii() and credential.isprintable() and " " not in credential
    if not (printable and 0 < len(credential) <= _MAX_CREDENTIAL_CHARACTERS):
        raise CredentialsError("The API key has characters that no key has, or is too long.")
    return credential


def _verifiers(settings: GatewaySettings) -> dict[str, str]:
    """Keys that tokens are checked with, by algorithm: one key never serves two."""
    made: dict[str, str] = {}
    if settings.jwt_secret is not None:
        secret = settings.jwt_secret.get_secret_value()
        if len(secret.encode()) < _MIN_SECRET_BYTES:
            raise StartError(
                f"--jwt-secret (MINMO_JWT_SECRET) is shorter than {_MIN_SECRET_BYTES} bytes"
            )
        made["HS256"] = secret
    if settings.jwt_public_key is not None:
        text = _read(settings.jwt_public_key)
        if "PUBLIC KEY" not in text and "CERTIFICATE" not in text:
            raise StartError(f"{settings.jwt_public_key} holds no PEM public key")
        try:
            jwt.get_algorithm_by_name("RS256").prepare_key(text)
        except (jwt.PyJWTError, NotImplementedError, ValueError, TypeError) as error:
            raise StartError(f"{settings.jwt_public_key} cannot be used: {error}") from None
        made["RS256"] = text
    return made


def _read_keys(path: Path) -> set[str]:
    hashes = set()
    for number, line in enumerate(_read(path).splitlines(), 1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        if text.startswith("sha256:"):
            match = _HASH.fullmatch(text)
            if match is None:
                raise StartError(f"{path}, line {number}: sha256: is followed by 64 hex digits")
            hashes.add(match[1])
            continue
        try:
            hashes.add(_hash(_checked(text)))
        except CredentialsError:
            raise StartError(f"{path}, line {number}: a key is printable ASCII") from None
    if not hashes:
        raise StartError(f"{path} holds no key")
    return hashes


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{path} cannot be read: {error}") from None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
