import pickle

import pytest

from pipeline.errors import DatasetError, NonFiniteError, PipelineError


@pytest.mark.parametrize("error", [DatasetError("cannot read 'x'"), NonFiniteError(7, "tv_l2", 3), PipelineError()])
def test_errors_survive_pickling_and_what_ray_appends(error: PipelineError) -> None:
    message = str(error)
    error.args = (*error.args, "\nadvice")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(copy) is type(error)
    assert str(error) == str(copy) == message
    assert vars(copy) == vars(error)
