"""Speech-to-text on a tiny preset: its three recipes one after the other, and what they export."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from typer.testing import CliRunner

from minmo.cli.main import app
from minmo.loading import load_ears
from minmo.model.llm import Llm
from minmo.presets import load_preset
from minmo.training import checkpoint
from minmo.training.batches import read_sources
from minmo.training.config import TrainingConfig, load_config, with_changes
from minmo.training.curves import read_curve
from minmo.training.errors import TrainingError
from minmo.training.exporting import export_run
from minmo.training.listening import ReadRows
from minmo.training.own_answers import OwnAnswers
from minmo.training.speech_to_text import MODULES, SpeechToText
from minmo.training.trainer import train
from minmo.training.transcripts import error_rate, letters_text, plain_words
from minmo.weights.errors import WeightsError
from minmo.weights.load import load_state_dict, weights_folder
from minmo.weights.modules import load_module, random_module, write_module
from tests.unit.tiny_presets import write_preset
from tests.unit.tiny_training import TEXTS, silent, write_shard

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_tokenizer(path: Path) -> None:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*TEXTS, "system user assistant"] * 20, trainer)
    made.save(str(path))


def write_recogniser_tokenizer(path: Path) -> None:
    """One that marks where words begin, as Moonshine's."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    special = [AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")]
    trainer = trainers.BpeTrainer(vocab_size=29, special_tokens=special, show_progress=False)
    made.train_from_iterator([*TEXTS] * 20, trainer)
    made.save(str(path))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with pretrained weights of a tiny preset, and clips."""
    folder = tmp_path_factory.mktemp("training")
    preset = write_preset(
        folder,
        input_projector={"width": 24, "heads": 4},
        llm={"vocabulary_size": 320, "max_context": 128},
        recognizer={"vocabulary_size": 29, "max_tokens": 64},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINMO_HOME", str(folder / "home"))
        for name in ("voice_encoder", "recognizer", "llm"):
            write_module(str(preset), name, random_module(str(preset), name, 1))
        write_tokenizer(weights_folder(str(preset), "llm") / "tokenizer.json")
        write_recogniser_tokenizer(weights_folder(str(preset), "recognizer") / "tokenizer.json")
    write_shard(folder / "speech", "train.0000", 10)
    write_shard(folder / "speech", "valid.0000", 5)
    return folder


@pytest.fixture(autouse=True)
def home(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINMO_HOME", str(place / "home"))


def config(place: Path, recipe: str, init: Path | None = None, steps: int = 4) -> TrainingConfig:
    changes = {
        "preset": str(place / "tiny.toml"),
        "init": None if init is None else str(init),
        "threads": 1,
        "data.folders": {str(place / "speech"): 1.0},
        "data.seconds": 8.0,
        "data.pool": 4,
        "data.workers": 0,
        "schedule.steps": steps,
        "schedule.minutes": None,
        "watch.log_steps": 1,
        "options.sampled_pieces": 30,
    }
    return with_changes(load_config(recipe), changes)


def rows(run: Path, name: str = "train") -> list[dict[str, float]]:
    return read_curve(run / "curves" / f"{name}.csv")


def test_the_recipes_follow_one_another_and_give_modules_that_load(
    place: Path, tmp_path: Path
) -> None:
    preset = str(place / "tiny.toml")
    runs = [tmp_path / name for name in ("pre-align", "full-align", "sft")]
    init = None
    for run in runs:
        settings = config(place, run.name, init)
        if run.name == "full-align":
            settings = with_changes(settings, {"options.distillation": 0.5})
        if run.name == "sft":
            settings = with_changes(settings, {"options.answer_tokens": 3})
        outcome = train(settings, SpeechToText(), run, silent())
        assert outcome.step == 4
        assert all(math.isfinite(value) for row in rows(run) for value in row.values())
        init = run
    assert "distillation" in rows(runs[1])[0]
    assert rows(runs[2])[0]["answers"] > 0
    assert {"wer", "cer_letters", "answers"} <= rows(runs[2], "valid")[0].keys()

    pretrained = load_state_dict(weights_folder(preset, "voice_encoder"))
    found = [checkpoint.latest(run) for run in runs]
    states = [checkpoint.read_weights(path) for path in found if path]
    conv = [state["voice_encoder"]["conv1.weight"] for state in states]
    assert torch.equal(conv[0], pretrained["model.encoder.conv1.weight"])
    assert torch.equal(conv[1], conv[0])
    matrices = [state["voice_encoder"]["layers.0.mlp.fc1.weight"] for state in states]
    assert not torch.equal(matrices[1], matrices[0])
    assert not torch.equal(matrices[2], matrices[1])

    folder = export_run(runs[2], tmp_path / "modules")
    kept = checkpoint.trained_weights(runs[2])
    for name in MODULES:
        module = load_module(preset, name, folder=folder / name)
        for key, value in module.state_dict().items():
            assert torch.equal(value, kept[name][key].half().to(value.dtype)), key

    again = tmp_path / "again"
    train(config(place, "pre-align", folder, steps=1), SpeechToText(), again, silent())
    began = checkpoint.latest(again)
    assert began is not None
    encoder = checkpoint.read_weights(began)["voice_encoder"]["conv1.weight"]
    assert torch.equal(encoder, kept["voice_encoder"]["conv1.weight"].half().float())


def test_an_encoder_is_adapted_so_that_the_recogniser_reads_along(
    place: Path, tmp_path: Path
) -> None:
    preset = str(place / "tiny.toml")
    adapted, answering = tmp_path / "adapted", tmp_path / "answering"
    train(config(place, "adapt"), SpeechToText(), adapted, silent())
    assert {"recogniser", "distillation"} <= rows(adapted)[0].keys()
    assert "pieces" not in rows(adapted)[0]
    assert math.isfinite(rows(adapted, "valid")[0]["wer_recogniser"])
    settings = with_changes(
        config(place, "sft", adapted), {"options.answer_tokens": 3, "options.reading": True}
    )
    train(settings, SpeechToText(), answering, silent())
    assert math.isfinite(rows(answering)[0]["answers"])
    folder = export_run(answering, tmp_path / "modules")
    ears = load_ears(load_preset(preset), folder.joinpath)
    assert ears.reading is not None
    # Another recogniser has not read its frames.
    ears_of = load_preset(preset), folder.joinpath
    write_module(preset, "recognizer", random_module(preset, "recognizer", 2))
    try:
        with pytest.raises(WeightsError, match="was trained against another recognizer"):
            load_ears(*ears_of)
    finally:
        write_module(preset, "recognizer", random_module(preset, "recognizer", 1))
        write_recogniser_tokenizer(weights_folder(preset, "recognizer") / "tokenizer.json")


def test_only_moonshines_decoder_reads_along(place: Path, tmp_path: Path) -> None:
    path = write_preset(tmp_path, base="8b", name="other")
    with pytest.raises(TrainingError, match="no decoder of Moonshine's to read along"):
        SpeechToText().check(with_changes(config(place, "adapt"), {"preset": str(path)}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recogniser": -1.0}, "are weights of losses"),
        ({"recogniser_behind": [0.5, 0.1]}, "recogniser_behind is .*the lower one first"),
        ({"blocks": [0]}, "at least one frame"),
        ({"joined_seconds": 9.0, "remember_mb": 5.0}, "joins other clips each time"),
    ],
)
def test_wrong_options_of_the_recogniser_are_refused(
    place: Path, options: dict[str, object], message: str
) -> None:
    changes = {f"options.{key}": value for key, value in options.items()}
    with pytest.raises(TrainingError, match=message):
        SpeechToText().check(with_changes(config(place, "adapt"), changes))


def test_recognition_is_learned(place: Path, tmp_path: Path) -> None:
    settings = with_changes(
        config(place, "pre-align", steps=20),
        {
            "optimizer.learning_rates": dict.fromkeys(MODULES, 3e-3),
            "augmentation.clean": 1.0,
            "augmentation.speed": 0.0,
            "data.silence": [0.0, 0.0],
            "data.seconds": 5.0,
            "options.remember_mb": 0.0,
        },
    )
    train(settings, SpeechToText(), tmp_path, silent())
    curve = rows(tmp_path)
    for part in ("letters", "pieces"):
        assert sum(row[part] for row in curve[-3:]) < 3 * 0.75 * curve[0][part]


def test_pieces_are_those_that_are_said_and_what_spells_others(place: Path) -> None:
    settings = with_changes(config(place, "pre-align"), {"options.minimum_count": 3})
    trainee = SpeechToText().build(settings, {}, read_sources(settings.data))
    tokenizer = Tokenizer.from_file(str(weights_folder(settings.preset, "llm") / "tokenizer.json"))
    texts = [tokenizer.decode([token]) for token in trainee.listening.head.pieces.tolist()]
    assert {" cat", "z", "?", "A"} <= set(texts)
    assert " assistant" not in texts
    assert not any(text in texts for text in SPECIAL)


def test_a_head_gets_the_pieces_of_a_file_of_texts_that_it_lacks(
    place: Path, tmp_path: Path
) -> None:
    stage, settings = (
        SpeechToText(),
        with_changes(config(place, "pre-align"), {"options.minimum_count": 3}),
    )
    sources = read_sources(settings.data)
    few = stage.build(settings, {}, sources).listening.head
    state = {"recognition_head": few.state_dict()}
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "An assistant."}\n{"text": "the assistant"}\n' * 3)
    wanted = with_changes(settings, {"options.texts": str(texts)})
    more = stage.build(wanted, state, sources).listening.head
    tokenizer = Tokenizer.from_file(str(weights_folder(settings.preset, "llm") / "tokenizer.json"))
    known = more.pieces.tolist()
    assert known[: len(few.pieces)] == few.pieces.tolist()
    assert " assistant" in {tokenizer.decode([token]) for token in known[len(few.pieces) :]}
    # What is heard of the old ones is what it was.
    heard = torch.randn(1, 5, few.width)
    scores = more(heard)[..., : len(few.pieces)], few(heard)[..., :-1]
    assert torch.allclose(*(one - one[..., :1] for one in scores), atol=1e-4)
    # A run that goes on, and an export, leave it as it is.
    again = stage.build(wanted, {"recognition_head": more.state_dict()}, sources).listening.head
    assert again.pieces.tolist() == known
    texts.write_text('{"words": "An assistant."}\n')
    with pytest.raises(TrainingError, match=r"options\.texts cannot be used"):
        stage.build(wanted, state, sources)


def test_answers_are_the_llms_own_and_hearing_the_text_itself_is_no_distance(
    place: Path,
) -> None:
    preset = load_preset(str(place / "tiny.toml"))
    folder = weights_folder(preset, "llm")
    llm = Llm.from_state_dict(preset.llm, load_state_dict(folder))
    own = OwnAnswers(llm, folder, 4, "be kind")
    texts = ["the cat", "on a mat and the cat"]
    batch = own.answers(texts)
    alone = [OwnAnswers(llm, folder, 4, "be kind").answers([text])[0] for text in texts]
    assert batch == alone
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = [tokenizer.encode(text).ids for text in texts]
    counts = torch.tensor([len(row) for row in tokens])
    heard = torch.zeros(2, int(counts.max()), preset.llm.width)
    for row, ids in zip(heard, tokens, strict=True):
        row[: len(ids)] = llm.embed(torch.tensor(ids))
    same = own(ReadRows(heard, counts), texts)
    assert float(same) == pytest.approx(0, abs=1e-7)
    heard.requires_grad_(True)
    other = own(ReadRows(heard.flip(0), counts.flip(0)), texts)
    assert float(other.detach()) > 1e-5
    other.backward()
    assert heard.grad is not None
    assert heard.grad.abs().sum() > 0


def test_weights_of_another_preset_are_refused(place: Path, tmp_path: Path) -> None:
    settings = config(place, "pre-align")
    weights = {"input_projector": {"conv.weight": torch.zeros(3)}}
    with pytest.raises(TrainingError, match="input_projector to begin with are of another preset"):
        SpeechToText().build(settings, weights, read_sources(settings.data))
    path = write_preset(tmp_path, input_projector={"letters": 0})
    with pytest.raises(TrainingError, match=r"input_projector.letters = 0: .* letters = 42"):
        SpeechToText().check(with_changes(settings, {"preset": str(path)}))


def test_transcripts_are_compared_word_by_word() -> None:
    assert plain_words("  The CAT, it's 3-4.") == "the cat it's 3 4"
    assert error_rate(["a b c d", ""], ["a x c", "noise"]) == 0.5
    assert error_rate(["ab"], ["ac"], letters=True) == 0.5
    assert error_rate([""], ["a"]) == 0
    frames = torch.full((1, 7, 43), -9.0)
    for frame, letter in enumerate((3, 3, 42, 3, 1, 20, 20)):
        frames[0, frame, letter] = 0
    assert letters_text(frames, torch.tensor([6])) == ["ccat"]


def cli(*arguments: str) -> tuple[int, str, Exception | None]:
    result = CliRunner().invoke(app, ["train", *arguments])
    error = result.exception if isinstance(result.exception, Exception) else None
    return result.exit_code, result.stdout, error


def test_the_command_trains_goes_on_and_exports(place: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    arguments = (
        *("speech-to-text", "--recipe", "pre-align", "--data", f"{place / 'speech'}=2"),
        *("--preset", str(place / "tiny.toml"), "--out", run, "--json", "--steps", "2"),
        *("--set", "data.seconds=6", "--set", "threads=1", "--set", "data.workers=0"),
    )
    status, shown, error = cli(*arguments)
    assert (status, error) == (0, None)
    assert json.loads(shown)["step"] == 2
    assert load_config(tmp_path / "run" / "config.yaml").data.folders == {
        str(place / "speech"): 2.0
    }
    assert json.loads(cli(*arguments, "--resume")[1])["step"] == 2
    _, _, error = cli(*arguments, "--set", "optimizer.clip=3")
    assert "optimizer.clip: 2.0 -> 3.0" in str(error)
    _, _, error = cli(*arguments, "--resume", "--restart")
    assert "give one of them" in str(error)
    status, shown, error = cli("export", run, "--out", str(tmp_path / "modules"), "--json")
    assert (status, error) == (0, None)
    assert (tmp_path / "modules" / "recognition_head" / "model.safetensors").exists()
    assert json.loads(shown) == {"folder": str(tmp_path / "modules")}


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    out = ("speech-to-text", "--out", str(tmp_path / "run"))
    assert "no data: give folders with --data" in str(cli(*out)[2])
    assert "did you mean 'full-align'" in str(cli(*out, "--recipe", "fullalign")[2])
    assert "is not a number" in str(cli(*out, "--data", "folder=much")[2])
    assert "holds no checkpoint" in str(cli("export", str(tmp_path))[2])
    status, shown, _ = cli(*out, "--show", "--minutes", "3")
    assert status == 0
    assert "minutes: 3.0" in shown
    assert not (tmp_path / "run").exists()
