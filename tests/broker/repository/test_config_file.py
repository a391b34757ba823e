"""config.pbtxt and JSON, as Triton reads and prints them.

``golden`` holds configurations and what the real Triton 2.51 answered for them on ``/v2/models/<name>/config``.
"""

import json
from pathlib import Path

import pytest

from broker.repository import complete, config_file
from broker.repository.config_file import parse_json, parse_text, to_json
from conch.errors import InvalidArgument, PollFailed
from tests.broker.repository.models import TENSORS, found, repository, write_model

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", ["dyn", "group2", "params", "reshape", "labels", "latest2"])
def test_same_text_as_triton(name: str, tmp_path: Path) -> None:
    write_model(
        tmp_path / "models",
        name,
        (GOLDEN / name / "config.pbtxt").read_text(),
        versions=("1", "3", "10"),
        files={"l.txt": "a\nb"},
    )
    expected = (GOLDEN / name / "config.json").read_text()
    answer = found(repository(tmp_path / "models").poll(name)).config_json
    if name == "params":  # Triton prints maps in the order of a hash table, we sort them
        assert json.loads(answer) == json.loads(expected)
        assert answer.index('"parameters":{"a":') > 0
    else:
        assert answer == expected


def test_completion_gives_the_same_text_as_triton(tmp_path: Path) -> None:
    """The model fills in everything in ``auto_complete_config``; there is no config.pbtxt."""
    write_model(tmp_path / "models", "noconfig", None)
    expected = (GOLDEN / "noconfig" / "config.json").read_text()
    snapshot = found(repository(tmp_path / "models").poll("noconfig"))
    answer = '{"max_batch_size":8,"input":[{"name":"I","data_type":"TYPE_FP32","dims":[4]}],"dynamic_batching":{},'
    answer += '"output":[{"name":"O","data_type":"TYPE_FP32","dims":["4"]}],"name":"somebody else"}'
    assert complete(snapshot, answer) == expected
    assert complete(snapshot, expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "input [ { name: 'a' dims: [ 1, -1 ] }, { name: 'b' } ]",
        "input { name: 'a' dims: 1 dims: -1 } input { name: 'b' }",
        "input: { name: 'a' dims: [ 1 ] dims: [ -1 ] } # a comment\n input < name: 'b' >;",
        "input [ { name: 'a', dims: [ 1, -1 ], }, { name: \"\" 'b' } ]",
    ],
)
def test_spellings(text: str) -> None:
    config = parse_text(text)
    assert [tensor.name for tensor in config.input] == ["a", "b"]
    assert list(config.input[0].dims) == [1, -1]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("foo: 1", '1:1 : Message type "inference.ModelConfig" has no field named "foo".'),
        ('name: "a"\nname: "b"', 'should not have multiple "name" fields'),
        ("max_batch_size: 99999999999", "Value out of range"),
        ("input { data_type: FP32 }", "1:20"),
        ("input {", 'Expected "}"'),
        ("max_batch_size: eight", "1:17"),
        ("\x00", "1:1"),
    ],
)
def test_a_syntax_error_says_where_and_what(text: str, where: str) -> None:
    with pytest.raises(PollFailed) as error:
        parse_text(text)
    assert error.value.message.startswith("failed to read text proto from config.pbtxt: ")
    assert where in error.value.message


def test_json_by_protobuf_rules() -> None:
    config = parse_json(
        '{"maxBatchSize":"16","input":[{"name":"x","dataType":"TYPE_FP32","dims":["-1",2]}],'
        '"version_policy":{"specific":{"versions":["9007199254740993"]}},"instance_group":[{"kind":1}]}'
    )
    assert config.max_batch_size == 16
    assert list(config.input[0].dims) == [-1, 2]
    assert list(config.version_policy.specific.versions) == [9007199254740993]
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "null", "3", '{"foo":1}', '{"max_batch_size":"x"}', '{"max_batch_size":1e400}', "[" * 100_000,
     '{"input":' * 20_000, '{"name":"a","name":"b"}', '{"name":"\\ud800"}', '{"name":{}}', '{"input":{}}'],
)  # fmt: skip
def test_json_that_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_json(text)


def test_an_enum_s_number_without_a_name_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="unknown value"):
        config_file.decode(to_json(parse_text('name: "m" input { name: "x" data_type: 99 dims: 1 }')))


def test_64_bit_integers_are_numbers_and_floats_are_short() -> None:
    config = parse_text(
        """
        input { name: "x" dims: 9007199254740993 }
        dynamic_batching { max_queue_delay_microseconds: 18446744073709551615 default_priority_level: 1
          priority_queue_policy { key: 2 value { default_timeout_microseconds: 7 } }
          priority_queue_policy { key: 10 value { } } }
        model_metrics { metric_control { metric_identifier { family: "f" } histogram_options { buckets: [ 0.1, 2 ] } } }
        """
    )
    text = to_json(config)
    assert '"dims":[9007199254740993]' in text
    assert '"max_queue_delay_microseconds":18446744073709551615' in text
    assert '"priority_queue_policy":{"2":{"timeout_action":"REJECT","default_timeout_microseconds":7,' in text
    assert '"buckets":[0.1,2]' in text
    sequence = parse_text("sequence_batching { direct { minimum_slot_utilization: 0.3 } }")
    assert '"minimum_slot_utilization":0.3}' in to_json(sequence)


def test_json_and_back_is_the_same() -> None:
    for folder in GOLDEN.iterdir():
        text = (folder / "config.json").read_text()
        assert json.loads(to_json(parse_json(text))) == json.loads(text)


def test_text_that_is_no_text(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "models", "m", None)
    (folder / "config.pbtxt").write_bytes(b'name: "\xff"')
    result = repository(tmp_path / "models").poll("m")
    assert getattr(result, "message", "").startswith("failed to read text proto from config.pbtxt: it is not UTF-8")
    (folder / "config.pbtxt").write_bytes(b"\xef\xbb\xbfbackend: 'python'" + TENSORS.encode())
    assert found(repository(tmp_path / "models").poll("m")).config.backend == "python"
