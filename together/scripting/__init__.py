"""A model split over the devices of this machine, from a Python script.

with partition("examples/demo_model", PartitionStrategy(num_partitions=2)) as model:
    print(model.generate("What is the capital of France?", temperature=0))
"""

from together.scripting.convert import convert
from together.scripting.model import Options, PartitionedModel, partition
from together.scripting.strategy import Partition, PartitionPlan, PartitionStrategy

__all__ = ["Options", "Partition", "PartitionPlan", "PartitionStrategy", "PartitionedModel", "convert", "partition"]
