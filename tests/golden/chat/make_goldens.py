"""Renders every case of cases.py and chat_templates.py with Python's jinja2, set up as Hugging Face transformers does,
into goldens.json.

Usage: python make_goldens.py (needs jinja2 3.1). The C++ test compares each result exactly; of errors it compares the
message where the template raised it itself.
"""
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

import cases
import chat_templates

NOW = 1_700_000_000


class Generation(jinja2.ext.Extension):
    """{% generation %} marks the assistant's text and prints it unchanged."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_print"), [], [], body).set_lineno(line)

    def _print(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(format):
    return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None).strftime(format)


def render(template, context):
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    try:
        return {"expected": environment.from_string(template).render(**context)}
    except Exception as e:  # whatever Python raises is one error to the C++ library
        raised = type(e) is jinja2.exceptions.TemplateError
        return {"error": str(e) if raised else "", "kind": type(e).__name__}


def main():
    out = []
    for template in cases.TEMPLATES:
        out.append({"template": template, "context": "shared", **render(template, cases.CONTEXT)})
    for name, template in chat_templates.TEMPLATES.items():
        for title, context in chat_templates.CONTEXTS.items():
            out.append({"name": f"{name}: {title}", "template": template, "context": context, **render(template, context)})
    text = json.dumps({"now": NOW, "shared": cases.CONTEXT, "cases": out}, ensure_ascii=False, indent=0)
    pathlib.Path(__file__).with_name("goldens.json").write_text(text + "\n", encoding="utf-8")
    print(len(out), "cases,", sum("error" in c for c in out), "errors")


main()
