"""Small templates, one feature each, rendered with CONTEXT."""

CONTEXT = {
    "s": "Hello, World", "u": "žluťoučký kůň 🐎", "empty": "", "sp": "  \t padded\n ", "n": 42, "neg": -7, "f": 3.75, "big": 1e22,
    "t": True, "no": False, "nil": None, "l": [3, 1, 2], "words": ["b", "A", "c", "a"], "nested": [[1, 2], [3, 4]],
    "d": {"b": 1, "a": 2, "items": "shadowed", "_x": 9}, "lines": "one\ntwo\n\nthree\n",
    "people": [{"name": "Ann", "age": 30, "tags": ["x"]}, {"name": "bob", "age": 25, "tags": []}, {"name": "Cid", "age": 30}],
    "html": "<a href=\"x\">&'</a>", "deep": {"a": {"b": [{"c": 5}]}}, "floats": [0.1, 1.0, 1e-7, 123456789.123, -0.0, 1e16, 2.5],
    "mixed": [1, "a", None, True, 2.5, [1], {"k": "v"}],
}

# Expressions, each rendered as {{ … }}.
EXPRESSIONS = r"""
1
-1
- 1
+5
1_000
0x1F
0b101
0o17
1.5
1e3
1.5e-3
1e-7
2.0
1e16
1e15
123456789012345678
9223372036854775807
true
false
none
True
None
False
'a'
"a\nb\t\"q\""
'it''s'
'a' 'b' "c"
'\x41\u00e9\U0001F40E\101\q\\'
[]
[1, 'a', none, true, 1.5]
[1,]
()
(1,)
(1, 2)
1, 2
{}
{'a': 1, 'b': [2]}
{'a': 1, 'a': 2}
{1: 'x', true: 'y'}
'it\'s'|list
["it's", 'say "hi"', 'both \' and "', 'tab\t', 'é', '\x01', '\u00a0', '\u2028', '\\']
1 + 2 * 3
(1 + 2) * 3
7 / 2
6 / 2
7 // 2
-7 // 2
7 // -2
7.5 // 2
-7 % 3
7 % -3
7.5 % 2
-7.5 % 2
2 ** 10
2 ** -1
2 ** 0.5
2 ** 3 ** 2
-2 ** 2
1 - 2 - 3
100 / 3
1 / 0
1 // 0
1 % 0
0.1 + 0.2
1 + true
true + true
'a' + 'b'
'a' + 1
1 + 'a'
'a' * 3
3 * 'ab'
'a' * 0
'a' * -1
[1] * 2
[1] + [2]
(1,) + (2,)
[1] + (2,)
[1] + none
none + 1
{} + {}
'a' - 'b'
'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1]
1 ~ 2
1 + 2 ~ 3
'%s is %d and %05.2f %x %%' % ('a', 7, 3.14159, 255)
'%s' % 'x'
'%(a)s-%(b)03d' % {'a': 1, 'b': 2}
'%5s|%-5s|%+d|% d|%.2s' % ('a', 'b', 3, 4, 'xyz')
'%s %s' % 'x'
'%d' % 'x'
'%r' % 'x'
'%e %g %g' % (12345.678, 0.00001, 100000)
1 == 1.0
1 == true
'1' == 1
none == false
[1, 2] == [1, 2]
[1] == (1,)
{'a': 1, 'b': 2} == {'b': 2, 'a': 1}
1 != 2
1 < 2 < 3
1 < 3 < 2
1 < 2 > 1
'a' < 'b'
'a' < 1
none < 1
[1, 2] < [1, 3]
[1] < [1, 0]
(1, 'a') < (1, 'b')
1 <= 1.0
2 >= 3
'é' > 'z'
'ell' in s
'' in s
1 in l
9 not in l
'a' in d
'zz' in d
1 in 'a'
1 in 5
none in [none]
1 in nope
not 1
not not 0
1 and 2
0 and 2
0 or 'x'
'' or none
1 or 1/0
none or false or 3
not true or true
not 1 == 2
1 if t else 2
1 if no else 2
1 if no
'a' if no else 'b' if no else 'c'
1 if 0 or 1 else 2
s[0]
s[-1]
s[99]
s[1:4]
s[:-1]
s[::-1]
s[::2]
s[-3:]
s[5:2]
s[10:0:-3]
s[::0]
s['x']
u[0]
u[-1]
u[3:8]
u[::-1]
u|length
l[0]
l[-1]
l[5]
l[1:]
l[::-1]
l[:2]
l[-2:]
l[0:100]
l['a']
(1,2,3)[1:]
l[none:2]
l['a':]
d.a
d['a']
d.zz
d['zz']
d.zz.y
d['zz']['y']
d['items']
d.items is callable
l|map|list
d._x
d['_x']
d.get('a')
d.get('zz')
d.get('zz', 5)
d.keys()|list
d.values()|list
d.items()|list
d|items|list
deep.a.b[0].c
deep['a'].b.0.c
deep.x.b
nil.x
nil['x']
nil.x.y
n.x
5 .x
nope
nope.x
nope['x']
nope()
nope + 1
nope|length
nope ~ 'x'
nope == nope
nope == none
nope < 1
-nope
[nope]
[nope, none]
nope is defined
s.__class__
s.__class__.__mro__
''.__class__.__base__
d.__init__
n.__add__
[].append
l.append(1)
l.pop()
d.update({})
d.pop('a')
d.clear()
l.sort()
l.reverse()
l.index(1)
l.index(9)
l.count(1)
(1,1).count(1)
5()
'a'()
none()
s.upper()
s.lower()
s.title()
"they're bill's".title()
"they're bill's"|title
"foo-bar (baz) [qux] <x> {y}"|title
s.capitalize()
'hELLO wORLD'.capitalize()
'hELLO wORLD'|capitalize
s.swapcase()
u.upper()
u|upper
'straße'.upper()
'ÀÉ'.lower()
sp.strip()
sp.lstrip()
sp.rstrip()
'xxaxx'.strip('x')
'xyaxy'.lstrip('xy')
'xyaxy'.rstrip('xy')
'éaé'.strip('é')
'\u00a0a\u3000'.strip()|length
'a,b,,c'.split(',')
'a,b,c'.split(',', 1)
'a,b,c'.rsplit(',', 1)
'a,b,c'.split(',', maxsplit=1)
' a  b c '.split()
' a  b c '.split(none, 1)
' a  b c '.rsplit(none, 1)
' a  b c '.rsplit()
'abc'.split('')
'a--b--c'.rsplit('--', 1)
''.split(',')
''.split()
'</think>x</think>y'.split('</think>')[-1]
lines.splitlines()
lines.splitlines(true)
'a\r\nb\rc'.splitlines()
'a-b-c'.partition('-')
'a-b-c'.rpartition('-')
'abc'.partition('-')
'abc'.rpartition('-')
s.startswith('Hell')
s.startswith('x')
s.startswith(('x', 'He'))
s.startswith('World', 7)
s.endswith('ld')
s.endswith(('a', 'd'))
s.startswith(1)
s.startswith()
s.replace('l', 'L')
s.replace('l', 'L', 2)
s.replace('', '-')
s.replace('', '-', 3)
'aaa'.replace('aa', 'b')
s.removeprefix('Hello')
s.removesuffix('World')
s.removeprefix('x')
s.find('o')
s.find('o', 5)
s.find('zz')
s.rfind('o')
s.index('W')
s.index('zz')
u.find('kůň')
s.count('l')
s.count('')
'aaaa'.count('aa')
', '.join(words)
', '.join([1])
'-'.join('abc')
'12'.isdigit()
''.isdigit()
'1a'.isalnum()
'ab'.isalpha()
' \t'.isspace()
'AB1'.isupper()
'ab'.islower()
'Ab Cd'.istitle()
'é'.isascii()
'a'.ljust(3, '.') ~ '|' ~ 'a'.rjust(3) ~ '|' ~ 'a'.center(4, '*') ~ '|' ~ 'ab'.center(5, '*')
'-5'.zfill(4)
'{} {} {}'.format(1, 'a', none)
'{1} {0} {x}'.format(1, 2, x=3)
'{:>5}|{:<5}|{:^5}|{:*^7}|{:05d}|{:+.2f}|{:,}|{:x}|{:%}'.format('a', 'b', 'c', 'd', 42, 3.14159, 1234567, 255, 0.5)
'{0[a]} {1[0]}'.format(d, l)
'{{}} {!r}'.format('x')
'{} {}'.format(1)
'{x}'.format()
'}'.format()
'{:.3}'.format('abcdef')
'{:d}'.format('x')
s.nosuch()
n.upper()
s|upper
s|lower
s|length
l|length
d|count
5|length
none|length
sp|trim
'xax'|trim('x')
5|trim
none|trim
words|join
words|join(', ')
mixed|join('|')
people|join(', ', attribute='name')
nope|join
5|join
words|first
words|last
[]|first
[]|last
s|first
s|last
d|first
s|list
d|list
5|list
5|string
none|string
[1]|string
'42'|int
' 42 '|int
'4.9'|int
'x'|int
'x'|int(7)
'x'|int(default=-1)
3.9|int
-3.9|int
none|int
true|int
'ff'|int(base=16)
'0x1f'|int(0, 16)
'1_000'|int
'3.5'|float
'x'|float
'x'|float(1.5)
'1e3'|float
5|float
'inf'|float
nope|default('x')
none|default('x')
''|default('x', true)
''|d('x', boolean=true)
nope|d
d.zz|default('q')
nope.x|default('q')
false|default('x')
words|sort
words|sort(reverse=true)
words|sort(case_sensitive=true)
l|sort
people|sort(attribute='age')|map(attribute='name')|list
people|sort(attribute='age,name', reverse=true)|map(attribute='name')|list
mixed|sort
d|sort
words|unique|list
[1,1,2,1]|unique|list
['a','A']|unique|list
['a','A']|unique(case_sensitive=true)|list
people|unique(attribute='age')|map(attribute='name')|list
words|reverse|list
s|reverse
words|reverse|first
words|map('upper')|list
words|map('upper')|join
people|map(attribute='name')|list
people|map(attribute='tags', default='-')|list
people|map(attribute='tags.0')|list
people|map(attribute='zz')|list
words|map('nosuch')|list
words|map('replace', 'a', 'X')|list
['1','x']|map('int', default=9)|list
l|select('odd')|list
l|select('gt', 1)|list
l|reject('odd')|list
[0,1,'',none,'a']|select|list
[0,1,'',none,'a']|reject|list
l|select('nosuch')|list
people|selectattr('age', 'equalto', 30)|map(attribute='name')|list
people|selectattr('tags')|map(attribute='name')|list
people|selectattr('tags', 'defined')|map(attribute='name')|list
people|rejectattr('tags', 'defined')|map(attribute='name')|list
people|rejectattr('age', 'eq', 30)|list|length
people|selectattr('name', 'in', ['Ann', 'Cid'])|list|length
people|selectattr('age', '>', 25)|list|length
people|selectattr('zz', 'eq', 1)|length
(l|select('odd')) is defined
'y' if []|select else 'n'
(l|select('odd'))[0]
l|sum
[]|sum
[1.5, 2]|sum
people|sum(attribute='age')
l|sum(start=10)
words|sum
l|min
l|max
words|min
words|max
[]|max
people|max(attribute='age')|length
nested|sum(start=[])
people|groupby('age')|map('first')|list
people|groupby('age')|list|length
d|dictsort
d|dictsort(reverse=true)
{'x':2,'y':1}|dictsort(by='value')
{'b':1,'A':2}|dictsort
{'b':1,'A':2}|dictsort(true)
lines|indent
lines|indent(2)
lines|indent(2, true)
lines|indent(2, first=true, blank=true)
lines|indent('> ', true)
'a'|indent
''|indent(first=true)
s|replace('l', 'L')
s|replace('l', 'L', 1)
5|replace('5', '6')
2.5|round
3.5|round
2.675|round(2)
42|round
-2.5|round
1234|round(-2)
42.55|round(1, 'ceil')
42.55|round(1, 'floor')
3.1|round(method='ceil')
3.1|round|int
'x'|round
-5|abs
-1.5|abs
'x'|abs
html|e
html|escape
html|safe
html|forceescape
5|e
s|wordcount
"don't stop"|wordcount
u|wordcount
'a b/c?d=é&'|urlencode
{'a b': 1, 'c': '/'}|urlencode
[('a', 1)]|urlencode
'%s-%s'|format(1, 'b')
'%(x)s'|format(x=1)
'foo bar baz qux'|truncate(9)
'foo bar baz qux'|truncate(9, true)
'foo bar baz qux'|truncate(11)
'foo bar baz qux'|truncate(11, false, '!', 0)
'a'|center(5) ~ '|'
range(7)|batch(3)|list
range(7)|batch(3, 'x')|list
range(7)|slice(3)|list
range(7)|slice(3, 'x')|list
d|attr('a')
s|attr('upper') is callable
s|nosuch
s|upper|lower|title
s|upper()|length
-5|abs + 1
'a' ~ 'b'|upper
not s|length == 12
s|tojson
html|tojson
u|tojson
u|tojson(ensure_ascii=true)
'a"b\\c\n\t\r\x08\x0c\x01\x7f/'|tojson
n|tojson
f|tojson
big|tojson
t|tojson
nil|tojson
nope|tojson
mixed|tojson
d|tojson
d|tojson(indent=2)
people|tojson(indent=4)
people[0]|tojson(indent=0)
{'a': [], 'b': {}}|tojson(indent=2)
people[0]|tojson(separators=(',', ':'))
people[0]|tojson(indent=2, separators=(',', '='))
d|tojson(sort_keys=true)
d|tojson(indent='\t')
floats|tojson
(1, 2)|tojson
{1: 2, true: 3, none: 4, 1.5: 5}|tojson
[1]|tojson(true)
range|tojson
words|map('tojson')|join(',')
floats
big
1e300 * 1e10
-1e300 * 1e10
1e300 * 1e10 - 1e300 * 1e10
5 is defined
nope is undefined
nil is none
n is none
s is string
n is string
n is number
f is number
t is number
s is number
n is integer
t is integer
f is integer
f is float
t is boolean
n is boolean
d is mapping
l is mapping
l is sequence
s is sequence
d is sequence
n is sequence
nope is sequence
l is iterable
s is iterable
n is iterable
(l|map('string')) is iterable
(l|map('string')) is sequence
4 is odd
4 is even
-3 is odd
9 is divisibleby 3
9 is divisibleby(4)
1 is eq 1
1 is equalto 2
1 is ne 2
1 is lt 2
1 is lessthan 2
1 is le 1
1 is gt 2
1 is greaterthan 0
1 is ge 1
1 is sameas 1
true is sameas true
l is sameas l
1 in [1] is true
1 is in [1, 2]
1 is not in [1, 2]
'a' is in 'abc'
t is true
1 is true
no is false
0 is false
'abc' is lower
'ABC' is upper
'Abc' is upper
range is callable
s is callable
s.upper is callable
'upper' is filter
'nosuch' is filter
'odd' is test
s is escaped
s is nosuch
s is not string
s is string and n is number
not n is string
nope is defined and nope.x
s is eq 'Hello, World'
n is defined is true
n is number if t else 3
'x' is odd
nil is odd
range(5)|list
range(2, 5)|list
range(5, 0, -2)|list
range(0)|list
range(3)|sum
range(0, 1, 0)
range('a')
range()
range(1.5)
range(1000000)
dict(a=1, b=2)
dict({'x': 1}, y=2)
dict([('a', 1)])
dict(x)
namespace(a=1).a
namespace({'a': 3}).a
namespace(a=1).b
namespace(a=1)['a']
namespace().x is defined
joiner() is callable
raise_exception('custom message')
raise_exception()
raise_exception(message='kw')
strftime_now('%Y-%m-%d')
strftime_now('%d %b %Y')
strftime_now('%A, %B %d, %Y %H:%M:%S %p %I %j %y %e %-d %-m %% %a %F %T %D %R %u %w %U %W %C %c')
1.0 * 3
[1, 2
{'a': 1
(1
'abc
1 +
+
foo bar
a.
l[
l[1:2:3:4]
f(a=1, 2)
f(*l, *l)
1 is
1 |
{{ 1 }}
dict(*[[('a', 1)]])
dict(**{'a': 1})
dict(a=1, **{'b': 2})
'{}{}'.format(*l[:2])
dict(**5)
{[1]: 2}
{{}: 2}
1 if t else
l if l is iterable else 'x'
[x for x in l]
lambda
1 == 1 == 1
1 == 1 == 2
s.upper().lower().title()
(s|upper).lower()
((((1))))
[[[[1]]]]
{'a': {'b': {'c': [1, {'d': 2}]}}}.a.b.c[1].d
"{{ 'x' }}"
"%}"
'}}'
[{'a': '}}'}]
{'x': {'y': {}}}
s # comment
a ; b
1 // 2 / 3 * 4 % 5
'a' in 'abc' == true
not 'a' in 'abc'
'a' not in 'abc'
2 * 'a' ~ 'b'
-1|abs
(-1)|abs
+1 - -1
- - 1
s|length - 1
l[-1] + l[0]
l[l|length - 1]
l[0] if l else none
(1, 2)|list
(1, 2)[0]
{'a': 1}['a']
'abc'[1]
[1, 2, 3][-2:]
'a' if s.startswith('H') and not s.endswith('x') else 'b'
none is none and none is not defined
nope is not defined
nope | default([]) | length
mixed
mixed|map('string')|join(',')
people[0]
people|list|length
people|map(attribute='name')|map('lower')|join('/')
people|map(attribute='age')|sum
u|capitalize
u|title
u|list|length
u|replace('ů', 'u')
u|truncate(5, true, '…')
u|center(30)
u|indent(3, true)
u.split('ů')
'🐎' in u
'%5.1f|%-8d|%08d|%+.1e' % (3.14159, 42, -42, 12345.678)
'%s' % none
'%s' % (none,)
'%s' % [1, 2]
'%d' % 3.99
'%d' % true
'%i' % 5
'%x %X %o %#x' % (255, 255, 8, 255)
'%' % 1
'abc' % 1
'abc' % (1,)
'%s' % ()
1.0 // 0.3
5.0 // 1
1e308 * 10
100000000000000000000.0
0.00001
0.0001
123456.789e3
1.0e+5
3.0 == 3
[1.0, 2]
1 / 3
2 / 3
10 / 4
1e2
5e-324
1.7976931348623157e308
""".strip("\n").split("\n")

TEMPLATES = ["{{ " + e + " }}" for e in EXPRESSIONS] + [
    # text and white space
    "", "\n", "a", "a\n", "a\n\n", "a\r\nb\rc\r\n", "  a  ", "{", "{ {", "}}", "%}", "#}", "a{b", "{{'a'}}", "{{- 'a' -}}",
    " {{ 'a' }} ", " {{- 'a' }} ", " {{ 'a' -}} ", "\n {{- 'a' -}} \n b", "x {%- if t %} a {% endif -%} y",
    "{% if t %}\na\n{% endif %}\nb", "  {% if t %}\n  a\n  {% endif %}\n  b", "x  {% if t %}\n  a\n  {% endif %}\n",
    "{% if t -%}\n  a\n{%- endif %}\nb", "{%+ if t %}a{% endif %}", "  {%+ if t %}a{% endif %}", "{% if t +%}\na{% endif %}",
    "{% if t %}\n\n a{% endif %}", "{# c #}", "{# c #}\nx", "  {# c #}\nx", "a {# c #} b", "a {#- c -#} b", "a\n {#- c #}\nb",
    "  {#+ c #}\nb", "{# c -#}\n\n x", "{# c +#}\n x", "{# {{ x }} {% if %} #}y", "{# unfinished", "{#}", "{#-#} x", "{##}",
    "{% raw %}{{ x }}{% endraw %}", "{% raw %}\n {% if %}\n{% endraw %}\nb", " {%- raw -%} {{ x }} {%- endraw -%} y",
    "{% raw %}x", "{%raw%}{% raw %}{%endraw%}", "a\n  {% raw %}\n  x\n  {% endraw %}\n  b", "{{ '{% raw %}' }}",
    "{{", "{%", "{{ 1", "{% if", "{% if t", "{{ 1 %}", "{% if t }}", "{{ }}", "{% %}", "{{ ( }}", "{{ ) }}", "{{ (] }}",
    "\t{% if t %}\tx\t{% endif %}\t", "a\n\t {% set x = 1 %}\nb{{ x }}", "{{ 'a' }}\n{{ 'b' }}\n", "{{ 'a' }}\n\n",
    "\u00a0{% if t %}x{% endif %}", "x\u00a0{%- if t %}x{% endif %}", "{% if t %}x{% endif %}   {% if t %}y{% endif %}",
    "{% if t %}\n   {% if t %}\n  x\n   {% endif %}\n{% endif %}\n", "{{ 1 }}{% if t %}\n{% endif %}|", "a{% set x = 1 -%}\n  b",
    "{% if t %} {# c #} {% endif %}", "line1\n    {{ 'x' }}\n", "{%-if t-%} x {%-endif-%}", "{{-1}}", "{{ -1 }}", "{{+1}}",
    # if
    "{% if t %}a{% else %}b{% endif %}", "{% if no %}a{% elif n %}b{% else %}c{% endif %}", "{% if no %}a{% elif no %}b{% endif %}",
    "{% if no %}a{% elif no %}b{% elif t %}x{% else %}c{% endif %}", "{% if nope %}a{% else %}b{% endif %}", "{% if nope.x %}{% endif %}",
    "{% if l %}y{% endif %}{% if [] %}n{% endif %}{% if '' %}n{% endif %}{% if 0.0 %}n{% endif %}{% if {} %}n{% endif %}",
    "{% if t %}a", "{% endif %}", "{% if t %}a{% endfor %}", "{% else %}", "{% if %}a{% endif %}", "{% if t %}{% set y = 1 %}{% endif %}{{ y }}",
    "{% if no %}{{ s|nosuch }}{% endif %}ok", "{% if 1, 2 %}a{% endif %}", "{% if t %}a{% else %}b{% else %}c{% endif %}",
    # for
    "{% for x in l %}{{ x }},{% endfor %}", "{% for x in [] %}a{% else %}none{% endfor %}", "{% for x in l %}a{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}", "{% for c in u %}{{ c }}.{% endfor %}",
    "{% for a, b in nested %}{{ a }}{{ b }}{% endfor %}", "{% for (a, b) in nested %}{{ a + b }}{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for a, b in l %}{% endfor %}", "{% for a, b in [[1]] %}{% endfor %}",
    "{% for a, b in ['xy'] %}{{ a }}{{ b }}{% endfor %}", "{% for x in 5 %}{% endfor %}", "{% for x in none %}{% endfor %}",
    "{% for x in nope %}a{% else %}b{% endfor %}", "{% for x in 1, 2, 3 %}{{ x }}{% endfor %}", "{% for x in (1, 2) if x > 1 %}{{ x }}{% endfor %}",
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }};{% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}", "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in [1,1,2] %}{{ loop.changed(x) }} {% endfor %}", "{% for x in l %}{{ loop.depth }}{% for y in l %}{{ loop.depth }}{% endfor %}{% endfor %}",
    "{% for x in l if x != 1 %}{{ loop.index }}/{{ loop.length }}:{{ x }} {% endfor %}", "{% for x in l if no %}{% else %}e{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% for y in l %}{% if y == 1 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{% endfor %}",
    "{% break %}", "{% for x in l %}{% for y in l %}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}", "{{ loop }}", "{{ loop.index }}",
    "{% set y = 0 %}{% for x in l %}{% set y = y + x %}{{ y }} {% endfor %}{{ y }}", "{% for x in l %}{% endfor %}{{ x }}",
    "{% set x = 9 %}{% for x in l %}{{ x }}{% endfor %}{{ x }}", "{% set ns = namespace(v=0) %}{% for x in l %}{% set ns.v = ns.v + x %}{% endfor %}{{ ns.v }}",
    "{% for x in l %}{% if loop.first %}{% set y = 1 %}{% endif %}{{ y }};{% endfor %}", "{% for n in l %}{{ n }}{% endfor %}{{ n }}",
    "{% for x in l recursive %}{{ x }}{% endfor %}", "{% for x in [[1, [2]], [3]] recursive %}{% if x is iterable %}[{{ loop(x) }}]{% else %}{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}",
    "{% for x in l %}{{ loop(x) }}{% endfor %}", "{% for x in people|groupby('age') %}{{ x[0] }}:{% for p in x[1] %}{{ p.name }}{% endfor %};{% endfor %}",
    "{% for x in l|sort %}{{ x }}{% endfor %}", "{% for k, v in d|dictsort %}{{ k }}{{ v }}{% endfor %}", "{% for k, v in d|items %}{{ k }}{{ v }}{% endfor %}",
    "{% for x in range(3) %}{{ x }}{% endfor %}", "{% for x in l %}a", "{% for x of l %}{% endfor %}", "{% for 1 in l %}{% endfor %}", "{% for x in l %}{% endif %}",
    "{% set g = l|select('gt', 1) %}{% for x in g %}{{ x }}{% endfor %}|{% for x in g %}{{ x }}{% endfor %}", "{% for x in l[::-1] %}{{ x }}{% endfor %}",
    "{% for x in l if x is odd else %}{% endfor %}", "{% for x in s.split(', ') %}{{ loop.last }}{{ x }}{% endfor %}", "{% for none in l %}{% endfor %}",
    "{%- for x in l -%}\n  {{ x }}\n{%- endfor -%}", "{% for x in l %}\n  {{ x }}\n{% endfor %}\n", "{% for x in l %}{{ x }}{{ ',' if not loop.last }}{% endfor %}",
    "{% for message in people %}{% if loop.index0 % 2 == 0 %}{{ message.name }}{% endif %}{% endfor %}", "{% continue %}",
    # set
    "{% set x = 5 %}{{ x }}", "{% set x, y = 1, 2 %}{{ x }}{{ y }}", "{% set x = 1, 2 %}{{ x }}", "{% set (x, y) = [1, 2] %}{{ x }}{{ y }}",
    "{% set x, y = l %}", "{% set x %}a{{ n }}b{% endset %}{{ x }}", "{% set x | upper %}abc{% endset %}{{ x }}", "{% set x | replace('a', 'b') | upper %}abc{% endset %}{{ x }}",
    "{% set x %}{% set y = 1 %}{{ y }}{% endset %}{{ x }}{{ y }}", "{% set x = x %}{{ x }}", "{% set n = n + 1 %}{{ n }}", "{% set d.x = 1 %}",
    "{% set nope.x = 1 %}", "{% set ns = namespace() %}{% set ns.a = 1 %}{% set ns.b = ns.a + 1 %}{{ ns.a }}{{ ns.b }}", "{% set true = 1 %}", "{% set 1 = 2 %}",
    "{% set ns = namespace(a=1) %}{% set ns.a %}block{% endset %}{{ ns.a }}", "{% set x = %}", "{% set x = 'a' if t else 'b' %}{{ x }}", "{% set ns = namespace(x=[]) %}{% for i in l %}{% set ns.x = ns.x + [i] %}{% endfor %}{{ ns.x }}",
    "{% set x = {'a': 1} %}{{ x.a }}", "{% set ns = namespace(a=1, b='x') %}{{ ns.a }}{{ ns.b }}{{ ns.c }}", "{% set x %}{% endset %}[{{ x }}]", "{% set ns.x = 1 %}",
    "{% set ns = namespace() %}{% set ns.x, y = 1, 2 %}{{ ns.x }}{{ y }}", "{% set l = l + [4] %}{{ l }}", "{% set s = s[:2] %}{{ s }}", "{% set raw = 1 %}{{ raw }}",
    # macro, call, filter, with
    "{% macro m() %}x{% endmacro %}{{ m() }}", "{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=4, a=5) }}{{ m() }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(b=2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}",
    "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}", "{% macro m(a=1, b) %}{% endmacro %}", "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}",
    "{% macro m() %}{{ n }}{{ s }}{% endmacro %}{{ m() }}", "{% macro m() %}{% set n = 1 %}{{ n }}{% endmacro %}{{ m() }}{{ n }}", "{% macro m() %}{{ late }}{% endmacro %}{% set late = 1 %}{{ m() }}",
    "{% macro f(k) %}{{ k }}{% if k > 0 %}{{ f(k - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "{{ m() }}{% macro m() %}x{% endmacro %}", "{% macro m() %}x{% endmacro %}{{ m }}" if False else "",
    "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}B{% endmacro %}{{ a() }}", "{% macro m(x) %} {{- x -}} {% endmacro %}[{{ m('y') }}]", "{% macro m() %}\n  x\n{% endmacro %}[{{ m() }}]",
    "{% macro m() %}{{ caller() }}!{% endmacro %}{% call m() %}hi{% endcall %}", "{% macro m() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) m() %}{{ a + b }}{% endcall %}",
    "{% macro m() %}x{% endmacro %}{% call m() %}hi{% endcall %}", "{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}", "{% macro m() %}{% if caller %}y{% else %}n{% endif %}{% endmacro %}{{ m() }}",
    "{% call s %}{% endcall %}", "{% for x in l %}{% macro m() %}{{ x }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro o() %}{% macro i(k) %}{{ k }}{% endmacro %}{{ i(2) }}{% endmacro %}{{ o() }}",
    "{% for x in l %}{% macro m() %}{{ loop.index }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro m(a) %}{{ a|default('none') }}{% endmacro %}{{ m() }}", "{% macro m(a) %}{{ a.x }}{% endmacro %}{{ m() }}",
    "{% macro m(x) %}{{ x }}{% endmacro %}{{ l|map('string')|map('upper')|join }}{{ m(*[1]) }}{{ m(**{'x': 2}) }}", "{% macro m(a, b) %}{% endmacro %}{{ m.name }}", "{% macro m() %}{% endmacro %}{{ m() == '' }}",
    "{% macro m() %}a{% endmacro %}{% set x = m() ~ 'b' %}{{ x }}{{ x|length }}", "{% macro m %}{% endmacro %}", "{% macro m(%}{% endmacro %}", "{% macro 1() %}{% endmacro %}", "{% macro m() %}",
    "{% filter upper %}abc {{ s }}{% endfilter %}", "{% filter replace('a', 'b')|upper %}aaa{% endfilter %}", "{% filter nosuch %}a{% endfilter %}", "{% filter trim %}  a  {% endfilter %}|", "{% filter upper %}{% set q = 1 %}{% endfilter %}{{ q }}",
    "{% with %}{% set x = 1 %}{{ x }}{% endwith %}{{ x }}", "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% with n = n + 1 %}{{ n }}{% endwith %}{{ n }}", "{% with a = 1 b = 2 %}{% endwith %}", "{% with a, b = l[:2] %}{{ a }}{{ b }}{% endwith %}",
    "{% generation %}a{{ n }}{% endgeneration %}b", "{% generation %}{% set q = 1 %}{{ q }}{% endgeneration %}{{ q }}", "  {% generation %}\n  x\n  {% endgeneration %}\n", "{% for x in l %}{% generation %}{{ x }}{{ loop.index }}{% endgeneration %}{% endfor %}", "{% generation %}x",
    "{% block b %}x{{ n }}{% endblock %}", "{% block b %}x{% endblock b %}", "{% nosuch %}", "{% endgeneration %}",
    # objects
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}", "{% set c = cycler(1, 2) %}{{ c.next() }}{{ c.reset() }}{{ c.next() }}", "{{ cycler() }}",
    "{% set j = joiner() %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}", "{% set j = joiner('|') %}{{ j() }}a{{ j() }}b", "{% set ns = namespace(f=s.upper) %}{{ ns.f() }}", "{% set f = s.upper %}{{ f() }}",
    "{% set x = d.get %}{{ x('a') }}", "{% set range = 5 %}{{ range }}", "{% if raise_exception is defined %}{{ raise_exception('Only ' ~ n) }}{% endif %}", "{{ raise_exception(l) }}",
    "{% set t2 = [] %}{% set _ = t2.append(1) %}{{ t2 }}", "{% do l.append(1) %}", "{{ d.setdefault('a', 1) }}", "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}",
    "{% set a = 1 %}{% set b = a %}{% set a = 2 %}{{ a }}{{ b }}", "{{ 1 }}{# a #}{{ 2 }}{#- b -#} {{ 3 }}", "{% set messages = people[1:] %}{% for m in messages %}{{ m['name'] }}{% endfor %}",
    "{{ people | selectattr('age', 'gt', 26) | map(attribute='name') | join(', ') }}", "{% if people | selectattr('age', 'gt', 99) | list | length > 0 %}y{% else %}n{% endif %}", "{% if people | selectattr('age', 'gt', 99) %}y{% else %}n{% endif %}",
]
