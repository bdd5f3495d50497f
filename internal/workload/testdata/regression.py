# Least squares by numpy, with threads and more than one way to the result.
import numpy as np
from numpy.linalg import eigvalsh, lstsq, svd

rng = np.random.default_rng(7)
x = rng.standard_normal((4000, 50))
beta = np.arange(50.0)
y = x @ beta + rng.standard_normal(4000) * 1e-6
fit = lstsq(x, y, rcond=None)[0]
assert np.allclose(fit, beta, atol=1e-4), fit
assert np.allclose(np.linalg.solve(x.T @ x, x.T @ y), beta, atol=1e-4)
assert np.allclose(svd(x, compute_uv=False) ** 2, eigvalsh(x.T @ x)[::-1])
assert np.allclose(np.fft.ifft(np.fft.fft(y)).real, y)
big = rng.standard_normal((700, 700))
assert np.allclose(big @ np.linalg.inv(big), np.eye(700), atol=1e-6)
np.save("results/fit.npy", fit)
assert np.allclose(np.load("results/fit.npy", mmap_mode="r"), beta, atol=1e-4)
print(round(float(fit[7]), 3))
