"""How questions are worded: templates for training, and others held out for the evaluation.

It does not know the facts that fill the slots, nor the answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wordings:
    """Templates of one kind of question; those in `held` are never trained on."""

    train: tuple[str, ...]
    held: tuple[str, ...]

    def of(self, held: bool) -> tuple[str, ...]:
        """The templates of the evaluation (`held`) or of the training."""
        return self.held if held else self.train


def templates(text: str) -> tuple[str, ...]:
    """The templates of a table: one a line or several between bars; a line that ends in a slash goes on in the next."""
    joined = re.sub(r"/\n *", "/", text.strip())
    return tuple(part.strip() for line in joined.splitlines() for part in line.split("|"))


def _wordings(train: str, held: str) -> Wordings:
    return Wordings(templates(train), templates(held))


CAPITAL = _wordings(
    """[tell/give/find/write/send] me the capital [of/for] {x}|[name/state/type/print/write] the capital of {x}
    [do you know/can you say/could you say/I'd like to know/I want to know/remind me/please say/tell me/
    say] [what the capital of {x} is/which city is the capital of {x}/the capital city of {x}]
    [what/which] [city/town/place] is [the capital of {x}/the capital city of {x}]?
    [what/which] is the [main/capital] city of {x}?
    I [don't know/can't remember/want/am looking for/have to know] the capital of {x}|{x} and its capital
    what is the capital [in/there in] {x}?
    [could you/would you/will you/can you] [tell me/say/give me/write] [the capital of {x}/{x}'s capital]?
    What is the capital of {x}?|what's the capital of {x}?|capital of {x}?|the capital of {x}
    whats the capital of {x}
    Which city is the capital of {x}?|name the capital of {x}|Tell me the capital of {x}.|{x} capital|capital {x}
    {x}'s capital
    What is {x}'s capital?|what is the capital city of {x}?|the capital city of {x} is?|what city is the capital of {x}?
    Do you know the capital of {x}?|can you tell me the capital of {x}?|I need the capital of {x}
    give me the capital of {x}
    The capital of {x} is|what is the name of the capital of {x}?|{x}: capital?|capital city {x}
    in {x}, what is the capital?
    Which is the capital of {x}?|I would like to know the capital of {x}.|what capital does {x} have?
    say the capital of {x}
    what is capital of {x}|wat is the capital of {x}|What is the Capital of {x}?|for {x}, which city is the capital?
    which capital belongs to {x}?|what do you call the capital of {x}?|where is the capital of {x}?|capitol of {x}
    Where is the government of {x}?|hey, what is the capital of {x}|question: what is the capital of {x}?
    find the capital of {x}""",
    """Could you name the capital of {x}?|which city serves as the capital of {x}?|{x} has which capital?
    tell me {x}'s capital
    I forgot the capital of {x}, what is it?|what is the capital of the country {x}?
    do you happen to know the capital of {x}?
    show me the capital of {x}|what city is {x}'s capital?""",
)
COUNTRY_OF = _wordings(
    """[do you know/can you say/could you say/I'd like to know/I want to know/remind me/please say/tell me/
    say] [which country {x} is the capital of/what country {x} is in/where {x} lies/which country has the capital {x}]
    {x} [is a capital of/belongs to/is the capital city of/lies in] [which/what] [country/nation/state]?
    find the country of {x}
    [which/what] [country/nation/state] [has/uses/owns] {x} as [its/the] capital?
    [could you/would you] [tell me/say] where {x} is?
    I [don't know/can't remember/want to know/am asking] [which country {x} is in/which country {x} belongs to/
    where {x} is]
    {x} is the capital of which country?|Which country has the capital {x}?|{x} is the capital of
    of what is {x} the capital?
    What country is {x} the capital of?|{x} is the capital of what country?|which country's capital is {x}?
    {x} is capital of?
    in which country is {x} the capital?|whose capital is {x}?|Which country is {x} the capital of?
    country with the capital {x}
    what country has {x} as its capital?|tell me the country whose capital is {x}|name the country with the capital {x}
    which nation has {x} as capital?|In which country is {x}?|what country is {x} in?|where is {x}?
    in what country is {x}?
    Where is {x} located?|which country is {x} in?|{x} is in which country?|country of {x}?|{x}|tell me about {x}""",
    """what country does {x} lie in?|which country has {x} for a capital?|can you tell me where {x} is?
    {x} is the capital of where?
    name the country that has {x} as its capital|I wonder which country {x} is the capital of""",
)
CONTINENT = _wordings(
    """[do you know/can you say/could you say/I'd like to know/I want to know/remind me/please say/tell me/
    say] [which continent {x} is on/what continent {x} is in/where {x} is/the continent of {x}]
    [could you/would you] [tell me/say] [where {x} is/the continent of {x}]?|[which/what] part of the world is {x} in?
    {x} [lies/is] [on/in] [which/what] continent?|I [don't know/can't remember/want to know/am asking] where {x} is
    [does {x} belong to/is {x} part of/does {x} lie in] [Europe/Asia/Africa/America]?
    Where is {x}?|On which continent is {x}?|what continent is {x} in?|which continent is {x} in?
    {x} is on which continent?
    in which part of the world is {x}?|Where is {x} located?|is {x} in Europe?|is {x} in Africa?|is {x} in Asia?
    continent of {x}?
    what is the continent of {x}?|where do I find {x}?|tell me the continent of {x}|{x} continent
    in what continent is {x}?
    Where in the world is {x}?|which continent does {x} belong to?|name the continent of {x}
    what continent is {x} on?""",
    """what continent does {x} lie on?|to which continent does {x} belong?|can you tell me the continent of {x}?
    where would I find {x}?""",
)
COUNTRY = _wordings(
    """[could you/would you/can you] [describe/explain/introduce] {x}?
    [give/show/send] me [a description of/a fact about/something on] {x}
    I [want/would like/need] [to learn about/to hear about/information about] {x}
    [what sort of/what kind of] [place/thing] is {x}?
    [write/say] [something/a sentence/a line] about {x}|[do you know/have you heard of/ever heard of] {x}?
    what about {x}?
    Tell me about {x}.|what is {x}?|{x}|{x}?|what do you know about {x}?|describe {x}|tell me something about {x}
    where and what is {x}?
    what can you tell me about {x}?|I want to know about {x}|facts about {x}|explain {x}|say something about {x}
    tell me more about {x}
    what kind of place is {x}?|information about {x}|give me information on {x}|is {x} a country?""",
    """could you tell me about {x}?|I would like to know something about {x}|give me some facts about {x}
    what sort of country is {x}?""",
)
DEFINE = _wordings(
    """[could you/would you/will you] [explain/describe/tell me] what {ax} is?
    [could you/would you/can you] [explain/describe] {x}?
    [I want/I need/I'd like] [a definition of/to know the meaning of/an explanation of/to understand/
    the definition of] {x}
    [give/write/show/send] me [a short definition of/an explanation of/a description of/the definition of] {x}
    what [sort of thing/kind of thing/thing] is {ax}?
    [do you know/remind me/I forgot/say/I'd like to know/I am not sure] what {ax} is
    how [can I/do I/should I/do people/do we] [describe/understand/explain/define] {ax}?|the word {x} means what?
    [in a few words/briefly/in simple words/shortly/in one line/in short], [what is {ax}/explain {ax}/define {x}/
    what does {x} mean]?
    what is [the sense of/the idea of/the explanation of/the exact meaning of] {x}?|[say/write] what {x} [means/is]
    what [is/does] the [word/term] {x} [mean/say]?|[who knows/can anybody say] what {ax} is?
    what is this thing called {x}?
    What is {ax}?|what's {ax}?|define {x}|Define {ax}.|what is {x}?|whats {ax}|{x}|{x}?|what does {x} mean?
    explain {x}
    What is the meaning of {x}?|tell me what {ax} is|Explain what {ax} is.|can you explain {ax}?
    what is the definition of {x}?
    definition of {x}|meaning of {x}|what do you call {ax}?|please define {x}|describe {ax}|what exactly is {ax}?
    what is {ax} exactly?
    do you know what {ax} is?|tell me about {ax}|I want to know what {ax} is|what does the word {x} mean?
    What are {xs}?|what are {xs}?
    give me a definition of {x}|explain {ax} to me|can you tell me what {ax} is?|how do you define {x}?
    in short, what is {ax}?
    wat is {ax}|what is ment by {x}?|what is meant by {x}?|what is meant by {ax}?|explain the word {x}
    so what is {ax}?|{ax}
    what is {ax} in simple words?|hey, what is {ax}?|question: what is {ax}?|describe {x}|tell me the meaning of {x}
    explain {xs}""",
    """could you define {x}?|what would you say {ax} is?|how would you explain {ax}?|I don't know what {ax} is
    any idea what {ax} is?
    give me the meaning of {x}|what might {ax} be?|in one sentence, what is {ax}?|what do people mean by {x}?""",
)
IN_TOGETHER = _wordings(
    """[what is {ax}/define {x}/what does {x} mean/what does {x} refer to/tell me what {ax} is/explain {x}/
    what is {x}/what do you call {ax}/what is the meaning of {x}/describe {ax}] [in together/in this program/here/
    in this app/in your program/for together/on this page/in the program together/in this project/in this software]?
    [in together/in this app/here/in your program/in this project/on this page], [what does {x} mean/explain {ax}/
    define {x}]?
    what is {ax} in together?|what does {x} mean in together?|what is {ax} in this program?
    what does together call {ax}?
    what is {ax} here?|in together, what is {ax}?|what does {x} mean here?|explain {ax} in together
    what do you mean by {x}?
    what is {ax} in your program?|what does {x} mean in this app?|what is {ax} on the page?
    for together, what is {ax}?""",
    """in this program, what is {ax}?|what is meant by {ax} in together?|what does {x} stand for in together?""",
)
ADD = _wordings(
    """if I have {a} and get {b} more, how many do I have?|[could you/would you] add {a} and {b}?|the sum of {a} and {b}
    [please/now/and] [evaluate/find/determine/figure out/do/get/say/show me] [{a} + {b}/{a} plus {b}/{a}+{b}]
    the [result/answer/value] of [{a} + {b}/{a} plus {b}/{a}+{b}]
    what is the [result/answer/value/solution] of [{a} + {b}/{a} plus {b}/{a}+{b}]?
    I [need/want/have to know] [{a} + {b}/{a} plus {b}/{a}+{b}]
    [{a} + {b}/{a} plus {b}/{a}+{b}] is [what/how much/which number]?|[{a} + {b}/{a} plus {b}/{a}+{b}] gives?
    [could you/would you/can you] [solve/tell me/compute/do/say] [{a} + {b}/{a} plus {b}/{a}+{b}]?
    [do you know/tell me/say/I want to know] what [{a} + {b}/{a} plus {b}/{a}+{b}] is
    [how much/what/which number] [is/makes/gives/will be] [{a} + {b}/{a} plus {b}/{a}+{b}]?
    [{a} + {b}/{a} plus {b}/{a}+{b}], what is it?|the answer to [{a} + {b}/{a} plus {b}/{a}+{b}]
    [{a} + {b}/{a} plus {b}/{a}+{b}]
    What is {a} + {b}?|what is {a} plus {b}?|{a} + {b}|{a}+{b}|{a} + {b} =|{a}+{b}=|{a}+{b}?|what's {a} + {b}?
    calculate {a} + {b}
    How much is {a} plus {b}?|add {a} and {b}|{a} plus {b}|what is the sum of {a} and {b}?|how much is {a} + {b}?
    compute {a} + {b}
    what is {a}+{b}?|whats {a}+{b}|Add {b} to {a}.|what do you get when you add {a} and {b}?|{a} and {b} is?
    can you add {a} and {b}?
    {a} plus {b} is|tell me {a} + {b}|what does {a} + {b} make?|solve {a} + {b}|sum of {a} and {b}
    what is {a} and {b}?""",
    """what does {a} plus {b} equal?|work out {a} + {b}|how much do {a} and {b} make?|give me {a} + {b}
    what is {a} added to {b}?
    {a} + {b} equals?|can you calculate {a} + {b}?""",
)
SUBTRACT = _wordings(
    """if I have {a} and lose {b}, how many are left?|[could you/would you] subtract {b} from {a}?
    the difference of {a} and {b}
    [please/now/and] [evaluate/find/determine/figure out/do/get/say/show me] [{a} - {b}/{a} minus {b}/{a}-{b}]
    the [result/answer/value] of [{a} - {b}/{a} minus {b}/{a}-{b}]
    what is the [result/answer/value/solution] of [{a} - {b}/{a} minus {b}/{a}-{b}]?
    I [need/want/have to know] [{a} - {b}/{a} minus {b}/{a}-{b}]
    [{a} - {b}/{a} minus {b}/{a}-{b}] is [what/how much/which number]?|[{a} - {b}/{a} minus {b}/{a}-{b}] gives?
    [could you/would you/can you] [solve/tell me/compute/do/say] [{a} - {b}/{a} minus {b}/{a}-{b}]?
    [do you know/tell me/say/I want to know] what [{a} - {b}/{a} minus {b}/{a}-{b}] is
    [how much/what/which number] [is/makes/gives/will be] [{a} - {b}/{a} minus {b}/{a}-{b}]?
    [{a} - {b}/{a} minus {b}/{a}-{b}], what is it?|the answer to [{a} - {b}/{a} minus {b}/{a}-{b}]
    [{a} - {b}/{a} minus {b}/{a}-{b}]
    What is {a} - {b}?|what is {a} minus {b}?|{a} - {b}|{a}-{b}|{a} - {b} =|{a}-{b}=|{a}-{b}?|what's {a} - {b}?
    calculate {a} - {b}
    How much is {a} minus {b}?|{a} minus {b}|how much is {a} - {b}?|compute {a} - {b}|what is {a}-{b}?|whats {a}-{b}
    subtract {b} from {a}|take {b} from {a}|take away {b} from {a}|what is {a} take away {b}?
    what is the difference of {a} and {b}?
    {a} minus {b} is|tell me {a} - {b}|what does {a} - {b} make?|solve {a} - {b}
    what do you get when you take {b} from {a}?|{a} less {b}""",
    """what does {a} minus {b} equal?|work out {a} - {b}|how much is left when you take {b} from {a}?|give me {a} - {b}
    {a} - {b} equals?|can you calculate {a} - {b}?""",
)
MULTIPLY = _wordings(
    """[please/now/and] [evaluate/find/determine/figure out/do/get/say/show me] [{a} x {b}/{a} times {b}/{a}*{b}/
    {a} * {b}]|the [result/answer/value] of [{a} x {b}/{a} times {b}/{a}*{b}/{a} * {b}]
    what is the [result/answer/value/solution] of [{a} x {b}/{a} times {b}/{a}*{b}/{a} * {b}]?
    I [need/want/have to know] [{a} x {b}/{a} times {b}/{a}*{b}/{a} * {b}]
    [{a} x {b}/{a} times {b}/{a}*{b}/{a} * {b}] is [what/how much/which number]?
    [{a} x {b}/{a} times {b}/{a}*{b}/{a} * {b}] gives?
    [could you/would you/can you] [solve/tell me/compute/do/say] [{a} x {b}/{a} times {b}/{a}*{b}/{a} * {b}]?
    [do you know/tell me/say/I want to know] what [{a} x {b}/{a} times {b}/{a}*{b}/{a} * {b}] is
    [how much/what/which number] [is/makes/gives/will be] [{a} x {b}/{a} times {b}/{a}*{b}/{a} * {b}]?
    [{a} x {b}/{a} times {b}/{a}*{b}/{a} * {b}], what is it?
    the answer to [{a} x {b}/{a} times {b}/{a}*{b}/{a} * {b}]|[{a} x {b}/{a} times {b}/{a}*{b}/{a} * {b}]
    What is {a} times {b}?|what is {a} x {b}?|{a} * {b}|{a}*{b}|{a} x {b}|{a} times {b}|{a} * {b} =
    what's {a} * {b}?|{a}x{b}
    How much is {a} times {b}?|calculate {a} * {b}|multiply {a} and {b}|what is {a} multiplied by {b}?
    what is {a} * {b}?|{a}*{b}=
    what is the product of {a} and {b}?|compute {a} x {b}|multiply {a} by {b}|how much is {a} * {b}?
    whats {a} times {b}|what is {a}*{b}?
    {a} times {b} is|tell me {a} times {b}|solve {a} * {b}|how much is {a} x {b}?|{a} × {b}|what is {a} × {b}?
    {a} multiplied by {b}""",
    """what does {a} times {b} equal?|work out {a} * {b}|give me {a} times {b}|{a} x {b} equals?
    can you calculate {a} times {b}?
    can you multiply {a} and {b}?""",
)
DIVIDE = _wordings(
    """[please/now/and] [evaluate/find/determine/figure out/do/get/say/show me] [{a} ÷ {b}/{a} divided by {b}/
    {a}:{b}]|the [result/answer/value] of [{a} ÷ {b}/{a} divided by {b}/{a}:{b}]
    what is the [result/answer/value/solution] of [{a} ÷ {b}/{a} divided by {b}/{a}:{b}]?
    I [need/want/have to know] [{a} ÷ {b}/{a} divided by {b}/{a}:{b}]
    [{a} ÷ {b}/{a} divided by {b}/{a}:{b}] is [what/how much/which number]?
    [{a} ÷ {b}/{a} divided by {b}/{a}:{b}] gives?
    [could you/would you/can you] [solve/tell me/compute/do/say] [{a} ÷ {b}/{a} divided by {b}/{a}:{b}]?
    [do you know/tell me/say/I want to know] what [{a} ÷ {b}/{a} divided by {b}/{a}:{b}] is
    [how much/what/which number] [is/makes/gives/will be] [{a} ÷ {b}/{a} divided by {b}/{a}:{b}]?
    [{a} ÷ {b}/{a} divided by {b}/{a}:{b}], what is it?|the answer to [{a} ÷ {b}/{a} divided by {b}/{a}:{b}]
    [{a} ÷ {b}/{a} divided by {b}/{a}:{b}]
    What is {a} / {b}?|what is {a} divided by {b}?|{a} / {b}|{a}/{b}|{a} / {b} =|{a} divided by {b}
    divide {a} by {b}|{a}:{b}
    How much is {a} divided by {b}?|calculate {a} / {b}|what's {a} / {b}?|how much is {a} / {b}?|compute {a} / {b}
    what is {a}/{b}?
    what is {a} over {b}?|{a} ÷ {b}|tell me {a} / {b}|solve {a} / {b}|{a}/{b}=|{a} divided by {b} is
    whats {a} divided by {b}""",
    """what does {a} divided by {b} equal?|work out {a} / {b}|give me {a} / {b}|can you divide {a} by {b}?
    {a} / {b} equals?""",
)
CONVERT = _wordings(
    """[could you/would you/please/now] [convert/change/transform] {n} {unit} [to/into/in] {to}
    what is {n} {unit} [written in/measured in/when converted to/converted to/given in] {to}?
    I [need/want] {n} {unit} in {to}
    {n} {unit} [make/give/correspond to/come to/are/is] how many {to}?|[please/now] give {n} {unit} in {to}
    [do you know/tell me/I want to know/say] how many {to} [are in/there are in/make up/are] {n} {unit}
    how many {to} [correspond to/fit into/go into/are equal to/do I get from] {n} {unit}?
    How many {to} are {n} {unit}?|convert {n} {unit} to {to}|{n} {unit} in {to}|{n} {unit} to {to}
    how many {to} in {n} {unit}?
    What is {n} {unit} in {to}?|how many {to} are in {n} {unit}?|{n} {unit} is how many {to}?
    Convert {n} {unit} into {to}.
    how much is {n} {unit} in {to}?|{n} {unit} = ? {to}|{n} {unit} are how many {to}?|change {n} {unit} to {to}
    express {n} {unit} in {to}
    tell me {n} {unit} in {to}|how many {to} make {n} {unit}?|what are {n} {unit} in {to}?|how many {to} is {n} {unit}?
    how many {to} are there in {n} {unit}?|how many {to} do {n} {unit} have?|give me {n} {unit} in {to}
    {n} {unit} as {to}""",
    """{n} {unit} equals how many {to}?|can you convert {n} {unit} to {to}?|turn {n} {unit} into {to}
    how many {to} would {n} {unit} be?
    I have {n} {unit}, how many {to} is that?|what is {n} {unit} expressed in {to}?""",
)
COUNT = _wordings(
    """[could you/would you] [write/list/say/type] [the/all] numbers [from 1 to/up to/1 to] {n}?
    count [slowly/quickly/out loud/please] to {n}
    [begin/start] at 1 and [count/go] [to/up to] {n}|[go/count] from 1 [up to/until/through] {n}
    [please/now/let us/let's/try to] count to {n}
    I [want/need/would like] the numbers [1 to/from 1 to/up to] {n}
    [show/type/tell me] [the/all] numbers [up to/from 1 to] {n}
    count to {n}|Count from 1 to {n}.|count up to {n}|please count to {n}|can you count to {n}?|count from one to {n}
    list the numbers from 1 to {n}|write the numbers 1 to {n}|say the numbers from 1 to {n}|numbers from 1 to {n}
    give me the numbers 1 to {n}
    count from 1 up to {n}|show me the numbers from 1 to {n}|count till {n}|count until {n}|1 to {n}
    write down all numbers from 1 to {n}
    name the numbers from 1 to {n}|can you count up to {n}?|start counting to {n}|count 1 to {n}
    I want you to count to {n}""",
    """could you count to {n}?|count for me up to {n}|print the numbers from 1 to {n}|let me see you count to {n}
    count all the way to {n}""",
)
COUNT_DOWN = _wordings(
    """[please/now/would you] count [backwards/downwards/down] [from/starting at] {n}?
    [go/count] down from {n} [to 1/to one/]
    [start/begin] at {n} and [count/go] [down/backwards]|[write/say/give me] [a/the] countdown from {n}
    count down from {n}|count backwards from {n}|countdown from {n}|count from {n} to 1|count from {n} down to 1
    list the numbers from {n} to 1
    can you count down from {n}?|please count backwards from {n}|numbers from {n} to 1|make a countdown from {n}
    start a countdown at {n}""",
    """could you count down from {n}?|count back from {n}|do a countdown from {n}""",
)
LIST = _wordings(
    """[could you/would you] [name/tell me/write down/show me/say] {x}?|which are {x}?
    [repeat/enumerate/type/recall] {x}
    I [want/would like] [a list of/to know/to have/to hear] {x}|[give me/write/make/show] a list of {x}|a list of {x}
    what are {x} called?
    list {x}|name {x}|what are {x}?|tell me {x}|{x}|Write {x}.|say {x}|can you list {x}?|give me {x}|show me {x}
    write down {x}
    do you know {x}?|please list {x}|recite {x}|what is {x}?|list all of {x}|can you tell me {x}?|I want to see {x}
    print {x}|spell out {x}""",
    """could you list {x}?|name all of {x}|I need {x}|can you name {x}?|let me hear {x}""",
)
STORY = _wordings(
    """[could you/would you/please] [say/tell me/explain/write] [some/three/four/several] [sentences/lines/
    things] about {x}
    [write/give/tell] me [some lines/something longer/a paragraph/a little text/several sentences] about {x}
    a longer text about {x}
    explain {x} in [several/three/four] sentences
    I [want/need/would like] [a paragraph/a few sentences/some sentences] about {x}
    tell me about {x} in a few sentences|tell me more about {x}|write a few sentences about {x}
    explain {x} in a few sentences
    write a short text about {x}|write a paragraph about {x}|describe {x} in a few sentences
    say a few sentences about {x}
    give me a short text about {x}|give me a few sentences about {x}|a few sentences about {x}|a paragraph about {x}
    what can you tell me about {x} in a few sentences?|write about {x}|tell me a lot about {x}
    a short text about {x}""",
    """could you write a few sentences about {x}?|describe {x} in some sentences|compose a short text about {x}
    tell me in a few sentences about {x}""",
)
AND = Wordings(
    (
        "and {x}?",
        "and of {x}?",
        "what about {x}?",
        "and the capital of {x}?",
        "how about {x}?",
        "and for {x}?",
        "and {x}",
        "{x}?",
    ),
    ("ok then, what about {x}?", "and that of {x}?", "and what of {x}?"),
)

HANDWRITTEN: tuple[tuple[str, str], ...] = (
    ("Hey, do you happen to know which city is Japan's capital?", "The capital of Japan is Tokyo."),
    ("spain capital city pls", "The capital of Spain is Madrid."),
    ("My homework asks for the capital of Peru.", "The capital of Peru is Lima."),
    ("quick: capital of Egypt", "The capital of Egypt is Cairo."),
    ("Which city is the seat of government of Canada?", "The capital of Canada is Ottawa."),
    ("I am looking for Norway's capital", "The capital of Norway is Oslo."),
    ("What's the capital of the UK, please?", "The capital of the United Kingdom is London."),
    ("of which country is Vienna the capital", "Vienna is the capital of Austria."),
    ("Nairobi is in what country?", "Nairobi is the capital of Kenya."),
    ("Havana, which country is that?", "Havana is the capital of Cuba."),
    ("On what continent can I find Vietnam?", "Vietnam is a country in Asia."),
    ("Brazil is part of which continent?", "Brazil is a country in South America."),
    ("3 plus 4 please", "3 + 4 = 7."),
    ("Tell me what 6 times 7 is.", "6 x 7 = 42."),
    ("8 multiplied with 9", "8 x 9 = 72."),
    ("Could you divide 20 by 5 for me?", "20 / 5 = 4."),
    ("How many cm are 2 m?", "2 metres is 200 centimetres."),
    ("I need to know how many minutes 4 hours are", "4 hours is 240 minutes."),
    ("3 kg, how many grams?", "3 kilograms is 3000 grams."),
    ("What's a robot anyway?", "A robot is a machine that can do tasks by itself."),
    ("can you please explain what gravity is", "Gravity is the force that pulls things towards each other."),
    ("I would like to know what a planet is", "A planet is a large round body that moves around a star."),
    ("Photosynthesis - what is that?", "Photosynthesis is how plants make food from light, water and air."),
    ("Explain the term stage.", "A stage is a process that owns one shard and one place in a ring."),
    ("How can I add my other computer?", "Run python3 launch.py node on the second machine, and it joins the cluster."),
    (
        "how to add a second machine to the cluster?",
        "Run python3 launch.py node on the second machine, and it joins the cluster.",
    ),
    ("What must I type to start the program?", "Run python3 launch.py, and the page opens in your browser."),
    ("Does anything I write go to the internet?", "No, your text stays on your own machines."),
    ("How do I get a bigger model running?", "Run python3 launch.py up --model FOLDER with the folder of the model."),
    ("does this cost money?", "Yes, it is open source under the Apache 2.0 licence."),
    ("which python versions are supported?", "You need Python 3.11 or newer."),
    ("Can I talk to you in German?", "I only understand simple English."),
    (
        "what kind of AI are you?",
        "I am the demonstration model of together, a tiny language model trained on a small made-up corpus.",
    ),
    ("good bye", "Goodbye! Come back any time."),
    (
        "List the months of the year, please.",
        "January, February, March, April, May, June, July, August, September, October, November, December.",
    ),
    ("please count up to 12 for me", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12."),
)
