"""Expressions: `is` tests, global functions and objects."""

EXPRESSIONS = r"""
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
""".strip("\n").split("\n")
