"""Where a student's first weights come from."""

import copy

import pytest
import torch

from onetrunk.nn.head import new_head
from onetrunk.training.models import initialise_student


@pytest.fixture
def teacher(tiny_trunk):
    """All three layers above tap 1, with weights that are not the trunk's."""
    head = new_head(tiny_trunk, outputs=2, tap=1, layers=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return head


@pytest.fixture
def student(tiny_trunk):
    torch.manual_seed(0)
    return new_head(tiny_trunk, outputs=2, tap=1, layers=2)


def same(module, other):
    one, two = module.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def same_parameters(module, other):
    return [torch.equal(one, two) for one, two in zip(module.parameters(), other.parameters(), strict=True)]


def test_teachers_lowest_layers_bit_for_bit(student, teacher):
    output = copy.deepcopy(student.output)
    initialise_student(student, teacher, "teacher")
    assert [same(own, theirs) for own, theirs in zip(student.layers, teacher.layers[:2], strict=True)] == [True, True]
    assert not same(student.layers[1], teacher.layers[2])
    # The teacher's output reads a state that the student does not have yet.
    assert same(student.output, output)


def test_weights_are_copied_and_not_shared(student, teacher):
    initialise_student(student, teacher, "teacher")
    shared = {parameter.data_ptr() for parameter in teacher.parameters()}
    assert not shared & {parameter.data_ptr() for parameter in student.parameters()}


def test_trunks_layers_bit_for_bit(student, teacher, tiny_trunk):
    initialise_student(student, teacher, "trunk")
    for own, theirs in zip(student.layers, tiny_trunk.layers[1:3], strict=True):
        assert same(own, theirs)


def test_random_is_neither_and_repeats_with_the_seed(student, teacher, tiny_trunk):
    again = copy.deepcopy(student)
    for head in (student, again):
        torch.manual_seed(7)
        initialise_student(head, teacher, "random")
    assert same(student, again)
    for own, of_trunk, of_teacher in zip(student.layers, tiny_trunk.layers[1:3], teacher.layers[:2], strict=True):
        for name, weight in own.named_parameters():
            if weight.ndim > 1:
                assert 0.01 < weight.std() < 0.03, name
            else:
                assert weight.unique().tolist() == ([1.0] if name.endswith("LayerNorm.weight") else [0.0]), name
        matrices = [parameter.ndim > 1 for parameter in own.parameters()]
        for other in (of_trunk, of_teacher):
            equal = same_parameters(own, other)
            assert not any(same for same, matrix in zip(equal, matrices, strict=True) if matrix)


@pytest.mark.parametrize("layers", [1, 3])
def test_any_length_up_to_the_teachers(tiny_trunk, teacher, layers):
    student = new_head(tiny_trunk, outputs=2, tap=1, layers=layers)
    initialise_student(student, teacher, "teacher")
    for own, theirs in zip(student.layers, teacher.layers, strict=False):
        assert same(own, theirs)
