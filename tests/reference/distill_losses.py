"""The distillation losses as the papers write them: loops over examples, channels and pairs, in
float64.

Each takes a whole batch and gives one value an example.
"""

import math

import numpy as np


def softmax(z, temperature=1.0):
    e = np.exp((z - z.max()) / temperature)
    return e / e.sum()


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


def each(f):
    """A loss of one example, over a batch."""
    return lambda s, t, **kw: np.array(
        [
            f(a, b, **{k: v[i] if k in ROWS else v for k, v in kw.items()})
            for i, (a, b) in enumerate(zip(s, t))
        ]
    )


ROWS = ("labels",)


@each
def soft_targets(s, t, temperature):
    return temperature**2 * kl(softmax(t, temperature), softmax(s, temperature))


@each
def soft_and_hard(s, t, labels, alpha, temperature):
    soft = temperature**2 * kl(softmax(t, temperature), softmax(s, temperature))
    return alpha * soft + (1 - alpha) * -math.log(softmax(s)[labels])


@each
def logit_mse(s, t):
    return np.mean((s - t) ** 2)


@each
def forward_kl(s, t, temperature):
    return kl(softmax(t, temperature), softmax(s, temperature))


@each
def reverse_kl(s, t, temperature):
    return kl(softmax(s, temperature), softmax(t, temperature))


@each
def jsd(s, t, beta, temperature):
    p = softmax(t, temperature)
    q = softmax(s, temperature)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


@each
def dkd(s, t, labels, alpha, beta, temperature):
    p = softmax(t, temperature)
    q = softmax(s, temperature)
    rest = [c for c in range(len(p)) if c != labels]
    tckd = kl((p[labels], p[rest].sum()), (q[labels], q[rest].sum()))
    nckd = kl(p[rest] / p[rest].sum(), q[rest] / q[rest].sum())
    return temperature**2 * (alpha * tckd + beta * nckd)


@each
def standardised_targets(s, t, temperature):
    def z(x):
        return (x - x.mean()) / x.std() / temperature

    return temperature**2 * kl(softmax(z(t)), softmax(z(s)))


@each
def top_k(s, t, k, temperature):
    p = softmax(t, temperature)
    q = softmax(s, temperature)
    order = np.argsort(-p)
    head = order[:k]
    tail = order[k:]
    return temperature**2 * kl([*p[head], p[tail].sum()], [*q[head], q[tail].sum()])


def pearson(a, b):
    a = a - a.mean()
    b = b - b.mean()
    return a @ b / math.sqrt((a @ a) * (b @ b))


def dist_total(s, t, inter, intra, temperature):
    """The number that the paper gives a batch."""
    q, p = (np.array([softmax(z, temperature) for z in x]) for x in (s, t))
    rows = np.mean([1 - pearson(a, b) for a, b in zip(p, q)])
    columns = np.mean([1 - pearson(a, b) for a, b in zip(p.T, q.T)])
    return temperature**2 * (inter * rows + intra * columns)


def dist(s, t, inter, intra, temperature):
    """One value an example: its part of every 1 − ρ = ‖â − b̂‖² / 2."""
    q, p = (np.array([softmax(z, temperature) for z in x]) for x in (s, t))

    def unit(column):
        return (column - column.mean()) / np.linalg.norm(column - column.mean())

    n, classes = p.shape
    share = np.zeros((n, classes))
    for c in range(classes):
        share[:, c] = n * (unit(p[:, c]) - unit(q[:, c])) ** 2 / 2
    rows = np.array([1 - pearson(a, b) for a, b in zip(p, q)])
    return temperature**2 * (inter * rows + intra * share.mean(1))


@each
def hint(s, t):
    return np.mean((s - t) ** 2)


def pool(x, size):
    """Adaptive average pooling of (height, width, channels)."""

    def bins(n, k):
        return [(math.floor(i * n / k), math.ceil((i + 1) * n / k)) for i in range(k)]

    height = bins(x.shape[0], size[0])
    width = bins(x.shape[1], size[1])
    return np.array([[x[a:b, c:d].mean((0, 1)) for c, d in width] for a, b in height])


@each
def hint_pooled(s, t):
    return np.mean((s - pool(t, s.shape[:2])) ** 2)


@each
def attention_code(s, t):
    def q(x):
        return (x**2).sum(-1).reshape(-1)

    def unit(v):
        return v / np.linalg.norm(v)

    return np.mean((unit(q(s)) - unit(q(t))) ** 2)


@each
def attention_paper(s, t):
    def q(x):
        return (abs(x) ** 3).sum(-1).reshape(-1)

    def unit(v):
        return v / np.linalg.norm(v)

    return np.linalg.norm(unit(q(s)) - unit(q(t)))


@each
def hidden_cosine(s, t):
    return 1 - s @ t / np.linalg.norm(s) / np.linalg.norm(t)


@each
def nst(s, t, kernel):
    def channels(x):
        return [c / np.linalg.norm(c) for c in x.reshape(-1, x.shape[-1]).T]

    s = channels(s)
    t = channels(t)
    variance = np.mean([np.sum((a - b) ** 2) for a in s for b in t])
    k = {
        "linear": lambda a, b: a @ b,
        "polynomial": lambda a, b: (a @ b) ** 2,
        "gaussian": lambda a, b: math.exp(-np.sum((a - b) ** 2) / (2 * variance)),
    }[kernel]

    def mean(x, y):
        return np.mean([k(a, b) for a in x for b in y])

    return mean(s, s) + mean(t, t) - 2 * mean(s, t)


def fsp(s, t):
    def flow(f, g):
        g = pool(g, f.shape[:2]) if g.shape[0] > f.shape[0] else g
        f = pool(f, g.shape[:2]) if f.shape[0] > g.shape[0] else f
        height, width = f.shape[:2]
        return sum(np.outer(f[i, j], g[i, j]) for i in range(height) for j in range(width)) / (
            height * width
        )

    return np.array([np.mean((flow(a, b) - flow(c, d)) ** 2) for a, b, c, d in zip(*s, *t)])


@each
def vid(s, t, raw_variance, eps=1e-5):
    variance = np.log(1 + np.exp(raw_variance)) + eps
    return np.mean(0.5 * ((t - s) ** 2 / variance + np.log(variance)))


@each
def activation_boundary(s, t, margin):
    total = 0
    for a, b in zip(s.reshape(-1), t.reshape(-1)):
        if b <= 0 and a > -margin:
            total += (a + margin) ** 2
        if b > 0 and a <= margin:
            total += (a - margin) ** 2
    return total


@each
def overhaul(s, t, margin):
    total = 0
    for c, m in enumerate(margin):
        for a, b in zip(s[..., c].reshape(-1), t[..., c].reshape(-1)):
            total += (a - m) ** 2 * (a > m and b <= m)
            total += (a - b) ** 2 * (a > b and m < b <= 0)
            total += (a - b) ** 2 * (b > 0)
    return total


def flat(x):
    return x.reshape(len(x), -1)


def similarity_preserving(s, t):
    def rows(x):
        return np.array([r / np.linalg.norm(r) for r in flat(x) @ flat(x).T])

    return ((rows(s) - rows(t)) ** 2).sum(1) / len(s)


def huber(x):
    return x**2 / 2 if abs(x) <= 1 else abs(x) - 0.5


def rkd_distance(s, t):
    def relative(x):
        d = np.array([[np.linalg.norm(a - b) for b in flat(x)] for a in flat(x)])
        return d / d[d > 0].mean()

    a = relative(s)
    b = relative(t)
    n = len(s)
    return np.array([sum(huber(a[i, j] - b[i, j]) for j in range(n)) / n for i in range(n)])


def rkd_angle(s, t):
    def cosine(x, i, j, k):
        a = flat(x)[j] - flat(x)[i]
        b = flat(x)[k] - flat(x)[i]
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b) if i not in (j, k) else 0.0

    n = len(s)

    def total(i):
        return sum(
            huber(cosine(s, i, j, k) - cosine(t, i, j, k)) for j in range(n) for k in range(n)
        )

    return np.array([total(i) / n**2 for i in range(n)])


def pkt(s, t):
    def affinity(x):
        x = np.array([r / np.linalg.norm(r) for r in flat(x)])
        k = (x @ x.T + 1) / 2
        return k / k.sum(1, keepdims=True)

    return np.array([kl(p, q) / len(s) for p, q in zip(affinity(t), affinity(s))])


def correlation_congruence(s, t, kernel="gaussian", gamma=0.4, order=2):
    def table(x):
        if kernel == "bilinear":
            return flat(x) @ flat(x).T
        x = np.array([r / np.linalg.norm(r) for r in flat(x)])

        def series(g):
            return sum((2 * gamma * g) ** p / math.factorial(p) for p in range(order + 1))

        return np.array([[math.exp(-2 * gamma) * series(a @ b) for b in x] for a in x])

    return ((table(s) - table(t)) ** 2).sum(1) / len(s)


def crd(
    s, t, indices, negatives, bank_student, bank_teacher, z_student, z_teacher, temperature=0.07
):
    """RepDistiller's, with probabilities: P(pair) = exp(score) / Z against K draws from 1 / N."""
    examples = len(bank_student)
    k = negatives.shape[1]
    noise = k / examples
    values = []
    for i, (a, b) in enumerate(zip(s, t)):
        total = 0
        for v, bank, z in ((a, bank_teacher, z_student), (b, bank_student, z_teacher)):
            p = np.exp(bank @ v / np.linalg.norm(v) / temperature) / z
            total -= math.log(p[indices[i]] / (p[indices[i]] + noise))
            total -= sum(math.log(noise / (p[j] + noise)) for j in negatives[i])
        values.append(total)
    return np.array(values)


def deep_mutual(s, t, temperature):
    def one(i):
        return np.mean(
            [kl(softmax(peer[i], temperature), softmax(s[i], temperature)) for peer in t]
        )

    return np.array([one(i) for i in range(len(s))])


@each
def born_again(s, t, labels):
    return kl(softmax(t), softmax(s)) - math.log(softmax(s)[labels])


def born_again_confidence(s, t, labels):
    w = np.array([softmax(z).max() for z in t])
    return np.array(
        [len(s) * a / w.sum() * -math.log(softmax(z)[y]) for a, z, y in zip(w, s, labels)]
    )


def dino(s, t, centre, student_temperature, teacher_temperature):
    def one(i):
        pairs = []
        for v in range(len(t)):
            for w in range(len(s)):
                if v != w:
                    p = softmax(t[v, i] - centre, teacher_temperature)
                    q = softmax(s[w, i], student_temperature)
                    pairs.append(-np.sum(p * np.log(q)))
        return np.mean(pairs)

    return np.array([one(i) for i in range(s.shape[1])])


@each
def one_hot(z, _, labels=None):
    return -math.log(softmax(z)[np.argmax(z) if labels is None else labels])


def information_entropy(z, _):
    """One value an example: its part of Σ p̄ log p̄, which is the number of the paper."""
    p = np.array([softmax(row) for row in z])
    return np.array([sum(a * math.log(b) for a, b in zip(row, p.mean(0))) for row in p])


@each
def activation_magnitude(f, _):
    return -np.mean([abs(x) for x in f.reshape(-1)])


def batch_norm_total(f, mean, var):
    """The number of the paper."""
    channels = f.reshape(-1, f.shape[-1]).T
    return sum((c.mean() - m) ** 2 + (c.var() - v) ** 2 for c, m, v in zip(channels, mean, var))


def batch_norm_matching(f, _, mean, var):
    """One value an example: its part of both squares."""
    channels = f.reshape(-1, f.shape[-1]).T
    now = np.array([c.mean() for c in channels])
    spread = np.array([c.var() for c in channels])

    def one(x):
        return np.dot(x - mean, now - mean) + np.dot((x - now) ** 2 - var, spread - var)

    return np.array([np.mean([one(x) for x in example.reshape(-1, f.shape[-1])]) for example in f])
