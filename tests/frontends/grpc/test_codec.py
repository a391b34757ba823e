import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from conch.errors import TooLarge
from frontends.grpc import codec
from frontends.grpc.codec import join_response, read_request, service_pb2, split_request, stream_response

LARGE = codec._SMALL_NBYTES
names = st.text(max_size=10)
blobs = st.lists(st.binary(max_size=300) | st.integers(0, 3 * LARGE).map(bytes), max_size=5)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=draw(names), model_version=draw(names), id=draw(names))
    for name in draw(st.lists(names, max_size=4)):
        request.inputs.add(name=name, datatype="INT32", shape=draw(st.lists(st.integers(-1, 2**40), max_size=3)))
    for name in draw(st.lists(names, max_size=3)):
        request.outputs.add(name=name).parameters["classification"].int64_param = draw(st.integers(0, 9))
    request.parameters["key"].string_param = draw(names)
    request.raw_input_contents.extend(draw(blobs))
    encoded: bytes = request.SerializeToString()
    return encoded


def plainly_split(payload: bytes) -> tuple[object, list[bytes]] | None:
    try:
        request = service_pb2.ModelInferRequest.FromString(payload)
    except DecodeError:
        return None
    contents = list(request.raw_input_contents)
    request.ClearField("raw_input_contents")
    return request, contents


def split(payload: bytes) -> tuple[object, list[bytes]] | None:
    try:
        request, found = split_request(payload)
    except DecodeError:
        return None
    return request, [bytes(blob) for blob in found]


@given(st.lists(requests(), min_size=1, max_size=2).map(b"".join))
def test_messages_are_split_as_protobuf_reads_them(payload: bytes) -> None:
    assert split(payload) == plainly_split(payload)


#: fields with right and wrong tags, lengths and wire types
pieces = st.one_of(
    st.binary(max_size=6),
    requests(),
    st.builds(
        lambda tag, length, data: bytes([tag]) + length + data,
        st.integers(0, 255),
        st.sampled_from([b"\x00", b"\x03", b"\x83\x00", b"\x80\x80\x80\x80\x10", b"\xff" * 9 + b"\x01", b"\x80"]),
        st.binary(max_size=5),
    ),
)


@given(st.lists(pieces, max_size=4), st.booleans())
@example([b"\x3a\x80\x80\x80\x80\x80\x00"], True)
@example([b"\xba\x00\x01x"], True)
@example([b"\x3a\xff\xff\xff\xff\x0f"], True)
def test_any_bytes_are_split_as_protobuf_reads_them(parts: list[bytes], large: bool) -> None:
    payload = b"\x3a" + codec._varint(LARGE) + bytes(LARGE) if large else b""
    payload += b"".join(parts)
    assert split(payload) == plainly_split(payload)


@given(st.data())
def test_truncated_messages(data: st.DataObject) -> None:
    request = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[bytes(LARGE), b"xy" * 200])
    encoded = request.SerializeToString()
    payload = encoded[: data.draw(st.integers(0, len(encoded)))]
    assert split(payload) == plainly_split(payload)


def test_large_tensors_are_views() -> None:
    payload = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[bytes(LARGE)]).SerializeToString()
    _, (blob,) = split_request(payload)
    assert blob.obj is payload


def test_very_many_contents_are_not_all_kept() -> None:
    payload = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b""] * 20_000).SerializeToString()
    request, found = split_request(payload)
    assert request.model_name == "m"
    assert len(found) == 1000


FINE = codec._MAX_FINE_NBYTES + 1


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", ["inputs", "outputs", "parameters", "raw_input_contents"])
def test_very_many_small_fields_are_not_parsed(name: str) -> None:
    """protobuf takes forty times their size, and half a second for each MiB."""
    number = service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name[name].number
    few = bytes([number << 3 | 2, 0]) * 1000
    split_request(few + few)
    for bomb in (bytes([number << 3 | 2, 0]) * FINE, few + b"\x0b" * FINE, b"\xba\x00\x00" + few * 1000):
        with pytest.raises(TooLarge, match="may have no more than 1000 inputs, outputs, parameters and"):
            split_request(bomb)


@pytest.mark.timeout(10)
def test_what_is_no_raw_tensor_is_limited() -> None:
    inputs = service_pb2.ModelInferRequest(raw_input_contents=[bytes(1 << 20)])
    inputs.inputs.add(name="IN").contents.fp64_contents.extend([0.0] * (1 << 20))
    encoded = inputs.SerializeToString()
    request, (blob,) = split_request(encoded)
    assert (len(request.inputs[0].contents.fp64_contents), len(blob)) == (1 << 20, 1 << 20)
    with pytest.raises(TooLarge, match=r"67[0-9]{6} bytes beside raw_input_contents, more than the maximum of 6710"):
        split_request(encoded * 8)


@pytest.mark.timeout(10)
def test_other_requests_are_limited() -> None:
    """All but loads, which may have large files, though not very many."""
    files = service_pb2.RepositoryModelLoadRequest(model_name="m")
    for i in range(900):
        files.parameters[f"file:{i}"].bytes_param = bytes(4096)
    encoded = files.SerializeToString()
    assert read_request(type(files), encoded) == files
    settings = service_pb2.TraceSettingRequest()
    settings.settings["trace_level"].value.extend([""] * codec._MAX_FINE_NBYTES)
    for request_type, bomb in (
        (type(settings), settings.SerializeToString()),
        (type(files), b"\x1a\x00" * codec._MAX_FINE_NBYTES),
        (service_pb2.RepositoryIndexRequest, bytes([1 << 3 | 2]) + codec._varint(FINE) + b"x" * FINE),
    ):
        with pytest.raises(TooLarge):
            read_request(request_type, bomb)


def test_fields_that_are_not_known_hinder_nothing() -> None:
    payload = service_pb2.ModelInferRequest(raw_input_contents=[bytes(2 * FINE)]).SerializeToString() + b"\x42\x01x"
    assert len(split_request(payload)[1]) == 1


@given(blobs, names)
def test_responses_are_joined_as_protobuf_writes_them(contents: list[bytes], name: str) -> None:
    response = service_pb2.ModelInferResponse(model_name=name, model_version="1")
    for i in range(len(contents)):
        response.outputs.add(name=f"OUTPUT{i}", datatype="INT32", shape=[1, 16])
    joined = join_response(response, [memoryview(content) for content in contents])
    response.raw_output_contents.extend(contents)
    assert joined == response.SerializeToString()
    streamed = service_pb2.ModelStreamInferResponse.FromString(stream_response(joined))
    assert streamed.infer_response == response


@pytest.mark.parametrize("nbytes", [0, 127, 128, 16383, 16384, 1 << 22])
def test_lengths(nbytes: int) -> None:
    joined = join_response(service_pb2.ModelInferResponse(), [np.zeros(nbytes, np.uint8).data])
    assert service_pb2.ModelInferResponse.FromString(joined).raw_output_contents[0] == bytes(nbytes)
