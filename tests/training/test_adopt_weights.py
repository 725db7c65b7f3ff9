"""Files of weights are loaded into an owner's model, whole and without running their code."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from latentd.training.adopt.modules import factory, returned, weights
from latentd.training.errors import AdmissionError, TrainingError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 2), nn.Linear(2, 3)


@pytest.fixture
def trained() -> dict[str, Tensor]:
    torch.manual_seed(5)
    return Model().state_dict()


def loaded(*files: object) -> tuple[Model, list[str]]:
    model, lines = Model(), list[str]()
    weights.load(model, [str(file) for file in files], lines.append)
    return model, lines


def assert_same(model: Model, trained: Mapping[str, Tensor]) -> None:
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained[key])


def test_state_dict_and_safetensors(tmp_path, trained):
    torch.save(trained, tmp_path / "w.pth")
    safetensors.torch.save_file(trained, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        model, lines = loaded(tmp_path / name)
        assert_same(model, trained)
        assert lines == [f"weights: 4 tensors of {tmp_path / name} into Model"]


def test_checkpoint_of_lightning(tmp_path, trained):
    """A state dict inside, names that begin with `model.`, and tensors of the loss."""
    inner = {f"model.{key}": tensor for key, tensor in trained.items()}
    checkpoint = {"epoch": 3, "state_dict": inner | {"loss.scale": torch.zeros(1)}}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    model, lines = loaded(tmp_path / "last.ckpt")
    assert_same(model, trained)
    assert lines[0].endswith(
        "last.ckpt into Model, from its state_dict, without the prefix 'model.', without 1 other "
        "keys, loss.scale"
    )


def test_two_files_for_two_parts(tmp_path, trained):
    files = []
    for part in ("encoder", "decoder"):
        names = [key for key in trained if key.startswith(part)]
        torch.save({k.partition(".")[2]: trained[k] for k in names}, tmp_path / part)
        files.append(f"{part}={tmp_path / part}")
    model, lines = loaded(*files)
    assert_same(model, trained)
    assert lines[1] == f"weights: 2 tensors of {tmp_path / 'decoder'} into decoder"


def test_digests_of_files_of_one_name(tmp_path, trained):
    files = []
    for part in ("encoder", "decoder"):
        (tmp_path / part).mkdir()
        inner = {k.partition(".")[2]: v for k, v in trained.items() if k.startswith(part)}
        torch.save(inner, tmp_path / part / "m.pt")
        files.append(f"{part}={tmp_path / part / 'm.pt'}")
    digests = weights.load(Model(), files, lambda _: None)
    assert set(digests) == {"encoder=m.pt", "decoder=m.pt"}


def test_names_of_lightning_have_equals_signs(tmp_path, trained, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("epoch=3-step=100.ckpt", "dir=1/w.ckpt"):
        Path(name).parent.mkdir(exist_ok=True)
        torch.save(trained, name)
        assert_same(loaded(name)[0], trained)
        assert_same(loaded(tmp_path / name)[0], trained)
    Path("encoder=1.ckpt").write_bytes(b"")
    inner = {k.partition(".")[2]: v for k, v in trained.items() if k.startswith("encoder")}
    torch.save(inner, "step=7.ckpt")
    assert loaded("encoder=step=7.ckpt")[1] == ["weights: 2 tensors of step=7.ckpt into encoder"]
    with pytest.raises(TrainingError, match=r"epoch=4\.ckpt cannot be read: No such file"):
        loaded("epoch=4.ckpt")


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_halves_are_taken_and_said(tmp_path, trained, half):
    safetensors.torch.save_file(
        {key: tensor.to(half) for key, tensor in trained.items()}, tmp_path / "w.safetensors"
    )
    model, lines = loaded(tmp_path / "w.safetensors")
    assert_same(model, {key: tensor.to(half).float() for key, tensor in trained.items()})
    assert lines[0].endswith(f"into Model, {str(half).removeprefix('torch.')} as float32")


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "it ran"),)

    torch.save({"encoder.weight": Evil()}, tmp_path / "w.pth")
    with pytest.raises(AdmissionError) as raised:
        loaded(tmp_path / "w.pth")
    assert "would run code when it is read, posix.mkdir, so it was not read" in str(raised.value)
    assert "save torch.save(model.state_dict(), ...), or a safetensors file." in str(raised.value)
    assert not (tmp_path / "it ran").exists()


def test_a_whole_model_is_refused(tmp_path):
    torch.save(Model(), tmp_path / "w.pt")
    with pytest.raises(AdmissionError, match="would run code when it is read, "):
        loaded(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: {k: v for k, v in state.items() if k != "decoder.bias"},
            "does not fit Model: 1 missing: decoder.bias. Give the file of this model",
        ),
        (
            lambda state: state | {"extra": torch.zeros(1)},
            "does not fit Model: 1 unexpected: extra",
        ),
        (
            lambda state: state | {"encoder.bias": torch.zeros(7)},
            r"encoder.bias is \[7\]; Model has \[2\]. Does the factory make the model with",
        ),
        (lambda state: list(state.values()), "has a list; expected a state dict"),
        (
            lambda state: state | {"encoder.bias": state["encoder.bias"].to(torch.int8)},
            "encoder.bias is int8; Model has float32. Quantized weights need their scales",
        ),
        (
            lambda state: state | {"encoder.bias": state["encoder.bias"].to(torch.float8_e4m3fn)},
            "encoder.bias is float8_e4m3fn; Model has float32",
        ),
        (
            lambda state: state | {"encoder.bias": state["encoder.bias"].to_sparse()},
            "encoder.bias is sparse; expected a dense tensor",
        ),
        (lambda state: state | {1: torch.zeros(1)}, "has the key 1; expected a state dict, whose"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, trained, change, words):
    torch.save(change(trained), tmp_path / "w.pth")
    with pytest.raises(TrainingError, match=words):
        loaded(tmp_path / "w.pth")


def test_files_that_are_no_weights(tmp_path):
    for name, words in (
        ("w.pth", "is not a file of torch.save"),
        ("w.safetensors", "is not a file of safetensors"),
    ):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(TrainingError, match=words):
            loaded(tmp_path / name)
    with pytest.raises(TrainingError, match="none cannot be read: No such file"):
        loaded(tmp_path / "none")
    with pytest.raises(TrainingError, match="but its head is a NoneType"):
        loaded(f"head={tmp_path / 'w.pth'}")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x02s.", "IndexError"),
        (b"\x80\x02h\x05.", "KeyError: 5"),
        (b"\x80\x02}}}s.", "TypeError: unhashable type"),
        (b"\x80\x04\x95.", "UnpicklingError"),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_pickles_are_not_called_code(tmp_path, trained, data, reason):
    torch.save(trained, tmp_path / "whole.pt")
    with (
        zipfile.ZipFile(tmp_path / "whole.pt") as whole,
        zipfile.ZipFile(tmp_path / "w.pt", "w") as damaged,
    ):
        for name in whole.namelist():
            damaged.writestr(name, data if name.endswith("data.pkl") else whole.read(name))
    with pytest.raises(TrainingError, match=rf"or it is damaged \({reason}") as raised:
        loaded(tmp_path / "w.pt")
    assert "\n" not in str(raised.value)
    assert "code" not in str(raised.value)


def test_factories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("owner_factories.py").write_text(
        "class Model:\n"
        "    def encode(self, x): ...\n"
        "    def decode(self, z): ...\n"
        "def half(): return object()\n"
        "def broken(): return 1 / 0\n"
        "number = 3\n"
    )
    assert type(factory.make("owner_factories:Model")).__name__ == "Model"
    for name, words in {
        "Model": "expected package.module:factory",
        "nowhere.at.all:f": "there is no module nowhere, neither in the current folder",
        "owner_factories:none": "owner_factories has no none",
        "owner_factories:number": "it is of type int; expected a function",
        "owner_factories:half": "returns object without encode; expected an object with encode",
        "owner_factories:broken": r"fails with ZeroDivisionError: .*owner_factories.py, line 5\)",
    }.items():
        with pytest.raises(TrainingError, match=words):
            factory.make(name)


class Box:
    """Members by name, as owners' result classes have them."""

    def __init__(self, **members: Any) -> None:
        vars(self).update(members)


MEAN, LOG_VAR = torch.tensor([1.0]), torch.tensor([-2.0])


@pytest.mark.parametrize(
    "result",
    [
        (MEAN, LOG_VAR),
        [MEAN, LOG_VAR],
        Box(latent_dist=Box(mean=MEAN, logvar=LOG_VAR)),
        Box(latent_dist=torch.distributions.Normal(MEAN, (LOG_VAR / 2).exp())),
        torch.distributions.Independent(torch.distributions.Normal(MEAN, (LOG_VAR / 2).exp()), 1),
        {"embedding": MEAN, "log_covariance": LOG_VAR},
        Box(mu=MEAN, log_var=LOG_VAR, z=MEAN),
    ],
)
def test_encoders_may_return_a_mean_and_a_log_variance(result):
    torch.testing.assert_close(returned.latent(result), (MEAN, LOG_VAR))


@pytest.mark.parametrize("result", [MEAN, (MEAN,), Box(latents=MEAN)])
def test_encoders_may_return_one_tensor(result):
    assert returned.latent(result) == (MEAN,)


@pytest.mark.parametrize("result", [MEAN, (MEAN,), Box(sample=MEAN), {"reconstruction": MEAN}])
def test_decoders_may_return(result):
    assert returned.decoded(result) == (MEAN,)


def test_decoders_may_return_a_mean_and_a_width():
    assert returned.decoded((MEAN, LOG_VAR)) == (MEAN, LOG_VAR)


def test_results_that_say_too_little_are_refused():
    with pytest.raises(TrainingError, match="returns a tuple of Tensor, Tensor, Tensor; expected"):
        returned.latent((MEAN, MEAN, LOG_VAR))
    with pytest.raises(TrainingError, match=r"encode\(x\) returns a NoneType; expected a tensor"):
        returned.latent(None)
    with pytest.raises(TrainingError, match=r"decode\(z\) returns a list of Tensor, Ten"):
        returned.decoded([MEAN, MEAN, MEAN])
