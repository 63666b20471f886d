"""What docs/extending.md shows to be added is added to a copy of the code, in as many files as it says, and runs."""

import json
from pathlib import Path

from PIL import Image

from tests.extending import Extended, line_with, python_blocks

RANKING = """
import torch

from pipeline.config import parse_config
from pipeline.inversion import InversionConfig, Teacher, invert
from tests.conftest import HALF, make_tiny_model

model, images = make_tiny_model(), torch.randn(2, 3, 32, 32)
entering = model.blocks[:-1](model.norm_pre(model._pos_embed(model.patch_embed(images))))
teacher = Teacher(model, mean=HALF, std=HALF)
logits, scores = teacher.forward_scores(images, ranking="token_norm")
torch.testing.assert_close(scores, entering.square().sum(dim=2).sqrt()[:, 1:])
torch.testing.assert_close(logits, teacher(images))

keep = torch.tensor([[0, 3, 5, 11], [1, 2, 9, 15]])
_, scores = teacher.forward_scores(images, keep, ranking="token_norm")
_, of_patches = teacher.forward_patches_scores(teacher._gather_patches(images, keep), keep, ranking="token_norm")
torch.testing.assert_close(of_patches, scores)

flags = ["--iterations=6", "--stop_steps=[3]", "--stop_fractions=[0.5]", "--ranking"]
kept = [
    invert(teacher, torch.tensor([3, 7]), parse_config(InversionConfig, [*flags, ranking]), seeds=[0, 1]).keep_indices
    for ranking in ("token_norm", "auto")
]
assert all(indices.shape == (2, 8) for indices in kept) and not torch.equal(*kept)
"""


def test_a_ranking_is_a_name_and_its_scores(tmp_path: Path) -> None:
    names, case = python_blocks("A ranking")
    path = "pipeline/vit/ranking.py"
    before = line_with(path, "Ranking = ")
    assert names.replace(', "token_norm"', "") == before
    last_case = "            return read(view), scores[:, prefix:]\n"
    Extended(tmp_path, "a ranking of patches", {path: [(before, names), (last_case, last_case + case)]}).run(
        "-c", RANKING
    )


def test_a_job_is_a_file_and_a_line(tmp_path: Path) -> None:
    module, line = python_blocks("A job")
    last_job = line_with("jobs/cli.py", '    "status": ')
    edits = {"jobs/count.py": [("", module)], "jobs/cli.py": [(last_job, last_job + line)]}
    code = Extended(tmp_path, "a job", edits)
    for name in ("ant/x.png", "ant/y.png", "bee/x.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    assert "count       count the images of each class" in code.run("-m", "jobs.cli", "--help")
    assert "--uri URI a synthetic dataset" in " ".join(code.run("-m", "jobs.cli", "count", "--help").split())
    (printed,) = code.run("-m", "jobs.cli", "count", "--uri", str(tmp_path / "images")).splitlines()
    assert json.loads(printed) == {"num_images": 3, "classes": {"ant": 2, "bee": 1}}
