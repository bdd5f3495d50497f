import json
import os
import sys

import numpy
import rounding
import table

assert os.getcwd() == "/cocos" and "rounding==1" in open("requirements.txt").read()
rows = table.read("./datasets/" + sys.argv[1])
features = numpy.column_stack([numpy.ones(len(rows)), rows[:, :-1]])
solution = numpy.linalg.lstsq(features, rows[:, -1], rcond=None)[0]
with open("./results/coefficients.json", "w") as out:
    json.dump([rounding.tidy(x) for x in solution], out)
