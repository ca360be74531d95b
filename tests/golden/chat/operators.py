"""Expressions: literals, operators, subscripts and attributes."""

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
""".strip("\n").split("\n")
