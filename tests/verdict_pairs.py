"""Pairs of answers in mathematics with the right verdict, the same both ways round."""

# what one writes for the other
EQUAL = [
    line.split(" ~ ")
    for line in r"""
1e3 ~ 1000
1e20 ~ 100000000000000000000
1E20 ~ 1e20
1e20 ~ 10^{20}
1.5e3 ~ 1500
-1.5e3 ~ -1500
2.5e-3 ~ 0.0025
1e-7 ~ 10^{-7}
5E-7 ~ 5\cdot10^{-7}
5e-7 ~ 0.0000005
2e-1 ~ 0.2
2e-1 ~ -1+2e
6.02e23 ~ 6.02\cdot10^{23}
6.02 \times 10^{23} ~ 602000000000000000000000
1.6\cdot10^{-19} ~ 1.6\times10^{-19}
1.6\cdot10^{-19} ~ 16\cdot10^{-20}
0.00000000000000000016 ~ 1.6\cdot10^{-19}
.0000672 ~ 6.72\cdot10^{-5}
6.72e-5 ~ .0000672
\frac{1}{2004!} ~ \frac{2005}{2005!}
10^{-20} ~ \frac{1}{10^{20}}
-10^{-20} ~ -\frac{1}{10^{20}}
2^{100} ~ 1267650600228229401496703205376
100000000000000000001 ~ 10^{20}+1
10^{50}+1 ~ 1+10^{50}
\pi\cdot10^{-20} ~ \frac{\pi}{10^{20}}
123456789.5 ~ \frac{246913579}{2}
-0.5 ~ -\frac{1}{2}
-0 ~ 0
0.0 ~ 0
+5 ~ 5
7.0 ~ 7
0.50 ~ .5
1,319 ~ 1319
1{,}319 ~ 1319
1\,319 ~ 1319
1\ 319 ~ 1319
1 319 ~ 1319
12\,345.5 ~ 12345.5
1,000,000 ~ 10^6
0.\overline3 ~ \frac13
0.\overline{3} ~ \frac{1}{3}
-0.\overline{3} ~ -\frac{1}{3}
.\overline{3} ~ 1/3
0.1\overline{6} ~ \frac{1}{6}
0.\overline{142857} ~ \frac17
0.\bar{3} ~ 0.\overline{3}
0.\dot{9} ~ 1
2.\overline{45} ~ \frac{27}{11}
1.0\overline{45} ~ \frac{23}{22}
(0.\overline{3}, 1) ~ (\frac{1}{3}, 1)
1 1/2 ~ 1.5
1 1/2 ~ \frac{3}{2}
1\ 1/2 ~ 1.5
-1 1/2 ~ -1.5
1~\frac12 ~ 1.5
3 \frac{1}{2} ~ 3.5
1\frac{4}{5} ~ 1.8
137 \frac{1}{2} ~ 137.5
10 3/4 ~ \frac{43}{4}
2 \tfrac{1}{3} ~ \frac{7}{3}
½ ~ 0.5
1½ ~ \frac{3}{2}
７ ~ 7
１２３ ~ 123
－５ ~ -5
１／２ ~ 0.5
٣ ~ 3
（１，２） ~ (1,2)
0.333333 ~ \frac{1}{3}
0.3333333 ~ \frac13
0.111111 ~ \frac19
0.016667 ~ \frac{1}{60}
0.6666667 ~ \frac{2}{3}
1.414214 ~ \sqrt{2}
3.1415927 ~ \pi
2.7182818 ~ e
-0.142857 ~ -\frac{1}{7}
\frac{\sqrt{2}}{2} ~ \frac{1}{\sqrt{2}}
\sqrt{2}+\sqrt{3} ~ \sqrt{5+2\sqrt{6}}
\frac{1}{\sqrt{2}-1} ~ \sqrt{2}+1
\log_2 9 ~ \frac{\log_{10} 9}{\log_{10} 2}
\binom{5}{2} ~ 10
5! ~ 120
3+4i ~ 4i+3
(1,2) ~ \left(1,2\right)
(1,2) ~ 1,2
(2,1) ~ 2,1
(1,2,3) ~ 1,2,3
(1,2,3) ~ [1,2,3]
(10^{-20},1) ~ (\frac{1}{10^{20}},1)
(0.5, 0.25) ~ (\frac12, \frac14)
\{1,2\} ~ \{2,1\}
\{1,2\} ~ 2,1
\{1,2,2\} ~ \{1,2\}
\{5\} ~ 5
\left\{1, 2\right\} ~ \{1,2\}
84, 69 ~ 69,84
1 and 2 ~ 1,2
1 \text{ or } 2 ~ 2,1
1,2,2 ~ 2,1,2
-2,-2 ~ -2, -2
-2,-2 ~ \{-2,-2\}
16,3,1,1 ~ \{1,16,1,3\}
\pm 3 ~ 3,-3
1 \pm \sqrt{19} ~ 1-\sqrt{19},1+\sqrt{19}
(1,2),(3,4) ~ (3,4),(1,2)
[1,2) ~ \left[1,2\right)
(-\infty,2)\cup(3,\infty) ~ (3,\infty)\cup(-\infty,2)
(0.5,1] ~ (\frac12,1]
\infty ~ +\infty
\infty ~ infinity
∞ ~ \infty
(-∞, 2) ~ (-\infty,2)
\emptyset ~ \varnothing
\{\} ~ \emptyset
5. ~ 5
\frac{1}{2}. ~ 0.5
10 20 ~ 20,10
1 000 000 ~ 10^6
(1 000, 2) ~ (1000,2)
2 \times 3 1/2 ~ 7
1e400 ~ 10^{400}
x=6 ~ 6
x=6 ~ x = 6
x=2+4=6 ~ 6
x=2+4=6 ~ x=6
y=2x+3 ~ 2x+3
x=1,2 ~ 1,2
x+y=1 ~ 1=x+y
x+y=1 ~ 2x+2y=2
x^2+1=0 ~ 0=x^2+1
5x - 7y + 11z + 4 = 0 ~ 10x-14y+22z+8=0
x \ge 7 ~ 7 \le x
x \geq 7 ~ x \geqslant 7
x ≥ 7 ~ x \ge 7
\ge 7 ~ \geq 7
x > 2 ~ 2 < x
x \neq 5 ~ 5 \neq x
x \ne 5 ~ x ≠ 5
-2 \le x \le 7 ~ -2 \leq x \leq 7
12_3 ~ 12_{3}
204_5 ~ 204_{5}
4210_{5} ~ 4210_5
1A_{16} ~ 1A_16
A1_{16} ~ A1_{16}
\textbf{72 apples} ~ 72
½ ~ \frac{1}{2}
\begin{pmatrix}1\\2\end{pmatrix} ~ \begin{pmatrix} 1 \\ 2 \end{pmatrix}
\begin{pmatrix}1/5\\0\end{pmatrix} ~ \begin{pmatrix} 0.2 \\ 0 \end{pmatrix}
\begin{bmatrix}1&2\\3&4\end{bmatrix} ~ \begin{pmatrix}1&2\\3&4\end{pmatrix}
(x+1)^2 ~ x^2+2x+1
10^{-20}x ~ \frac{x}{10^{20}}
\frac{n(n+1)}{2} ~ \frac{n^2+n}{2}
\text{Evelyn} ~ Evelyn
\text{east} ~ \text{East}
\text{(B)} ~ (B)
\text{72 clips} ~ 72
72 \text{ clips} ~ 72
\$72 ~ 72
$72 ~ 72
\text{72} ~ 72
\mathrm{72} ~ 72
5\text{ cm} ~ 5
$29.00 ~ 29
50\% ~ 0.5
50\% ~ \frac{1}{2}
10\% ~ 10
90^\circ ~ 90
""".strip().splitlines()
]

# what nobody should take for the other
DIFFERENT = [
    line.split(" ~ ")
    for line in r"""
\frac{1}{2004!} ~ \frac{1}{2006!}
\frac{1}{2004!} ~ 0
10^{-20} ~ 10^{-30}
10^{-20} ~ -10^{-20}
10^{-20} ~ 0
1e-12 ~ 0
1e-12 ~ 1e-13
0.0000001 ~ 0
0.0000004 ~ -0.0000004
0.0000004 ~ 0.0000003
.0000672 ~ .0000671
1.6\cdot10^{-19} ~ 9.1\cdot10^{-31}
1.6\cdot10^{-19} ~ -1.6\cdot10^{-19}
\pi\cdot10^{-20} ~ \pi\cdot10^{-30}
\frac{\sqrt{2}}{10^{20}} ~ \frac{\sqrt{3}}{10^{20}}
0.000001\% ~ 0.000002\%
1e20 ~ 1e21
1e20 ~ 100000000000000000001
10^{50}+1 ~ 10^{50}
2^{100} ~ 2^{100}+1
100! ~ 100!+1
\sqrt{10^{100}+1} ~ 10^{50}
1e3 ~ 3e
1234567.1 ~ 1234567.2
-7 ~ 7
0.33 ~ \frac{1}{3}
0.33333 ~ \frac13
0.\overline{3} ~ 0.3
0.\overline{3} ~ \frac{3}{10}
0.1\overline{6} ~ 0.\overline{16}
3.14 ~ \pi
3.14159 ~ \pi
1.4142 ~ \sqrt{2}
1 1/2 ~ 1
1 1/2 ~ \frac{1}{2}
1 1/2 ~ \frac{11}{2}
1 319 ~ 320
10 20 ~ 30
1 2 3 ~ 6
0.001 ~ 0.0010004
1e-400 ~ 0
-1 1/2 ~ -0.5
1,319 ~ 1,320
７ ~ 8
1-\frac{1}{\mathrm e} ~ 1+\frac{1}{\mathrm e}
(1,2) ~ (2,1)
(1,2) ~ \{1,2\}
(1,2,3) ~ \{1,2,3\}
(1,2,3) ~ 3,2,1
(1,2) ~ 2,1
(1,2) ~ [1,2]
[1,2) ~ (1,2)
[1,2) ~ [1,2]
[1,2] ~ \{1,2\}
(1,2) ~ (1,2,2)
(10^{-20},1) ~ (10^{-30},1)
\{10^{-20},1\} ~ \{10^{-30},1\}
[10^{-20},1] ~ [10^{-30},1]
\{1,2\} ~ \{1,2,3\}
\{1,2\} ~ \{1,3\}
1,2,2 ~ 1,2
1,2,2 ~ 1,1,2
1,2,2 ~ \{1,2\}
-2,-2 ~ -2
-2,-2 ~ \{-2\}
\begin{pmatrix}1\\2\end{pmatrix} ~ \begin{pmatrix}1\\2\end{pmatrix},\begin{pmatrix}1\\2\end{pmatrix}
N=n ~ N=n+1
x=2,2 ~ 2
1,2 ~ 12
1,2 ~ 1
(1,2),(3,4) ~ (1,2),(4,3)
(1,2),(3,4) ~ (1,3),(2,4)
\infty ~ \infty+1
\infty ~ 2\infty
\infty ~ -\infty
\infty ~ \infty-\infty
\infty ~ 10^{100}
(-\infty,2) ~ (-\infty,2]
(-\infty,2) ~ (2,\infty)
0=0 ~ 1=1
1=2 ~ 3=4
x=x ~ 1=1
1=2=6 ~ 6
5=6 ~ 6
x=5=6 ~ 6
x=6 ~ y=6
x=6 ~ 5
x=6 ~ x=7
x^2=-1 ~ x^2=-2
x=x+1 ~ x=x+2
3*x-1*y+13=0 ~ 3x+4y+14=0
y=2x+3 ~ y=2x-3
10^{-20}x=1 ~ 10^{-30}x=1
\ge 7 ~ 7
\geq 7 ~ 7
\le 7 ~ 7
\neq 5 ~ 5
\ne 5 ~ 5
> 7 ~ 7
>7 ~ 7
<7 ~ 7
≥ 7 ~ 7
≠ 5 ~ 5
\ge 7 ~ \le 7
\ge 7 ~ > 7
x \ge 7 ~ 7
x \ge 7 ~ x=7
x \ge 7 ~ x > 7
x \ge 7 ~ x \le 7
x \neq 5 ~ x=5
x \neq 5 ~ 5
x < 7 \text{ only} ~ 7
12_3 ~ 12_4
12_{3} ~ 12_{4}
204_5 ~ 204_6
1A_{16} ~ 1A_{12}
(12_3,1) ~ (12_4,1)
12_3 ~ 11_3
\begin{pmatrix}1\\2\end{pmatrix} ~ \begin{pmatrix}2\\1\end{pmatrix}
\begin{pmatrix}10^{-20}\\2\end{pmatrix} ~ \begin{pmatrix}10^{-30}\\2\end{pmatrix}
\begin{pmatrix}1&2\end{pmatrix} ~ \begin{pmatrix}1\\2\end{pmatrix}
10^{-20}x ~ 10^{-30}x
10^{-20}x ~ 0
x+10^{-20} ~ x
x+1 ~ x-1
x ~ y
2x ~ 2y
3i ~ 3
\text{Evelyn} ~ \text{Briana}
\text{(B)} ~ \text{(C)}
\text{72 clips} ~ 73
72 clips ~ 73
72 clips ~ 7
3 squared ~ 3
\text{3 squared} ~ 3
FF_{16} ~ FF_{12}
A1_{16} ~ A1_{12}
-½ ~ ½
5 million ~ 5
2 thirds ~ 2
5 or 6 ~ 5
""".strip().splitlines()
]
