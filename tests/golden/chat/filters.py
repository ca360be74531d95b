"""Expressions: filters, and how numbers print."""

EXPRESSIONS = r"""
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
""".strip("\n").split("\n")
