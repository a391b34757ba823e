"""RPCs about the model repository: index, load, unload."""

from typing import Any

from conch.categories import Category
from conch.errors import InvalidArgument
from conch.messages import UnloadModel
from frontends import metadata
from frontends.grpc.calls import SERVICE, Rpc, Traffic, unary, unary_later
from frontends.grpc.codec import service_pb2 as pb
from frontends.repository import check_repository, load_message
from frontends.requesting import RequesterLike

_CHOICE = "parameter_choice"


class RepositoryRpcs:
    def __init__(self, requester: RequesterLike) -> None:
        self._requester = requester

    def rpcs(self, traffic: Traffic) -> dict[str, Rpc]:
        category = Category.MODEL_REPOSITORY
        return {
            SERVICE + "RepositoryIndex": unary(category, pb.RepositoryIndexRequest, self._index),
            SERVICE + "RepositoryModelLoad": unary_later(category, pb.RepositoryModelLoadRequest, self._load, traffic),
            SERVICE + "RepositoryModelUnload": unary_later(
                category, pb.RepositoryModelUnloadRequest, self._unload, traffic
            ),
        }

    def _index(self, request: Any) -> Any:
        check_repository(request.repository_name)
        rows = metadata.repository_index(self._requester.models, request.ready)
        return pb.RepositoryIndexResponse(models=[pb.RepositoryIndexResponse.ModelIndex(**row) for row in rows])

    async def _load(self, request: Any) -> Any:
        check_repository(request.repository_name)
        await self._requester.call(load_message(request.model_name, request.parameters.items(), _text, _content))
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: Any) -> Any:
        check_repository(request.repository_name)
        dependents = False
        if "unload_dependents" in request.parameters:
            parameter = request.parameters["unload_dependents"]
            if parameter.WhichOneof(_CHOICE) != "bool_param":
                raise InvalidArgument("invalid value type for 'unload_dependents' parameter, expected bool_param.")
            dependents = parameter.bool_param
        await self._requester.call(UnloadModel(0, request.model_name, dependents))
        return pb.RepositoryModelUnloadResponse()


def _text(key: str, parameter: Any) -> str:
    _check_type(parameter, key, "string_param")
    text: str = parameter.string_param
    return text


def _content(key: str, parameter: Any) -> bytes:
    _check_type(parameter, key, "bytes_param")
    content: bytes = parameter.bytes_param
    return content


def _check_type(parameter: Any, key: str, wanted: str) -> None:
    if parameter.WhichOneof(_CHOICE) != wanted:
        raise InvalidArgument(f"invalid value type for load parameter '{key}', expected {wanted}.")
