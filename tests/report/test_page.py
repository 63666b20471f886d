"""Pages hold everything, load nothing, and show what strangers wrote as text."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline import storage
from pipeline.credentials import without_credentials
from pipeline.errors import DatasetError
from pipeline.report.charts import curves
from pipeline.report.confusion import confusion_section
from pipeline.report.page import Section, Table, html_page, markdown_table, text_table
from pipeline.report.text import escape, short_name, shortened
from pipeline.report.tiles import outline, tile, within
from pipeline.report.writing import settings_section, write_page
from tests.report.page_check import check_page

EVIL = "</title></style><script>alert(1)</script><img src=https://evil.example/x onerror=alert(1)>\"'&\x00\ud800"
RED = np.full((8, 8, 3), (255, 0, 0), np.uint8)


def test_a_page_holds_text_tables_plots_pictures_and_tiles() -> None:
    picture = tile(RED, "a red square").picture
    page = html_page(
        "A <report>",
        [
            Section(
                heading="Numbers & pictures",
                text="First.\n\nSecond < third.",
                tables=[Table(header=["data", "top-1"], rows=[["<sparse>", 97.456], ["noise", None]])],
                plots=[("a curve", curves({"loss": [(1, 2.0), (2, 1.0)]}, x_label="epoch", y_label="loss"))],
                pictures=[("a red square", picture)],
                tiles=[tile(RED, "red")],
            ),
            Section(heading="Details", text="Hidden at first.", folded=True),
        ],
    )
    read = check_page(page)
    assert "<p>First.</p>\n<p>Second &lt; third.</p>" in page
    assert "<td>&lt;sparse&gt;</td><td>97.46</td>" in page
    assert "<td>noise</td><td>–</td>" in page
    assert [base64.b64decode(source.partition(",")[2]) for source in read.sources] == [picture, picture]
    assert read.tags.count("polyline") == 1
    assert "<summary>Details</summary>" in page


def test_a_page_links_to_others_by_their_place_beside_it() -> None:
    links = [("calibrate/sparse", "calibrate/sparse/report.html"), ("a & b", 'a b"#?/report.html')]
    page = html_page("title", [Section(heading="Pages", links=links)])
    assert check_page(page).links == ["calibrate/sparse/report.html", "a%20b%22%23%3F/report.html"]
    assert ">calibrate/sparse</a> · <a " in page
    assert ">a &amp; b</a>" in page


def test_what_strangers_wrote_is_text_wherever_it_stands() -> None:
    names = [f"{EVIL}{label}" for label in range(25)]
    counts = {(label, (label + 1) % 25): 1 for label in range(25)} | {(0, 0): 2}
    few = {(label, label): 1 for label in range(3)}
    series = {name: [(0.0, 1.0), (1.0, 2.0)] for name in names[:2]}
    sections = [
        Section(heading=EVIL, text=EVIL, tables=[Table(header=[EVIL], rows=[[EVIL]])], tiles=[tile(RED, EVIL)]),
        Section(heading=EVIL, links=[(EVIL, EVIL), ("x", "javascript:alert(1)")]),
        Section(heading=EVIL, folded=True, plots=[(EVIL, curves(series, x_label=EVIL, y_label=EVIL))]),
        confusion_section(EVIL, counts, names),
        confusion_section(EVIL, few, names),
        settings_section({EVIL: {EVIL: [EVIL]}}),
    ]
    page = html_page(EVIL, sections)
    read = check_page(page)
    assert "script" not in read.tags
    assert any("<script>alert(1)</script>" in text for text in read.texts)
    page.encode()


def test_settings_are_shown_as_they_stand_in_a_config_file() -> None:
    values = {"a": None, "b": False, "c": [{"weights": 8}], "d": {"e": "local-dir:x", "f": "null"}, "g": 1e-05}
    rows = [["a", "null"], ["b", "false"], ["c", "[{weights: 8}]"], ["d.e", "local-dir:x"], ["d.f", "'null'"]]
    (table,) = settings_section(values).tables
    assert [list(row) for row in table.rows] == [*rows, ["g", "1.0e-05"]]


def test_the_path_of_a_page_is_printed_from_the_working_folder_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_page(f"{tmp_path}/runs/x", lambda: "page") == f"{tmp_path}/runs/x/report.html"
    assert write_page("runs/x", lambda: "page") == "runs/x/report.html"
    assert capsys.readouterr().err == 2 * "report: runs/x/report.html\n"


def test_markup_is_made_in_one_place_alone_so_that_every_page_escapes_all_it_shows() -> None:
    root = Path(__file__).parents[2]
    makers = {root / "pipeline" / "report" / name for name in ("page.py", "svg.py", "tiles.py")}
    for path in (path for folder in ("pipeline", "jobs", "examples") for path in (root / folder).rglob("*.py")):
        code = path.read_text()
        if path not in makers:
            assert re.search(r"</?(p|td|tr|div|h\d|svg|text|figure|script|img|a)\b[^>\n]*>", code) is None, path
            assert re.search(r"\bPlot\(", code) is None, path


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://AKIA:se/cr+et@bucket/key", "s3://…@bucket/key"),
        ("simplecache::https://token@host/x.parquet?X-Amz-Signature=abc is gone", None),
        ("hf://datasets/me/x@main/y", "hf://datasets/me/x@main/y"),
        ("/data/a@b:c?d", "/data/a@b:c?d"),
        ("local-dir:/data/x", "local-dir:/data/x"),
    ],
)
def test_credentials_in_uris_are_left_out(uri: str, shown: str | None) -> None:
    expected = "simplecache::https://…@host/x.parquet?X-Amz-Signature=… is gone" if shown is None else shown
    assert without_credentials(uri) == expected
    assert escape(uri) == expected


def test_long_names_are_cut_and_folders_left_out_of_headings() -> None:
    assert shortened("n" * 50) == "n" * 39 + "…"
    assert short_name("local-dir:/data/teachers/vit/") == "vit"
    assert short_name("vit_tiny") == "vit_tiny"


def test_kept_patches_are_surrounded_and_nothing_is_drawn_within() -> None:
    assert outline([0], 2, (8, 8)) == "M0 0h4M0 4h4M0 0v4M4 0v4"
    # Two neighbors: no line between them.
    assert "M4 0v4" not in outline([0, 1], 2, (8, 8))
    assert tile(RED, "x", kept=[0, 1, 2, 3], grid_size=2).outline == ""
    assert tile(RED, "x", kept=[1], grid_size=2).outline == "M4 0h4M4 4h4M4 0v4M8 0v4"


def test_large_pictures_are_shrunk_and_too_many_thinned_out() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (224, 448, 3), np.uint8)
    tiles = [tile(noise, str(number)) for number in range(10)]
    assert tiles[0].size == (112, 56)
    assert [one.caption for one in within(tiles, 4 * len(tiles[0].picture))] == ["0", "2", "5", "7"]
    assert within(tiles, 1) == tiles[:1]
    assert within([], 1) == []


def test_few_classes_have_a_table_and_many_have_their_mistakes() -> None:
    names = [f"class {label}" for label in range(1000)]
    few = confusion_section("few", {(3, 3): 7, (3, 5): 1, (5, 5): 4}, names)
    assert few.text == "11 of 12 images (91.7%) are taken for their class."
    assert ">7</text>" in few.plots[0][1]
    many = confusion_section("many", {(label, min(999, label + 1)): 1 + label for label in range(1000)}, names)
    assert many.tables[0].rows[0] == ["class 998", "class 999", 999]
    assert len(many.tables[0].rows) == 20
    assert "the 30 lowest of 1000 classes" in many.plots[0][0]


def test_a_page_that_cannot_be_made_or_written_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.retrying.RETRY_DELAYS_S", (0.0,))
    output = str(tmp_path)

    def broken() -> str:
        raise DatasetError("cannot read 'part-00000'")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    assert write_page(output, broken) is None
    assert write_page(output, lambda: "page") == storage.join(output, "report.html")
    monkeypatch.setattr(storage, "write_bytes", full)
    assert write_page(output, lambda: "page") is None
    first, written, last = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: ")
    assert "cannot read 'part-00000'" in first
    assert written == f"report: {output}/report.html"
    assert last.startswith("warning: ")
    assert "No space left" in last


def test_text_table_lines_up() -> None:
    table = Table(header=["data", "top-1"], rows=[["sparse", 97.456], ["a & b", 3]])
    assert text_table(table) == "data    top-1\n-------------\nsparse  97.46\na & b       3"


def test_a_table_in_markdown() -> None:
    table = Table(header=["layer", "weights"], rows=[["a", 1.5], ["b", None]])
    assert markdown_table(table) == "| layer | weights |\n| --- | --- |\n| a | 1.50 |\n| b | – |"
