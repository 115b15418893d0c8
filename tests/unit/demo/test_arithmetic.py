import re

import pytest

from tinkex.demo import arithmetic


def operands(problem):
    return tuple(sorted(int(number) for number in re.findall(r"\d+", problem.question)))


def test_problems_are_equal_when_the_seed_is():
    assert arithmetic.problems(3, 50) == arithmetic.problems(3, 50)
    assert arithmetic.problems(3, 50) != arithmetic.problems(4, 50)


def test_problems_share_no_pair_of_operands_with_the_held_out_ones():
    train = {operands(problem) for problem in arithmetic.problems(0, 20_000)}
    held_out = {operands(problem) for problem in arithmetic.held_out(500)}
    assert not train & held_out


def test_held_out_problems_are_different_and_always_the_same():
    first = arithmetic.held_out()
    assert len(first) == 200
    assert len({problem.question for problem in first}) == 200
    assert arithmetic.held_out(200) == first
    assert arithmetic.held_out(50) == first[:50]


def test_held_out_refuses_more_than_it_has():
    with pytest.raises(ValueError, match="at most 500"):
        arithmetic.held_out(501)


def test_held_out_pairs_do_not_depend_on_the_order_of_operands():
    pairs = [(a, b) for a in range(50) for b in range(50)]
    assert all(arithmetic.is_held_out(a, b) == arithmetic.is_held_out(b, a) for a, b in pairs)


def test_answers_are_right_and_not_negative():
    for problem in arithmetic.problems(1, 500) + arithmetic.held_out():
        a, b = (int(number) for number in re.findall(r"\d+", problem.question))
        minus = "-" in problem.question or "minus" in problem.question
        assert problem.answer == (a - b if minus else a + b)
        assert 0 <= problem.answer < 100


def test_every_wording_is_used():
    questions = " ".join(problem.question for problem in arithmetic.held_out())
    for word in ("What is", "Compute", "How much", "= ?", "Work out"):
        assert word in questions


@pytest.mark.parametrize("reply", ["37", " 37", "37\n"])
def test_reward_is_one_when_the_reply_is_the_number(reply):
    assert arithmetic.reward(arithmetic.Problem("What is 23 + 14?", 37), reply) == 1.0


@pytest.mark.parametrize(
    "reply", ["", "38", "37.", "037", "The answer is 37.", "23 + 14 = 37", "thirty-seven", "3 7"]
)
def test_reward_is_zero_when_the_reply_is_anything_else(reply):
    assert arithmetic.reward(arithmetic.Problem("What is 23 + 14?", 37), reply) == 0.0


def test_messages_hold_the_question_alone():
    problem = arithmetic.Problem("What is 23 + 14?", 37)
    assert arithmetic.messages(problem) == [{"role": "user", "content": "What is 23 + 14?"}]
