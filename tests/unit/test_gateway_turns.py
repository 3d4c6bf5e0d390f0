"""Whatever user, client and models do, every question gets its answer and every answer its end."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.realtime_protocol import Protocol
from tests.unit.gateway_orchestrator import WORDS, Orchestrator
from tests.unit.gateway_states import Dialogue


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(0, 60))
def test_no_answer_is_lost_whatever_happens_when(data: st.DataObject, steps: int) -> None:
    dialogue = Dialogue(audio={"input": {"transcription": {"model": "x"}}})
    orchestrator = Orchestrator(dialogue)
    for _ in range(steps):
        orchestrator.do(data.draw(st.sampled_from(orchestrator.possible)))
    orchestrator.settle()

    protocol = Protocol(has_ids=False)
    texts: dict[str, str] = defaultdict(str)
    ended: dict[str, str] = {}
    transcribed, committed, deleted = set(), set(), set()
    for event in dialogue.events:
        assert protocol.take(event) == []
        match event["type"]:
            case "response.done":
                ended[event["response"]["id"]] = event["response"]["status"]
            case "response.output_audio_transcript.delta":
                texts[event["response_id"]] += event["delta"]
            case "input_audio_buffer.committed":
                committed.add(event["item_id"])
            case "conversation.item.input_audio_transcription.completed":
                transcribed.add(event["item_id"])
            case "conversation.item.deleted":
                deleted.add(event["item_id"])
    assert not protocol.open_response
    # What was told to its end came to its end at the client, whole.
    whole = [text for answer, text in texts.items() if ended[answer] == "completed"]
    assert whole.count("".join(WORDS)) >= len(orchestrator.told)
    assert len(ended) >= orchestrator.answered
    state = dialogue.state
    open_turns = {item.item_id for item in state.committed}
    assert len(open_turns) <= orchestrator.unfinished
    assert committed <= transcribed | deleted | open_turns
    assert (state.unheard, state.held_back, state.answer) == (None, None, None)
    assert not state.pending
