import pickle

import pytest

from hpcserve.errors import ContextLengthError, InvalidParameterError
from hpcserve.protocol.blame import blames


def test_errors_about_the_prompt_name_the_field():
    with pytest.raises(ContextLengthError) as caught, blames("messages"):
        raise ContextLengthError(200, None, 100)
    assert caught.value.param == "messages"
    # Also on the other side of a process boundary.
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.param, str(again)) == ("messages", str(caught.value))
    with pytest.raises(InvalidParameterError, match=r"^text: it is empty") as wrong, blames("text"):
        raise InvalidParameterError("prompt", "it is empty")
    assert wrong.value.param == "text"


def test_others_keep_theirs():
    with pytest.raises(InvalidParameterError) as caught, blames("messages"):
        raise InvalidParameterError("top_p", "no")
    assert caught.value.param == "top_p"
