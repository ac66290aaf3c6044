import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from lawful.experiments.claims import Claim
from lawful.experiments.run import Run, run_paper
from lawful.experiments.spec import make_spec
from lawful.reports.claims import expectation, summary
from lawful.reports.report import rerun_command, write_report
from lawful.reports.terminal import claims_table
from lawful.reports.text import equation, inline, paragraphs
from tiny_paper import PAPER

VOID = {"meta", "br", "hr", "img", "link", "path", "use", "rect"}


class Balanced(HTMLParser):
    """Collects ids, and fails on a tag closed out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [value for value in [values.get("id")] if value]
        self.links += [values[key] or "" for key in ("href", "src", "xlink:href") if key in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    spec = make_spec(PAPER, ["n=3", "widths=4,5"], seed=2)
    return run_paper(PAPER, spec, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(run: Run) -> str:
    return write_report(run).read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_stands_alone(html: str) -> None:
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    # Every link stays on the page: nothing is fetched from elsewhere.
    assert all(link.startswith("#") for link in parser.links)
    assert {link[1:] for link in parser.links} <= set(parser.ids)
    assert "<script" not in html and "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_the_page_shows_every_claim_section_setting_and_how_to_rerun(html: str, run: Run) -> None:
    for claim in run.claims:
        # In its section and in the table of all; what corrects the paper also stands at the top.
        assert html.count(f"<code>{claim.id}</code>") == 2 + (claim.verdict == "corrects-the-paper")
    for text in (
        "The paper says",
        "Measured here",
        "It decays &amp; &lt;converges&gt;.",
        "<math",
        "corrects the paper",
    ):
        assert text in html
    assert "lawful reproduce tiny --seed 2 --set n=3 --set widths=4,5" in html
    assert html.count("<svg") == 1 and 'aria-label="Decay"' in html and "currentColor" in html


def test_the_rerun_command_gives_the_same_spec(run: Run) -> None:
    words = rerun_command(run).split()
    assignments = [words[k + 1] for k, word in enumerate(words) if word == "--set"]
    assert make_spec(PAPER, assignments, seed=int(words[words.index("--seed") + 1])) == run.spec


def test_text_escapes_everything_but_its_marks() -> None:
    assert inline("a < b & `x<y`") == "a &lt; b &amp; <code>x&lt;y</code>"
    assert "<strong>not</strong>" in inline("does **not** hold")
    assert "<math" in inline("the norm $\\lVert W \\rVert$") and "$" not in inline("the norm $x$")
    assert paragraphs("one\nline\n\ntwo") == "<p>one\nline</p>\n<p>two</p>"
    assert 'display="block"' in equation("x^2")


def test_expectations_read_as_they_were_meant() -> None:
    where = ("a", "s", "t")
    assert expectation(Claim.at_most(*where, 1.0, 1e-10)) == "≤ 1e-10"
    assert expectation(Claim.at_least(*where, 1.0, 2.0)) == "≥ 2"
    assert expectation(Claim.close(*where, 1.0, 0.5, rel=0.01)) == "0.5 (rel 0.01)"
    assert expectation(Claim.true(*where, True)) == "true"


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_terminal_table_fits(width: int, run: Run) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(claims_table(run.claims, width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "✓ holds" in text and "≠ corrects the paper" in text
    assert summary(run.claims) == "4 claims: 3 hold, 1 correct the paper, 0 fail"
