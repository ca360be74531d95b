"""Expressions: syntax errors, precedence, and features together."""

EXPRESSIONS = r"""
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
