"""A source that remembers what it rendered."""

import hashlib
from functools import partial
from typing import Any

from torch import Tensor

from skdcgn.mechanisms import Mechanism, Source, in_chunks


class Remembering:
    """A source that remembers what it rendered: the cases of one CGN differ in what becomes of the same outputs."""

    _PART = 100  # images rendered at a time: faster on a CPU than a whole chunk, which its cache cannot hold
    _MEMORY = 1_000_000_000  # bytes, beyond which outputs are rendered again

    def __init__(self, source: Source) -> None:
        self._source = source
        self._outputs: dict[tuple[Mechanism, bytes], Tensor] = {}
        self._bytes = 0

    def __getattr__(self, name: str) -> Any:
        """Return whatever else the source has."""
        return getattr(self._source, name)

    def render(self, mechanism: Mechanism, noise: Tensor, labels: Tensor) -> Tensor:
        """Return the source's output, rendered once for each input; see `Source.render`."""
        key = mechanism, hashlib.sha256(noise.cpu().numpy().tobytes() + labels.cpu().numpy().tobytes()).digest()
        if key in self._outputs:
            return self._outputs[key]
        output = in_chunks(partial(self._source.render, mechanism), noise, labels, self._PART)
        if self._bytes + output.nbytes <= self._MEMORY:
            self._outputs[key] = output
            self._bytes += output.nbytes
        return output
