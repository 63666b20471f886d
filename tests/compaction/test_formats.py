"""The recipe for other formats that needs no package, as docs/dataset.md has it."""

import io
import re
import tarfile
from pathlib import Path

import pytest
import ray.data
from PIL import Image

from tests.compaction.conftest import rows_of

PAGE = Path(__file__).parents[2] / "docs" / "dataset.md"


@pytest.mark.usefixtures("ray_session")
def test_webdataset_holds_the_same_pictures_and_labels(dataset: str, tmp_path: Path) -> None:
    section = PAGE.read_text().partition("## In other formats\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    code = "\n".join(blocks[:2]).replace("OUTPUT", dataset).replace("FOLDER", str(tmp_path / "tars"))
    exec(code, {})
    members: dict[str, bytes] = {}
    for path in (tmp_path / "tars").iterdir():
        with tarfile.open(path) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    rows = rows_of(dataset)
    assert members == {f"{row['image_id']}.png": row["image"] for row in rows} | {
        f"{row['image_id']}.cls": str(row["label"]).encode() for row in rows
    }
    # And as Ray reads it.
    read = {row["__key__"]: row for row in ray.data.read_webdataset(str(tmp_path / "tars")).take_all()}
    first = Image.open(io.BytesIO(rows[0]["image"]))
    assert (read["0-0"]["cls"], read["0-0"]["png"].tobytes()) == (rows[0]["label"], first.tobytes())
