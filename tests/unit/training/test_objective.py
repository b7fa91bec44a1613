"""The losses of training, against calculations by hand."""

import math

import numpy as np
import pytest
import torch

from onetrunk.tasks.kinds import get_kind
from onetrunk.training.objective import DistilObjective, LabelObjective, LayersObjective, StateObjective

CLASSIFICATION, REGRESSION = get_kind("classification"), get_kind("regression")
ROWS = torch.tensor([0, 1])

# Teacher (ln 9, 0): at T = 2 that is (ln 3, 0), so probabilities 3/4 and 1/4; at T = 1, 9/10 and 1/10.
TEACHER = torch.tensor([[math.log(9), 0.0], [0.0, math.log(9)]])
# Student (ln 4, 0) in both rows: at T = 2, 2/3 and 1/3; at T = 1, 4/5 and 1/5.
STUDENT = torch.tensor([[math.log(4), 0.0], [math.log(4), 0.0]])
SOFT_2 = [
    4 * -(0.75 * math.log(2 / 3) + 0.25 * math.log(1 / 3)),
    4 * -(0.25 * math.log(2 / 3) + 0.75 * math.log(1 / 3)),
]
HARD = [-math.log(0.8), -math.log(0.2)]


def test_soft_loss_is_t_squared_times_cross_entropy():
    assert sum(SOFT_2) == pytest.approx(2.3150074 + 3.7013018)
    for row in (0, 1):
        loss = CLASSIFICATION.training.soft_loss(STUDENT[row : row + 1], TEACHER[row : row + 1], 2.0)
        assert loss.item() == pytest.approx(SOFT_2[row], rel=1e-6)
    assert CLASSIFICATION.training.soft_loss(STUDENT, TEACHER, 2.0).item() == pytest.approx(sum(SOFT_2) / 2, rel=1e-6)


def test_temperature_1_softens_nothing():
    expected = -(0.9 * math.log(0.8) + 0.1 * math.log(0.2))
    assert CLASSIFICATION.training.soft_loss(STUDENT[:1], TEACHER[:1], 1.0).item() == pytest.approx(expected, rel=1e-6)


def test_student_that_answers_as_its_teacher_has_no_gradient():
    student = TEACHER.clone().requires_grad_()
    CLASSIFICATION.training.soft_loss(student, TEACHER, 2.0).backward()
    assert student.grad.abs().max() < 1e-6


def test_gradient_does_not_shrink_with_temperature():
    # T^2 is there for this: the gradient at T is T * (softened student - softened teacher), here in row 0.
    for temperature, (own, taught) in {1.0: (0.8, 0.9), 2.0: (2 / 3, 3 / 4)}.items():
        student = STUDENT[:1].clone().requires_grad_()
        CLASSIFICATION.training.soft_loss(student, TEACHER[:1], temperature).backward()
        assert student.grad[0, 0].item() == pytest.approx(temperature * (own - taught), rel=1e-5)


def test_both_terms_of_the_paper():
    objective = DistilObjective(LabelObjective(CLASSIFICATION, torch.tensor([0, 0])), TEACHER, 2.0)
    expected = sum(SOFT_2) / 2 + HARD[0]
    assert objective(STUDENT, ROWS).item() == pytest.approx(expected, rel=1e-6)


def test_rows_choose_teacher_and_label():
    objective = DistilObjective(LabelObjective(CLASSIFICATION, torch.tensor([0, 1])), TEACHER, 2.0)
    # Row 1 alone: the teacher's second answer, and label 1.
    assert objective(STUDENT[:1], torch.tensor([1])).item() == pytest.approx(SOFT_2[1] + HARD[1], rel=1e-6)


def test_rows_without_a_label_add_the_soft_term_alone():
    objective = DistilObjective(LabelObjective(CLASSIFICATION, torch.tensor([1])), TEACHER, 2.0)
    # Of two rows one has a label, so its hard term weighs a half, as in a mean over the batch.
    expected = sum(SOFT_2) / 2 + HARD[1] / 2
    assert objective(STUDENT, ROWS).item() == pytest.approx(expected, rel=1e-6)
    assert objective(STUDENT, ROWS.flip(0)).item() == pytest.approx(expected, rel=1e-6)
    assert objective(STUDENT[:1], torch.tensor([1])).item() == pytest.approx(SOFT_2[1], rel=1e-6)


def test_regression_is_squared_error_to_teacher_and_label():
    teacher = torch.tensor([[0.5], [0.25]])
    objective = DistilObjective(LabelObjective(REGRESSION, torch.tensor([1.0])), teacher, 2.0)
    raw = torch.tensor([[0.75], [0.0]])
    # To the teacher: (0.25^2 + 0.25^2) / 2; to the label of the first row: 0.25^2, weighing a half.
    assert objective(raw, ROWS).item() == pytest.approx(0.0625 + 0.5 * 0.0625)


def test_labels_alone_are_the_kinds_own_loss():
    objective = LabelObjective(CLASSIFICATION, torch.tensor([1, 0]))
    assert objective(STUDENT, ROWS).item() == pytest.approx((HARD[0] + HARD[1]) / 2, rel=1e-6)
    assert LabelObjective(REGRESSION, torch.tensor([0.5]))(torch.tensor([[0.75]]), ROWS[:1]).item() == 0.0625


def test_last_states_are_compared_after_normalising():
    dropout = torch.nn.Dropout(0.0)
    wanted = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    objective = StateObjective(lambda raw, rows: torch.tensor(10.0), dropout, wanted, weight=3.0)
    dropout(torch.tensor([[5.0, 3.0], [-7.0, 9.0]]))
    # Normalised, the first state is (1, -1) like its teacher's, the second (-1, 1): differences 0 and 2, squared 4.
    assert objective(torch.zeros(2, 2), ROWS).item() == pytest.approx(10 + 3 * (0 + 0 + 4 + 4) / 4, rel=1e-4)


class TwoTexts:
    """States of two texts, of two tokens and of one, whose normalised form is (1, -1) everywhere."""

    lengths = np.array([2, 1])

    def batch(self, rows):
        assert list(rows) == [0, 1]
        return torch.tensor([[[1.0, -1.0], [1.0, -1.0]], [[1.0, -1.0], [0.0, 0.0]]]), torch.tensor([[1, 1], [1, 0]])


def test_states_within_a_head_are_compared_token_by_token():
    first, second = torch.nn.Identity(), torch.nn.Identity()
    objective = LayersObjective(lambda raw, rows: torch.tensor(10.0), [first, second], [TwoTexts()] * 2, weight=3.0)
    alike = torch.tensor([[[9.0, 5.0], [3.0, 2.0]], [[4.0, 0.0], [-8.0, 8.0]]])
    first(alike)
    # One of three tokens is turned round: its distance is 4. What stands at padding does not count.
    second(alike * torch.tensor([[[1.0], [-1.0]], [[1.0], [1.0]]]))
    expected = pytest.approx(10 + 3 * (0 + 4 / 3) / 2, rel=1e-4)
    assert objective(torch.zeros(2, 2), ROWS).item() == expected
    # What is read while the head is scored is no part of the next batch.
    first.eval()(alike)
    for layer in (first.train(), second):
        layer(alike)
    assert objective(torch.zeros(2, 2), ROWS).item() == pytest.approx(10, rel=1e-4)


def test_a_layer_that_runs_twice_is_compared_twice():
    layer = torch.nn.Identity()
    objective = LayersObjective(lambda raw, rows: torch.tensor(0.0), [layer, layer], [TwoTexts()] * 2, weight=1.0)
    alike = TwoTexts().batch([0, 1])[0]
    layer(alike)
    layer(-alike)
    assert objective(torch.zeros(2, 2), ROWS).item() == pytest.approx((0 + 4) / 2, rel=1e-4)
