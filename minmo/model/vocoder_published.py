"""CosyVoice 2's vocoder weights (`hift.pt`) under our names, and weight normalisation.

Published weights are normalised: each row is kept as a direction and a length (Salimans and Kingma
2016, equation 2). Ours are plain; training may normalise them again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from minmo.model.delayed_conv import DelayedConv1d, DelayedUpsample
from minmo.model.vocoder import Vocoder, VocoderConfig

_LENGTH = (".parametrizations.weight.original0", ".weight_g")
_DIRECTION = (".parametrizations.weight.original1", ".weight_v")


@dataclass(frozen=True)
class ConvertedVocoder:
    """Published weights after conversion.

    Attributes:
        weights: by our names, in the shapes that they came in.
        missing: our names that nothing published stands for.
        left_over: published names that nothing of ours stands for.
    """

    weights: dict[str, Tensor]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]


def convert_published_vocoder(
    published: Mapping[str, Tensor], config: VocoderConfig
) -> ConvertedVocoder:
    """Folds the normalisation into plain weights and gives them our names.

    Args:
        published: the state dict of `HiFTGenerator`, with weight normalisation of either of
            PyTorch's two kinds, or none.
        config: sizes of our vocoder.

    Returns:
        The weights, and names on either side that have no counterpart.

    Raises:
        ValueError: a weight's length is there without its direction, or the other way round.
    """
    plain = _folded(published)
    with torch.device("meta"):
        wanted = set(Vocoder(config).state_dict())
    names = {name: _renamed(name, len(config.block_kernel_sizes)) for name in plain}
    weights = {ours: plain[name] for name, ours in names.items() if ours in wanted}
    return ConvertedVocoder(
        weights=weights,
        missing=tuple(sorted(wanted - weights.keys())),
        left_over=tuple(sorted(name for name, ours in names.items() if ours not in wanted)),
    )


def normalise_weights(vocoder: Vocoder) -> None:
    """Trains directions and lengths of the weights from here on; outputs stay what they are."""
    for conv in _normalised(vocoder):
        parametrizations.weight_norm(conv)


def fold_weights(vocoder: Vocoder) -> None:
    """Takes `normalise_weights` back: plain weights again, with what they have learnt."""
    for conv in _normalised(vocoder):
        if parametrize.is_parametrized(conv, "weight"):
            parametrize.remove_parametrizations(conv, "weight")


def _normalised(vocoder: Vocoder) -> Iterator[nn.Module]:
    """The convolutions that are published with normalised weights: not those on the source."""
    for module in vocoder.modules():
        if isinstance(module, DelayedConv1d | DelayedUpsample):
            yield module


def _folded(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    plain: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor | None]] = {}
    for name, tensor in published.items():
        for place, endings in enumerate((_LENGTH, _DIRECTION)):
            ending = next((ending for ending in endings if name.endswith(ending)), None)
            if ending:
                parts.setdefault(name.removesuffix(ending), [None, None])[place] = tensor
                break
        else:
            plain[name] = tensor
    for name, (length, direction) in parts.items():
        if length is None or direction is None:
            there, lacking = ("direction", "length") if length is None else ("length", "direction")
            raise ValueError(
                f"{name}.weight comes with a {there} and no {lacking}: a normalised weight needs"
                " both; is the file whole?"
            )
        norm = direction.flatten(1).norm(dim=1).view_as(length)
        plain[f"{name}.weight"] = direction * (length / norm)
    return plain


def _renamed(name: str, blocks: int) -> str:
    def of_block(match: re.Match[str]) -> str:
        stage, block = divmod(int(match[1]), blocks)
        return f"stages.{stage}.blocks.{block}."

    name = re.sub(r"^resblocks\.(\d+)\.", of_block, name)
    name = re.sub(r"^f0_predictor\.condnet\.(\d+)\.", _of_pitch, name)
    for pattern, ours in (
        (r"^conv_pre\.", "conv_in."),
        (r"^conv_post\.", "conv_out."),
        (r"^m_source\.l_linear\.", "source.mix."),
        (r"^f0_predictor\.classifier\.", "pitch_predictor.head."),
        (r"^ups\.(\d+)\.", r"stages.\1.up."),
        (r"^source_downs\.(\d+)\.", r"stages.\1.source_down."),
        (r"^source_resblocks\.(\d+)\.", r"stages.\1.source_block."),
        (r"\.convs1\.", ".dilated."),
        (r"\.convs2\.", ".plain."),
        (r"\.activations1\.", ".dilated_snakes."),
        (r"\.activations2\.", ".plain_snakes."),
    ):
        name = re.sub(pattern, ours, name)
    return name


def _of_pitch(match: re.Match[str]) -> str:
    """Published convolutions alternate with activations that have no weights."""
    index, activation = divmod(int(match[1]), 2)
    return match[0] if activation else f"pitch_predictor.convs.{index}."
