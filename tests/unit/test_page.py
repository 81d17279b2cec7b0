"""Tables as pages of the report."""

from d2dmoe.page import MOST, write_page


def test_a_page_shows_the_rows_with_short_numbers_and_harmless_text(tmp_path):
    table, page = tmp_path / "claims.csv", tmp_path / "claims.html"
    table.write_text('claim,value,where\nC1,0.123456789,"a <b> & c, d"\nC2,12,nan\nC3,,\n')
    write_page(page, table)
    text = page.read_text(encoding="utf-8")
    assert "<th>claim</th><th>value</th><th>where</th>" in text
    assert '<td class="number">0.1235</td><td>a &lt;b&gt; &amp; c, d</td>' in text
    assert '<td class="number">12</td>' in text and "<td></td><td></td>" in text
    assert "more rows" not in text


def test_a_page_of_a_long_table_says_how_many_rows_it_leaves_out(tmp_path):
    table, page = tmp_path / "tradeoff.csv", tmp_path / "tradeoff.html"
    table.write_text("seed\n" + "1\n" * (MOST + 3))
    write_page(page, table)
    text = page.read_text(encoding="utf-8")
    assert text.count("<tr>") == MOST + 1 and "3 more rows are in" in text
