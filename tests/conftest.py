"""Before any test imports torch: one thread in every process.

Two processes run the tests on two cores, and many start ranks besides. With torch's own choice, a thread for each core,
threads wait for others that have no core: a reference of 2 seconds took 51.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
