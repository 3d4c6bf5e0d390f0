"""Every setting of every MinMo process, typed, in one place.

A value comes from, in this order: a flag (``--drain-seconds 5``), an environment variable
(``MINMO_DRAIN_SECONDS=5``), the default written here. ``--help`` of a service lists all three.

To add a setting, add a field to the class of its service (or to `ServiceSettings` if every
service has it). Give it a description, a bound, and its unit in its name; flag, environment
variable and ``--help`` follow from that.

A service reads them once, in its ``main``::

    serve(EncoderSettings.load("minmo-encoder"), EncoderService)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    FilePath,
    PlainSerializer,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

ENV_PREFIX = "MINMO_"
EXIT_BAD_SETTINGS = 2

_ADDRESS = re.compile(
    r"(?:[^\s:/\[\]]+|\[[0-9a-fA-F:.%]+\]):\d{1,5}|(?:dns|ipv4|ipv6|unix|xds):\S+"
)
_PASSWORD = re.compile(r"(?<=://)\S*(?=@)|(?<=password=)[^&\s']*")


def _check_address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError("give host:port, [ipv6]:port or a gRPC target as in dns:///host:port")
    return text


def _check_redis_url(text: str) -> str:
    from minmo.rpc import redis_client

    redis_client.check_url(text)
    return text


def _check_tracing_endpoint(text: str) -> str:
    if not _ADDRESS.fullmatch(text.removeprefix("http://").removeprefix("https://").rstrip("/")):
        raise ValueError("give host:port, http://host:port or https://host:port")
    return text.rstrip("/")


def _check_token(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not (0 < len(text) <= 4096 and text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("a token is 1 to 4096 characters of printable ASCII without spaces")
    return secret


def _check_tokens(secret: SecretStr) -> SecretStr:
    if not all(secret.get_secret_value().split(",")):
        raise ValueError("one of the tokens is empty: give one, or several with a comma between")
    return secret


def _check_new_file(path: Path) -> Path:
    if not path.absolute().parent.is_dir():
        raise ValueError("its folder does not exist")
    return path


Address = Annotated[str, AfterValidator(_check_address)]
TracingEndpoint = Annotated[str, AfterValidator(_check_tracing_endpoint)]
RedisUrl = Annotated[
    str,
    AfterValidator(_check_redis_url),
    # The log of a process that starts has its settings.
    PlainSerializer(lambda url: _PASSWORD.sub("***", url), when_used="json"),
]
Token = Annotated[SecretStr, AfterValidator(_check_token)]
Tokens = Annotated[Token, AfterValidator(_check_tokens)]
NewFile = Annotated[Path, AfterValidator(_check_new_file)]


class SettingsError(Exception):
    """Settings are wrong; the text names the setting, the value, and what is allowed."""


class ServiceSettings(BaseSettings):
    """What every service has: where it listens, whom it lets in, what it takes, how it stops."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="ignore",
        frozen=True,
        cli_kebab_case=True,
        cli_show_env_vars=True,
        cli_hide_none_type=True,
        cli_implicit_flags=True,
        cli_parse_none_str="none",
    )

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(0, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(
        0,
        ge=-1,
        le=65535,
        description="port of Prometheus' /metrics; 0 takes a free one, -1 turns it off",
    )
    threads: int = Field(1, ge=1, le=256, description="threads that computation may use")
    token: Tokens | None = Field(
        None,
        description="API token that callers must send, or several separated by commas, whose "
        "sessions are then kept apart; prefer the environment variable",
    )
    tls_cert: FilePath | None = Field(None, description="PEM certificate chain; turns TLS on")
    tls_key: FilePath | None = Field(None, description="PEM private key of --tls-cert")
    tls_client_ca: FilePath | None = Field(
        None, description="PEM CA; callers must show a certificate that it signed (mutual TLS)"
    )
    max_message_bytes: int = Field(
        4 * 1024 * 1024, ge=1024, le=1024**3, description="largest message, either way"
    )
    max_streams: int = Field(64, ge=1, le=100_000, description="streams open at the same time")
    max_unary_calls: int = Field(
        256, ge=1, le=100_000, description="unary calls running at the same time"
    )
    keepalive_seconds: float = Field(
        10.0,
        ge=0.1,
        le=3600,
        description="time between pings to a silent peer, and time to wait for its answer",
    )
    max_connection_seconds: float = Field(
        10.0,
        ge=0.1,
        le=86_400,
        description="age at which a connection takes no new calls: clients then resolve the "
        "service's name again, and find new replicas; calls that run go on",
    )
    read_deadline_seconds: float = Field(
        10.0, gt=0, le=3600, description="longest wait for a caller that does not read answers"
    )
    drain_seconds: float = Field(
        10.0, ge=0, le=3600, description="time that running calls have to end after SIGTERM"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe level that is logged"
    )
    log_format: Literal["json", "console"] = Field("json", description="how log lines look")
    tracing_endpoint: TracingEndpoint | None = Field(
        None,
        description="OTLP gRPC address of an OpenTelemetry collector, as in collector:4317 or "
        "https://collector:4317 (TLS), which traces of turns are sent to; needs the extra tracing",
    )
    tracing_sample_rate: float = Field(
        1.0, ge=0, le=1, description="share of the turns that are traced"
    )
    ready_file: NewFile | None = Field(
        None, description="file that gets name, pid and addresses as JSON once the service is ready"
    )

    @property
    def tokens(self) -> list[str]:
        """The API tokens; none lets everybody in."""
        return self.token.get_secret_value().split(",") if self.token else []

    @model_validator(mode="after")
    def _tls_is_complete(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key go together: give both or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-client-ca needs --tls-cert and --tls-key")
        return self

    @classmethod
    def load(cls, program: str, arguments: Sequence[str] | None = None) -> Self:
        """Reads flags and environment; for the ``main`` of a process.

        Args:
            program: name that ``--help`` and messages show, as in ``minmo-encoder``.
            arguments: command line without the program; None takes ``sys.argv``.

        Bad settings print what is wrong to stderr and exit with status 2; ``--help`` exits with 0.
        """
        try:
            return cls.parse(program, sys.argv[1:] if arguments is None else arguments)
        except SettingsError as error:
            print(error, file=sys.stderr)
            raise SystemExit(EXIT_BAD_SETTINGS) from None

    @classmethod
    def parse(cls, program: str, arguments: Sequence[str]) -> Self:
        """Like `load`, but raises `SettingsError` for a bad value instead of exiting."""
        source: CliSettingsSource[None] = CliSettingsSource(
            cls,
            cli_prog_name=program,
            cli_parse_args=list(arguments),
            cli_exit_on_error=True,
        )
        try:
            return cls(_cli_settings_source=source)  # type: ignore[call-arg]
        except ValidationError as error:
            lines = [cls._explain(problem) for problem in error.errors()]
            raise SettingsError(f"{program}: bad settings\n  " + "\n  ".join(lines)) from None
        except SourceError as error:
            raise SettingsError(f"{program}: bad settings\n  {error}") from None

    @classmethod
    def _explain(cls, problem: ErrorDetails) -> str:
        message = problem["msg"].removeprefix("Value error, ")
        if not problem["loc"]:
            return message
        name = str(problem["loc"][0])
        flag, variable = f"--{name.replace('_', '-')}", f"{ENV_PREFIX}{name.upper()}"
        value = (
            "" if name.endswith("token") else f" is {_PASSWORD.sub('***', repr(problem['input']))}"
        )
        return f"{flag} ({variable}){value}: {message[:1].lower()}{message[1:]}"


class UpstreamSettings(ServiceSettings):
    """Of a service that calls other MinMo services."""

    upstream_ca: FilePath | None = Field(
        None, description="PEM CA of the upstream services; turns TLS on towards them"
    )
    upstream_cert: FilePath | None = Field(
        None, description="PEM certificate chain shown to upstream services (mutual TLS)"
    )
    upstream_key: FilePath | None = Field(None, description="PEM private key of --upstream-cert")
    upstream_token: Token | None = Field(
        None, description="API token sent to upstream services; prefer the environment variable"
    )

    @model_validator(mode="after")
    def _upstream_tls_is_complete(self) -> Self:
        if (self.upstream_cert is None) != (self.upstream_key is None):
            raise ValueError("--upstream-cert and --upstream-key go together: give both or neither")
        if self.upstream_cert is not None and self.upstream_ca is None:
            raise ValueError("--upstream-cert needs --upstream-ca")
        return self


class WeightsSettings(ServiceSettings):
    """Of a service that loads weights."""

    wait_for_weights: bool = Field(
        True,
        description="whether a service whose weights are missing, or do not fit the preset, stays "
        "and tries again, not ready meanwhile; else it ends",
    )


class ComputeSettings(WeightsSettings):
    """Of a service that computes."""

    max_compute_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="longest computation; one that runs on makes the service not ready",
    )


class EncoderSettings(ComputeSettings):
    """The encoder: PCM in, speech embeddings, voice activity and words out."""

    preset: str = Field("mini", min_length=1, description="preset whose encoder is loaded")
    preload: Literal["all", "words", "embeddings"] = Field(
        "all",
        description="what is loaded at the start: what recognises words, as the cascade asks for, "
        "what makes speech embeddings, as aligned mode does, or all that the preset has; the rest "
        "is loaded when it is first asked for",
    )
    max_segment_seconds: float = Field(
        30.0, gt=0, le=600, description="longest stretch of speech that is recognised in one piece"
    )
    max_buffer_seconds: float = Field(
        60.0, gt=0, le=3600, description="most audio that one stream may have waiting"
    )
    max_chunk_bytes: int = Field(
        1024 * 1024, ge=1024, le=64 * 1024**2, description="largest chunk of audio"
    )
    max_chunk_seconds: float = Field(5.0, gt=0, le=60, description="longest chunk of audio")
    config_deadline_seconds: float = Field(
        10.0, gt=0, le=3600, description="longest wait for the first message of a stream"
    )
    idle_deadline_seconds: float = Field(
        600.0, gt=0, le=86_400, description="longest wait for the next message of a stream"
    )
    vad_threshold: float = Field(
        0.5, gt=0, lt=1, description="probability from which a frame counts as speech"
    )


class LlmSettings(WeightsSettings):
    """The LLM's gRPC front: sessions and branches, in front of Triton."""

    preset: str = Field("mini", min_length=1, description="preset whose LLM Triton hosts")
    triton_address: Address = Field("127.0.0.1:8001", description="gRPC address of Triton")
    request_deadline_seconds: float = Field(
        60.0, gt=0, le=3600, description="longest wait for Triton while operations run"
    )
    max_operations: int = Field(
        128, ge=1, le=100_000, description="operations of one stream that run at the same time"
    )
    max_text_characters: int = Field(
        20_000, ge=1, le=1_000_000, description="longest text of one part of a prompt"
    )


class LlmModelSettings(BaseSettings):
    """The LLM inside Triton; environment variables only, as in ``MINMO_LLM_SLOTS=32``."""

    model_config = SettingsConfigDict(env_prefix=f"{ENV_PREFIX}LLM_", extra="ignore", frozen=True)

    preset: str = Field("mini", min_length=1, description="preset whose LLM is loaded")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="number type of weights and cache; auto takes the faster one"
    )
    slots: int = Field(16, ge=1, le=4096, description="branches that are held at once")
    context: int = Field(2048, ge=16, le=131_072, description="positions that a branch can hold")
    threads: int = Field(1, ge=1, le=256, description="threads that computation may use")
    max_tokens: int = Field(1024, ge=1, le=131_072, description="longest generation")
    max_pending: int = Field(
        256, ge=1, le=100_000, description="operations that may wait or run at once"
    )
    idle_seconds: float = Field(
        600.0, gt=0, le=86_400, description="time after which an unused session's cache is freed"
    )


class VoiceDecoderSettings(ComputeSettings):
    """The voice decoder: text tokens and hidden states in, PCM out."""

    preset: str = Field("mini", min_length=1, description="preset whose voice is loaded")
    voice: Literal["auto", "pico", "neural"] = Field(
        "auto",
        description="who speaks: SVOX Pico, the preset's own network, or the network where its "
        "weights and a speaker are there and Pico otherwise",
    )
    speaker: FilePath | None = Field(
        None,
        description="safetensors file of the only speaker of the network; by default all that the "
        "preset has in MINMO_HOME/weights/PRESET/speakers, the one called default first",
    )
    random_weights: bool = Field(
        False, description="untrained weights of the network and nobody's voice, to measure"
    )
    hidden_states: bool = Field(
        True,
        description="whether callers send the LLM's hidden states, as the orchestrator does to a "
        "voice that reads them; without, --voice auto takes the network only if it reads text by "
        "a table of its own",
    )
    slots: int = Field(4, ge=1, le=4096, description="utterances that the network computes at once")
    context: int = Field(
        2048, ge=64, le=131_072, description="positions of the voice token LM for each of them"
    )
    lanes: int = Field(
        0,
        ge=0,
        le=4096,
        description="slots whose audio is computed together, a divisor of --slots; 0 takes one on "
        "a CPU and all on a GPU. More on a CPU serve more people, with other last bits",
    )
    max_waiting: int = Field(
        16, ge=0, le=100_000, description="further utterances that may wait for a slot"
    )
    slot_deadline_seconds: float = Field(
        5.0, gt=0, le=3600, description="longest wait of an utterance for a slot"
    )
    max_text_characters: int = Field(
        2000, ge=1, le=100_000, description="longest text of one utterance"
    )
    config_deadline_seconds: float = Field(
        10.0, gt=0, le=3600, description="longest wait for the configuration of a stream"
    )
    text_deadline_seconds: float = Field(
        60.0, gt=0, le=3600, description="longest wait for a stream's next tokens or their end"
    )
    read_deadline_seconds: float = Field(
        60.0, gt=0, le=3600, description="longest time that a caller may leave audio unread"
    )


class OrchestratorSettings(UpstreamSettings):
    """The orchestrator: the conversation and the public API."""

    max_message_bytes: int = Field(
        32 * 1024 * 1024, ge=1024, le=1024**3, description="largest message, either way"
    )
    encoder_address: Address = Field("127.0.0.1:7101", description="gRPC address of the encoder")
    llm_address: Address = Field("127.0.0.1:7102", description="gRPC address of the LLM service")
    voice_decoder_address: Address = Field(
        "127.0.0.1:7103", description="gRPC address of the voice decoder"
    )
    redis_url: RedisUrl = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis, which holds the sessions: redis://host:port/database, or "
        "redis+sentinel://host:port,host:port/MASTER/database; rediss is TLS",
    )
    mode: Literal["cascade", "aligned"] = Field(
        "cascade",
        description="cascade: recognised text to the LLM, its text to the voice; aligned: speech "
        "embeddings and hidden states, which takes an encoder with aligned weights",
    )
    end_of_turn_silence_ms: int = Field(
        500, ge=100, le=10_000, description="silence after which the user's turn has ended"
    )
    longest_silence_ms: int = Field(
        3000,
        ge=100,
        le=30_000,
        description="silence after which the user's turn is answered, whatever the full-duplex "
        "predictor says",
    )
    predictor_late_ms: int = Field(
        800,
        ge=150,
        le=60_000,
        description="audio without an answer of the full-duplex predictor after which voice "
        "activity decides in its place",
    )
    barge_in_ms: int = Field(
        200, ge=0, le=10_000, description="speech over the answer that stops the answer"
    )
    session_ttl_seconds: int = Field(
        86_400, ge=60, le=31_536_000, description="time after which an unused session is forgotten"
    )
    max_turn_seconds: float = Field(120.0, gt=0, le=3600, description="longest turn of the user")
    max_sessions_per_owner: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="sessions that one owner may keep; for one more, that is forgotten which was "
        "not used for longest, if for a minute at least",
    )
    max_turns: int = Field(
        10_000,
        ge=1,
        le=10_000_000,
        description="turns after which a session takes no more requests",
    )
    encoder_deadline_seconds: float = Field(
        10.0, gt=0, le=3600, description="longest wait for the encoder's next answer"
    )
    llm_deadline_seconds: float = Field(
        20.0, gt=0, le=3600, description="longest wait for the LLM's next token"
    )
    voice_decoder_deadline_seconds: float = Field(
        10.0, gt=0, le=3600, description="longest wait for the voice decoder's next audio"
    )
    recovery_seconds: float = Field(
        45.0, gt=0, le=3600, description="longest try to get a lost LLM back before an answer fails"
    )
    store_deadline_seconds: float = Field(
        15.0, gt=0, le=3600, description="longest wait for Redis, a restart of it included"
    )
    config_deadline_seconds: float = Field(
        10.0, gt=0, le=3600, description="longest wait for the first message of a stream"
    )
    one_shot_deadline_seconds: float = Field(
        120.0, gt=0, le=3600, description="longest time that one Say may take"
    )
    max_frame_seconds: float = Field(
        5.0, gt=0, le=60, description="longest audio in one message of a conversation"
    )
    max_say_characters: int = Field(2000, ge=1, le=100_000, description="longest text of one Say")
    max_transcribe_seconds: float = Field(
        600.0, gt=0, le=36_000, description="longest recording of one Transcribe"
    )
    system_prompt: str = Field(
        "You are a helpful voice assistant. Answer in one or two short spoken sentences.",
        min_length=1,
        max_length=8000,
        description="what the LLM is told before the first turn",
    )
    max_answer_tokens: int = Field(
        120, ge=1, le=8192, description="most tokens of one answer of the LLM"
    )


class GatewaySettings(UpstreamSettings):
    """The gateway: the page, and OpenAI's Realtime protocol over WebSocket."""

    port: int = Field(8080, ge=0, le=65535, description="HTTP port; 0 takes a free one")
    max_message_bytes: int = Field(
        15 * 1024 * 1024,
        ge=1024,
        le=256 * 1024**2,
        description="largest event of a client; larger ones are answered with an error, those of "
        "more than twice the size end the connection",
    )
    max_streams: int = Field(
        1000, ge=1, le=100_000, description="connections open at the same time"
    )
    orchestrator_address: Address = Field(
        "127.0.0.1:7100", description="gRPC address of the orchestrator"
    )
    api_keys_file: FilePath | None = Field(
        None,
        description="file with an API key in each line, besides those of --token; a line "
        "sha256:HEX holds the hash of one; # begins a comment",
    )
    jwt_secret: SecretStr | None = Field(
        None,
        description="secret of HS256 tokens, at least 32 bytes; prefer the environment variable",
    )
    jwt_public_key: FilePath | None = Field(None, description="PEM public key of RS256 tokens")
    jwt_audience: str | None = Field(None, min_length=1, description="aud that tokens must have")
    jwt_issuer: str | None = Field(None, min_length=1, description="iss that tokens must have")
    allowed_origins: str = Field(
        "",
        description="origins of other sites whose pages may connect, as in https://a.example, "
        "separated by commas; * lets all in. Pages of the gateway's own origin always may",
    )
    max_sessions_per_key: int = Field(
        100, ge=1, le=100_000, description="connections that one key (or address) may have"
    )
    audio_seconds_per_hour: int = Field(
        36_000,
        ge=1,
        le=100_000_000,
        description="audio that one key (or address) may send in an hour, in seconds",
    )
    max_messages_per_second: int = Field(
        250, ge=1, le=100_000, description="events of one client a second; more are slowed down"
    )
    flood_seconds: float = Field(
        10.0, gt=0, le=3600, description="time after which a client that sends more is cut off"
    )
    idle_seconds: float = Field(
        900.0, gt=0, le=86_400, description="longest time without an event of the client"
    )
    max_session_seconds: float = Field(
        3600.0, gt=0, le=86_400, description="longest time of one connection"
    )
    max_lead_seconds: float = Field(
        8.0,
        ge=0.2,
        le=600,
        description="audio that is sent ahead of its playback; the rest follows as it is played",
    )
    connect_deadline_seconds: float = Field(
        10.0, gt=0, le=3600, description="longest wait for the orchestrator to open a session"
    )
    reconnect_seconds: float = Field(
        30.0, gt=0, le=3600, description="longest time that a lost orchestrator is looked for"
    )
    transcribe_deadline_seconds: float = Field(
        30.0, gt=0, le=3600, description="longest recognition of an item's recorded audio"
    )
