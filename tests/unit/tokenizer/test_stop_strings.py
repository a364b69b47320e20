from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hpcserve.tokenizer.stop_strings import StopStrings

texts = st.text(alphabet="abc", max_size=24)
stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3)


def run(stop, pieces, include=False):
    watcher = StopStrings(stop, include=include)
    given_out = ""
    for piece in pieces:
        text, found = watcher.add(piece)
        given_out += text
        if found is not None:
            return given_out, found
    return given_out + watcher.flush(), None


def expected(text, stop):
    """The stop string that ends first, of those the longest."""
    for end in range(1, len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return end - len(longest), longest
    return len(text), None


@given(text=texts, stop=stops, cuts=st.lists(st.integers(0, 24)), include=st.booleans())
def test_cuts_do_not_matter(text, stop, cuts, include):
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    length, found = expected(text, stop)
    kept = text[:length] + (found or "" if include else "")
    assert run(stop, pieces, include) == (kept, found)


@given(text=texts, stop=stops)
def test_nothing_of_a_stop_string_leaks(text, stop):
    watcher = StopStrings(stop)
    out = ""
    for character in text:
        piece, found = watcher.add(character)
        out += piece
        assert not any(s in out for s in stop)
        if found:
            return


def test_text_is_held_no_longer_than_needed():
    watcher = StopStrings(["\n\n", "END"])
    assert watcher.add("hello E") == ("hello ", None)
    assert watcher.add("N") == ("", None)
    assert watcher.add("vy\n") == ("ENvy", None)
    assert watcher.flush() == "\n"
