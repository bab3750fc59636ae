"""What goes wrong in a function of the user's: a line with the place, the argument, what was expected and what came."""

from __future__ import annotations

import inspect
import traceback

import pytest
import torch
import typer
from conftest import mixed_batch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typer.testing import CliRunner

from interventions import add_vector, reads, scale_neurons, writes
from interventions.errors import InvalidType
from mmneuron_lens.commands import Commands
from mmneuron_lens.runtime.shapes import ShapeError
from mmneuron_lens.runtime.typed import place, typed_function


@writes("llm.mlp.act")
def scaled(
    act: Float[Tensor, "batch token neuron"], by: Float[Tensor, " neuron"]
) -> Float[Tensor, "batch token neuron"]:
    return act * by


@writes("llm.mlp.act")
def flags(act: Bool[Tensor, "batch token neuron"]) -> Bool[Tensor, "batch token neuron"]:
    return act


@reads("llm.mlp.act", over="list")
def totals(act: Float[Tensor, "batch token neuron"]) -> Int[Tensor, "batch token"]:
    return act.sum(-1)


@reads("llm.mlp.act", over="list")
def pair(act: Float[Tensor, "batch token neuron"]) -> tuple[Float[Tensor, ""], int]:
    return act.sum(), act


@reads("llm.mlp.act", over="list")
def nested(act):
    return helped(act)


def helped(act):
    return act + "a"


def line_of(function) -> str:
    """The file and line where it begins, as Python counts: at its decorator."""
    return f"{inspect.getsourcefile(function)}:{inspect.getsourcelines(inspect.unwrap(function))[1]}"


HERE = __file__
CASES = {
    "another length": (
        lambda: scaled.bind(by=torch.zeros(47)),
        f"scaled ({line_of(scaled.function)}), argument by: expected Float[Tensor, ' neuron'], got float32 [47], where",
    ),
    "another dtype": (
        lambda: scaled.bind(by=torch.zeros(48).int()),
        f"scaled ({line_of(scaled.function)}), argument by: expected Float[Tensor, ' neuron'], got int32 [48], where ",
    ),
    "another number of axes": (
        lambda: scaled.bind(by=torch.zeros(2, 48, dtype=torch.bfloat16)),
        "argument by: expected Float[Tensor, ' neuron'], got bfloat16 [2, 48], where ",
    ),
    "no tensor": (lambda: scaled.bind(by=2.0), "argument by: expected Float[Tensor, ' neuron'], got 2.0, where "),
    "the value itself": (lambda: flags, "argument act: expected Bool[Tensor, 'batch token neuron'], got float32 [3, "),
    "what is returned": (
        lambda: totals,
        f"totals ({line_of(totals.function)}), what it returns: expected Int[Tensor, 'batch token'], got float32 [3, ",
    ),
    "a pair": (lambda: pair, "what it returns: expected tuple[Float[Tensor, ''], int], got (float32 [], float32 [3, "),
    "text for a number": (
        lambda: add_vector.bind(vector=torch.zeros(32), scale="4"),
        "argument scale: expected float, got '4', where hidden=32",
    ),
}


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("remote", [None, "local"])
def test_one_line_says_where_and_what(lens, name, remote):
    make, text = CASES[name]
    batch = mixed_batch(lens)
    calls = [lambda graph: lens.check(graph, batch), lambda graph: lens.run(graph, batch, remote=remote)]
    for do in calls if remote is None else calls[1:]:
        with pytest.raises(ShapeError) as caught:
            do(make())
        assert text in str(caught.value)
        assert str(caught.value).startswith(f"{make().name} does not fit {make().sites[0]} (value [3, ")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
        # This test's own line, two of ours, and the message; a second error is not shown.
        assert len(shown(caught.value).splitlines()) <= 12
        assert "beartype" not in shown(caught.value)


def test_numbers_fit_as_they_do_in_python(lens):
    batch = mixed_batch(lens)
    vector, neurons = torch.ones(32), torch.ones(48, dtype=torch.bool)
    for whole, real in (
        (add_vector.bind(vector=vector, scale=4), add_vector.bind(vector=vector, scale=4.0)),
        (scale_neurons.bind(neurons=neurons, factor=0), scale_neurons.bind(neurons=neurons, factor=0.0)),
    ):
        one, other = (lens.run(graph, batch, logits=True).logits[0] for graph in (whole, real))
        assert torch.equal(one, other)

    @reads("llm.mlp.act", over="list")
    def first(act: Float[Tensor, "*where neuron"], count: int) -> Float[Tensor, "*where some"]:
        return act[..., :count]

    with pytest.raises(ShapeError, match=r"argument count: expected int, got 1\.5"):
        lens.check(first.bind(count=1.5), batch)


def test_a_fault_in_the_function_keeps_its_own_lines(lens):
    for do in (lens.check, lens.run):
        with pytest.raises(ShapeError) as caught:
            do(nested, mixed_batch(lens))
        line = inspect.getsourcelines(helped)[1] + 1
        said = "TypeError: unsupported operand type(s) for +: 'Tensor' and 'str'"
        assert str(caught.value).endswith(f"): {said} ({HERE}:{line})")
        text = shown(caught.value)
        assert "return helped(act)" in text
        assert 'return act + "a"' in text
        assert len(text.splitlines()) <= 24
        for machinery in ("beartype", "jaxtyping", "fake_tensor", "calling.py"):
            assert machinery not in text


def failing(returns):
    """A read that returns this of the model's values, and what it is given before."""

    @reads("llm.mlp.act", over="list")
    def fails(act: Float[Tensor, "batch token neuron"]) -> Float[Tensor, "batch token neuron"]:
        if isinstance(act, torch._subclasses.FakeTensor):
            return act
        return returns(act)

    return fails


def test_a_fault_while_the_model_runs_loses_the_models_lines(lens):
    batch = mixed_batch(lens)
    for do in (lens.run, lambda graph, batch: lens.generate(graph, batch, max_new_tokens=1)):
        with pytest.raises(ZeroDivisionError) as caught:
            do(failing(lambda act: 1 / 0).at(layers=1), batch)
        assert caught.value.__notes__[-1] == "(in fails at llm.mlp.act, layer 1)"
        text = shown(caught.value)
        assert "return returns(act)" in text
        assert "1 / 0" in text
        assert len(text.splitlines()) <= 30
        for machinery in ("nnsight", "transformers", "jaxtyping", "torch/nn"):
            assert machinery not in text


def test_a_misfit_while_the_model_runs_is_one_line(lens):
    batch = mixed_batch(lens)
    with pytest.raises(ShapeError) as caught:
        lens.run(failing(lambda act: act[0]), batch)
    assert "what it returns: expected Float[Tensor, 'batch token neuron'], got float32 [" in str(caught.value)
    assert str(caught.value).endswith("(in fails at llm.mlp.act, layer 0)")
    assert len(shown(caught.value).splitlines()) <= 12

    @writes("llm.mlp.act")
    def shorter(act):
        return act if isinstance(act, torch._subclasses.FakeTensor) else act[:, 1:]

    with pytest.raises(
        ShapeError, match=r"shorter at llm\.mlp\.act returned \[3, \d+, 48\].*\(in shorter at"
    ) as caught:
        lens.run(shorter, batch)
    assert len(shown(caught.value).splitlines()) <= 12


def test_a_fault_of_ours_stays_as_it_is(lens, monkeypatch):
    from mmneuron_lens.wire import execute

    def broken(*_arguments):
        raise ValueError("a fault of ours")

    monkeypatch.setattr(execute, "take", broken)
    with pytest.raises(ValueError, match="a fault of ours") as caught:
        lens.run(scaled.bind(by=torch.ones(48)), mixed_batch(lens))
    assert type(caught.value) is ValueError
    assert not hasattr(caught.value, "__notes__")


def test_annotations_that_mean_nothing_are_refused(lens):
    @reads("llm.mlp.act", over="list")
    def numbered(act: 3):  # type: ignore[valid-type]
        return act

    with pytest.raises(InvalidType, match=r"numbered \(.*typed\.py:\d+\): its annotations cannot be checked") as caught:
        lens.run(numbered, mixed_batch(lens))
    assert "\n" not in str(caught.value)


def test_annotations_that_cannot_be_read_are_said_not_to_be_checked(lens):
    Inner = Float[Tensor, "row token"]

    @reads("llm.mlp.act", over="list")
    def unread(act: Inner) -> Inner:
        return act

    found = lens.check(unread, mixed_batch(lens))
    assert found.proved == ()
    assert found.tried == {
        "unread at llm.mlp.act": "its annotations are not checked (NameError: name 'Inner' is not defined)"
    }


def test_a_cell_is_not_called_by_the_file_that_holds_it():
    assert place("/tmp/ipykernel_81/1234.py", 4) == "a cell, line 4"
    assert place("<ipython-input-3-abc>", 2) == "a cell, line 2"
    assert place("mine.py", 7) == "mine.py:7"


def test_a_command_shows_the_line_alone():
    app = typer.Typer(cls=Commands)

    @app.command()
    def one() -> None:
        typed_function(totals.function)(torch.zeros(1, 2, 3))

    @app.command()
    def other() -> None:
        """So that there are several."""

    result = CliRunner().invoke(app, ["one"])
    assert result.exit_code == 1
    assert result.stderr == (
        f"mmneuron: totals ({line_of(totals.function)}), what it returns: expected Int[Tensor, 'batch token'], "
        "got float32 [1, 2], where batch=1 token=2 neuron=3\n"
    )
