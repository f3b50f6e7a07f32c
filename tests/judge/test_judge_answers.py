"""What is read out of answers, and what requests look like."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groupsae.interpretability.judge.answers import LONGEST, read_explanation, read_verdicts
from groupsae.interpretability.judge.prompts import RequestForm, explanation_request, score_request
from groupsae.interpretability.window import Window


@pytest.mark.parametrize(
    ("text", "explanation"),
    [
        ("[EXPLANATION]: days of the week", "days of the week"),
        ("They name days.\n\n[EXPLANATION]:  days of\n the week\n\nAnything else?", "days of the week"),
        ("**Explanation:** days of the week", "days of the week"),
        ("[explanation]: first\n[EXPLANATION]: second", "second"),
        ("days of the week", "days of the week"),
        ('"days of the week"', "days of the week"),
        ('the token "def"', 'the token "def"'),
        ("<think>[EXPLANATION]: no\n\nhm</think>[EXPLANATION]: yes", "yes"),
        ("<think>never ends", None),
        ("First paragraph.\n\nSecond paragraph.", None),
        ("[EXPLANATION]:", None),
        ("", None),
        ("[EXPLANATION]: <script>alert(1)</script>", "<script>alert(1)</script>"),
        ("[EXPLANATION]: a\x00b\x1b[31m\u202ec", "a b [31m c"),
        ("[EXPLANATION]: " + "x" * 5000, "x" * LONGEST),
    ],
)
def test_explanations(text, explanation):
    assert read_explanation(text) == explanation


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("[1, 0, 1]", (True, False, True)),
        ("[1,0,1,]", (True, False, True)),
        ("Here: [1, 0, 1].", (True, False, True)),
        ("[0, 0, 0] or rather [1, 0, 1]", (True, False, True)),
        ("[1, 0, 1]\n(see excerpt [1])", (True, False, True)),
        ("<think>[0, 0, 0]</think>[1, 0, 1]", (True, False, True)),
        ("[1, 0]", None),
        ("[1, 0, 1, 1]", None),
        ("[1 0 1]", None),
        ("[10, 1]", None),
        ("[1, 0, 2]", None),
        ("yes, no, yes", None),
        ("", None),
    ],
)
def test_verdicts(text, verdicts):
    assert read_verdicts(text, 3) == verdicts


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # for busy machines
@given(st.text())
def test_no_text_is_too_strange_to_read(text):
    explanation = read_explanation(text)
    assert explanation is None or (0 < len(explanation) <= LONGEST and len(explanation.splitlines()) == 1)
    assert read_verdicts(text, 2) in (None, *((a, b) for a in (True, False) for b in (True, False)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=10))
def test_every_list_of_verdicts_is_read_as_it_was_written(truths):
    assert read_verdicts(str([int(one) for one in truths]), len(truths)) == tuple(truths)


FORM = RequestForm("m")
WINDOW = Window((" if", " x", " <<", " 1", ":\n", "\r\n", " go"), (0, 1.0, 4.0, 0, 0, 0, 2.0))


def text_of(request):
    return request["messages"][1]["content"]


def test_an_explanation_is_asked_for_with_marks_and_strengths():
    text = text_of(explanation_request(FORM, [WINDOW, Window((" a",), (8.0,))]))
    first, strengths, *_ = text.splitlines()
    assert first == " if<< x < <>> 1:\\n\\n<< go>>"
    assert strengths == 'Active: " x" 1, " < <" 5, " go" 2'
    assert text.count("<<") == 3


def test_a_window_is_one_line_with_marks_for_fuzzing_only():
    detect, fuzz = (text_of(score_request(FORM, how, "why", [WINDOW, WINDOW])) for how in ("detection", "fuzzing"))
    assert detect.splitlines()[:4] == ["Explanation: why", "", *(f"{n}.  if x < < 1:\\n\\n go" for n in (1, 2))]
    assert fuzz.splitlines()[2:4] == [f"{n}.  if<< x < <>> 1:\\n\\n<< go>>" for n in (1, 2)]


def test_what_decides_the_answer_is_all_in_the_request():
    request = score_request(FORM, "detection", "why", [WINDOW])
    assert (request["model"], request["temperature"]) == ("m", 0) and request["max_tokens"] > 0


def test_a_model_that_thinks_gets_room_for_it():
    forms = RequestForm("m"), RequestForm("m", thinks=True)
    usual, thinking = (explanation_request(form, [WINDOW]) for form in forms)
    assert thinking["messages"] == usual["messages"] and "temperature" not in thinking and "max_tokens" not in thinking
    assert thinking["max_completion_tokens"] > 1000 + usual["max_tokens"]
