"""Small templates, one feature each, rendered with CONTEXT."""
import filters
import methods
import mixed
import operators
import statements
import tests_and_functions

CONTEXT = {
    "s": "Hello, World", "u": "žluťoučký kůň 🐎", "empty": "", "sp": "  \t padded\n ", "n": 42, "neg": -7, "f": 3.75, "big": 1e22,
    "t": True, "no": False, "nil": None, "l": [3, 1, 2], "words": ["b", "A", "c", "a"], "nested": [[1, 2], [3, 4]],
    "d": {"b": 1, "a": 2, "items": "shadowed", "_x": 9}, "lines": "one\ntwo\n\nthree\n",
    "people": [{"name": "Ann", "age": 30, "tags": ["x"]}, {"name": "bob", "age": 25, "tags": []}, {"name": "Cid", "age": 30}],
    "html": "<a href=\"x\">&'</a>", "deep": {"a": {"b": [{"c": 5}]}}, "floats": [0.1, 1.0, 1e-7, 123456789.123, -0.0, 1e16, 2.5],
    "mixed": [1, "a", None, True, 2.5, [1], {"k": "v"}],
}

# Each expression is rendered as {{ … }}.
EXPRESSIONS = [
    expression
    for part in (operators, methods, filters, tests_and_functions, mixed)
    for expression in part.EXPRESSIONS
]

TEMPLATES = ["{{ " + expression + " }}" for expression in EXPRESSIONS] + statements.TEMPLATES
