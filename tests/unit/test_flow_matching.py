"""Flow matching: CosyVoice 2's, whole or chunk by chunk, and what trains it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minmo.model.chunking import Chunking
from minmo.model.flow_matching import FlowMatching, FlowMatchingConfig, FlowMatchingState
from minmo.model.flow_matching_loss import flow_matching_loss, random_chunking
from minmo.model.flow_names import from_cosyvoice
from tests.unit.flow_matching_sizes import PUBLISHED, TINY, random_flow
from tests.unit.published_flow import published_flow

CLOSE = {"atol": 3e-5, "rtol": 0.0}


@pytest.mark.parametrize("config", PUBLISHED)
@pytest.mark.parametrize("prompt_tokens", [0, 8])
@torch.inference_mode()
def test_one_chunk_over_everything_makes_the_published_mel(
    config: FlowMatchingConfig, prompt_tokens: int
) -> None:
    theirs, ours = published_flow(config), random_flow(replace(config, solver_steps=10))
    ours.load_state_dict(from_cosyvoice(theirs.state_dict()))
    tokens = torch.randint(config.speech_tokens, (1, 29))
    speaker = torch.randn(1, config.speaker_width)
    prompt_mel = torch.randn(1, 2 * prompt_tokens, config.mel_bins)
    noise = torch.randn(1, 58, config.mel_bins)
    expected, _ = theirs.inference(
        token=tokens[:, prompt_tokens:],
        token_len=torch.tensor([29 - prompt_tokens]),
        prompt_token=tokens[:, :prompt_tokens],
        prompt_token_len=torch.tensor([prompt_tokens]),
        prompt_feat=prompt_mel,
        prompt_feat_len=None,
        embedding=speaker,
        finalize=True,
        noised_mels=noise.mT,
    )
    made = ours(tokens, speaker, prompt_mel, chunking=Chunking.whole(29), noise=noise)
    torch.testing.assert_close(made[:, 2 * prompt_tokens :], expected.mT, atol=1e-4, rtol=0)


def test_a_state_dict_has_the_published_tensors_and_nothing_else() -> None:
    theirs = from_cosyvoice(published_flow(PUBLISHED[0]).state_dict())
    ours = random_flow(PUBLISHED[0]).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }
    loaded = random_flow(PUBLISHED[0], seed=5)
    loaded.load_state_dict(ours)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, ours[name])


def test_weights_can_be_put_into_a_model_that_has_none() -> None:
    state = random_flow().state_dict()
    with torch.device("meta"):
        model = FlowMatching(TINY).eval()
    model.load_state_dict(state, assign=True)
    clips = _Clips([12])
    with torch.inference_mode():
        expected = random_flow()(clips.tokens, clips.speaker)
        assert torch.equal(model(clips.tokens, clips.speaker), expected)


@torch.inference_mode()
def test_bfloat16_follows_float32() -> None:
    model, clips = random_flow(), _Clips([13], [5])
    expected = model(clips.tokens, clips.speaker, clips.prompt_mel)
    model.bfloat16()
    state = model.initial_state(1, dtype=torch.bfloat16)
    made = torch.cat([clips.step(model, state, [start]) for start in (0, 3, 8)], 1)
    assert made.dtype == torch.bfloat16
    assert (made - expected).abs().mean() < 0.1 * expected.abs().mean()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=3, max_size=3),
    waits=st.lists(st.sets(st.integers(0, 2), max_size=2), min_size=4, max_size=4),
    prompts=st.lists(st.integers(0, 12), min_size=3, max_size=3),
)
@torch.inference_mode()
def test_streams_get_what_clips_get(
    lengths: list[int], waits: list[set[int]], prompts: list[int]
) -> None:
    model, clips = random_flow(), _Clips(lengths, prompts)
    made = clips.stream(model, model.initial_state(3), waits)
    expected = model(clips.tokens, clips.speaker, clips.prompt_mel, torch.tensor(lengths))
    for slot, length in enumerate(lengths):
        torch.testing.assert_close(made[slot], expected[slot, : 2 * length], **CLOSE)


@torch.inference_mode()
def test_the_prompt_and_the_speaker_are_heard() -> None:
    model, clips = random_flow(), _Clips([20], [5])
    mel = model(clips.tokens, clips.speaker, clips.prompt_mel)
    assert not torch.allclose(mel, model(clips.tokens, clips.speaker), atol=1e-2)
    other = model(clips.tokens, -clips.speaker, clips.prompt_mel)
    assert not torch.allclose(mel, other, atol=1e-2)
    # Only its direction says who speaks.
    torch.testing.assert_close(mel, model(clips.tokens, 3 * clips.speaker, clips.prompt_mel))


@torch.inference_mode()
def test_a_waiting_slot_goes_on_where_it_was_even_after_garbage() -> None:
    model, clips = random_flow(), _Clips([40, 40])
    expected = model(clips.tokens, clips.speaker)
    state, garbage = model.initial_state(2), torch.full((2, 10, TINY.mel_bins), torch.nan)
    tokens, made = torch.full((2, 7), 10**6), [clips.step(model, state, [0, 0])]
    for _ in range(3):
        nobody = torch.zeros(2, dtype=torch.long)
        model.step(tokens, nobody, nobody, garbage[:, 0, :1] * torch.ones(12), state, garbage)
        start = sum(part.shape[1] for part in made) // 2
        made.append(clips.step(model, state, [start, start]))
    made = torch.cat(made, 1)
    torch.testing.assert_close(made, expected[:, : made.shape[1]], **CLOSE)


@torch.inference_mode()
def test_a_reset_slot_starts_a_new_stream_and_leaves_the_others_alone() -> None:
    model, clips = random_flow(), _Clips([40, 40])
    expected = model(clips.tokens, clips.speaker)
    state, starts, made = model.initial_state(2), [0, 0], [[], []]
    for index in range(7):
        if index == 4:
            state.reset(torch.tensor([True, False]))
            starts[0], made[0] = 0, []
        mel = clips.step(model, state, starts)
        for slot in range(2):
            length = TINY.first_chunk_tokens if starts[slot] == 0 else TINY.chunk_tokens
            made[slot].append(mel[slot, : 2 * length])
            starts[slot] += length
    for slot in range(2):
        mel = torch.cat(made[slot])
        torch.testing.assert_close(mel, expected[slot, : len(mel)], **CLOSE)


@torch.inference_mode()
def test_an_hour_of_speech_needs_no_more_memory_and_only_its_context() -> None:
    size, kept = 150, 9
    config = replace(
        TINY,
        chunk_tokens=size,
        left_chunks=1,
        mel_bins=2,
        encoder_heads=1,
        encoder_layers=1,
        upsampled_layers=0,
        estimator_heads=1,
        estimator_mid_blocks=0,
        solver_steps=1,
    )
    model = random_flow(config)
    state = model.initial_state(1)
    size_bytes = state.size_bytes()
    chunks = 3600 * 25 // size
    # The same tokens again and again, but for the last few chunks.
    tokens = torch.randint(50, (1, kept * size + TINY.look_ahead_tokens))
    speaker, ahead = torch.randn(1, 12), torch.tensor([TINY.look_ahead_tokens])
    start = 0
    for index in range(chunks):
        length = config.first_chunk_tokens if index == 0 else size
        row = max(index - (chunks - kept), 0) * size
        chunk = tokens[:, row : row + size + TINY.look_ahead_tokens]
        mel = model.step(chunk, torch.tensor([length]), ahead, speaker, state)
        start += length
    assert state.size_bytes() == size_bytes
    assert int(state.tokens) == start
    assert mel.isfinite().all()

    # Nine chunks back no frame sees anything, so the last nine alone make the same last one.
    rows = (torch.arange(tokens.shape[1] * 2) + 2 * (start - kept * size)) % len(model.noise)
    chunking = replace(config.chunking, offset=0)
    fresh = model(tokens, speaker, chunking=chunking, noise=model.noise[rows][None])
    fresh = fresh[:, : kept * 2 * size]
    torch.testing.assert_close(mel, fresh[:, -2 * size :], atol=1e-3, rtol=0)


def test_the_noise_is_the_same_for_every_model_and_touches_no_generator() -> None:
    noise = random_flow(seed=0).noise
    assert torch.equal(random_flow(seed=3).noise, noise)
    before = torch.get_rng_state()
    with torch.device("meta"):
        model = FlowMatching(TINY)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(model.noise, noise)
    assert "noise" not in model.state_dict()
    torch.testing.assert_close(noise.std(), torch.tensor(1.0), atol=0.01, rtol=0)


@torch.inference_mode()
def test_the_noise_starts_again_at_its_end() -> None:
    model, clips = random_flow(), _Clips([40])
    state = model.initial_state(1)
    for start in (0, 3, 8):
        clips.step(model, state, [start])
    again = state.select(torch.tensor([0]))
    again.tokens += 7_500
    # As many chunks later: the ring has three places.
    assert 7_500 // TINY.chunk_tokens % (TINY.left_chunks + 1) == 0
    expected = clips.step(model, state, [13])
    torch.testing.assert_close(clips.step(model, again, [13]), expected)


def test_a_step_refuses_another_number_of_tokens() -> None:
    model = random_flow()
    one = torch.ones(1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"6 tokens a slot.*look_ahead_tokens = 7"):
        model.step(
            torch.zeros(1, 6, dtype=torch.long), one, one, torch.zeros(1, 12),
            model.initial_state(1),
        )  # fmt: skip


def test_the_loss_falls_and_reaches_every_parameter() -> None:
    model, clips = random_flow(), _Clips([12, 9])
    mel = 3 * torch.randn(TINY.mel_bins).expand(2, 24, -1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(50):
        generator = torch.Generator().manual_seed(step)
        chunking = random_chunking(TINY, 12, generator)
        loss = flow_matching_loss(
            model, clips.tokens, mel, clips.speaker, torch.tensor([12, 9]), generator, chunking
        )
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert all(parameter.grad is not None for parameter in model.parameters())
            assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])


def test_the_loss_depends_on_its_generator_only_and_not_on_padding() -> None:
    model, clips = random_flow(), _Clips([12, 9])
    mel = torch.randn(2, 24, TINY.mel_bins)

    def loss(mel: Tensor, tokens: Tensor, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.tensor([12, 9])
        return flow_matching_loss(model, tokens, mel, clips.speaker, lengths, generator)

    first = loss(mel, clips.tokens)
    torch.manual_seed(7)
    assert torch.equal(loss(mel, clips.tokens), first)
    assert not torch.equal(loss(mel, clips.tokens, seed=1), first)
    mel, tokens = mel.clone(), clips.tokens.clone()
    mel[1, 18:], tokens[1, 9:] = torch.nan, 49
    assert torch.equal(loss(mel, tokens), first)


def test_without_conditions_the_loss_knows_neither_tokens_nor_speaker() -> None:
    model, clips = random_flow(replace(TINY, guidance_dropout=1.0)), _Clips([12])
    mel, losses = torch.randn(1, 24, TINY.mel_bins), []
    for tokens, speaker in ((clips.tokens, clips.speaker), (clips.tokens + 1, -clips.speaker)):
        generator = torch.Generator().manual_seed(0)
        lengths = torch.tensor([12])
        losses.append(flow_matching_loss(model, tokens % 50, mel, speaker, lengths, generator))
    assert torch.equal(losses[0], losses[1])


def test_training_cuts_as_a_stream_does_half_of_the_time() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [random_chunking(TINY, 100, generator) for _ in range(400)]
    assert 0.4 < sum(chunking == TINY.chunking for chunking in drawn) / 400 < 0.6
    assert 0.15 < sum(chunking == Chunking.whole(100) for chunking in drawn) / 400 < 0.35
    assert len({chunking.size for chunking in drawn}) > 8


class _Clips:
    """Clips of different lengths in one batch, to be streamed."""

    def __init__(self, lengths: list[int], prompts: list[int] | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        slots, longest = len(lengths), max(lengths)
        self.lengths = lengths
        self.tokens = torch.randint(50, (slots, longest), generator=generator)
        self.speaker = torch.randn(slots, TINY.speaker_width, generator=generator)
        self.prompt_mel = torch.zeros(slots, 2 * longest, TINY.mel_bins)
        for slot, prompt in enumerate(prompts or [0] * slots):
            known = self.prompt_mel[slot, : 2 * min(prompt, lengths[slot])]
            known.normal_(generator=generator)

    def step(
        self,
        model: FlowMatching,
        state: FlowMatchingState,
        starts: list[int],
        waiting: frozenset[int] | set[int] = frozenset(),
        rows: Tensor | None = None,
    ) -> Tensor:
        """The next chunk of each clip; what isn't there is garbage."""
        size, look_ahead = TINY.chunk_tokens, TINY.look_ahead_tokens
        slots = len(starts)
        tokens = torch.full((slots, size + look_ahead), 10**6)
        prompt_mel = torch.full((slots, 2 * size, TINY.mel_bins), torch.nan)
        speaker = torch.full_like(self.speaker, torch.nan)
        lengths, ahead = torch.zeros(slots, dtype=torch.long), torch.zeros(slots, dtype=torch.long)
        for slot, start in enumerate(starts):
            left = self.lengths[slot] - start
            if slot in waiting or left <= 0:
                continue
            length = min(TINY.first_chunk_tokens if start == 0 else size, left)
            lengths[slot], ahead[slot] = length, min(look_ahead, left - length)
            known = length + int(ahead[slot])
            tokens[slot, :known] = self.tokens[slot, start : start + known]
            prompt = self.prompt_mel[slot, 2 * start : 2 * (start + length)]
            prompt_mel[slot, : 2 * length] = prompt
            speaker[slot] = self.speaker[slot]
        mel = model.step(tokens, lengths, ahead, speaker, state, prompt_mel, rows)
        return mel[:, : 2 * int(lengths.max())]

    def stream(
        self, model: FlowMatching, state: FlowMatchingState, waits: list[set[int]]
    ) -> list[Tensor]:
        """Each clip's mel, where in the first steps some slots wait."""
        slots = len(self.lengths)
        starts, made = [0] * slots, [[] for _ in range(slots)]
        plan = [*waits, *[set() for _ in range(max(self.lengths))]]
        for waiting in plan:
            if all(start >= length for start, length in zip(starts, self.lengths, strict=True)):
                break
            before = state.tokens.tolist()
            mel = self.step(model, state, starts, waiting)
            for slot, (old, new) in enumerate(zip(before, state.tokens.tolist(), strict=True)):
                made[slot].append(mel[slot, : 2 * (new - old)])
                starts[slot] = new
        return [torch.cat(parts) for parts in made]


@torch.inference_mode()
def test_a_step_of_some_slots_leaves_the_others_as_they_are() -> None:
    model, clips = random_flow(), _Clips([13, 13, 13], [5, 0, 3])
    alone, shared = model.initial_state(3), model.initial_state(5)
    for tensor in shared.tensors():
        tensor[[1, 3]] = 7
    before = [tensor[[1, 3]].clone() for tensor in shared.tensors()]
    rows = torch.tensor([4, 0, 2])
    for start in (0, 3, 8):
        expected = clips.step(model, alone, [start] * 3)
        torch.testing.assert_close(
            clips.step(model, shared, [start] * 3, rows=rows), expected, **CLOSE
        )
    for tensor, kept, theirs in zip(shared.tensors(), before, alone.tensors(), strict=True):
        assert torch.equal(tensor[[1, 3]], kept)
        torch.testing.assert_close(tensor[rows], theirs, **CLOSE)


@torch.inference_mode()
def test_keys_and_values_in_bfloat16_take_half_and_change_little() -> None:
    model, clips = random_flow(), _Clips([13], [5])
    states = [model.initial_state(1), model.initial_state(1, ring_dtype=torch.bfloat16)]
    made = [
        torch.cat([clips.step(model, state, [start]) for start in (0, 3, 8)], 1) for state in states
    ]
    assert made[1].dtype == torch.float32
    assert 0 < (made[1] - made[0]).abs().max() < 0.02 * made[0].abs().mean()
    rings = [state.estimator.memory.nbytes for state in states]
    assert rings[0] == 2 * rings[1]
    assert states[0].size_bytes() - states[1].size_bytes() >= rings[1]
