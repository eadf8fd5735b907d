"""Hypothesis strategies for everything that travels: any valid word, at the edges of what the wire can carry."""

from __future__ import annotations

from hypothesis import strategies as st

from together.cluster_types import (
    Blob,
    Caller,
    Device,
    DeviceProfile,
    Endpoint,
    Holding,
    LetGo,
    LinkKind,
    LinkOrder,
    LinkSpeed,
    MachineLife,
    MeasureOrder,
    NodeState,
    NodeStatus,
    RingName,
    Source,
    StageLink,
    StageOrder,
    StageState,
    StageStatus,
    Strain,
    UnitDigest,
    UnitRequest,
)
from together.picture import Picture
from together.types import (
    DTYPE_BYTES,
    DTYPES,
    HIDDEN,
    Activation,
    Batch,
    Continuation,
    Dtype,
    Failure,
    Fault,
    Fork,
    Frame,
    LayerRange,
    ModelRef,
    NamedTensor,
    Orders,
    PackedAs,
    Packing,
    Row,
    RowResult,
    Sampled,
    SampleRequest,
    Sampling,
    StagePlan,
    StageTiming,
    Threads,
)

small = st.integers(0, 2**32 - 1)
large = st.integers(0, 2**64 - 1)
signed = st.integers(-(2**31), 2**31 - 1)
number = st.floats(allow_nan=False)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
small_tuple = st.lists(small, max_size=5).map(tuple)
values = st.lists(st.tuples(small, number), max_size=3).map(tuple)
endpoints = st.builds(Endpoint, st.lists(text, max_size=3).map(tuple), small)
layer_ranges = st.tuples(st.integers(0, 2**31), st.integers(1, 2**31 - 1)).map(lambda p: LayerRange(p[0], p[0] + p[1]))
dtypes = st.sampled_from(DTYPES)


def tuples(items: st.SearchStrategy, most: int = 3) -> st.SearchStrategy:
    return st.lists(items, max_size=most).map(tuple)


samplings = st.builds(
    Sampling,
    temperature=number,
    top_k=small,
    top_p=number,
    min_p=number,
    repetition_penalty=number,
    presence_penalty=number,
    frequency_penalty=number,
    logit_bias=values,
    seed=large,
)
sample_requests = st.builds(
    SampleRequest,
    small_tuple,
    samplings,
    small,
    signed,
    allowed=st.none() | st.binary(max_size=8),
    score=tuples(st.builds(Continuation, small, small)),
)
pictures = st.builds(
    lambda offset, rows, columns, key: Picture(offset, rows, columns, 1, bytes(3 * rows * columns), key),
    st.integers(-9, 9),
    st.integers(1, 3),
    st.integers(1, 3),
    text,
)
rows = st.builds(
    Row, large, small, small_tuple, st.none() | sample_requests, tuples(small_tuple), text, tuples(pictures)
)
orders = st.builds(Orders, st.lists(large, max_size=3).map(tuple), tuples(st.builds(Fork, large, large, small)))
batches = st.builds(Batch, tuples(rows), orders)


@st.composite
def activations(draw: st.DrawFn) -> Activation:
    dtype, tokens, width = draw(dtypes), draw(st.integers(0, 4)), draw(st.integers(1, 5))
    names = draw(st.lists(text.filter(lambda name: name not in ("", HIDDEN)), max_size=2, unique=True))
    others = tuple(NamedTensor(name, dtype, 2, draw(_elements(dtype, tokens, 2))) for name in names)
    return Activation(dtype, tokens, width, draw(_elements(dtype, tokens, width)), others)


def _elements(dtype: Dtype, tokens: int, width: int) -> st.SearchStrategy[bytes]:
    size = tokens * width * DTYPE_BYTES[dtype]
    return st.binary(min_size=size, max_size=size)


sampled = st.builds(Sampled, small, st.none() | number, values)
fp32 = st.floats(allow_nan=False, width=32)
results = st.builds(RowResult, large, small, tuples(sampled), st.none() | text, tuples(fp32))
frames = st.builds(
    Frame,
    step=large,
    batch=batches,
    activation=st.none() | activations(),
    results=tuples(results),
    failure=st.none() | st.builds(Failure, text, signed, text, st.sampled_from(Fault)),
    timings=tuples(st.builds(StageTiming, number, number, small)),
)

models = st.builds(ModelRef, text, text, text, small, text, text)
plans = st.builds(StagePlan, text, text, text, layer_ranges, large)
stage_orders = st.builds(
    StageOrder,
    text,
    text,
    small,
    models,
    plans,
    dtypes,
    tuples(st.builds(Source, endpoints, tuples(text))),
    epoch=large,
)
stage_statuses = st.builds(
    StageStatus,
    ring=text,
    slot=small,
    head=text,
    model=text,
    total_layers=small,
    layers=layer_ranges,
    device=text,
    state=st.sampled_from(StageState),
    memory_bytes=large,
    progress=number,
    fetched_bytes=large,
    fetch_bytes=large,
    waiting=text,
    cause=text,
    endpoint=st.none() | endpoints,
    pid=large,
    capacity=large,
    block=small,
    rewind=st.none() | small,
    broken_epoch=signed,
    fault=st.sampled_from(Fault),
    threads=st.none() | st.builds(Threads, small, small),
)
node_statuses = st.builds(
    NodeStatus,
    id=text,
    name=text,
    machine=text,
    endpoint=endpoints,
    protocol=small,
    state=st.sampled_from(NodeState),
    cause=text,
    devices=tuples(st.builds(Device, text, text, text, large, large)),
    stages=tuples(stage_statuses),
    ports=small_tuple,
    memory_bytes=large,
    free_bytes=large,
    version=text,
    peers=tuples(endpoints),
    run=text,
    owner=text,
    strain=st.none() | st.builds(Strain, *[st.floats(0, 1e12)] * 3),
    let_go=tuples(st.builds(LetGo, text, text, large, st.floats(0, 1e12))),
    life=st.none() | st.builds(MachineLife, large, st.none() | st.integers(0, 100), st.sampled_from(LinkKind)),
)
stage_links = st.builds(StageLink, text, large, small, endpoints, models, small)
callers = st.builds(Caller, text, text, small, st.none() | endpoints)
ring_names = st.builds(RingName, text, text, small_tuple)
blobs = st.builds(Blob, st.binary(max_size=50))
holdings = st.builds(Holding, text, tuples(text))
unit_requests = st.builds(UnitRequest, text, text, large)
unit_digests = st.builds(UnitDigest, large, text)
packings = st.sampled_from([Packing("affine", 4, 64), Packing("affine", 3, 16), Packing("nvfp4", 4, 16)])
maybe_packed = st.none() | packings
packed_as = st.builds(PackedAs, maybe_packed, maybe_packed, st.booleans())
measure_orders = st.builds(MeasureOrder, text, text, dtypes, st.binary(max_size=50), packed_as)
device_profiles = st.builds(DeviceProfile, *[st.floats(0, 1e18)] * 6, large)
link_orders = st.builds(LinkOrder, endpoints, large)
link_speeds = st.builds(LinkSpeed, *[st.floats(0, 1e18)] * 3)
