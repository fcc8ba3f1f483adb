"""Which merge methods there are. To add one: write its function, name it here and in ``recipe.Recipe``.

A method sees the same N elements of K deltas and makes them one merged delta. It must give the same bits
for any split into chunks; rows come in digest order, so it need not be blind to their order, but if it only
adds, ``exact.weighted_sum`` makes it so. It may be called from several threads.
"""

from collections.abc import Callable, Mapping

from consortium.merging.exact import F64Array, weighted_sum
from consortium.tensors import F32Array

#: (deltas_KN, shares_K) -> merged delta (N,); shares are positive or zero and sum to one
Method = Callable[[F32Array, F64Array], F64Array]

METHODS: Mapping[str, Method] = {
    "linear": weighted_sum,
}
