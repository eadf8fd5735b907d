"""The words of the program together, each with a sentence that explains it: a table of `facts.table`."""

TERMS = """
a node|A node is the agent of one machine: it knows its devices, memory and speed, and starts and stops stages.
a head|The head is the process a person opens: it holds the cluster view, the engine, the API and the web page.
a layer range|A layer range is a run of consecutive decoder layers of a model, written as start and stop.
a shard|A shard is the loaded weights of one layer range, with the KV cache of those layers.
a stage|A stage is a process that owns one shard and one place in a ring.
a ring|A ring is the path of a model: from the head through all stages and back to the head.
a frame|A frame is what travels around the ring: a step with its rows and its data.
a plan|A plan says which node and device runs which layer range of a model.
an epoch|An epoch counts the versions of one ring's plan, and frames of another epoch are refused.
a sequence|A sequence is the tokens and state of one request in the engine.
a row|A row is the part of one sequence in a step.
a batch|A batch is all rows of a step, packed together.
a lane|A lane is a group of sequences that step together.
a token|A token is a small piece of text that a language model reads or writes.
a layer|A layer is one of the equal steps that a language model is built from.
a backend|A backend is the part of together that runs layers on one kind of device.
a cluster|A cluster is all the machines that work together.
the KV cache|The KV cache is the memory in which a model keeps what it has already read.
a hidden state|A hidden state is the list of numbers that travels from one layer to the next.
prefill|Prefill is the first phase of an answer, in which the model reads the prompt.
decode|Decode is the phase in which the model writes its answer token by token.
the engine|The engine is the part of the head that schedules requests and collects their tokens.
the scheduler|The scheduler decides which sequences take part in the next step.
a language model|A language model is a program that predicts the next piece of text.
zeroconf|Zeroconf is the way in which nodes find each other on a local network.
together|together is a program with which several ordinary machines run one language model.
"""
