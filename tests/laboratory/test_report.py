"""The page: one file, nothing fetched, everything the records say, and nothing that they do not."""

import base64
import html.parser
import io
import re
import xml.dom.minidom

import matplotlib as mpl
import numpy as np
import pytest
import synthetic_records as synthetic
from PIL import Image

from jaxdp import cli
from jaxdp import records as general
from jaxdp.intervals import Interval
from jaxdp.laboratory import records as results
from jaxdp.laboratory.report import elements, figures, tables
from jaxdp.laboratory.report import page as report


class _Elements(html.parser.HTMLParser):
    """Collects elements and text, and refuses tags that do not nest."""

    _VOID = ("meta", "img", "br", "path", "use", "rect")

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self._VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self._VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def records():
    return synthetic.everything(seeds=2)


@pytest.fixture(scope="module")
def page(records):
    return report.page(records)


def test_the_page_stands_alone(page):
    parsed = _Elements(page)
    assert not parsed.open
    for tag, attributes in parsed.elements:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"@import|url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page and "width=device-width" in page


def test_identifiers_are_unique_and_references_lead_somewhere(page):
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers)) > 10
    references = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert references and {a or b for a, b in references} <= set(identifiers)


def test_the_page_says_what_the_records_say(page, records):
    text = " ".join(_Elements(page).text)
    for variant in tables.variants(records):
        assert figures.label(variant) in text
    for title in ("Four metrics", "What this shows", "What it does not show", "What the attacker knows"):
        assert title in text
    for point in ("raw", "noised"):
        assert f"leaked: {point}" in text
    assert "Recognised: RMSE below 0.1." in text
    assert all(stage in text for stage in results.STAGES)
    assert "Privacy statement of linear <made up & escaped>" in text and "<made up" not in page
    assert "1e-05" in text and "add or remove one" in text and "Poisson, rate 0.05" in text


def test_not_private_variants_are_marked_and_their_number_is_nominal(page):
    rows = re.findall(r"<tr><td>.*?</tr>", page)
    for row in rows:
        marked = '<span class="badge no">not private</span>' in row
        assert marked == ("l2-max" in row or "no privacy" in row)
        assert ("0.610" in row) <= ("nominal 0.610" in row)
    assert any("nominal 0.610" in row for row in rows)


def test_the_console_and_a_notebook_show_the_same_cells(records):
    cells = tables.formatted(records)
    lines = tables.table(records).splitlines()
    for row, line in zip(cells.to_dict("records"), lines[2:], strict=False):
        assert line.split() == " ".join(row.values()).split()
    assert tables.formatted([]).empty and list(tables.formatted([])) == list(cells)


def test_figures_draw_what_the_records_hold(records):
    for figure in (figures.epsilon_over_steps, figures.sigma_over_steps, figures.accuracy_over_steps):
        svg = figure(records)
        assert not re.search("#0102", svg)  # no stand-in colour is left
        painted = "--danger" in svg
        assert painted == (figure is not figures.epsilon_over_steps)  # no epsilon of l2-max is drawn
    noise = figures.success_over_noise(records)
    assert "mean image" in noise and "var(--s0)" in noise


def test_a_figure_of_its_own_names_its_lines_and_needs_no_page(records):
    svg = figures.standalone(figures.epsilon_over_steps(records, legend=True))
    root = xml.dom.minidom.parseString(svg).documentElement
    assert root.tagName == "svg" and root.getAttribute("width").endswith("pt") and "var(" not in svg
    colours = figures.palette(tables.variants(records))
    assert colours["fixed"] in svg and colours["l2_max"] not in svg
    assert len(set(colours.values())) == len(colours)
    assert figures.label("quarter_cosine") in svg
    with pytest.raises(ValueError, match="svg="):
        figures.standalone("")


def test_an_interval_beyond_all_others_does_not_flatten_the_lines():
    curves = {
        "fixed": {1.0: Interval(0.90, 0.89, 0.91), 2.0: Interval(0.94, 0.93, 0.95)},
        "linear": {1.0: Interval(0.91, 0.90, 0.92), 2.0: Interval(0.80, -3.0, 5.0)},
    }
    svg = figures.intervals(curves, "test accuracy")
    ticks = [float(text) for text in re.findall(r">(-?\d+\.\d+)<", svg.replace("\u2212", "-"))]
    assert len(ticks) >= 4 and 0.6 < min(ticks) < 0.9 and 0.94 < max(ticks) < 1.1


def test_the_style_is_one_that_matplotlib_takes():
    with mpl.rc_context(figures.style()):
        colours = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    assert colours[:2] == list(figures.palette(["fixed", "linear"]).values())


def test_a_figure_without_data_is_left_out():
    records = [synthetic.train("non_private")]
    assert figures.epsilon_over_steps(records) == "" and figures.success_over_noise(records) == ""
    page = report.page(records)
    assert "Privacy spent over steps" not in page and "What came back" not in page and "nan" not in page


def test_curves_without_their_steps_are_not_drawn():
    record = synthetic.train("fixed")
    record["curves"]["step"] = None
    general.validate(record)
    assert figures.accuracy_over_steps([record]) == ""
    assert figures.accuracy_over_steps([record, synthetic.train("linear")]).count("<svg") == 1


def test_the_same_records_give_the_same_page(records, page):
    assert report.page(records) == page


def test_pictures_are_the_pixels_of_the_record(page, records):
    attack = next(r for r in records if r["kind"] == "attack" and r["leak_point"] == "noised" and r["stage"])
    expected = results.unpack_images(attack["images"]["reconstructions"])[0, ..., 0]
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))
        for source in re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    ]
    assert any(np.array_equal(image, expected) for image in shown)


def test_images_of_every_stage_are_shown(records):
    """The earliest stage in sight, the others folded; each with the pictures of its own records."""
    made = [record for record in records if record["kind"] == "train"]
    shades = {}
    for number, stage in enumerate(results.STAGES):
        attack = synthetic.attack("fixed", stage)
        shades[stage] = np.full((1, 8, 8, 1), 0.2 * (number + 1))
        pictures = {key: results.pack_images(shades[stage]) for key in ("originals", "reconstructions")}
        made.append(attack | {"images": pictures})
    page = report.page(made)
    folded = re.findall(r"<details><summary>(\w+) in training</summary>(.*?)</details>", page)
    assert [stage for stage, _ in folded] == ["middle", "late"] and "noised, early in training</h3>" in page
    for stage, content in folded:
        picture = elements.picture(np.rint(255 * shades[stage][0]).astype(np.uint8), "original")
        assert picture in content


def test_a_table_wider_than_a_phone_says_so(page):
    """Every table moves in a frame of its own, and the one that no phone shows whole says so on a phone."""
    frames = re.findall(r'<div class="card scroll" tabindex="0"><table class="(\w*)">', page)
    assert len(frames) == page.count("<table") and frames.count("wide") == page.count('class="swipe"') == 1
    style = page[: page.index("</style>")]
    assert re.search(r"\.swipe \{ display: none;", style)
    assert re.search(r"@media \(max-width: 34rem\) \{.*\.swipe \{ display: block; \}", style, re.S)


def test_differing_epsilons_are_called_not_comparable():
    other = synthetic.train("linear")
    other["privacy"]["epsilon"] = 1.0
    assert "not comparable" in report.page([synthetic.train("fixed"), other])
    assert "not comparable" not in report.page([synthetic.train("fixed"), synthetic.train("linear")])


def test_one_seed_is_called_one_seed():
    text = report.page([synthetic.train("fixed"), synthetic.train("linear")])
    assert "nobody can say whether that is chance" in text and "1 seed on" in text


def test_the_command(tmp_path, records, capsys):
    for record in records:
        general.write(record, tmp_path / "records")
    arguments = [
        "report",
        "--records",
        str(tmp_path / "records"),
        "--output",
        str(tmp_path / "new" / "page.html"),
    ]
    assert cli.main(arguments) == 0
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")
    assert "quarter_cosine" in capsys.readouterr().out
    (tmp_path / "records" / "bad.json").write_text("{")
    assert cli.main(arguments) == 2 and "bad.json" in capsys.readouterr().err
    assert cli.main(["report", "--records", str(tmp_path / "gone")]) == 2
    assert cli.main(["report", "--records", str(tmp_path / "records"), "--output", "/proc/page.html"]) == 2


def test_attacks_alone_are_no_report():
    with pytest.raises(ValueError, match="none of the 1 is of kind train"):
        report.page([synthetic.attack()])
