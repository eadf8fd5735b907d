"""What users and programs ask for and get: chats, prompts, chunks of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, fsum, inf
from typing import Literal, NewType, Protocol

from together.picture import Picture
from together.sentences import NOTHING, Sentence, say
from together.types import Sampling

Owner = NewType("Owner", str)  # whose a request is, and what is kept for it: a key's id, or LOCAL
LOCAL = Owner("local")  # whoever sits at this machine and shows no key


@dataclass(frozen=True, slots=True)
class Timings:
    """A finished request's measurements, in seconds: `queued`, `first_token` and `total` since it was asked.

    `queued`, `compute`, `waiting`, `network` and `overhead` are all of `total`: what happened meanwhile for others only
    is not in `compute` but in `waiting`, and of frames that travelled at once each moment counts once.
    """

    queued: float = 0.0  # until its first row left
    first_token: float = 0.0
    total: float = 0.0
    compute: tuple[float, ...] = ()  # in each stage
    waiting: float = 0.0  # in stages, until they were free
    network: float = 0.0  # between stages and head
    overhead: float = 0.0  # in the head, between an answer and the next frame
    tokens: int = 0  # of the answer
    reused_tokens: int = 0  # of the prompt, that did not have to be computed
    link_bytes: int = 0  # of its hidden states, over all links between stages

    @property
    def tokens_per_s(self) -> float:
        """While it was answering; 0 for an answer of one token."""
        spent = self.total - self.first_token
        return (self.tokens - 1) / spent if self.tokens > 1 and spent > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request, equal to the tokenizer's."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion, up to the end of its thinking


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """Where a request without a token is. All 0: there is nothing to tell, its prompt is read at once."""

    place: int = 0  # in the queue: 1 begins next, 0 has begun
    read: int = 0  # tokens of its prompt that the ring has
    prompt: int = 0  # tokens


FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


def cut_short(finish: FinishReason | None, usage: Usage, limit: int | None, longer: Sentence) -> Sentence:
    """That an answer did not end by itself, and what gives more; NOTHING for one that did.

    `limit` is what was asked for, in tokens; None: up to the context. `longer` says how to get past it.
    """
    if finish != "length":
        return NOTHING
    tokens = usage.completion_tokens
    if limit is not None and tokens >= limit:
        return say("cut_at_limit", tokens=tokens, longer=longer)
    context = usage.prompt_tokens + tokens
    return say("cut_by_context", tokens=tokens, context=context, more=2 * context)


class Constraint(Protocol):
    """Which tokens one answer may go on with, a grammar for example. It belongs to one sequence and may remember it."""

    def allowed(self, answer: Sequence[int]) -> bytes | None:
        """The mask for the token after `answer`: bit i (low bit first) is token i, at least one is set; None: any.

        Asked once for every token to be drawn, in order; after a broken ring the same `answer` may come again, never a
        shorter one. It must not raise: everybody else's tokens come from the same loop.
        """


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer has to match: a schema as JSON text, a "regex", one of a JSON list of texts, or rules.

    Rules are llama.cpp's "gbnf", or "lark" in llguidance's dialect, which may embed schemas as `%json {...}`.
    """

    kind: Literal["json_schema", "regex", "choice", "gbnf", "lark"]
    source: str
    param: str = "response_format"  # the field of a request that asks for it, for errors


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What the engine is asked for: a prompt in token ids and how to go on."""

    prompt: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None  # None: up to the context
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int = -1  # as in SampleRequest: -1 none, 0 of the drawn token, k of the k best as well
    constraint: Constraint | None = None
    stable: int = (
        0  # leading tokens of the prompt that a next turn begins with: kept where caches cannot go back to them
    )
    score_from: int = 0  # tokens of the prompt from this place on get log-probabilities; 0: none; then 0 max_tokens do
    pictures: tuple[Picture, ...] = ()  # whose parts the prompt has tokens for, in order
    owner: Owner = LOCAL  # whose caches it may start with, and whose its own become
    followed: bool = False  # whether its reader hears where it is until its first token


@dataclass(frozen=True, slots=True)
class Scored:
    """A token, its own bytes (perhaps only a part of a character) and its log-probability.

    That of a prompt's first token, which nothing comes before, is NaN.
    """

    token_id: int
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer, and the best ones at its place, best first."""

    drawn: Scored
    top: tuple[Scored, ...] = ()
    offset: int = 0  # letters of the answer before it


# --- tools ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask its caller to run; `parameters` is a JSON schema of type object."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict)
    strict: bool = False  # a call of it must match the schema, also where the model is free to call


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools of one request, and how free the model is to call them. Without tools there are no calls."""

    tools: tuple[Tool, ...] = ()
    required: bool = False  # the answer is a call, whatever the model would rather say
    name: str = ""  # with `required`: the one tool that must be called
    parallel: bool = True  # several calls in one answer


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call as a conversation carries it; `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A part of an answer's call number `index`: first its id and name alone, then its arguments in parts."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


# --- answers and what they answer -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AnswerChunk:
    """A step of an answer: text that may be shown, and at the end why it ended. Never part of a stop string."""

    text: str
    token_ids: tuple[int, ...] = ()
    finish: FinishReason | None = None
    usage: Usage | None = None  # in the last piece
    timings: Timings | None = None  # in the last piece
    reasoning: str = ""  # what the model thought, without its tags; it comes before the text
    logprobs: tuple[TokenLogprob, ...] = ()  # of tokens whose text is shown by now, where asked for
    index: int = 0  # of the choice that it belongs to
    tool_calls: tuple[CallDelta, ...] = ()  # parts of tool calls, in order
    begun: Usage | None = None  # in the first piece: the prompt alone
    stop: str = ""  # in the last piece: the stop string that ended it
    progress: PromptProgress | None = None  # before the first text, of requests that ask for it; then nothing else


@dataclass(frozen=True, slots=True)
class Attached:
    """A picture's file, as PNG, JPEG or WebP, and how many letters of the message come before it."""

    at: int
    data: bytes | str  # the file's bytes, or these in base64


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; roles are system, user, assistant and tool. `reasoning` is what the assistant thought."""

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()  # of an assistant
    tool_call_id: str = ""  # of a tool's answer: the call that it answers
    pictures: tuple[Attached, ...] = ()  # of a user, in order


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation and how to answer it; the head turns it into a GenerateRequest by the model's own template."""

    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int = -1
    choices: int = 1  # answers, each with a seed of its own made from the given one
    template: Mapping[str, object] = field(default_factory=dict)  # more variables for the chat template
    chosen_template: str | None = None  # the name of one of the model's own templates; None: the usual one
    grammar: Grammar | None = None  # of every choice, after its thoughts
    continues: bool = False  # the last message is an assistant's, and the answer goes on with it
    tool_use: ToolUse = field(default_factory=ToolUse)
    owner: Owner = LOCAL
    followed: bool = False  # whether pieces before the first text say where it is


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Prompts to go on with, each a text or token ids, and how. Choice i of prompt p is piece index p · choices + i."""

    prompts: tuple[str | tuple[int, ...], ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int = -1
    choices: int = 1
    grammar: Grammar | None = None
    owner: Owner = LOCAL


# --- scores -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A text, or token ids, to score: how likely the model finds each token after those before it.

    A text longer than `window` tokens is scored in windows that start every `stride` tokens; each token is scored once,
    by the first window that reaches it.
    """

    text: str | tuple[int, ...]
    window: int | None = None  # tokens, a begin token included; None: as many as the context holds
    stride: int | None = None  # tokens; None: half a window, so that half a window at least comes before a token
    owner: Owner = LOCAL


@dataclass(frozen=True, slots=True)
class TextScore:
    """The tokens of a text with their log-probabilities (natural logarithms), and how it was cut."""

    first: bytes  # a first token that nothing comes before, so that it has no score; empty where a begin token does
    tokens: tuple[Scored, ...]  # all others, at least one
    window: int  # tokens
    stride: int  # tokens
    windows: int

    @property
    def mean_logprob(self) -> float:
        return fsum(token.logprob for token in self.tokens) / len(self.tokens)

    @property
    def perplexity(self) -> float:
        """e to the power of the mean's opposite: 1 for a text that is certain; infinite for one that is impossible."""
        try:
            return exp(-self.mean_logprob)
        except OverflowError:
            return inf
