"""Worked examples of docs/extending.md, added to a copy of the code in as many files as the page says, and run."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.extending import ROOT, Extended, line_with, python_blocks

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

FAMILY = """
import timm
import torch

from pipeline.inversion import InversionConfig, Teacher, invert
from pipeline.quantization.graphs import export_images
from pipeline.vit.ranking import resolve_ranking
from pipeline.vit.subset import SubsetViT
from tests.conftest import HALF, TINY, enlarge_weights

torch.manual_seed(0)
model = enlarge_weights(timm.create_model("cait_xxs24_224", **TINY)).eval()
images, everything = torch.randn(3, 3, 32, 32), torch.arange(16).expand(3, -1)
keep = torch.tensor([[0, 3, 5, 11], [1, 2, 9, 15], [4, 6, 8, 10]])
expected = model(images)
teacher = Teacher(model, mean=HALF, std=HALF)
torch.testing.assert_close(teacher(images), expected)
torch.testing.assert_close(teacher(images, everything), expected)
torch.testing.assert_close(SubsetViT(model)(images, everything.flip(1)), expected)
assert resolve_ranking(model) == "cls_attention"

# timm's own blocks on the tokens that are left, and the class attention of the last one, by hand.
patches = (model.patch_embed(images) + model.pos_embed).gather(1, keep.unsqueeze(-1).expand(-1, -1, 32))
entering = model.blocks[:-1](patches).detach().requires_grad_()
patches, token = model.blocks[-1](entering), model.cls_token.expand(3, -1, -1)
for block in model.blocks_token_only:
    normed, attention = block.norm1(torch.cat([token, patches], dim=1)), block.attn
    both = (attention.q(normed[:, :1]), attention.k(normed))
    query, key = (part.unflatten(-1, (2, 16)).transpose(1, 2) for part in both)
    by_hand = (query @ key.transpose(-2, -1) / 4).softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)
    token = block(patches, token)
logits = model.forward_head(model.norm(torch.cat([token, patches], dim=1)))
read, scores = teacher.forward_scores(images, keep)
torch.testing.assert_close(read, logits)
torch.testing.assert_close(scores, by_hand)
assert teacher.forward_tokens(images, keep)[1].shape == (3, 5, 32)
targets = torch.tensor([3, 7, 1])
(gradient,) = torch.autograd.grad(logits.gather(1, targets.unsqueeze(1)).sum(), entering)
_, scores = teacher.forward_scores(images, keep, ranking="gradient_activation", targets=targets)
torch.testing.assert_close(scores, (gradient * entering).abs().sum(dim=-1).detach())

config = InversionConfig(iterations=6, stop_steps=(3,), stop_fractions=(0.5,))
result = invert(teacher, targets, config, seeds=[0, 1, 2])
assert result.keep_indices.shape == (3, 8) and result.images.isfinite().all()
"""

SOURCE = """
import sys

import numpy as np
import pytest

from pipeline.dataset.collection import find_images, image_facts
from pipeline.dataset.reader import _decode
from pipeline.dataset.rows import read_unit
from pipeline.errors import DatasetError

images = find_images(sys.argv[1])
(source,), held = images.sources, np.load(sys.argv[1])


def rows_of(units):
    tables = [_decode(source.uri, table) for unit in units for table in read_unit(source, unit)]
    return [row for table in tables for row in table.to_pylist()]


def check(rows, numbers):
    assert [row["image_id"] for row in rows] == [f"{number:08d}" for number in numbers]
    assert [row["label"] for row in rows] == held["labels"][numbers].tolist()
    assert np.array_equal([row["image"] for row in rows], held["images"][numbers])


check(rows_of(source.units), [*range(100)])
check(rows_of(part for unit in source.units for part in unit.split(7)), [*range(100)])
check(rows_of(unit for _, unit in images.select([3, 70, 99]).units), [3, 70, 99])
(unit,) = source.units
assert [table.column_names for table in read_unit(source, unit, ["label"])] == [["label"]] * 2
assert image_facts(images) == image_facts(find_images(sys.argv[1])) and unit.facts != unit.select([3]).facts
for bad in sys.argv[2:]:
    with pytest.raises(DatasetError, match="cannot read images and labels in"):
        find_images(bad)
"""

PLACEMENT = """
import sys

import torch

from pipeline.artifacts.facts import Facts
from pipeline.artifacts.formats import load_quantized, save
from pipeline.config import parse_config
from pipeline.quantization import BitWidths, CalibrationConfig
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.graphs import convert, export_images, reexport
from pipeline.quantization.observe import RangeObserver
from tests.conftest import HALF, make_tiny_model

flags = ["--teacher.name=x", "--images=x", "--output=x", "--placement=outputs"]
placement = parse_config(CalibrationConfig, flags).placement
model, images = make_tiny_model(), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
observer = RangeObserver(model, placement)
observer.observe([CalibrationBatch(images, torch.arange(16).expand(4, -1), list("abcd"))])
ranges = observer.ranges()
layers = [f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
layers += ["patch_embed.proj", "head"]
assert set(ranges) == {f"{layer}:{side}" for layer in layers for side in ("input", "output")}
with torch.no_grad():
    logits = model(images)
    low, high = ranges["head:output"]
    torch.testing.assert_close(torch.tensor([low, high]), torch.stack([logits.min(), logits.max()]))
    program = export_images(model, placement)
    quantized = reexport(convert(program, BitWidths(), placement, ranges), program)
    fine = quantized.module()(images)
    assert (fine - logits).square().mean() < 0.01 * logits.var()
    steps = fine * 255 / (high - low)
    torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
    facts = Facts([f"class {number}" for number in range(10)], HALF, HALF)
    # As calibration writes them: with weights as int8 the sums of some processors saturate.
    for name, options in (("x.pt2", {}), ("x.onnx", {"weights": "uint8"})):
        save(quantized, f"{sys.argv[1]}/{name}", facts, **options)
        logits = load_quantized(f"{sys.argv[1]}/{name}").predict(images)
        torch.testing.assert_close(logits, fine, atol=0.05, rtol=0, msg=name)
"""

OBSERVER = """
import torch

from pipeline.config import parse_config
from pipeline.quantization import CalibrationConfig
from pipeline.quantization.distributed import _range_observer
from pipeline.quantization.batches import CalibrationBatch
from pipeline.quantization.observers import make_observer, merge_observers
from tests.conftest import make_tiny_model

config = parse_config(CalibrationConfig, ["--teacher.name=x", "--images=x", "--output=x", "--observer=fences"])
batches = torch.randn(3, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).pow(3)
observer = _range_observer(config, make_tiny_model())
observer.observe([CalibrationBatch(part, torch.arange(16).expand(4, -1), list("abcd")) for part in batches])
found = observer.observers["patch_embed.proj:input"]
lower, upper = (batches.flatten().quantile(part).item() for part in (0.25, 0.75))
margin = 3 * (upper - lower)
expected = torch.tensor([lower - margin, upper + margin])
torch.testing.assert_close(torch.tensor(found.range(8)), expected, atol=0.1, rtol=0)
assert found.low < found.range(8)[0] and found.range(8)[1] < found.high

shares = [make_observer("fences") for _ in batches]
for share, part in zip(shares, batches):
    share.update(part)
assert merge_observers([{"point": share} for share in shares[::-1]])["point"].range(8) == found.range(8)
"""


def test_a_ranking_is_a_name_and_its_scores(tmp_path: Path) -> None:
    names, case = python_blocks("A ranking")
    path = "pipeline/vit/ranking.py"
    before = line_with(path, "Ranking = ")
    assert names.replace(', "token_norm"', "") == before
    last_case = "            return read(view), scores[:, num_prefix_in_blocks(model) :]\n"
    Extended(tmp_path, "a ranking of patches", {path: [(before, names), (last_case, last_case + case)]}).run(
        "-c", RANKING
    )


def test_a_model_family_is_how_its_tokens_run_where_they_are_left_out_and_who_attends_to_them(tmp_path: Path) -> None:
    known, facts, slot, readable, obstacle = python_blocks("A model family")
    families, subset, ranking = (f"pipeline/vit/{name}.py" for name in ("families", "subset", "ranking"))
    in_subset, in_ranking = "from timm.models.deit", "from timm.models.eva import EvaAttention"
    own = (ROOT / families).read_text()
    before = own[own.index("def num_prefix_in_blocks") : own.index("\n\ndef _geometry_refusal")]
    last_obstacle = '            return "it has no CLS token"\n'
    edits = {
        families: [
            ("from timm.models.eva", "from timm.models.cait import Cait\nfrom timm.models.eva"),
            (line_with(families, "_FAMILIES = "), known),
            (before, facts),
        ],
        subset: [
            (in_subset, f"from timm.models.cait import Cait\n{in_subset}"),
            ("    model.patch_drop = slot\n", f"{slot}    model.patch_drop = slot\n"),
        ],
        ranking: [
            (in_ranking, f"from timm.models.cait import Cait, ClassAttn\n{in_ranking}"),
            (line_with(ranking, "_READABLE = "), readable),
            (last_obstacle, last_obstacle + obstacle),
        ],
    }
    Extended(tmp_path, "a model family on a subset of tokens", edits).run("-c", FAMILY)


def test_a_job_is_a_file_and_a_line(tmp_path: Path) -> None:
    module, line = python_blocks("A job")
    first_line = line_with("jobs/cli.py", "JOBS = {")
    edits = {"jobs/count.py": [("", module)], "jobs/cli.py": [(first_line, first_line + line)]}
    code = Extended(tmp_path, "a job", edits)
    for name in ("ant/x.png", "ant/y.png", "bee/x.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name)
    assert "count       count the images of each class" in code.run("-m", "jobs.cli", "--help")
    assert "--uri URI a synthetic dataset" in " ".join(code.run("-m", "jobs.cli", "count", "--help").split())
    (printed,) = code.run("-m", "jobs.cli", "count", "--uri", str(tmp_path / "images")).splitlines()
    assert json.loads(printed) == {"num_images": 3, "classes": {"ant": 2, "bee": 1}}


def test_a_source_of_images_is_what_is_read_how_it_is_found_and_how_it_is_read(tmp_path: Path) -> None:
    unit, found, find, read_case, read = python_blocks("A source of images")
    units, discovery, rows = (f"pipeline/dataset/{name}.py" for name in ("units", "discovery", "rows"))
    union, one_image = line_with(units, "Unit = "), line_with(discovery, "    if uri.lower().endswith(IMAGE_SUFFIXES)")
    edits = {
        units: [(union, unit)],
        discovery: [
            ("import posixpath\n", "import io\nimport posixpath\nimport zipfile\n"),
            ("import pyarrow as pa\n", "import numpy as np\nimport pyarrow as pa\n"),
            ("import ImageFiles", "import ArrayRows, ImageFiles"),
            (one_image, found + one_image),
            ("def _synthetic(", f"{find}\n\ndef _synthetic("),
        ],
        rows: [
            ("import ImageFiles", "import ArrayRows, ImageFiles"),
            ("source import Source\n", "source import Source\nfrom pipeline.dataset.discovery import load_arrays\n"),
            ("from pipeline.errors", "from pipeline.dataset.schema import encode_image\nfrom pipeline.errors"),
            ("        case ImageFiles():\n", f"{read_case}        case ImageFiles():\n"),
            ("def _read_files(", f"{read}\n\ndef _read_files("),
        ],
    }
    code = Extended(tmp_path, "a source of images", edits)
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (100, 8, 8, 3), np.uint8), random.integers(0, 10, 100)
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    np.savez(tmp_path / "other.npz", x=images)
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "digits.npz").read_bytes()[:1000])
    code.run("-c", SOURCE, *(str(tmp_path / f"{name}.npz") for name in ("digits", "other", "damaged")))


def test_an_observer_is_a_name_and_its_range(tmp_path: Path) -> None:
    names, case, observer = python_blocks("An observer")
    path = "pipeline/quantization/observers.py"
    before = line_with(path, "ObserverName = ")
    assert names.replace(', "fences"', "") == before
    last_case = line_with(path, "            return MeanSquaredError()")
    edits = {path: [(before, names), (last_case, last_case + case), ("class Perc", f"{observer}\n\nclass Perc")]}
    Extended(tmp_path, "an observer of activations", edits).run("-c", OBSERVER)


def test_a_placement_is_a_name_and_its_points(tmp_path: Path) -> None:
    names, points = python_blocks("A placement")
    kinds, quantizer = "pipeline/quantization/bit_widths.py", "pipeline/quantization/quantizer.py"
    before = line_with(kinds, "Placement = ")
    last = "            points |= _outputs(node, weighted, residuals) | stream.get(node, {})\n"
    assert names.replace(', "outputs"', "") == before
    edits = {kinds: [(before, names)], quantizer: [(last, last + points)]}
    Extended(tmp_path, "a placement", edits).run("-c", PLACEMENT, str(tmp_path))
