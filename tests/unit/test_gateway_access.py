"""Who may connect, how much they may use, and what of the page they get."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import jwt
import numpy as np
import pytest
import soundfile
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from minmo.rpc.process import StartError
from minmo.settings import GatewaySettings
from services.gateway import g711
from services.gateway.auth import CredentialsError, Gatekeeper, credential_of
from services.gateway.limits import Quotas, TokenBucket, TooManyConnectionsError
from services.gateway.page_files import FOLDER, HEADERS, Page

SECRET = "0123456789abcdef0123456789abcdef"


def keeper(*arguments: str) -> Gatekeeper:
    return Gatekeeper(GatewaySettings.parse("minmo-gateway", arguments))


def token(key: object = SECRET, algorithm: str = "HS256", **claims: object) -> str:
    payload = {"sub": "alice", "exp": time.time() + 60} | claims
    kept = {name: value for name, value in payload.items() if value is not None}
    return jwt.encode(kept, key, algorithm=algorithm)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


# --- keys


def test_without_keys_everybody_is_let_in_by_their_address() -> None:
    caller = keeper().admit(None, "10.0.0.1")
    assert (caller.name, caller.token) == ("address:10.0.0.1", "")
    assert keeper().admit("theirs", "10.0.0.1").token == "theirs"


def test_keys_come_from_the_token_and_from_a_file(tmp_path: Path) -> None:
    hashed = hashlib.sha256(b"hashed").hexdigest()
    file = tmp_path / "keys"
    file.write_text(f"# ours\nplain # Bob's\n\nsha256:{hashed}\n")
    found = keeper("--token", "one,two", "--api-keys-file", str(file))
    names = {found.admit(key, "x").name for key in ("one", "two", "plain", "hashed")}
    assert len(names) == 4
    assert not any(key in name for name in names for key in ("one", "two", "plain", "hashed"))
    assert found.admit("one", "x").token == "one"
    for wrong in (None, "three", "", "sha256:" + hashed, "plain # Bob's"):
        with pytest.raises(CredentialsError) as raised:
            found.admit(wrong, "x")
        assert "three" not in str(raised.value)


def test_the_upstream_token_takes_the_place_of_the_clients() -> None:
    found = keeper("--token", "one", "--upstream-token", "inner", "--upstream-ca", __file__)
    assert found.admit("one", "x").token == "inner"


@pytest.mark.parametrize("text", ["", "# nothing\n", "sha256:12\n", "a key\n"])
def test_a_file_without_usable_keys_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(StartError, match="keys"):
        keeper("--api-keys-file", str(file))


# --- tokens


def test_tokens_of_either_kind_name_their_subject(
    tmp_path: Path, rsa_key: rsa.RSAPrivateKey
) -> None:
    pem = tmp_path / "public.pem"
    pem.write_bytes(public_pem(rsa_key))
    found = keeper("--jwt-secret", SECRET, "--jwt-public-key", str(pem))
    for given in (token(), token(rsa_key, "RS256")):
        caller = found.admit(given, "x")
        assert caller.name == "sub:alice"
        # Sessions stay the subject's when the token is renewed.
        assert caller.token == found.admit(token(exp=time.time() + 99), "y").token
        assert "alice" not in caller.token


def test_tokens_that_prove_nothing_are_refused(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> None:
    pem = tmp_path / "public.pem"
    pem.write_bytes(public_pem(rsa_key))
    symmetric = keeper("--jwt-secret", SECRET, "--jwt-audience", "minmo", "--jwt-issuer", "us")
    good = {"aud": "minmo", "iss": "us"}
    assert symmetric.admit(token(**good), "x")
    wrong = [
        token(**good, exp=time.time() - 60),
        token(**good, exp=None),
        token(**good, sub=None),
        token(**good, sub=""),
        token(**good, sub="x" * 300),
        token(**good, nbf=time.time() + 60),
        token(**{**good, "aud": "other"}),
        token(**{**good, "iss": "other"}),
        token("another secret of enough bytes, yes", **good),
        token(None, "none", **good),
        token(**good)[:-4] + "AAAA",
        "a.b.c",
        "abc",
    ]
    for given in wrong:
        with pytest.raises(CredentialsError):
            symmetric.admit(given, "x")
    # The public key is known to all: it must not serve as a secret.
    header, payload = jwt.utils.base64url_encode(b'{"alg":"HS256"}'), token().split(".")[1]
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        header + b"." + payload.encode(), public_pem(rsa_key)
    )
    forged = b".".join((header, payload.encode(), jwt.utils.base64url_encode(signature))).decode()
    with pytest.raises(CredentialsError):
        keeper("--jwt-public-key", str(pem)).admit(forged, "x")


def test_keys_of_tokens_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="32 bytes") as raised:
        keeper("--jwt-secret", "short")
    assert "short " not in str(raised.value).replace("shorter", "")
    file = tmp_path / "pem"
    file.write_text("-----BEGIN PUBLIC KEY-----\nnone\n-----END PUBLIC KEY-----\n")
    with pytest.raises(StartError):
        keeper("--jwt-public-key", str(file))


@pytest.mark.parametrize(
    ("headers", "credential"),
    [
        ({}, None),
        ({"Authorization": "Bearer abc"}, "abc"),
        ({"Authorization": "bearer  abc "}, "abc"),
        ({"Sec-WebSocket-Protocol": "realtime"}, None),
        ({"Sec-WebSocket-Protocol": "realtime, openai-insecure-api-key.abc"}, "abc"),
    ],
)
def test_credentials_come_by_header_or_subprotocol(
    headers: dict[str, str], credential: str | None
) -> None:
    assert credential_of(headers) == credential


@pytest.mark.parametrize("value", ["Basic abc", "Bearer", "Bearer a b", "Bearer " + "x" * 9000])
def test_credentials_that_are_none_are_refused(value: str) -> None:
    with pytest.raises(CredentialsError):
        credential_of({"Authorization": value})


# --- limits


def test_a_bucket_refills_with_time() -> None:
    bucket = TokenBucket(2.0, 10.0, now=0.0)
    assert bucket.take(10, 0.0)
    assert not bucket.take(1, 0.4)
    assert bucket.take(1, 0.5)
    assert bucket.full_in(0.5) == pytest.approx(5.0)
    assert bucket.left(100.0) == 10


def test_a_bucket_says_how_long_a_debt_takes() -> None:
    bucket = TokenBucket(2.0, 1.0, now=0.0)
    assert bucket.owe(1, 0.0) == 0
    assert bucket.owe(1, 0.0) == pytest.approx(0.5)
    assert bucket.owe(1, 0.0) == pytest.approx(1.0)


def test_callers_have_connections_and_audio_of_their_own() -> None:
    quotas = Quotas(2, 3600)
    with quotas.connection("a", 0.0) as first, quotas.connection("a", 0.0) as second:
        assert first is second
        with pytest.raises(TooManyConnectionsError), quotas.connection("a", 0.0):
            pass
        with quotas.connection("b", 0.0) as other:
            assert other is not first
        first.take(3600, 0.0)
    with quotas.connection("a", 1.0) as again:
        # A new connection is no new quota.
        assert again.left(1.0) == pytest.approx(1.0)


# --- G.711


@pytest.mark.parametrize(("law", "subtype"), [("mu", "ULAW"), ("a", "ALAW")])
def test_g711_is_what_others_make_of_it(law: g711.Law, subtype: str, tmp_path: Path) -> None:
    file = tmp_path / "all.wav"
    codes = bytes(range(256))
    with soundfile.SoundFile(file, "w", 8000, 1, subtype=subtype, format="WAV") as written:
        written.write(np.frombuffer(g711.decode(law, codes), "<i2"))
    assert soundfile.read(file, dtype="int16")[0].tobytes() == g711.decode(law, codes)
    every = np.arange(-32768, 32768, dtype="<i2")
    back = np.frombuffer(g711.decode(law, g711.encode(law, every.tobytes())), "<i2")
    error = np.abs(back.astype(int) - every)
    # A step is a sixteenth of its segment: half of it is the most that is lost, but at the ends.
    inner = np.abs(every.astype(int)) < 32_000
    assert (error <= np.maximum(8, (np.abs(every.astype(int)) + 132) / 30))[inner].all()


# --- the page


def test_the_page_has_only_what_a_browser_may_get() -> None:
    page = Page(FOLDER)
    assert "index.html" in page._files
    assert all(not name.startswith((".", "/")) for name in page._files)
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe-inline" not in policy
    assert "http" not in policy
    assert "microphone=(self)" in HEADERS["Permissions-Policy"]
    for name, file in page._files.items():
        if name.endswith(".html"):
            text = file.data.decode()
            assert "<style" not in text
            assert "onclick=" not in text
            assert "//" not in text.replace("http://www.w3.org/", "")
