"""One table in five forms: escaped, aligned, with lines and the best in bold."""

import csv
import io
import shutil
import subprocess

import pytest
from rich.text import Text

from gradvac.tables import Cell, Table, csv_text, latex, markdown
from gradvac.terminal import Terminal

ODD = "a_b & 50% of $x$ #1 {y} ~^ \\ <c> [d] *e* `f` g|h -> i--j ±1"
TABLE = Table(
    ["", "BLEU", "verdict"],
    [
        ["joint", "9.1", "inside"],
        ["grad_vac", Cell("10.2 ±0.3", bold=True, star=True), ""],
        ["all", Cell("8", underlined=True), "out"],
    ],
    "the title",
    words=("verdict",),
    rules=(2,),
)


def test_markdown():
    assert TABLE.markdown().splitlines() == [
        "the title",
        "",
        "|  | BLEU | verdict |",
        "|---|---:|---|",
        "| joint | 9.1 | inside |",
        r"| grad_vac | **10.2 ±0.3**\* |  |",
        "| all | 8 | out |",
    ]


def test_latex():
    assert TABLE.latex().splitlines() == [
        "% the title",
        r"\begin{tabular}{lrl}",
        r"\toprule",
        r" & BLEU & verdict \\",
        r"\midrule",
        r"joint & 9.1 & inside \\",
        r"grad\_vac & \textbf{10.2 $\pm$0.3}$^{*}$ &  \\",
        r"\midrule",
        r"all & \underline{8} & out \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_text():
    assert TABLE.text().splitlines() == [
        "                  BLEU  verdict",
        "  joint            9.1  inside",
        "  grad_vac  10.2 ±0.3*",
        "  all                8  out",
    ]


def test_terminal():
    out = io.StringIO()
    console = Terminal(file=out, width=60)
    console.print(TABLE.terminal())
    lines = out.getvalue().splitlines()
    assert lines[0].strip() == "the title"
    assert lines[2].split() == ["┃", "┃", "BLEU", "┃", "verdict", "┃"]
    assert [n for n, line in enumerate(lines) if line.startswith("├")] == [6]  # above the last row
    cells = list(TABLE.terminal().columns[1].cells)
    assert [isinstance(c, Text) and c.style for c in cells] == ["", "bold", ""]


def test_a_number_is_cut_before_it_is_broken_into_lines_unless_told_otherwise():
    shown = TABLE.terminal().columns
    assert [c.no_wrap for c in shown] == [False, True, False]
    assert [c.no_wrap for c in TABLE.terminal(whole=("verdict",)).columns] == [False, False, True]
    assert [c.justify for c in shown] == ["left", "right", "left"]


def test_what_is_markup_is_escaped_in_markdown():
    (line,) = Table([ODD], []).markdown().splitlines()[:1]
    assert line == r"| a_b & 50% of $x$ #1 {y} ~^ \\ \<c> [d] \*e\* \`f\` g\|h -> i--j ±1 |"
    assert Table(["_a_ b_c __d__"], []).markdown().startswith(r"| \_a\_ b_c \_\_d\_\_ |")
    assert Table(["a\nb\r\n\x1b c"], []).markdown().startswith("| a b \x1b c |")


def test_what_is_markup_is_escaped_in_latex():
    (head,) = [x for x in Table([ODD], []).latex().splitlines() if x.endswith(r"\\")]
    assert head == (
        r"a\_b \& 50\% of \$x\$ \#1 \{y\} \textasciitilde{}\textasciicircum{} \textbackslash{} "
        r"$<$c$>$ {[}d] {*}e{*} `f` g$|$h $\rightarrow$ i-{}-j $\pm$1 \\"
    )
    assert "% one line of comment" in Table(["x"], [], "one line\nof comment").latex()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_takes_it(tmp_path):
    rows = [[ODD, Cell(ODD, True, True, True)], ["[first", "*star"], ["*", "---"]]
    body = Table(["", "head"], rows, "title").latex()
    packages = r"\usepackage[utf8]{inputenc}\usepackage{booktabs}"
    text = rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "t.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "t.tex"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0


def test_csv_is_read_back_as_it_was():
    lines = [["row", "mean"], ['a "b", c\nd', 1.5], ["", None]]
    found = list(csv.reader(io.StringIO(csv_text(lines))))
    assert found == [["row", "mean"], ['a "b", c\nd', "1.5"], ["", ""]]
    assert csv_text([["a", "b"]], "\r\n") == "a,b\r\n"


def test_tables_with_notes():
    two = [Table(["a"], [["1"]], "first"), Table(["b"], [])]
    assert markdown(two, ["read this", "and that"]) == (
        "first\n\n| a |\n|---|\n| 1 |\n\n| b |\n|---|\n\n- read this\n- and that\n"
    )
    shown = latex(two, ["read\nthis", "BLEU|tok:13a"])
    assert r"\providecommand{\toprule}{\hline}" in shown.split(r"\begin{tabular}")[0]
    assert r"\noindent first\par" in shown  # the title is read, not a comment
    assert r"\par read this" in shown and r"BLEU$|$\allowbreak{}tok:\allowbreak{}13a" in shown


def test_a_wide_table_is_split_and_keeps_its_row_names():
    wide = Table(["", "aa", "bb", "cc"], [["row one", "1", "22222", Cell("3", star=True)]], "t")
    assert wide.split(100, 3) == [wide]
    first, second = wide.split(25, 3)  # 7 + 3, then 2 + 3, 5 + 3, 2 + 3
    assert (first.heads, second.heads) == (["", "aa", "bb"], ["", "cc"])
    assert second.rows == [["row one", Cell("3", star=True)]]
    assert (first.title, second.title) == ("t (1 of 2)", "t (2 of 2)")
    assert [t.heads for t in wide.split(1, 3)] == [["", "aa"], ["", "bb"], ["", "cc"]]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
@pytest.mark.parametrize("package", ["", r"\usepackage{booktabs}"])
def test_no_line_of_latex_is_too_wide(tmp_path, package):
    heads = ["", *(f"Any->En group {n}" for n in range(9))]
    cells = [Cell(f"{n}8.{n} \N{PLUS-MINUS SIGN}10.{n}", bold=True, star=True) for n in range(9)]
    notes = ["BLEU: BLEU|nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0" * 3]
    body = latex([Table(heads, [["gradvac-whole-model", *cells]], "BLEU")], notes)
    text = rf"\documentclass{{article}}{package}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "t.tex").write_text(text, encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert done.returncode == 0 and b"Overfull" not in done.stdout
