"""``reshape`` in a model's configuration: clients see ``dims``, the model sees ``reshape.shape``."""

from collections.abc import Sequence

from conch.model_config import ModelConfig, ModelInput, ModelOutput

Shape = tuple[int, ...]


class Reshapes:
    """The inputs and outputs of one model that have a ``reshape``; all others are left as they are."""

    def __init__(self, config: ModelConfig) -> None:
        self._batched = config.max_batch_size > 0
        self._inputs = _reshaped(config.input)
        self._outputs = _reshaped(config.output)

    def __bool__(self) -> bool:
        return bool(self._inputs or self._outputs)

    def to_model(self, name: str, shape: Shape) -> Shape:
        """The shape of an input as the model sees it."""
        found = self._inputs.get(name)
        return shape if found is None else self._replaced(shape, found[0], found[1])

    def to_client(self, name: str, shape: Shape) -> Shape:
        """The shape of an output as clients see it. One that is not as configured stays as it is."""
        found = self._outputs.get(name)
        if found is None or len(shape) != len(found[1]) + self._batched:
            return shape
        return self._replaced(shape, found[1], found[0])

    def _replaced(self, shape: Shape, dims: Shape, new_dims: Shape) -> Shape:
        """Variable dimensions keep their sizes, in order."""
        batch = shape[:1] if self._batched else ()
        sizes = iter([size for size, dim in zip(shape[len(batch) :], dims, strict=True) if dim == -1])
        return batch + tuple([next(sizes, -1) if dim == -1 else dim for dim in new_dims])


def _reshaped(tensors: Sequence[ModelInput | ModelOutput]) -> dict[str, tuple[Shape, Shape]]:
    return {tensor.name: (tensor.dims, tensor.reshape.shape) for tensor in tensors if tensor.reshape is not None}
