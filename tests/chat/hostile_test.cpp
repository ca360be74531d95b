// Templates that try to use up time, memory or stack, or to reach what they must not, each with its error code.
#include <ctime>
#include <string>

#include <catch2/catch.hpp>

#include "chat/template.hpp"
#include "tests/chat/value_of.hpp"

using namespace llminfer;
using test::Context;

namespace {

Result<std::string> render(std::string_view source, const Context& context = Context::object(),
                           const chat::TemplateLimits& limits = {}) {
  auto parsed = chat::Template::parse(source, limits);
  if (!parsed) return std::move(parsed).error();
  return parsed->render(test::value_of(context));
}

std::string repeated(std::string_view part, int times) {
  std::string text;
  for (int i = 0; i < times; ++i) text += part;
  return text;
}

void check(std::string_view source, ErrorCode expected) {
  INFO(source.substr(0, 200));
  const std::clock_t begin = std::clock();  // of this process, whatever else the machine does
  const auto result = render(source);
  CHECK(static_cast<double>(std::clock() - begin) < 20.0 * CLOCKS_PER_SEC);
  REQUIRE_FALSE(result);
  INFO(result.error().message);
  CHECK(result.error().code == expected);
  CHECK_FALSE(result.error().message.empty());
}

}  // namespace

TEST_CASE("templates cannot make big values", "[chat]") {
  for (const char* source : {
           "{{ 'a' * 10**9 }}",
           "{{ 'a' * 10**18 }}",
           "{{ 10**18 * 'ab' }}",
           "{{ [1] * 10**9 }}",
           "{{ [1] * 10**18 }}",
           "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
           "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
           "{{ 'a\nb'|indent(10**12) }}",
           "{{ 'a'|indent(10**18, true) }}",
           "{{ 'a'|center(10**12) }}",
           "{{ 'a'.ljust(10**12) }}",
           "{{ 'a'.zfill(10**12) }}",
           "{{ '%999999999999d' % 1 }}",
           "{{ '%99999999999999999999999d' % 1 }}",
           "{{ '{:>999999999999}'.format('x') }}",
           "{{ [[1]]|tojson(indent=10**12) }}",
           "{{ ('a' * 10**5).replace('', 'b' * 10**5) }}",
           "{{ ('a' * 10**4)|list|join('b' * 10**5) }}",
           "{{ [1]|batch(10**9, 'x')|list }}",
           "{{ [1]|slice(10**9)|list }}",
           "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
           "{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
           "{% set s = 'a' * 60000 %}{% for i in range(99999) %}{% set x = s[::-1] %}{% endfor %}",
           "{% set ns = namespace(d={}) %}{% for i in range(99999) %}{% set ns.d = dict(ns.d, **{'k' ~ i: i}) %}{% "
           "endfor %}",
           "{% for i in range(99999) %}{% set l = range(99999)|list %}{% endfor %}",
           "{% set s = 'ab' * 100000 %}{% for i in range(99999) %}{{ s == s ~ '' }}{% endfor %}",
           "{{ range(99999)|unique|list|length }}",
       }) {
    check(source, ErrorCode::limit_exceeded);
  }
  for (const char* source : {"{{ range(10**9) }}", "{{ range(0, 0 - 10**18, -1) }}", "{{ 10**19 }}", "{{ 2**64 }}",
                             "{{ 9223372036854775807 + 1 }}", "{{ -9223372036854775807 - 2 }}",
                             "{{ -(-9223372036854775807 - 1) }}", "{{ (-9223372036854775807 - 1)|abs }}",
                             "{{ 9223372036854775808 }}", "{{ '9223372036854775808'|int }}", "{{ 1e300|int }}"}) {
    check(source, ErrorCode::template_error);
  }
  check("{{ (-9223372036854775807 - 1) // -1 }}", ErrorCode::template_error);
  CHECK(render("{{ (-9223372036854775807 - 1) % -1 }}").value() == "0");
  CHECK(render("{{ 'abc'[::9223372036854775807] }}{{ 'abc'[9223372036854775807:] }}").value() == "a");
  CHECK(render("{{ 'abc'[::-9223372036854775807] }}").value() == "c");
}

TEST_CASE("templates cannot nest without bound", "[chat]") {
  const auto nested = [](std::string_view open, std::string_view inner, std::string_view close, int n) {
    return repeated(open, n) + std::string(inner) + repeated(close, n);
  };
  for (const int n : {100, 40000}) {
    check("{{ " + nested("(", "1", ")", n) + " }}", ErrorCode::limit_exceeded);
    check("{{ " + nested("[", "1", "]", n) + " }}", ErrorCode::limit_exceeded);
    check("{{ " + nested("{'a':", "1", "}", n) + " }}", ErrorCode::limit_exceeded);
    check("{{ " + nested("f(", "1", ")", n) + " }}", ErrorCode::limit_exceeded);
    check("{{ " + nested("not ", "1", "", n) + " }}", ErrorCode::limit_exceeded);
    check("{{ " + nested("- ", "1", "", n) + " }}", ErrorCode::limit_exceeded);
    check("{{ " + nested("1 if 1 else ", "1", "", n) + " }}", ErrorCode::limit_exceeded);
    check("{{ 1 " + repeated("if 1 ", n) + " }}", ErrorCode::limit_exceeded);
    check("{{ a" + repeated(".b", n) + " }}", ErrorCode::limit_exceeded);
    check("{{ a" + repeated("[0]", n) + " }}", ErrorCode::limit_exceeded);
    check("{{ a" + repeated("()", n) + " }}", ErrorCode::limit_exceeded);
    check("{{ 'a'" + repeated("|upper", n) + " }}", ErrorCode::limit_exceeded);
    check("{% filter upper" + repeated("|upper", n) + " %}{% endfilter %}", ErrorCode::limit_exceeded);
    check("{% set x | upper" + repeated("|upper", n) + " %}{% endset %}", ErrorCode::limit_exceeded);
    check(nested("{% if 1 %}", "x", "{% endif %}", n), ErrorCode::limit_exceeded);
    check(nested("{%for i in x%}", "x", "{%endfor%}", n), ErrorCode::limit_exceeded);
    check("{% for " + nested("(", "a", ")", n) + " in x %}{% endfor %}", ErrorCode::limit_exceeded);
  }
  check("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", ErrorCode::limit_exceeded);
  check("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        ErrorCode::limit_exceeded);
  check("{% macro m(x) %}{{ m(x) }}{{ m(x) }}{% endmacro %}{{ m(1) }}", ErrorCode::limit_exceeded);
  check(
      "{% macro m() %}{{ caller() }}{% endmacro %}{% macro r() %}{% call m() %}{{ r() }}{% endcall %}{% endmacro %}{{ "
      "r() }}",
      ErrorCode::limit_exceeded);
  check("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", ErrorCode::limit_exceeded);
  check("{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}",
        ErrorCode::limit_exceeded);
  check("{% set ns = namespace(x={}) %}{% for i in range(99999) %}{% set ns.x = {'k': ns.x} %}{% endfor %}",
        ErrorCode::limit_exceeded);
  check(
      "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = ns.x|default(1)|string|list %}{% set ns.x "
      "= [ns.x, ns.x] %}{% endfor %}",
      ErrorCode::limit_exceeded);
  // Long chains of operators are not deep.
  CHECK(render("{{ 1" + repeated(" + 1", 5000) + " }}").value() == "5001");
  CHECK(render("{{ 0" + repeated(" or 0", 5000) + " }}").value() == "0");
  CHECK(render("{% if 0 %}" + repeated("{% elif 0 %}", 5000) + "{% else %}x{% endif %}").value() == "x");
}

TEST_CASE("values that could refer to themselves do not leak or loop", "[chat]") {
  CHECK(render("{% set ns = namespace() %}{% set ns.x = ns %}{% set ns.y = [ns, {'k': ns}] %}{{ ns.x.x.y|length }}")
            .value() == "2");
  CHECK(render("{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}").value() == "[<Namespace>]");
  CHECK(render("{% set ns = namespace() %}{% for i in [1, 2] %}{% set ns.l = loop %}{% endfor %}{{ ns.l.index }}{{ "
               "ns.l.previtem is defined }}")
            .value() == "2False");
  CHECK(render("{% set ns = namespace() %}{% for i in [1, 2] %}{% macro m() %}{{ i }}{% endmacro %}{% set ns.m = m "
               "%}{% endfor %}{{ ns.m() }}")
            .value() == "2");
  check("{% set ns = namespace() %}{% for i in [1] recursive %}{% set ns.l = loop %}{% endfor %}{{ ns.l([1]) }}",
        ErrorCode::template_error);
}

TEST_CASE("templates reach no host objects and change no values", "[chat]") {
  for (const char* source :
       {"{{ ''.__class__.__mro__ }}", "{{ [].append(1) }}", "{{ {}.update({'a': 1}) }}", "{{ {}.pop('a') }}",
        "{{ messages.append(1) }}", "{{ range.__globals__.x }}", "{{ self.x }}", "{{ 'a'|nosuch }}",
        "{{ 1 is nosuch }}", "{{ nosuch() }}", "{% include 'x' %}", "{% import 'x' as x %}", "{% extends 'x' %}",
        "{{ raise_exception('no') }}", "{{ 'a'.format.__globals__.x }}", "{{ '{0.__class__.x}'.format(1) }}",
        "{% set messages.x = 1 %}"}) {
    check(source, ErrorCode::template_error);
  }
  CHECK(render("{{ raise_exception('Only once: é') }}").error().message == "Only once: é");
  CHECK(render("{{ ''.__class__ }}|{{ {}.__init__ }}|{{ namespace.__init__ }}").value() == "||");
}

TEST_CASE("contexts and sources have limits", "[chat]") {
  Context deep = 1;
  for (int i = 0; i < 200; ++i) deep = Context::array({deep});
  CHECK(render("x", {{"v", deep}}).error().code == ErrorCode::limit_exceeded);
  CHECK(render("x", {{"v", 18446744073709551615ull}}).error().code == ErrorCode::template_error);
  CHECK(render("x", Context::array()).error().code == ErrorCode::template_error);
  CHECK(render("x", {{"__now", "noon"}}).error().code == ErrorCode::template_error);
  CHECK(render(std::string((1 << 20) + 1, 'x')).error().code == ErrorCode::limit_exceeded);
  CHECK(render("{{ 1 }}{{ 2 }}", Context::object(), {.steps = 2}).error().code == ErrorCode::limit_exceeded);
  CHECK(render("{{ 'ab' }}cd", Context::object(), {.output_bytes = 3}).error().code == ErrorCode::limit_exceeded);
  CHECK(render("{{ 'ab' }}c", Context::object(), {.output_bytes = 3}).value() == "abc");
  // Bytes that are not UTF-8 pass through, one character each.
  CHECK(render("{{ s }}{{ s|length }}{{ s[::-1] }}{{ s|upper }}", {{"s", "a\xff\xc3"}}).value() ==
        "a\xff\xc3"
        "3"
        "\xc3\xff"
        "a"
        "A\xff\xc3");
}

TEST_CASE("errors name the line, and a template renders many times", "[chat]") {
  CHECK(render("a\nb\n{% if %}").error().message.find("line 3") != std::string::npos);
  CHECK(render("a\n{{ 'x\n' }}\n{{ 1 is nosuch }}").error().message.find("line 4") != std::string::npos);
  const auto parsed = chat::Template::parse("{% set x = x + 1 %}{{ x }}");
  REQUIRE(parsed);
  CHECK(parsed->render(test::value_of({{"x", 1}})).value() == "2");
  CHECK(parsed->render(test::value_of({{"x", 5}})).value() == "6");
  CHECK(chat::Template::parse("{{ strftime_now('%Y-%m-%d') }}")->render(test::value_of({{"__now", 1700000000}})).value() ==
        "2023-11-14");
  CHECK(render("{{ strftime_now('%Y')|int > 2000 }}{{ __now is defined }}").value() == "TrueFalse");
}
