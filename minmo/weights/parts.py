"""What each preset is made of, what that is made from, and how."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minmo.weights import artifacts, home, triton
from minmo.weights.artifacts import Artifact
from minmo.weights.errors import WeightsError


def _build_voice_encoder(unpacked: Path, folder: Path) -> None:
    from minmo.weights import moonshine

    encoder, decoder = (unpacked / member for member in artifacts.MOONSHINE.members)
    tokenizer = unpacked / artifacts.MOONSHINE_TOKENIZER.members[0]
    moonshine.convert(encoder, decoder, tokenizer, folder)


def _build_llm(unpacked: Path, folder: Path) -> None:
    from minmo.weights import llama_gguf

    llama_gguf.convert(unpacked / artifacts.SMOLLM2.members[0], folder)


def _build_vad(unpacked: Path, folder: Path) -> None:
    from minmo.weights import silero

    silero.copy(unpacked / artifacts.SILERO.members[0], folder)


def _build_triton(unpacked: Path, folder: Path) -> None:
    for member in artifacts.TRITON.members:
        (folder / member).parent.mkdir(parents=True, exist_ok=True)
        (unpacked / member).rename(folder / member)
    triton.make_executable(folder)


def _nothing(_: Path) -> None:
    return None


def _always(_: Path) -> bool:
    return True


@dataclass(frozen=True)
class Part:
    """One folder to prepare.

    Attributes:
        name: the module, or `triton`.
        converter_version: raised when the converter's output changes, so that old folders go.
        artifacts: the packages it comes from.
        build: fills a new folder from the folder of unpacked artefacts.
        hub_repository: where the hub has it, if it does.
        fit: what remains to be done for the machine and Python at hand, in the finished folder.
        fits: whether that has been done.
    """

    name: str
    converter_version: int
    artifacts: tuple[Artifact, ...]
    build: Callable[[Path, Path], None]
    hub_repository: str | None = None
    fit: Callable[[Path], None] = _nothing
    fits: Callable[[Path], bool] = _always

    @property
    def licence(self) -> str:
        """The SPDX identifiers of its artefacts."""
        return " AND ".join(sorted({artifact.licence for artifact in self.artifacts}))

    def folder(self, preset: str) -> Path:
        """Return where it is prepared; the server is the same for every preset."""
        if self.name == TRITON.name:
            return home.triton_folder()
        return home.module_folder(preset, self.name)


VOICE_ENCODER = Part(
    "voice_encoder",
    converter_version=1,
    artifacts=(artifacts.MOONSHINE, artifacts.MOONSHINE_TOKENIZER),
    build=_build_voice_encoder,
    hub_repository="UsefulSensors/moonshine-tiny",
)
LLM = Part(
    "llm",
    converter_version=1,
    artifacts=(artifacts.SMOLLM2,),
    build=_build_llm,
    hub_repository="HuggingFaceTB/SmolLM2-135M-Instruct",
)
VAD = Part("vad", converter_version=1, artifacts=(artifacts.SILERO,), build=_build_vad)
TRITON = Part(
    "triton",
    converter_version=1,
    artifacts=(artifacts.TRITON,),
    build=_build_triton,
    fit=triton.fit_to_machine,
    fits=triton.fits_machine,
)

PRESETS: dict[str, tuple[Part, ...]] = {"mini": (VOICE_ENCODER, LLM, VAD, TRITON)}
# What has no sizes of a preset; the network of other presets is imported or trained.
_FOR_ALL = (VAD, TRITON)


def preset_name(preset: str) -> str:
    """Return the name under which a preset's weights are kept.

    Args:
        preset: a built-in name, or the path of a TOML file.

    Raises:
        WeightsError: there is no such preset.
    """
    if preset in PRESETS:
        return preset
    from minmo.presets import PresetError, load_preset

    try:
        return load_preset(preset).name
    except PresetError as error:
        raise WeightsError(str(error)) from error


def packaged_parts(preset: str) -> tuple[Part, ...]:
    """Return what packages have for the preset of this name."""
    return PRESETS.get(preset, _FOR_ALL)


def parts_of(preset: str, only: tuple[str, ...] = ()) -> list[Part]:
    """Return the parts of a preset that can be fetched, or those of them that `only` names.

    Raises:
        WeightsError: there is no such preset or part.
    """
    name = preset_name(preset)
    known = {part.name: part for part in packaged_parts(name)}
    if unknown := [part for part in only if part not in known]:
        hint = "" if name in PRESETS else " to fetch; `minmo weights import` brings the others"
        raise WeightsError(
            f"preset {name!r} has no {unknown[0]!r}; it has: {', '.join(known)}{hint}"
        )
    return [part for part in known.values() if not only or part.name in only]
