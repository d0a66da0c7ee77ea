"""Warnings of made-up judging runs, put together by hand."""

from lvmmed.evaluation.benchmark_warnings import TaskWarning, task_warnings


def test_equal_warnings_of_a_task_are_put_together_with_the_encoders():
    leak, fit = "patients in train and test", "the fit did not end"
    runs = [
        ("breast", "a (scratch)", (leak,)),
        ("breast", "b (scratch)", (leak, fit)),
        ("breast", "b (scratch)", (leak, fit)),  # another seed
        ("retina", "a (scratch)", ()),
        ("retina", "b (scratch)", (leak,)),
    ]
    both, one = ("a (scratch)", "b (scratch)"), ("b (scratch)",)
    assert task_warnings(runs) == (
        TaskWarning(task="breast", text=leak, encoders=both, is_of_all=True),
        TaskWarning(task="breast", text=fit, encoders=one, is_of_all=False),
        TaskWarning(task="retina", text=leak, encoders=one, is_of_all=False),
    )
