"""Whatever a server or the way to it raises is one line; a wrong request, or a fault of ours, stays what it is."""

from __future__ import annotations

import httpx
import pytest
from conftest import mixed_batch, tiny_lens
from nnsight.intervention.backends.remote import RemoteError
from nnsight.schema.response import ResponseModel

from interventions import count_active
from interventions.errors import InvalidValue, MMNeuronError
from mmneuron_lens.runtime import remote
from mmneuron_lens.runtime.remote import RemoteFailed, ask_served

URL = "https://there"


@pytest.fixture
def failing(monkeypatch):
    """A lens whose server raises what is put into the list."""
    lens, raised = tiny_lens("llava_next"), []
    monkeypatch.setattr(type(lens.nnsight), "to_model_key", lambda self: 'class:{"repo_id": "owner/model"}')
    monkeypatch.setattr(remote, "refuse_unserved", lambda host, key: None)
    genuine = remote.backend_of

    def backend_of(model, where, **settings):
        made = genuine(model, where, **settings)

        class Failing(type(made)):
            def __call__(self, tracer=None):
                raise raised[0]

        made.__class__ = Failing
        return made

    monkeypatch.setattr(remote, "backend_of", backend_of)
    return lens, raised


def invalid() -> Exception:
    try:
        ResponseModel.model_validate_json("{}")
    except ValueError as error:
        return error
    raise AssertionError("an empty answer is one")


REQUEST = httpx.Request("GET", URL)
RAISED = {
    "the job": (RemoteError("boom\n  in two lines"), f"{URL}: boom in two lines"),
    "the connection": (
        httpx.ConnectError("refused"),
        f"{URL}: the connection failed; try again (ConnectError: refused)",
    ),
    "a status": (
        httpx.HTTPStatusError("502", request=REQUEST, response=httpx.Response(502, request=REQUEST)),
        f"{URL} answers 502; it is not ready: try again in a minute.",
    ),
    "the network": (
        ConnectionResetError(104, "reset"),
        f"{URL}: the connection failed; try again (ConnectionResetError: [Errno 104] reset)",
    ),
    "an answer of another form": (invalid(), f"{URL}: a job's status cannot be read (id, status); "),
}


@pytest.mark.parametrize("name", RAISED)
def test_one_line_of_one_kind(failing, name):
    lens, raised = failing
    error, expected = RAISED[name]
    raised.append(error)
    for ask in (
        lambda: lens.run(count_active, mixed_batch(lens), remote=URL),
        lambda: lens.generate(count_active, mixed_batch(lens), max_new_tokens=1, remote=URL),
        lambda: ask_served(lens.model, URL),
    ):
        with pytest.raises(RemoteFailed) as caught:
            ask()
        assert str(caught.value).startswith(expected)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, MMNeuronError)
        assert caught.value.__cause__ is error
    if name == "the job":
        assert caught.value.traceback == "boom\n  in two lines"


def test_what_the_user_can_mend_and_a_fault_of_ours_stay(failing):
    lens, raised = failing
    for error in (InvalidValue("The job needs scipy"), ZeroDivisionError("a fault")):
        raised[:] = [error]
        with pytest.raises(type(error), match=str(error)):
            lens.run(count_active, mixed_batch(lens), remote=URL)
