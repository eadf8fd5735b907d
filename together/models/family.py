"""What a family of models is: one `Family` for each, in a file of its own in `models/families/`. Pure.

A family says what its config.json means, which tensors a layer has, and what a layer keeps of a sequence.
Configurations are effective ones (`models/config.py`): nothing is left out of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from together.errors import BrokenModel, UnsupportedModel
from together.models.matrices import Shape
from together.models.state import KeysValues, LayerState
from together.models.values import MOST_SHOWN, Values, bad_value
from together.types import LayerRange
from together.wording import quoted

Config = Mapping[str, Any]
GGUF_USUAL = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GGUF_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
GGUF_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.switch_mlp.gate_proj",
    "ffn_up_exps": "mlp.switch_mlp.up_proj",
    "ffn_down_exps": "mlp.switch_mlp.down_proj",
}
GGUF_OWN_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
GGUF_OF_ALL = {  # of an expert that all tokens are given to
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
GGUF_SPARSE = {part: name.replace("mlp.", "block_sparse_moe.", 1) for part, name in GGUF_EXPERTS.items()}
GGUF_AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
GGUF_EACH = {"ffn_gate": "gate_proj", "ffn_up": "up_proj", "ffn_down": "down_proj"}
GGUF_GROUPED = (  # of DeepSeek's router
    "expert_gating_func",
    "expert_group_count",
    "expert_group_used_count",
    "expert_shared_count",
    "expert_weights_norm",
    "expert_weights_scale",
    "leading_dense_block_count",
    "nextn_predict_layers",
)
GGUF_COUNTS = ("expert_count", "expert_used_count")  # of experts
Tensors = Iterator[tuple[str, Shape]]
INPUTS = ("q_proj", "k_proj", "v_proj")  # of attention
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu2")
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
WINDOW = 4096
MAX_LAYERS = 10_000
MAX_EXPERTS = 150_000  # of all layers together: each may be three tensors; the most that is published: 48,000


def nothing_more(values: Values, config: Config) -> dict[str, Any]:
    return {}


def usual_range(config: Config, layers: LayerRange) -> dict[str, Any]:
    """What goes by a layer's number in the whole model."""
    held = range(layers.start, layers.stop)
    found: dict[str, Any] = {}
    if config.get("layer_types") is not None:
        found["layer_types"] = list(config["layer_types"][layers.start : layers.stop])
    if "mlp_only_layers" in config:
        found["mlp_only_layers"] = [layer - layers.start for layer in config["mlp_only_layers"] if layer in held]
    return found


def always(config: Config, layer: int) -> bool:
    return True


def one(config: Config) -> float:
    return 1.0


def none_ignored(config: Config) -> tuple[str, ...]:
    return ()


def no_opening(config: Config) -> Tensors:
    yield from ()


def no_inputs(config: Config) -> int:
    return 0


def none_joined(config: Config) -> tuple[int, ...]:
    return ()


def none_parted(config: Config, layer: int) -> Mapping[str, Mapping[str, tuple[int, ...]]]:
    return {}


def usual_tensors(config: Config, layer: int, stacked: bool) -> Tensors:
    """Attention, two norms before, and a gated MLP."""
    yield from attention_tensors(config, layer)
    yield from norm_tensors(config, layer, "input_layernorm", "post_attention_layernorm")
    yield from mlp_tensors(config, layer)


def usual_state(config: Config, layer: int) -> LayerState:
    """Keys and values of heads that are alike; with a window where the layer has one."""
    dim = config["head_dim"]
    return KeysValues(config["num_key_value_heads"], dim, dim, window_of(config, layer))


@dataclass(frozen=True, slots=True)
class GgufNames:
    """A family's GGUF files: their `general.architecture`, and a layer's tensors by their names there.

    Empty where llama.cpp has no such architecture, or nobody has proven it here.
    """

    architecture: str = ""
    tensors: Mapping[str, str] = field(default_factory=lambda: dict(GGUF_USUAL))
    also: tuple[str, ...] = ()  # what else files call the architecture
    whole: Mapping[str, str] = field(default_factory=dict)  # names with their ends, of tensors that end otherwise here
    experts: Mapping[str, str] = field(default_factory=lambda: dict(GGUF_EACH))  # of one expert, as older files have it
    computed: tuple[str, ...] = ()  # settings that it computes, and others do not; `gguf/refusals.py` has the others
    epsilon: str = ""  # the setting with the epsilon of its norms, where files may lack the usual one
    unturned: bool = False  # no layer has a rope, whatever its files say of one
    interleaved: bool = False  # the converter mixes halves of each head's rows of queries and keys
    tiled: bool = False  # the converter has heads of values of recurrent layers in another order
    larger: bool = False  # norms are stored one larger than they are published
    varied: bool = False  # heads and widths of layers may differ; its settings are read where it says what it computes


@dataclass(frozen=True, slots=True)
class Family:
    """One family: everything that the rest of the program asks of it."""

    name: str  # `model_type` of its config.json
    title: str  # for a person
    torch: tuple[str, str]  # transformers' module, and what the names of its classes begin with
    counts: Mapping[str, int | None]  # numbers in config.json, and what transformers assumes where it is silent
    mlx: str = ""  # mlx-lm's file, where it is not `name`
    mlx_settings: Mapping[str, Any] = field(default_factory=dict)  # of mlx-lm's configuration, in place of ours
    mlx_nulls: tuple[str, ...] = ()  # keys whose null says something to mlx-lm; of others it is its default
    mlx_fixed: Mapping[str, Any] = field(default_factory=dict)  # what it computes whatever config.json says
    mlx_kinds: Mapping[str, str] | None = None  # what it calls kinds of layers, where it makes each by `layer_types`
    mlx_parts: Mapping[str, str] = field(default_factory=dict)  # parts of tensors' names that it has otherwise
    mlx_inner: str = "model"  # what it calls the model without its head
    mlx_experts: str = "switch_mlp"  # what it calls the experts of an MLP
    mlx_number: Callable[[Config, int], int] | None = None  # by which, with `mlx_settings`, it makes a layer like this
    # one, where it goes by layers' numbers
    switches: tuple[str, ...] = ()  # on or off; off where config.json is silent
    on: tuple[str, ...] = ()  # the same, but on where it is silent
    more: Callable[[Values, Config], dict[str, Any]] = nothing_more  # what else it reads of config.json
    tensors: Callable[[Config, int, bool], Tensors] = usual_tensors  # of a layer; with all experts in one, or each
    parted: Callable[[Config, int], Mapping[str, Mapping[str, tuple[int, ...]]]] = none_parted  # matrices that MLX's
    # files may have in the place of one of `tensors`
    regrouped: bool = False  # rows of such a matrix lie otherwise than in its parts, which are modules then
    opening: Callable[[Config], Tensors] = no_opening  # what a first stage has beside the embedding
    vision: Callable[[Values, Config], dict[str, Any]] = nothing_more  # what else it reads of the wrapper's values
    tower: Callable[[Config], Tensors] = no_opening  # what a first stage sees pictures with, where it is stored
    layer_inputs: Callable[[Config], int] = no_inputs  # how wide is what the first stage makes for each layer, which
    # travels beside the hidden states
    state: Callable[[Config, int], LayerState] = usual_state  # of a layer
    joined: Callable[[Config], tuple[int, ...]] = none_joined  # layers that no stage may begin with: they, or layers
    # behind them, read what one before them keeps
    ranged: Callable[[Config, LayerRange], dict[str, Any]] = usual_range  # keys of a model that has these layers only
    embedding_scale: Callable[[Config], float] = one  # what embeddings are multiplied by, beside the matrix
    logits_scale: Callable[[Config], float] = one  # what the LM head's logits are multiplied by
    activation: tuple[str, str] = ("hidden_act", "silu")  # the key, and the usual value
    activations: tuple[str, ...] = ACTIVATIONS
    epsilon: float = 1e-6  # of its norms where config.json is silent
    tied: bool = False  # the LM head is the embedding where config.json is silent
    theta: float = 10_000.0  # of its rope where config.json is silent
    ropes: Mapping[str, tuple[str, float]] = field(default_factory=dict)  # kinds of layers that have a rope each: where
    # older files have its theta, if anywhere, and the usual one
    rotary: float = 1.0  # the part of each head that rope turns where config.json is silent
    rotaries: bool = False  # whether config.json may name another part
    rotary_width: str = ""  # the key by which older files say how many values of a head are turned
    interleaved: bool = False  # rope turns neighbours of a head, not its halves
    rope_kinds: tuple[str, ...] = ("default", "linear", "llama3", "yarn")  # how it may be scaled
    rope: Mapping[str, Any] = field(default_factory=dict)  # all of it where config.json is silent, or by kinds
    rope_needs: tuple[str, ...] = ()  # keys that its rope's parameters have beside those of their kind
    roped: Callable[[Config, int], bool] = always  # whether a layer has rope
    written: bool = False  # whether `convert` writes it as mlx-lm reads it, which tests prove for each
    gguf: GgufNames = field(default_factory=GgufNames)
    causal_words: tuple[str, ...] = ()  # of `use_bidirectional_attention`, that leave text causal
    wrappers: tuple[str, ...] = ()  # of text and pictures: what calls this family its text model
    experts: str = ""  # the key that says how many experts a layer has; empty where no layer has any
    block: str = "mlp"  # what checkpoints and mlx-lm call the part that transformers calls `mlp`
    ignored_by_mlx: Callable[[Config], tuple[str, ...]] = none_ignored  # what mlx-lm would compute otherwise, in words
    scaled_on_mlx: bool = True  # whether mlx-lm's class scales its rope; our slices get theirs from us
    aliases: tuple[str, ...] = ()  # other `model_type`s of the same model
    ends: Mapping[str, str] = field(default_factory=dict)  # what both libraries call `embed_tokens` and `norm`, if else
    listed: tuple[str, ...] = ()  # keys with an entry for each layer, where config.json may not say how many there are
    recurrent: str = ""  # what layers that keep a state of a fixed size call the part that does; empty: there are none
    larger_on_mlx: tuple[str, ...] = ()  # norms of such a family that mlx-lm's files have one larger, by their ends
    scored: bool = False  # experts are asked with their scores times what they are given, and are stored with inputs
    # before outputs, each with its gate before up
    halves: bool = False  # experts may be stored in one tensor, each with its gate before up

    @property
    def class_name(self) -> str:
        """Of the causal language model, as config.json has it."""
        return f"{self.torch[1]}ForCausalLM"

    @property
    def file(self) -> str:
        """The module of mlx-lm that has its classes."""
        return self.mlx or self.name


# --- pieces that families share ---------------------------------------------------------------------------------------


def start_of(layer: int) -> str:
    return f"model.layers.{layer}."


def attention_tensors(config: Config, layer: int, biased: Collection[str] | None = None) -> Tensors:
    """Queries, keys, values and output; `biased` have a bias, by default all where `attention_bias` says so."""
    if biased is None:
        biased = (*INPUTS, "o_proj") if config.get("attention_bias") else ()
    hidden, dim = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    inputs = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
    for name, shape in {**inputs, "o_proj": (hidden, queries)}.items():
        yield f"{start_of(layer)}self_attn.{name}.weight", shape
        if name in biased:
            yield f"{start_of(layer)}self_attn.{name}.bias", shape[:1]


def head_norm_tensors(config: Config, layer: int) -> Tensors:
    """Norms of each head's queries and keys."""
    for name in ("q_norm", "k_norm"):
        yield f"{start_of(layer)}self_attn.{name}.weight", (config["head_dim"],)


def wide_norm_tensors(config: Config, layer: int) -> Tensors:
    """Norms of all heads' queries together, and of all keys."""
    for name, heads in (("q_norm", "num_attention_heads"), ("k_norm", "num_key_value_heads")):
        yield f"{start_of(layer)}self_attn.{name}.weight", (config[heads] * config["head_dim"],)


def norm_tensors(config: Config, layer: int, *names: str) -> Tensors:
    for name in names:
        yield f"{start_of(layer)}{name}.weight", (config["hidden_size"],)


def mlp_tensors(config: Config, layer: int, inner: int = 0, path: str = "mlp.") -> Tensors:
    """A gated MLP, of `intermediate_size` where `inner` is not given."""
    hidden, inner = config["hidden_size"], inner or config["intermediate_size"]
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    for name, shape in shapes.items():
        yield f"{start_of(layer)}{path}{name}.weight", shape
        if config.get("mlp_bias"):
            yield f"{start_of(layer)}{path}{name}.bias", shape[:1]


def expert_tensors(
    config: Config,
    layer: int,
    stacked: bool,
    *,
    path: str = "mlp.",
    count: str = "num_experts",
    inner: str = "moe_intermediate_size",
    names: Sequence[str] = PROJECTIONS,
) -> Tensors:
    """A router and gated experts; `stacked`: all of a projection are one tensor, as MLX stores them.

    `count` and `inner` are keys: of how many there are, and how wide. `names`: of an expert's gate, up and down.
    """
    start, experts = f"{start_of(layer)}{path}", config[count]
    wide, narrow = (config[inner], config["hidden_size"]), (config["hidden_size"], config[inner])
    shapes = (wide, wide, narrow)
    yield f"{start}gate.weight", (experts, config["hidden_size"])
    if stacked:
        for name, shape in zip(PROJECTIONS, shapes, strict=True):
            yield f"{start}switch_mlp.{name}.weight", (experts, *shape)
        return
    for expert in range(experts):
        for name, shape in zip(names, shapes, strict=True):
            yield f"{start}experts.{expert}.{name}.weight", shape


def own_shared_expert_tensors(config: Config, layer: int) -> Tensors:
    """A shared expert of its own width, and the gate that weighs it."""
    yield from mlp_tensors(config, layer, config["shared_expert_intermediate_size"], "mlp.shared_expert.")
    yield f"{start_of(layer)}mlp.shared_expert_gate.weight", (1, config["hidden_size"])


def window_of(config: Config, layer: int) -> int | None:
    """A layer's sliding window."""
    window = config.get("sliding_window")
    kinds = config.get("layer_types")
    return window if window is not None and (kinds is None or kinds[layer] == SLIDING) else None


def layer_kinds(
    values: Values,
    layers: int,
    usual: list[str],
    known: tuple[str, ...] = (FULL, SLIDING),
    *,
    keys: Sequence[str] = ("layer_types",),
    said: Mapping[str, str] | None = None,
) -> list[str]:
    """What `keys` list, `said` otherwise; or the family's `usual` ones. Raises BrokenModel and UnsupportedModel."""
    kinds = next((values.found[key] for key in keys if values.found.get(key) is not None), None)
    if kinds is None:
        return usual
    if said is not None and isinstance(kinds, list | str):
        kinds = [said.get(kind, kind) if isinstance(kind, str) else kind for kind in kinds]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise BrokenModel(
            "config.json of {model} lists layer_types for other layers than its {layers}; take config.json from "
            "where the model was published",
            model=values.name,
            layers=layers,
        )
    odd = next((kind for kind in kinds if kind not in known), None)
    if odd is not None:
        raise UnsupportedModel(
            "{model} has layers of the kind {odd}; {kinds:and} run here",
            model=values.name,
            odd=quoted(odd, MOST_SHOWN),
            kinds=known,
        )
    return list(kinds)


def qwen_windows(values: Values, config: Config, *, typed: bool) -> dict[str, Any]:
    """Qwen's sliding windows: only with `use_sliding_window`, and from layer `max_window_layers` on."""
    layers, used = config["num_hidden_layers"], values.switch("use_sliding_window")
    given = values.found.get("sliding_window", WINDOW)
    window = values.count("sliding_window", WINDOW) if used and given is not None else None
    found = {"sliding_window": window, "use_sliding_window": used}
    if not typed:
        return found
    first = values.found.get("max_window_layers")
    if first is not None and (type(first) is not int or first < 0):
        raise bad_value(values.name, "max_window_layers", first)
    usual = [SLIDING if layer >= (28 if first is None else first) else FULL for layer in range(layers)]
    kinds = layer_kinds(values, layers, usual)
    return {**found, "layer_types": kinds if window is not None else [FULL] * layers}


def odd_heads(config: Config) -> tuple[str, ...]:
    """Heads that do not share the hidden size among them, in words: several of mlx-lm's classes know no others."""
    odd = config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]
    return (f"heads of {config['head_dim']} values",) if odd else ()


def experts_of(values: Values, config: Config, keys: tuple[str, ...], usual: int, *, least: int = 1) -> int:
    """How many experts a layer has, which config.json may call by any of `keys`.

    Raises BrokenModel, also where there are fewer than `least`.
    """
    key = next((key for key in keys if values.found.get(key) is not None), keys[0])
    experts = values.count_or_none(key, usual)
    if experts < least or experts * config["num_hidden_layers"] > MAX_EXPERTS:
        raise bad_value(values.name, key, experts)
    if 0 < experts < config["num_experts_per_tok"]:
        raise bad_value(values.name, "num_experts_per_tok", config["num_experts_per_tok"])
    return experts


def some_sparse(values: Values, config: Config, usual: int) -> dict[str, Any]:
    """Qwen's experts, and the layers that have none: those of `mlp_only_layers`, and between every so many."""
    layers, step = config["num_hidden_layers"], config["decoder_sparse_step"]
    experts = experts_of(values, config, ("num_experts", "num_local_experts"), usual, least=0)
    listed = values.numbers("mlp_only_layers")
    dense = [i for i in range(layers) if i in listed or experts == 0 or (i + 1) % step != 0]
    return {"num_experts": experts, "mlp_only_layers": dense, "decoder_sparse_step": 1}
