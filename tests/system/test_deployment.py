"""The rendered Kubernetes manifests, run: their commands, settings, users, volumes, ports, probes.

`tests.pods` says what is a cluster's here and what is not.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import numpy as np
import pytest
import pytest_asyncio
import redis.asyncio
import trustme

from minmo import weights
from minmo.audio.pcm import PcmFormat, Samples
from minmo.client import Conversation, Recording, Target, sessions
from minmo.client.events import TurnReport
from minmo.rpc.errors import parse
from minmo.v1 import common_pb2
from tests.pods import Node, Pod
from tests.rendered import Rendered, render
from tests.system.conftest import (
    QUESTION,
    QUESTION_TEXT,
    SAME_LOOP,
    normal,
    recognise,
    word_error_rate,
)
from tests.system.test_conversation import collect

pytestmark = SAME_LOOP

TOKEN = "a-token-of-a-client"
SECRETS = {
    "minmo-tokens": {"tokens": f"another,{TOKEN}"},
    "minmo-internal": {"tokens": "inside", "token": "inside"},
    "minmo-redis": {"password": "p4ssw0rd", "users.acl": "user default on >p4ssw0rd ~* &* +@all"},
}
READY_SECONDS = 60.0
RATE_HZ = 24_000


class Cluster:
    """A node with pods of all services.

    Args:
        node: where they run.
        replicas: more than one of a workload.
    """

    def __init__(self, node: Node, replicas: dict[str, int] | None = None) -> None:
        self.node = node
        names = [item["metadata"]["name"] for item in node.rendered.workloads()]
        wanted = {name: (replicas or {}).get(name, 1) for name in names}
        self.pods = [node.pod(name, i) for name, count in wanted.items() for i in range(count)]

    async def start(self) -> Cluster:
        """Starts them all at once, in no order, and waits until they are ready."""
        await asyncio.gather(*(pod.start() for pod in self.pods))
        await asyncio.gather(*(pod.wait_ready(READY_SECONDS) for pod in self.pods))
        return self

    def of(self, workload: str) -> list[Pod]:
        """The pods of a workload."""
        return [pod for pod in self.pods if pod.workload["metadata"]["name"] == workload]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sentinels(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[asyncio.Task[list[Pod]]]:
    """Three Redis with sentinels, which start while the rest does: they mostly wait."""
    rendered = render("cpu", ("redis-sentinel",))
    async with Node.running(rendered, SECRETS, tmp_path_factory.mktemp("node")) as node:
        starting = asyncio.create_task(start_in_order(node))
        yield starting
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(
    tmp_path_factory: pytest.TempPathFactory, sentinels: object
) -> AsyncIterator[Cluster]:
    """The overlay for CPUs, with two orchestrators."""
    weights.ensure("mini")
    folder = tmp_path_factory.mktemp("node")
    async with Node.running(render("cpu"), SECRETS, folder) as node:
        cluster = Cluster(node, {"orchestrator": 2})
        await cluster.start()
        yield cluster


def certificates(rendered: Rendered, ca: trustme.CA) -> dict[str, dict[str, str]]:
    """The Secrets that cert-manager would make."""
    made = {}
    for item in rendered.of_kind("Certificate"):
        if item["spec"].get("isCA"):
            continue
        issued = ca.issue_cert(*item["spec"]["dnsNames"])
        made[item["spec"]["secretName"]] = {
            "tls.crt": b"".join(part.bytes() for part in issued.cert_chain_pems).decode(),
            "tls.key": issued.private_key_pem.bytes().decode(),
            "ca.crt": ca.cert_pem.bytes().decode(),
        }
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def secured(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[asyncio.Task[Cluster]]:
    """All services with certificates, which start while a test waits for something else."""
    rendered = render("cpu", ("tls", "tracing", "weights-prefilled"))
    ca, folder = trustme.CA(), tmp_path_factory.mktemp("node")
    secrets = SECRETS | certificates(rendered, ca)
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    async with Node.running(rendered, secrets, folder) as node:
        cluster = Cluster(node)
        starting = asyncio.create_task(cluster.start())
        yield starting
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


@pytest.fixture
def target(cluster: Cluster) -> Target:
    """The public gRPC API."""
    return Target(cluster.node.target("orchestrator-public", 7100), TOKEN)


async def speak(url: str, tls: ssl.SSLContext | None = None) -> tuple[str, str, Samples]:
    """Says the question to a gateway; returns what it understood, what it answered, and the audio.

    Raises:
        TimeoutError: no answer came.
    """
    headers = {"Authorization": f"Bearer {TOKEN}"}
    question = Recording.read(QUESTION).at_rate(RATE_HZ).samples
    silence = np.zeros(RATE_HZ, np.float32)
    pcm = PcmFormat(RATE_HZ).encode(np.concatenate([question, silence]))
    asked = said = ""
    audio = b""
    async with (
        asyncio.timeout(30),
        aiohttp.ClientSession(headers=headers) as http,
        http.ws_connect(url, ssl=tls or True, max_msg_size=0) as socket,
    ):
        transcription = {"input": {"transcription": {"model": "any"}}}
        session = {"type": "realtime", "audio": transcription}
        await socket.send_json({"type": "session.update", "session": session})
        for start in range(0, len(pcm), RATE_HZ):
            piece = base64.b64encode(pcm[start : start + RATE_HZ]).decode()
            await socket.send_json({"type": "input_audio_buffer.append", "audio": piece})
        while True:
            event = json.loads(await socket.receive_str())
            match event:
                case {"type": "conversation.item.input_audio_transcription.completed"}:
                    asked = event["transcript"]
                case {"type": "response.output_audio.delta"}:
                    audio += base64.b64decode(event["delta"])
                case {"type": "response.output_audio_transcript.done"}:
                    said = event["transcript"]
                case {"type": "response.done"}:
                    assert event["response"]["status"] == "completed", event
                    return asked, said, PcmFormat(RATE_HZ).decode(audio)
                case {"type": "error"}:
                    raise AssertionError(event)


async def test_a_question_is_spoken_through_the_gateway_and_answered(
    cluster: Cluster, target: Target
) -> None:
    (gateway,) = cluster.of("gateway")
    asked, said, audio = await speak(f"http://{gateway.address}:8080/v1/realtime")
    assert word_error_rate(QUESTION_TEXT, asked) <= 0.2
    assert word_error_rate(said, await recognise(target, audio, RATE_HZ)) <= 0.3


async def test_nobody_is_let_in_without_a_token(cluster: Cluster) -> None:
    for service, port, method in (
        ("orchestrator-public", 7100, "ConversationService/GetSession"),
        ("llm", 7102, "LlmService/GetModel"),
    ):
        stranger = Target(cluster.node.target(service, port), "guessed")
        assert await refused(stranger, method) is grpc.StatusCode.UNAUTHENTICATED
    (gateway,) = cluster.of("gateway")
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://{gateway.address}:8080/v1/realtime") as answer,
    ):
        assert answer.status == 401


async def refused(stranger: Target, method: str) -> grpc.StatusCode:
    """Calls, and returns why it was not let."""
    async with stranger.channel() as channel:
        call = channel.unary_unary(f"/minmo.v1.{method}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=5)
    return parse(caught.value).code


async def test_triton_tells_the_world_its_health_alone(cluster: Cluster) -> None:
    (llm,) = cluster.of("llm")
    async with aiohttp.ClientSession() as http:
        for path, status in (("/health/ready", 200), ("/models/llm/stats", 403), ("", 403)):
            async with http.get(f"http://{llm.address}:8000/v2{path}") as answer:
                assert answer.status == status, path
        async with http.get(f"http://{llm.address}:8002/metrics") as answer:
            assert "minmo_llm_slots" in await answer.text()
    with pytest.raises(OSError):
        await asyncio.open_connection(llm.address, 8001)


async def test_a_container_can_write_to_its_volumes_alone(cluster: Cluster) -> None:
    (encoder,) = cluster.of("encoder")
    container = encoder.container("encoder")
    for path, status in (("/tmp/x", 0), ("/x", 2), ("/var/lib/minmo/x", 2), ("/opt/minmo/x", 2)):
        assert await container.execute(["sh", "-c", f": >{path}"]) == status, path
    assert await container.execute(["sh", "-c", 'test "$(id -u)" = 10001']) == 0


async def sessions_of(pod: Pod) -> float:
    """Sessions that an orchestrator has open."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"http://{pod.address}:9464/metrics") as answer,
    ):
        for line in (await answer.text()).splitlines():
            if line.startswith("minmo_sessions_open "):
                return float(line.split()[1])
    raise AssertionError("an orchestrator says how many sessions it has")


async def test_a_conversation_outlives_its_orchestrators_pod(
    cluster: Cluster, target: Target
) -> None:
    async with Conversation(target, input_rate_hz=16_000, speed=4) as conversation:
        await conversation.send_text("What is the capital of France?")
        await collect(conversation, TurnReport)
        counts = {pod: await sessions_of(pod) for pod in cluster.of("orchestrator")}
        (pod,) = [pod for pod, count in counts.items() if count == 1]
        stopping = asyncio.create_task(pod.stop())
        # While its callers learn that it goes it still serves.
        await conversation.send_text("What is the capital of Italy?")
        await collect(conversation, TurnReport)
        seconds = await stopping
        cluster.pods.remove(pod)
        await conversation.send_text("What is the capital of Spain?")
        await collect(conversation, TurnReport)
        session = await sessions.get_session(target, conversation.session_id)
    roles = [common_pb2.ROLE_USER, common_pb2.ROLE_ASSISTANT] * 3
    assert [turn.role for turn in session.turns] == roles
    assert all(normal(turn.text) for turn in session.turns)
    # Nobody waited for the conversation to end: it moved.
    assert seconds < 20


async def test_what_needs_redis_waits_for_it_and_is_not_started_again(
    cluster: Cluster, target: Target, secured: object
) -> None:
    (orchestrator,), (gateway,) = cluster.of("orchestrator"), cluster.of("gateway")
    processes = [pod.containers[0].process for pod in (orchestrator, gateway)]
    async with Conversation(target, input_rate_hz=16_000, speed=4) as conversation:
        await conversation.send_text("What is the capital of France?")
        await collect(conversation, TurnReport)
        session_id = conversation.session_id
    (redis,) = cluster.of("redis")
    await redis.stop()
    await orchestrator.wait_not_ready(15)
    await gateway.wait_not_ready(15)
    # The claim of a StatefulSet's pod is that of its name.
    again = cluster.node.pod("redis")
    await again.start()
    await asyncio.gather(*(pod.wait_ready(20) for pod in (again, orchestrator, gateway)))
    session = await sessions.get_session(target, session_id)
    assert len(session.turns) == 2
    for pod, process in zip((orchestrator, gateway), processes, strict=True):
        assert pod.containers[0].process is process
        assert process is not None
        assert process.returncode is None


# --- with certificates


async def test_services_that_show_each_other_certificates_hold_a_conversation(
    secured: asyncio.Task[Cluster],
) -> None:
    cluster = await secured
    (gateway,), (orchestrator,) = cluster.of("gateway"), cluster.of("orchestrator")
    ca_file = cluster.node.folder.parent / "ca.pem"
    tls = ssl.create_default_context(cafile=ca_file)
    # The name is that of the Service, the address that of a pod.
    tls.check_hostname = False
    asked, said, audio = await speak(f"https://{gateway.address}:8080/v1/realtime", tls)
    assert word_error_rate(QUESTION_TEXT, asked) <= 0.2
    assert said
    assert len(audio) > RATE_HZ // 2
    # Who shows no certificate is not let in, whatever its token is.
    stranger = Target(f"{orchestrator.address}:7100", TOKEN, tls_ca=ca_file)
    reason = await refused(stranger, "ConversationService/GetSession")
    assert reason is grpc.StatusCode.UNAVAILABLE


# --- with sentinels

COUNT = """
import asyncio, os
from minmo.rpc.redis_client import connect

async def count():
    client = connect(os.environ["MINMO_REDIS_URL"])
    await client.incr("written")
    # Another has it too.
    assert await client.wait(1, 2000) >= 1
    await client.aclose()

asyncio.run(count())
"""
"""Writes as the orchestrator does, with its settings."""


async def asked(pod: Pod, port: int, *command: str) -> Any:
    """What a Redis, or a sentinel, answers."""
    async with redis.asyncio.Redis(
        host=pod.address, port=port, password="p4ssw0rd", decode_responses=True
    ) as client:
        return await client.execute_command(*command)


async def start_redis(pod: Pod) -> None:
    """Starts a Redis with its sentinel, which learns of others in less than its ten seconds."""
    await pod.start()
    await pod.wait_ready(20)
    await asked(pod, 26379, "SENTINEL", "DEBUG", "INFO-PERIOD", "500")


async def master_of(pods: list[Pod], seconds: float) -> Pod:
    """The master, once all sentinels agree, know each other, and the others follow it."""
    known = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                known = [await asked(pod, 26379, "SENTINEL", "MASTER", "minmo") for pod in pods]
                named = {state["ip"] for state in known}
                aware = {int(state["num-slaves"]) >= len(pods) - 1 for state in known}
                for pod in pods:
                    if named == {f"{pod.name}.redis"} and aware == {True}:
                        role, _, replicas = await asked(pod, 6379, "ROLE")
                        if role == "master" and len(replicas) == len(pods) - 1:
                            return pod
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(known) from None


async def start_in_order(node: Node) -> list[Pod]:
    """The pods of a StatefulSet: each waits for the one before it."""
    pods = [node.pod("redis", ordinal) for ordinal in range(3)]
    for pod in pods:
        await start_redis(pod)
    return pods


async def test_redis_with_sentinels_outlives_its_master(
    sentinels: asyncio.Task[list[Pod]],
) -> None:
    pods = await sentinels
    node = pods[0].node
    caller, count = node.pod("orchestrator"), ("python", "-c", COUNT)
    first = await master_of(pods, 20)
    assert first is pods[0]
    await caller.run("orchestrator", *count)
    # A pod that is asked to go hands over before it does.
    assert await first.stop() < 15
    second = await master_of(pods[1:], 10)
    await caller.run("orchestrator", *count)
    pods[0] = node.pod("redis", 0)
    await start_redis(pods[0])
    assert await master_of(pods, 20) is second
    # One that dies is missed.
    await second.remove()
    third = await master_of([pod for pod in pods if pod is not second], 20)
    await caller.run("orchestrator", *count)
    assert await asked(third, 6379, "GET", "written") == "3"
