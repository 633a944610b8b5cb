"""How tooltips become tables."""

import pytest

from tests.help_pages import END, START, markdown, tables, with_tables
from tests.schemas import Call, Node


def call(kind, name, **options):
    return Call((kind, "Input"), (name,), {"tooltip": f"About {name}.", **options})


def option(name, *inputs):
    return Call(("DynamicCombo", "Option"), (name, list(inputs)), {})


@pytest.fixture
def node():
    rates = [call("Float", "rate", default=value, min=0.0, max=1.0) for value in (2e-4, 0.5)]
    menu = call(
        "DynamicCombo",
        "menu",
        options=[
            option("slow", rates[0]),
            option("fast", rates[1], call("Boolean", "bold", default=True)),
            option("stop"),
        ],
    )
    output = Call(("Image", "Output"), ("image",), {"tooltip": "The image."})
    link = call("DREAMBOOTH_MODEL", "model", optional=True)
    return Node(
        Call(
            ("Schema",),
            (),
            {
                "node_id": "Example",
                "display_name": "Example",
                "description": "-",
                "inputs": [link, menu, call("String", "text", default="")],
                "outputs": [output],
            },
        )
    )


TABLES = """\
| Input, default | What it does |
| --- | --- |
| `model`<br>optional link | About model. |
| `menu`<br>`slow` | About menu. |
| `rate`<br>2e-4 (`slow`); 0.5 (`fast`), from 0 to 1 | About rate. |
| `text`<br>empty | About text. |

With `fast`:

| Input, default | What it does |
| --- | --- |
| `bold`<br>on | About bold. |

| Output | What it is |
| --- | --- |
| image | The image. |
"""


def test_an_input_of_one_choice_has_a_table_of_its_own(node):
    assert tables(node, "en") == TABLES


def test_a_page_keeps_what_is_around_its_tables(node):
    page = f"# Example\n\n{START}\nold\n{END}\n\n## Errors\n"
    new = with_tables(page, node, "en")
    assert new == f"# Example\n\n{START}\n\n{TABLES}\n{END}\n\n## Errors\n"
    assert with_tables(new, node, "en") == new


def test_a_page_without_the_lines_is_an_error(node):
    with pytest.raises(ValueError) as caught:
        with_tables("# Example\n", node, "en")
    assert str(caught.value) == f"Example/en.md lacks the lines {START} and {END}."


def test_characters_of_markdown_are_escaped_and_quoted_words_are_code():
    assert markdown('Write "a <b>", <c>, 1~2 | 3*4.') == r"Write `a <b>`, &lt;c>, 1\~2 \| 3\*4."
