from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Empty(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Caller(_message.Message):
    __slots__ = ("head", "cluster", "protocol", "endpoint", "name", "page", "version", "oldest", "made")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIELD_NUMBER: _ClassVar[int]
    MADE_FIELD_NUMBER: _ClassVar[int]
    head: str
    cluster: str
    protocol: int
    endpoint: Endpoint
    name: str
    page: int
    version: str
    oldest: int
    made: int
    def __init__(self, head: _Optional[str] = ..., cluster: _Optional[str] = ..., protocol: _Optional[int] = ..., endpoint: _Optional[_Union[Endpoint, _Mapping]] = ..., name: _Optional[str] = ..., page: _Optional[int] = ..., version: _Optional[str] = ..., oldest: _Optional[int] = ..., made: _Optional[int] = ...) -> None: ...

class RingName(_message.Message):
    __slots__ = ("ring", "head", "slots")
    RING_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    ring: str
    head: str
    slots: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ring: _Optional[str] = ..., head: _Optional[str] = ..., slots: _Optional[_Iterable[int]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("step", "batch", "activation", "results", "failure", "timings", "shares")
    STEP_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    step: int
    batch: Batch
    activation: Activation
    results: _containers.RepeatedCompositeFieldContainer[RowResult]
    failure: Failure
    timings: _containers.RepeatedCompositeFieldContainer[StageTiming]
    shares: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, step: _Optional[int] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., activation: _Optional[_Union[Activation, _Mapping]] = ..., results: _Optional[_Iterable[_Union[RowResult, _Mapping]]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., timings: _Optional[_Iterable[_Union[StageTiming, _Mapping]]] = ..., shares: _Optional[_Iterable[int]] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("rows", "orders")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[Row]
    orders: Orders
    def __init__(self, rows: _Optional[_Iterable[_Union[Row, _Mapping]]] = ..., orders: _Optional[_Union[Orders, _Mapping]] = ...) -> None: ...

class Orders(_message.Message):
    __slots__ = ("drops", "forks", "trim")
    DROPS_FIELD_NUMBER: _ClassVar[int]
    FORKS_FIELD_NUMBER: _ClassVar[int]
    TRIM_FIELD_NUMBER: _ClassVar[int]
    drops: _containers.RepeatedScalarFieldContainer[int]
    forks: _containers.RepeatedCompositeFieldContainer[Fork]
    trim: bool
    def __init__(self, drops: _Optional[_Iterable[int]] = ..., forks: _Optional[_Iterable[_Union[Fork, _Mapping]]] = ..., trim: _Optional[bool] = ...) -> None: ...

class Row(_message.Message):
    __slots__ = ("sequence", "position", "token_ids", "sample", "positions", "adapter", "pictures")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    position: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    sample: SampleRequest
    positions: _containers.RepeatedCompositeFieldContainer[Axis]
    adapter: str
    pictures: _containers.RepeatedCompositeFieldContainer[Picture]
    def __init__(self, sequence: _Optional[int] = ..., position: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., sample: _Optional[_Union[SampleRequest, _Mapping]] = ..., positions: _Optional[_Iterable[_Union[Axis, _Mapping]]] = ..., adapter: _Optional[str] = ..., pictures: _Optional[_Iterable[_Union[Picture, _Mapping]]] = ...) -> None: ...

class Picture(_message.Message):
    __slots__ = ("offset", "rows", "columns", "side", "pixels", "key")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    offset: int
    rows: int
    columns: int
    side: int
    pixels: bytes
    key: str
    def __init__(self, offset: _Optional[int] = ..., rows: _Optional[int] = ..., columns: _Optional[int] = ..., side: _Optional[int] = ..., pixels: _Optional[bytes] = ..., key: _Optional[str] = ...) -> None: ...

class Axis(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class SampleRequest(_message.Message):
    __slots__ = ("offsets", "settings", "prompt_length", "top_logprobs", "allowed", "score")
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    offsets: _containers.RepeatedScalarFieldContainer[int]
    settings: Sampling
    prompt_length: int
    top_logprobs: int
    allowed: bytes
    score: _containers.RepeatedCompositeFieldContainer[Continuation]
    def __init__(self, offsets: _Optional[_Iterable[int]] = ..., settings: _Optional[_Union[Sampling, _Mapping]] = ..., prompt_length: _Optional[int] = ..., top_logprobs: _Optional[int] = ..., allowed: _Optional[bytes] = ..., score: _Optional[_Iterable[_Union[Continuation, _Mapping]]] = ...) -> None: ...

class Continuation(_message.Message):
    __slots__ = ("offset", "token_id")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    offset: int
    token_id: int
    def __init__(self, offset: _Optional[int] = ..., token_id: _Optional[int] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.RepeatedCompositeFieldContainer[TokenValue]
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Iterable[_Union[TokenValue, _Mapping]]] = ..., seed: _Optional[int] = ...) -> None: ...

class TokenValue(_message.Message):
    __slots__ = ("token_id", "value")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    value: float
    def __init__(self, token_id: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...

class Fork(_message.Message):
    __slots__ = ("source", "target", "length")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    source: int
    target: int
    length: int
    def __init__(self, source: _Optional[int] = ..., target: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class Activation(_message.Message):
    __slots__ = ("dtype", "tokens", "width", "data", "others")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    tokens: int
    width: int
    data: bytes
    others: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    def __init__(self, dtype: _Optional[str] = ..., tokens: _Optional[int] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ..., others: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ...) -> None: ...

class NamedTensor(_message.Message):
    __slots__ = ("name", "dtype", "width", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    width: int
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., width: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class RowResult(_message.Message):
    __slots__ = ("sequence", "position", "sampled", "refusal", "scores")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SAMPLED_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    position: int
    sampled: _containers.RepeatedCompositeFieldContainer[Sampled]
    refusal: str
    scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, sequence: _Optional[int] = ..., position: _Optional[int] = ..., sampled: _Optional[_Iterable[_Union[Sampled, _Mapping]]] = ..., refusal: _Optional[str] = ..., scores: _Optional[_Iterable[float]] = ...) -> None: ...

class Sampled(_message.Message):
    __slots__ = ("token_id", "logprob", "top")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TokenValue]
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TokenValue, _Mapping]]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("node", "stage", "cause", "fault")
    NODE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    node: str
    stage: int
    cause: str
    fault: str
    def __init__(self, node: _Optional[str] = ..., stage: _Optional[int] = ..., cause: _Optional[str] = ..., fault: _Optional[str] = ...) -> None: ...

class StageTiming(_message.Message):
    __slots__ = ("compute_ms", "wait_ms", "sequences")
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    compute_ms: float
    wait_ms: float
    sequences: int
    def __init__(self, compute_ms: _Optional[float] = ..., wait_ms: _Optional[float] = ..., sequences: _Optional[int] = ...) -> None: ...

class LayerRange(_message.Message):
    __slots__ = ("start", "stop")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class ModelRef(_message.Message):
    __slots__ = ("name", "path", "fingerprint", "layers", "revision", "form", "tokenizer")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    fingerprint: str
    layers: int
    revision: str
    form: str
    tokenizer: str
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., fingerprint: _Optional[str] = ..., layers: _Optional[int] = ..., revision: _Optional[str] = ..., form: _Optional[str] = ..., tokenizer: _Optional[str] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("addresses", "port", "id")
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    addresses: _containers.RepeatedScalarFieldContainer[str]
    port: int
    id: str
    def __init__(self, addresses: _Optional[_Iterable[str]] = ..., port: _Optional[int] = ..., id: _Optional[str] = ...) -> None: ...

class StageLink(_message.Message):
    __slots__ = ("ring", "epoch", "index", "next", "model", "sharing", "previous")
    RING_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SHARING_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    ring: str
    epoch: int
    index: int
    next: Endpoint
    model: ModelRef
    sharing: int
    previous: str
    def __init__(self, ring: _Optional[str] = ..., epoch: _Optional[int] = ..., index: _Optional[int] = ..., next: _Optional[_Union[Endpoint, _Mapping]] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., sharing: _Optional[int] = ..., previous: _Optional[str] = ...) -> None: ...

class Threads(_message.Message):
    __slots__ = ("few", "many")
    FEW_FIELD_NUMBER: _ClassVar[int]
    MANY_FIELD_NUMBER: _ClassVar[int]
    few: int
    many: int
    def __init__(self, few: _Optional[int] = ..., many: _Optional[int] = ...) -> None: ...

class StagePlan(_message.Message):
    __slots__ = ("node", "backend", "device", "layers", "memory_bytes", "stretched")
    NODE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    STRETCHED_FIELD_NUMBER: _ClassVar[int]
    node: str
    backend: str
    device: str
    layers: LayerRange
    memory_bytes: int
    stretched: bool
    def __init__(self, node: _Optional[str] = ..., backend: _Optional[str] = ..., device: _Optional[str] = ..., layers: _Optional[_Union[LayerRange, _Mapping]] = ..., memory_bytes: _Optional[int] = ..., stretched: _Optional[bool] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("endpoint", "units")
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    endpoint: Endpoint
    units: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, endpoint: _Optional[_Union[Endpoint, _Mapping]] = ..., units: _Optional[_Iterable[str]] = ...) -> None: ...

class StageOrder(_message.Message):
    __slots__ = ("ring", "head", "slot", "model", "stage", "dtype", "sources", "exact", "epoch")
    RING_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ring: str
    head: str
    slot: int
    model: ModelRef
    stage: StagePlan
    dtype: str
    sources: _containers.RepeatedCompositeFieldContainer[Source]
    exact: bool
    epoch: int
    def __init__(self, ring: _Optional[str] = ..., head: _Optional[str] = ..., slot: _Optional[int] = ..., model: _Optional[_Union[ModelRef, _Mapping]] = ..., stage: _Optional[_Union[StagePlan, _Mapping]] = ..., dtype: _Optional[str] = ..., sources: _Optional[_Iterable[_Union[Source, _Mapping]]] = ..., exact: _Optional[bool] = ..., epoch: _Optional[int] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("backend", "name", "description", "total_bytes", "free_bytes")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    backend: str
    name: str
    description: str
    total_bytes: int
    free_bytes: int
    def __init__(self, backend: _Optional[str] = ..., name: _Optional[str] = ..., description: _Optional[str] = ..., total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ...) -> None: ...

class StageStatus(_message.Message):
    __slots__ = ("ring", "slot", "head", "model", "total_layers", "layers", "device", "state", "memory_bytes", "progress", "cause", "endpoint", "pid", "capacity", "block", "rewind", "fetched_bytes", "fetch_bytes", "converting", "broken_epoch", "fault", "waiting", "threads", "shares", "per_sequence")
    RING_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOTAL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    REWIND_FIELD_NUMBER: _ClassVar[int]
    FETCHED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FETCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONVERTING_FIELD_NUMBER: _ClassVar[int]
    BROKEN_EPOCH_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    PER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ring: str
    slot: int
    head: str
    model: str
    total_layers: int
    layers: LayerRange
    device: str
    state: str
    memory_bytes: int
    progress: float
    cause: str
    endpoint: Endpoint
    pid: int
    capacity: int
    block: int
    rewind: int
    fetched_bytes: int
    fetch_bytes: int
    converting: bool
    broken_epoch: int
    fault: str
    waiting: str
    threads: Threads
    shares: bool
    per_sequence: int
    def __init__(self, ring: _Optional[str] = ..., slot: _Optional[int] = ..., head: _Optional[str] = ..., model: _Optional[str] = ..., total_layers: _Optional[int] = ..., layers: _Optional[_Union[LayerRange, _Mapping]] = ..., device: _Optional[str] = ..., state: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., progress: _Optional[float] = ..., cause: _Optional[str] = ..., endpoint: _Optional[_Union[Endpoint, _Mapping]] = ..., pid: _Optional[int] = ..., capacity: _Optional[int] = ..., block: _Optional[int] = ..., rewind: _Optional[int] = ..., fetched_bytes: _Optional[int] = ..., fetch_bytes: _Optional[int] = ..., converting: _Optional[bool] = ..., broken_epoch: _Optional[int] = ..., fault: _Optional[str] = ..., waiting: _Optional[str] = ..., threads: _Optional[_Union[Threads, _Mapping]] = ..., shares: _Optional[bool] = ..., per_sequence: _Optional[int] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("id", "name", "machine", "endpoint", "protocol", "state", "cause", "devices", "stages", "ports", "memory_bytes", "free_bytes", "version", "peers", "run", "owner", "strain", "let_go", "life", "made")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    STRAIN_FIELD_NUMBER: _ClassVar[int]
    LET_GO_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    MADE_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    machine: str
    endpoint: Endpoint
    protocol: int
    state: str
    cause: str
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    stages: _containers.RepeatedCompositeFieldContainer[StageStatus]
    ports: _containers.RepeatedScalarFieldContainer[int]
    memory_bytes: int
    free_bytes: int
    version: str
    peers: _containers.RepeatedCompositeFieldContainer[Endpoint]
    run: str
    owner: str
    strain: Strain
    let_go: _containers.RepeatedCompositeFieldContainer[LetGo]
    life: MachineLife
    made: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., machine: _Optional[str] = ..., endpoint: _Optional[_Union[Endpoint, _Mapping]] = ..., protocol: _Optional[int] = ..., state: _Optional[str] = ..., cause: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., stages: _Optional[_Iterable[_Union[StageStatus, _Mapping]]] = ..., ports: _Optional[_Iterable[int]] = ..., memory_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., version: _Optional[str] = ..., peers: _Optional[_Iterable[_Union[Endpoint, _Mapping]]] = ..., run: _Optional[str] = ..., owner: _Optional[str] = ..., strain: _Optional[_Union[Strain, _Mapping]] = ..., let_go: _Optional[_Iterable[_Union[LetGo, _Mapping]]] = ..., life: _Optional[_Union[MachineLife, _Mapping]] = ..., made: _Optional[int] = ...) -> None: ...

class MachineLife(_message.Message):
    __slots__ = ("lacking", "battery", "link")
    LACKING_FIELD_NUMBER: _ClassVar[int]
    BATTERY_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    lacking: int
    battery: int
    link: str
    def __init__(self, lacking: _Optional[int] = ..., battery: _Optional[int] = ..., link: _Optional[str] = ...) -> None: ...

class LetGo(_message.Message):
    __slots__ = ("model", "form", "bytes", "at")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    model: str
    form: str
    bytes: int
    at: float
    def __init__(self, model: _Optional[str] = ..., form: _Optional[str] = ..., bytes: _Optional[int] = ..., at: _Optional[float] = ...) -> None: ...

class Strain(_message.Message):
    __slots__ = ("processors", "own", "paged")
    PROCESSORS_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    PAGED_FIELD_NUMBER: _ClassVar[int]
    processors: float
    own: float
    paged: float
    def __init__(self, processors: _Optional[float] = ..., own: _Optional[float] = ..., paged: _Optional[float] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class Holding(_message.Message):
    __slots__ = ("path", "units")
    PATH_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    path: str
    units: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, path: _Optional[str] = ..., units: _Optional[_Iterable[str]] = ...) -> None: ...

class UnitRequest(_message.Message):
    __slots__ = ("key", "unit", "offset")
    KEY_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    key: str
    unit: str
    offset: int
    def __init__(self, key: _Optional[str] = ..., unit: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class UnitDigest(_message.Message):
    __slots__ = ("size", "sha256")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    size: int
    sha256: str
    def __init__(self, size: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class Packing(_message.Message):
    __slots__ = ("mode", "bits", "group")
    MODE_FIELD_NUMBER: _ClassVar[int]
    BITS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    mode: str
    bits: int
    group: int
    def __init__(self, mode: _Optional[str] = ..., bits: _Optional[int] = ..., group: _Optional[int] = ...) -> None: ...

class PackedAs(_message.Message):
    __slots__ = ("layers", "head", "exact")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    layers: Packing
    head: Packing
    exact: bool
    def __init__(self, layers: _Optional[_Union[Packing, _Mapping]] = ..., head: _Optional[_Union[Packing, _Mapping]] = ..., exact: _Optional[bool] = ...) -> None: ...

class MeasureOrder(_message.Message):
    __slots__ = ("backend", "device", "dtype", "config", "packed")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    backend: str
    device: str
    dtype: str
    config: bytes
    packed: PackedAs
    def __init__(self, backend: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., config: _Optional[bytes] = ..., packed: _Optional[_Union[PackedAs, _Mapping]] = ...) -> None: ...

class DeviceProfile(_message.Message):
    __slots__ = ("ms_per_layer", "ms_per_stage", "ms_per_head", "memory_bytes_per_s", "matrix_flops_per_s", "disk_bytes_per_s", "overhead_bytes", "ms_per_step", "shared")
    MS_PER_LAYER_FIELD_NUMBER: _ClassVar[int]
    MS_PER_STAGE_FIELD_NUMBER: _ClassVar[int]
    MS_PER_HEAD_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    MATRIX_FLOPS_PER_S_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    OVERHEAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    ms_per_layer: float
    ms_per_stage: float
    ms_per_head: float
    memory_bytes_per_s: float
    matrix_flops_per_s: float
    disk_bytes_per_s: float
    overhead_bytes: int
    ms_per_step: float
    shared: float
    def __init__(self, ms_per_layer: _Optional[float] = ..., ms_per_stage: _Optional[float] = ..., ms_per_head: _Optional[float] = ..., memory_bytes_per_s: _Optional[float] = ..., matrix_flops_per_s: _Optional[float] = ..., disk_bytes_per_s: _Optional[float] = ..., overhead_bytes: _Optional[int] = ..., ms_per_step: _Optional[float] = ..., shared: _Optional[float] = ...) -> None: ...

class LinkOrder(_message.Message):
    __slots__ = ("target", "size")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    target: Endpoint
    size: int
    def __init__(self, target: _Optional[_Union[Endpoint, _Mapping]] = ..., size: _Optional[int] = ...) -> None: ...

class LinkSpeed(_message.Message):
    __slots__ = ("rtt_ms", "hop_ms", "bytes_per_s")
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    HOP_MS_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    rtt_ms: float
    hop_ms: float
    bytes_per_s: float
    def __init__(self, rtt_ms: _Optional[float] = ..., hop_ms: _Optional[float] = ..., bytes_per_s: _Optional[float] = ...) -> None: ...
