"""The pages show what the results.json files say."""

from experiments import table


def test_the_table_is_that_of_the_results():
    text = table.PAGE.read_text()
    assert table.page(text) == text, "run: python -m experiments.table --write"
    assert text.count("jaxprune run experiments/") >= 1
