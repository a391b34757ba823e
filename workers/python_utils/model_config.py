"""``pb_utils.ModelConfig``, which ``auto_complete_config`` receives, and look-ups in a configuration's dictionary.

The texts are Triton's: its tests compare them.
"""

import json
from typing import Any

_INPUT_PROPERTIES = ("name", "data_type", "dims", "optional")
_OUTPUT_PROPERTIES = ("name", "data_type", "dims")


class ModelConfig:
    """A model's configuration while a model completes it. Everything that contradicts what is configured already raises
    ``ValueError``."""

    def __init__(self, model_config: str) -> None:
        self._model_config: dict[str, Any] = json.loads(model_config)

    def as_dict(self) -> dict[str, Any]:
        """The configuration itself: what is changed in it is changed."""
        return self._model_config

    @property
    def _name(self) -> str:
        return str(self._model_config.get("name", ""))

    def set_max_batch_size(self, max_batch_size: int) -> None:
        configured = self._model_config.get("max_batch_size", 0)
        if configured > max_batch_size:
            raise ValueError(
                f"configuration specified max_batch_size {configured}, but in auto-complete-config function for model "
                f"'{self._name}' specified max_batch_size {max_batch_size}"
            )
        self._model_config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Turns dynamic batching on, unless it is."""
        for scheduler in ("sequence_batching", "ensemble_scheduling"):
            if scheduler in self._model_config:
                raise ValueError(
                    f"Configuration specified scheduling_choice as '{scheduler}', but auto-complete-config function "
                    f"for model '{self._name}' tries to set scheduling_choice as 'dynamic_batching'"
                )
        self._model_config.setdefault("dynamic_batching", {})

    def add_input(self, input: dict[str, Any]) -> None:
        """Adds an input, or completes the one of that name."""
        self._add("input", input, _INPUT_PROPERTIES, "'name', 'data_type', 'dims' and 'optional'")

    def add_output(self, output: dict[str, Any]) -> None:
        """Adds an output, or completes the one of that name."""
        self._add("output", output, _OUTPUT_PROPERTIES, "'name', 'data_type' and 'dims'")

    def _add(self, kind: str, added: dict[str, Any], allowed: tuple[str, ...], allowed_text: str) -> None:
        where = f"in auto-complete-config function for model '{self._name}'"
        if any(key not in allowed for key in added):
            raise ValueError(f"{kind} '{added.get('name', '')}' {where} contains property other than {allowed_text}.")
        if "name" not in added:
            raise ValueError(f"{kind} {where} is missing 'name' property.")
        for key in ("data_type", "dims"):
            if key not in added:
                raise ValueError(f"{kind} '{added['name']}' {where} is missing '{key}' property.")
        configured = self._model_config.setdefault(kind, [])
        for present in configured:
            if present.get("name") == added["name"]:
                self._check_agreement(kind, present, added)
                present.update(added)
                return
        configured.append(added)

    def _check_agreement(self, kind: str, present: dict[str, Any], added: dict[str, Any]) -> None:
        data_type = present.get("data_type", "TYPE_INVALID")
        if data_type not in ("TYPE_INVALID", added["data_type"]):
            raise ValueError(
                f"unable to load model '{self._name}', configuration expects datatype {data_type} for {kind} "
                f"'{added['name']}', model provides {added['data_type']}"
            )
        where = f"model '{self._name}', tensor '{added['name']}': the model expects"
        dims = present.get("dims")
        if dims and dims != added["dims"]:
            raise ValueError(f"{where} dims {added['dims']} but the model configuration specifies dims {dims}")
        if "optional" in added and present.get("optional", added["optional"]) != added["optional"]:
            raise ValueError(
                f"{where} optional {added['optional']} but the model configuration specifies optional "
                f"{present['optional']}"
            )

    def set_model_transaction_policy(self, transaction_policy_dict: dict[str, Any]) -> None:
        if any(key != "decoupled" for key in transaction_policy_dict):
            raise ValueError(
                f"model transaction property in auto-complete-config function for model '{self._name}' contains "
                "property other than 'decoupled'."
            )
        policy = self._model_config.setdefault("model_transaction_policy", {})
        if "decoupled" not in transaction_policy_dict:
            return
        decoupled = transaction_policy_dict["decoupled"]
        if policy.get("decoupled", decoupled) != decoupled:
            raise ValueError(
                f"trying to change decoupled property in auto-complete-config for model '{self._name}', which is "
                f"already set to '{policy['decoupled']}'."
            )
        policy["decoupled"] = decoupled


def get_input_config_by_name(model_config: dict[str, Any], name: str) -> dict[str, Any] | None:
    return _by_name(model_config.get("input", []), name)


def get_output_config_by_name(model_config: dict[str, Any], name: str) -> dict[str, Any] | None:
    return _by_name(model_config.get("output", []), name)


def _by_name(properties: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((each for each in properties if each["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: dict[str, Any]) -> bool:
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))
