"""Fits price = a + b*area + c*rooms to the CSV files in ./datasets by least squares; the fit goes to ./results."""

import csv
import json
import pathlib
import sys


def read(path):
    with path.open(newline="") as f:
        for row in csv.DictReader(f):
            yield [1.0, float(row["area"]), float(row["rooms"])], float(row["price"])


def solve(a, b):
    """Gaussian elimination with partial pivoting; a is square."""
    n = len(b)
    m = [row[:] + [y] for row, y in zip(a, b)]
    for i in range(n):
        p = max(range(i, n), key=lambda r: abs(m[r][i]))
        m[i], m[p] = m[p], m[i]
        for r in range(i + 1, n):
            f = m[r][i] / m[i][i]
            m[r] = [x - f * y for x, y in zip(m[r], m[i])]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (m[i][n] - sum(m[i][k] * x[k] for k in range(i + 1, n))) / m[i][i]
    return x


data = [point for path in sorted(pathlib.Path("datasets").glob("*.csv")) for point in read(path)]
if not data:
    sys.exit("no CSV file in ./datasets")
normal = [[sum(x[i] * x[j] for x, _ in data) for j in range(3)] for i in range(3)]
moment = [sum(x[i] * y for x, y in data) for i in range(3)]
a, b, c = solve(normal, moment)
fit = {"intercept": a, "area": b, "rooms": c, "samples": len(data)}
pathlib.Path("results/coefficients.json").write_text(json.dumps(fit, indent=2) + "\n")
print(f"fitted {len(data)} samples")
