"""Checkpoints of trainings are removed where nothing goes on from them, and nothing else with them."""

import pytest

from pipeline import storage
from pipeline.outputs.names import QAT_CHECKPOINTS
from pipeline.outputs.owners import qat_checkpoints
from pipeline.quantization.bit_widths import BitWidths
from pipeline.quantization.mixed import Mixture
from pipeline.quantization.qat_checkpoints import checkpoint_folder, remove_checkpoints, remove_others, remove_variant
from pipeline.quantization.variants import Variant

MINE, OTHER = "01234567" * 8, "89abcdef" * 8
W4 = BitWidths(weights=4)
EQUAL = Variant("w4a8", W4)
MIXED = Variant("mixed", W4, Mixture({"head": W4}, 4.0, 0.0, met=True))


def write(output: str, *names: str) -> None:
    for name in names:
        storage.write_bytes(storage.join(output, QAT_CHECKPOINTS, name), b"content")


def folders(output: str) -> set[str]:
    files, _ = storage.find_tree(storage.join(output, QAT_CHECKPOINTS))
    return {name.partition("/")[0] for name, _ in files}


@pytest.mark.parametrize("place", ["local", "memory", "s3"])
def test_those_of_other_settings_are_removed_and_a_users_files_are_not(
    place: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if place == "s3":
        request.getfixturevalue("s3")
    output = {"local": str(tmp_path_factory.mktemp("out")), "memory": "memory://qat/out", "s3": "s3://made/qat"}[place]
    remove_others(output, MINE)
    assert capsys.readouterr().err == ""
    state = "checkpoints/epoch-00001.pt"
    mine = [checkpoint_folder(output, variant, MINE).rpartition("/")[2] for variant in (EQUAL, MIXED)]
    assert mine[0] == "w4a8-01234567"
    assert mine[1].startswith("mixed-01234567-")
    others = [checkpoint_folder(output, variant, OTHER).rpartition("/")[2] for variant in (EQUAL, MIXED)]
    # Names of earlier versions, what a killed write left, and files that are no checkpoints.
    others += ["w4a8", mine[1].replace("-01234567", "")]
    write(output, *(f"{name}/{state}" for name in (*mine, *others)), "w3a8-89abcdef/checkpoints/.epoch.0a1b2c3d.tmp")
    write(output, "notes.txt", "w4a8.txt", "my-models/w4a8/weights.pt")
    remove_others(output, MINE)
    left = {"notes.txt", "w4a8.txt", "my-models"}
    assert folders(output) == {*mine, *left}
    assert "qat: removing checkpoints of other settings from" in capsys.readouterr().err
    assert len(qat_checkpoints(output)) == 3
    remove_variant(output, EQUAL, MINE)
    assert folders(output) == {mine[1], *left}
    remove_checkpoints(output)
    assert folders(output) == left
