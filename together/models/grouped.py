"""What families with DeepSeek's router share: experts in groups, whose scores it corrects, and shared ones. Pure."""

from __future__ import annotations

from together.models.family import Config, Tensors, expert_tensors, experts_of, mlp_tensors, start_of
from together.models.values import Values, bad_value


def grouped_experts(values: Values, config: Config, usual: int) -> int:
    """How many experts a layer has that DeepSeek's router chooses, by groups. Raises BrokenModel, UnsupportedModel."""
    values.choice("scoring_func", "sigmoid", ("sigmoid",))
    values.choice("topk_method", "noaux_tc", ("noaux_tc",))
    experts = experts_of(values, config, ("n_routed_experts", "num_local_experts"), usual)
    groups, chosen = config["n_group"], config["topk_group"]
    if experts % groups or experts < 2 * groups:  # the two best of each group are compared
        raise bad_value(values.name, "n_routed_experts", experts)
    if chosen > groups or config["num_experts_per_tok"] > chosen * experts // groups:
        raise bad_value(values.name, "topk_group", chosen)
    return experts


def shared_expert_tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    """Experts of DeepSeek's router, whose scores it corrects, and the shared ones beside them as one MLP."""
    yield from expert_tensors(config, layer, stacked, count="n_routed_experts")
    yield f"{start_of(layer)}mlp.gate.e_score_correction_bias", (config["n_routed_experts"],)
    shared = config["moe_intermediate_size"] * config["n_shared_experts"]
    yield from mlp_tensors(config, layer, shared, "mlp.shared_experts.")
