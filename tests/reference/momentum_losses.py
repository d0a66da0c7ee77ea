"""Losses of methods with a teacher, one image and one view at a time, in plain Python."""

import math


def _unit(vector):
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length for x in vector]


def _dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def queue_contrast_loop(queries, keys, queue, temperature):
    """Equation 1 of MoCo, mean over queries; and the share of keys nearer than all of the queue."""
    total, num_right = 0.0, 0
    negatives = [_unit(one) for one in queue]
    for query, key in zip(queries, keys, strict=True):
        own = _dot(_unit(query), _unit(key))
        others = [_dot(_unit(query), one) for one in negatives]
        right = math.exp(own / temperature)
        total -= math.log(right / (right + sum(math.exp(one / temperature) for one in others)))
        num_right += own > max(others)
    return total / len(queries), num_right / len(queries)


def prediction_error_loop(predictions, targets):
    """Equation 2 of BYOL: squared distance of the unit vectors, mean over images."""
    total = 0.0
    for prediction, target in zip(predictions, targets, strict=True):
        a, b = _unit(prediction), _unit(target)
        total += sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
    return total / len(predictions)


def softmax(logits):
    """Probabilities of one list of logits."""
    exponentials = [math.exp(one) for one in logits]
    return [one / sum(exponentials) for one in exponentials]


def cross_view_entropy_loop(student, teacher):
    """Equation 3 of DINO from probabilities [view][image][prototype]; same views left out."""
    total, num = 0.0, 0
    for t, opinions in enumerate(teacher):
        for v, answers in enumerate(student):
            if t == v:
                continue
            for opinion, answer in zip(opinions, answers, strict=True):
                total -= sum(p * math.log(q) for p, q in zip(opinion, answer, strict=True))
                num += 1
    return total / num
