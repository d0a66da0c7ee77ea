"""Expected values: hand arithmetic, and the encoder itself in training and in evaluation."""

import copy

import pytest
import torch
from reference.ssl_batches import make_views, small_backbone

from lvmmed.models.backbones import build_backbone
from lvmmed.models.heads import Projector
from lvmmed.ssl.method import encode_views
from lvmmed.ssl.momentum import Teacher, cosine_momentum


@pytest.fixture
def student():
    backbone = small_backbone()
    generator = torch.Generator().manual_seed(1)
    head = Projector(backbone.width, 4, num_hidden=1, hidden_width=8, generator=generator)
    return backbone, head


def _changed(modules):
    """Copies whose tensors are larger by one."""
    changed = copy.deepcopy(modules)
    with torch.no_grad():
        for module in changed:
            for tensor in (*module.parameters(), *module.buffers()):
                tensor += 1
    return changed


def _tensors(teacher):
    return {name: value.clone() for name, value in teacher.state_dict().items()}


def test_momentum_rises_along_half_a_cosine():
    values = [cosine_momentum(step, num_steps=4, start=0.9) for step in range(5)]
    # (cos(0) + 1) / 2 = 1, (cos(pi / 4) + 1) / 2 = 0.853553, 0.5, 0.146447, 0
    assert values == pytest.approx([0.9, 0.9146447, 0.95, 0.9853553, 1.0])


def test_a_constant_momentum_stays_constant():
    assert cosine_momentum(3, num_steps=10, start=1.0) == 1.0


def test_a_teacher_starts_as_the_student_and_is_a_copy(student):
    backbone, head = student
    teacher = Teacher(backbone, head)
    for own, students in ((teacher.backbone, backbone), (teacher.head, head)):
        pairs = list(zip(own.parameters(), students.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in pairs)
        assert all(a.data_ptr() != b.data_ptr() for a, b in pairs)
        assert not any(p.requires_grad for p in own.parameters())
    assert any(p.requires_grad for p in backbone.parameters())


def test_following_moves_every_number_by_its_share(student):
    """A student larger by 1 moves the teacher by 1 - 0.75; counters are copied."""
    teacher = Teacher(*student)
    before = _tensors(teacher)
    teacher.follow(*_changed(student), momentum=0.75)
    assert any(value.dtype == torch.long for value in before.values())
    for name, value in teacher.state_dict().items():
        moved = 0.25 if value.is_floating_point() else 1
        torch.testing.assert_close(value, before[name] + moved)


@pytest.mark.parametrize(("momentum", "moved"), [(1.0, 0), (0.0, 1)])
def test_the_ends_of_the_range_keep_and_copy(student, momentum, moved):
    teacher = Teacher(*student)
    before = _tensors(teacher)
    teacher.follow(*_changed(student), momentum=momentum)
    for name, value in teacher.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, before[name] + moved, rtol=0, atol=1e-6)


def test_a_fresh_teacher_sees_what_the_student_sees(student):
    backbone, head = student
    views = list(make_views(8))
    teacher = Teacher(backbone, head)
    projected = teacher.project(views)
    with torch.no_grad():
        expected = [head(one.pooled) for one in encode_views(backbone, views)]
    assert all(torch.equal(a, b) for a, b in zip(projected, expected, strict=True))


def test_looking_leaves_no_trace(student):
    """Batch normalisation uses the batch, and its running statistics stay."""
    teacher = Teacher(*student)
    before = _tensors(teacher)
    views = list(make_views(8))
    first, second = teacher.project(views), teacher.project(views)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    features = encode_views(student[0], views)  # the student's do move
    assert features[0].pooled.requires_grad
    assert not teacher.encode(views)[0].pooled.requires_grad


def test_a_teacher_sees_with_the_whole_network_where_its_student_drops_parts():
    """timm gives Swin a stochastic depth of 0.1; its norms are the same in evaluation."""
    backbone = build_backbone("swin_tiny_patch4_window7_224", size_px=64)
    head = Projector(backbone.width, 4, num_hidden=0)
    backbone.model.head_drop = torch.nn.Dropout(0.5)  # not called; any dropout is off
    teacher = torch.nn.ModuleDict({"teacher": Teacher(backbone, head)}).train()["teacher"]
    assert not teacher.backbone.model.head_drop.training
    views = list(make_views(4))
    found = teacher.encode(views)
    with torch.no_grad():
        dropped = encode_views(backbone, views)
        backbone.eval()
        expected = encode_views(backbone, views)
    assert not torch.allclose(dropped[0].pooled, expected[0].pooled)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.pooled, other.pooled, rtol=0, atol=0)


def test_a_teacher_keeps_frozen_batch_statistics_and_follows_evaluation(student):
    backbone, head = student
    assert any(module.training for module in Teacher(backbone, head).train().modules())
    assert not any(module.training for module in Teacher(backbone, head).eval().modules())
    backbone.has_frozen_batch_norm = True
    frozen = Teacher(backbone, head).train()
    assert not any(module.training for module in frozen.backbone.modules())
    views = list(make_views(4))
    with torch.no_grad():
        expected = encode_views(backbone.eval(), views)[0].pooled
    torch.testing.assert_close(frozen.encode(views)[0].pooled, expected, rtol=0, atol=0)


def test_the_head_works_in_single_precision_under_autocast(student):
    teacher = Teacher(*student)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = teacher.encode(list(make_views(4)))
        projected = teacher.project(list(make_views(4)))
    assert features[0].map.dtype == torch.bfloat16
    assert all(one.dtype == torch.float32 for one in projected)
