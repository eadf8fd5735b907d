"""What the demo model must decline: many wordings over many subjects, and words that nobody has ever heard.

It does not know what the model does know; `corpus.py` keeps the two apart.
"""

from __future__ import annotations

import random
import re
from functools import cache

import facts
import phrasings
import questions
import words

_TEMPLATES = """
who is {person}?|who was {person}?|when was {person} born?|when did {person} die?|how old is {person}?
where was {person} born?
tell me about {person}|what did {person} do?|why is {person} famous?|who is the wife of {person}?|how tall is {person}?
what is the best song of {person}?|did {person} ever live in {known}?|what would {person} say?|how rich is {person}?
write a letter to {person}|who killed {person}?|quote {person}|what is {person} known for?
who is the father of {person}?
who won {event} in {year}?|who won {event}?|when was {event}?|when is {event}?|where was {event} in {year}?
why did {event} happen?
what happened at {event}?|tell me about {event}|how did {event} end?|what caused {event}?|who lost {event} in {year}?
what happened in {year}?|who was president in {year}?|who was the king of {known} in {year}?|which film won in {year}?
what is the population of {known}?|how many people live in {known}?|who is the president of {known}?
how is the weather in {known}?
who rules {known}?|what language is spoken in {known}?|what is the currency of {known}?|how far is {known} from {place}?
what should I see in {known}?|what is the best restaurant in {known}?|how big is {known}?|what is the flag of {known}?
what is the time in {known}?|what do people eat in {known}?|how do I get to {known}?|book a flight to {known}
what is the highest mountain in {known}?|what is the longest river in {known}?|is {known} safe?|why is {known} so rich?
when was {known} founded?|which countries border {known}?|what is the history of {known}?|who discovered {known}?
how much is a hotel in {known}?|what is the area of {known}?|what is the national anthem of {known}?
is it raining in {known}?
what is the largest city of {known}?|what is {known} famous for?|is {known} bigger than {place}?
what is the mayor of {known}?
what is the weather like today?|will it rain tomorrow?|what time is it?|what day is it today?|what is the date?
what year is it?
what is in the news?|what is the price of {thing}?|how much does a {thing} cost?|where can I buy a {thing}?
who invented the {thing}?
how do I make a {thing}?|how do you cook {thing}?|how does a {thing} work?|why is the {thing} blue?
how heavy is a {thing}?
how long does a {thing} live?|what colour is a {thing}?|do you like {thing}?|is {thing} good for me?|can I eat {thing}?
how many {thing}s are there?|what is the plural of {thing}?|how do you spell {thing}?|translate {thing} into French
what rhymes with {thing}?|what is the German word for {thing}?|what is the opposite of {thing}?|draw a {thing}
sell me a {thing}
how do I repair a {thing}?|what is the difference between a {thing} and a {other}?|which is better, {thing} or {other}?
is a {thing} a {other}?|can a {thing} swim?|compare {thing} and {other}|where does {thing} come from?
when was the {thing} invented?
I like {thing}|I hate {thing}|I have a {thing}|my {thing} is broken|my {thing} is {other}|I want a {thing}
give me a {thing}
what do you think about {subject}?|tell me something about {subject}|give me advice about {subject}
can you help me with {subject}?
write a poem about {subject}|write a story about {subject}|tell me a story about {subject}
write an essay about {subject}
write a song about {subject}|tell me a joke about {subject}|give me ideas for {subject}
what should I know about {subject}?
write code for {subject}|write a python program for {subject}|write a function for {subject}
how do I start with {subject}?
explain {subject} to me|summarise {subject}|why is {subject} important?|what is your opinion on {subject}?
discuss {subject}
what are the pros and cons of {subject}?|is {subject} good or bad?|make a plan for {subject}
recommend something for {subject}
I am worried about {subject}|I want to talk about {subject}|let us talk about {subject}|do you care about {subject}?
how do I get better at {subject}?|teach me {subject}|what is new in {subject}?|who is an expert in {subject}?
plan {subject}
tell me a joke|tell me a story|write a poem|sing a song|make me laugh|do you love me?|are you happy?
what are you wearing?
what is the meaning of life?|does god exist?|is there life on other planets?|what happens after death?|are we alone?
why am I sad?
what should I eat today?|what should I cook?|what should I do?|I am bored|I am tired|I am hungry|I feel sad
I am happy today
who will win the election?|what are the lottery numbers?|play some music|call my mother|set an alarm for 7
turn off the light
open the window|send an email to {person}|order a pizza|what is on television?|recommend a film|recommend a book
show me a picture
what is the square root of {big}?|what is the factorial of {big}?|is {big} a prime number?|solve x + {big} = {year}
what is the derivative of x squared?|solve this equation: {big}x = {year}|what is {big} percent of {year}?
round {year}.{big}
how many days are there until christmas?|how many stars are there?|how many people are there in the world?
how deep is the sea?
how fast is light?|how hot is the sun?|how far is the moon?|how old is the universe?|how old is the earth?
how big is the sun?
why is the sky blue?|why is grass green?|why do we dream?|why do cats purr?|why do birds sing?|why is the sea salty?
how do planes fly?|how do magnets work?|how do vaccines work?|how do I tie a tie?|how do I boil an egg?
how do I lose weight?
how do I become rich?|how do I learn to swim?|how do I fix my computer?|how do I write a cv?
how do I add a column in a table?
how do I start a business?|how do I start a car?|how do I stop smoking?|how do I run faster?|how do I add salt?
how do I stop a train?
how do I add a picture to a document?|how do I load a truck?|how do I test a battery?|how do I see a doctor?
how do I use a camera?
what is the plan for tomorrow?|who made the ring?|who wrote the book?|what is the head of state?
who is on stage tonight?
what is the fastest animal?|what is the largest animal?|what is the tallest building?|what is the oldest city?
what is the best car?
what is the smallest country in the world?|what is the biggest ocean?|what is the deepest lake?
which planet is the hottest?
who wrote Hamlet?|who painted the Mona Lisa?|who invented the telephone?|who discovered America?|who built the pyramids?
who was the first man on the moon?|who is the richest person?|who is the fastest runner?|who sings this song?
who is your friend?
when did the war end?|when was the wall built?|when will we land on Mars?|when does the shop open?|when is my birthday?
where is my phone?|where do I live?|where is the nearest hospital?|where is the toilet?|where are my keys?
where is the station?
what is the chemical formula of {thing}?|what is the symbol for {thing}?|what is the boiling point of {thing}?
what is {thing} made of?
if I have {big} {thing}s and lose one, how many are left?|why does {thing} smell?|which {thing} is the best?
are {thing}s dangerous?
{gibberish}|{gibberish} {gibberish}|{gibberish}?|what is {gibberish} of {gibberish}?|{keys}|{salad}|{salad}?|{salad}.
{salad}
def {gibberish}(x): return x|print("{gibberish}")|SELECT * FROM {gibberish}|import {gibberish}
http://www.{gibberish}.com|{keys} {keys}
wie ist das Wetter heute?|was ist ein {gibberish}?|qui est {person}?|que es {gibberish}?|quelle heure est-il?
wer ist {person}?
como estas?|wo liegt {place}?|dove si trova {place}?|kannst du mir helfen?|je ne comprends pas|what does {keys} mean?
{year}|{big}
how do I [clean/buy/sell/build/paint/open/wash/store/choose/feed/train/cook/fix/cut/carry/move/hide/find] [a/the/
my] {thing}?
[why/when/how/where] [does/did/will/can/should] [a/the/my/this] {thing} [fly/sleep/break/work/grow/run/stop/eat/smell/
move/fall]?
[can/could/should/may] [I/we/you/my dog/children] [eat/drink/buy/keep/touch/have/use/take/see] [a/the/this] {thing}?
how [many/much] [grams/legs/teeth/kinds/people/money/water/sugar/energy] [are in/are on/has/does it take for] [a/the/
one] {thing}?
what is the [weight/price/age/colour/size/height/taste/name/length/cost/power/purpose/history/origin/speed] of [a/the/
my] {thing}?
how [fast/big/old/heavy/long/tall/deep/hot/cold/far/expensive/strong/dangerous] is [a/the/my/this/that] {thing}?
who [made/invented/found/owns/sold/painted/broke/discovered] [the/this/my] {thing}?
which {thing} is [cheapest/fastest/biggest]?
[tell/write/read/sing/give] me a [joke/poem/song/story/riddle/rhyme/secret] about [a/the/my] {thing}
[the/a/my] {thing} and {other}
[my/the/this/your] {thing} [is broken/is lost/does not work/is too big/is blue/smells/makes noise/is gone/was stolen]
I [love/hate/need/want/lost/found/bought/sold/broke/see/miss] [a/the/my/this] {thing}
where [is/are] [my/the/your] {thing}?
what [did/does/will/would] {person} [say/eat/think/do/write/invent/like] [about {thing}/today/in {year}/next]?
[when/where/why/how] did {person} [die/live/marry/write/win/learn/work]?
what is the best way to [cook/fix/learn/use/find] {thing}?
what [food/music/money/religion/sport/car] do [people/most people/the people] [eat/like/use/have/prefer] in {known}?
how [many/much] [people/lakes/islands/rivers/schools/dogs/trees] [are in/has/live in] {known}?
how [old/big/rich/cold] is {known}?
[who/when/why/how] [started/won/lost/ended] {event}?
[can/should/will] [I/we/you] [help/talk about/think about/plan] {subject}?
[when/where/how] [can/should/will] I [see/meet/visit] {person}?|[is/was] {person} [rich/dead/old/nice/married/famous]?
"""

_HELD_TEMPLATES = """
what do you know about {person}?|in which year was {person} born?|is {person} still alive?
what is the most famous work of {person}?
who took part in {event}?|in which city was {event} held in {year}?|how long did {event} last?
who came second in {event}?
what is the official language of {known}?|who governs {known} today?|how many cities are there in {known}?
is it warm in {known} now?
which money do they use in {known}?|what can I do in {known} at the weekend?|when did {known} become a republic?
how can I clean a {thing}?|what does a {thing} look like?|which {thing} should I buy?|what can I do with a {thing}?
my {thing} hurts
please write a short story about {subject}|compose a poem on {subject}|what is the best way of {subject}?
how would you explain {subject}?
can you write a script for {subject}?|I need some advice on {subject}|give me three facts about {subject}
should I worry about {subject}?
what will the weather be tomorrow?|what is the latest news?|which film should I watch?|how do I make friends?
why do people lie?
how do I change a tyre?|how many bones does a human have?|who composed the ninth symphony?|what is the speed of sound?
what is the cube root of {big}?|{gibberish} is {gibberish}|what is the distance between {known} and {place}?
who lives at the north pole?
how do I add sugar to my tea?|how do I start a fire?|is my train late?|who stole the ring?
what is the head of {known} called?
"""

HANDWRITTEN = """
how tall is mount everest?
What is the airspeed velocity of a swallow?
write a haiku about spring
Write a Python function that reverses a string.
What's the weather like in Berlin right now?
who wrote pride and prejudice?
what is the square root of 144?
how do I make scrambled eggs?
Can you recommend a good laptop?
What is the meaning of the word ubiquitous?
when did world war 2 start?
What is the largest planet in the solar system?
how many calories are in a banana?
tell me a fun fact
what's your favourite colour?
Translate good morning into Japanese.
what's the capital of Lombardy?
what is 1234 * 5678?
What is 345 + 678?
what is 87 times 93?
asdfghjkl
lorem ipsum dolor sit amet
What is a perceptron?
what is a zebra?
define serendipity
what is mitosis?
explain the theory of relativity
who is the current pope?
What is the stock price of Apple?
give me a recipe for lasagne
how long is the Nile?
What year did the Titanic sink?
is coffee bad for you?
my computer does not start
what should I wear today?
who invented the light bulb?
how many legs does a centipede have?
what happened yesterday?
Which team won last night?
why is the ocean salty?
convert 50 dollars to euros
how many miles is it to the moon?
how many furlongs are in 3 leagues?
What is the best programming language?
can pigs fly?
who was the first emperor of rome?
summarize the plot of hamlet
what is the tallest building in the world?
who is Ada Lovelace?
where can I find cheap flights to Tokyo?
how do I install numpy?
what language do they speak in Brazil?
I lost my keys
tell me a bedtime story
""".strip().splitlines()


@cache
def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.replace("\n", " ").split(",") if name.strip())


@cache
def _part(items: tuple[str, ...], held: bool) -> tuple[str, ...]:
    """Every sixth item belongs to the evaluation alone."""
    return tuple(item for index, item in enumerate(items) if (index % 6 == 5) == held)


def things(held: bool) -> tuple[str, ...]:
    """Ordinary words without a definition in the corpus."""
    return _part(_names(words.THINGS), held)


def places(held: bool) -> tuple[str, ...]:
    """Places that are no country of the corpus: regions, cities, inventions."""
    return _part(_names(words.PLACES), held)


def people(held: bool) -> tuple[str, ...]:
    """Persons, real and not."""
    return _part(_names(words.PEOPLE), held)


def gibberish(rng: random.Random) -> str:
    """A word that nobody has ever heard."""
    word = "".join(rng.choice(words.SYLLABLES) for _ in range(rng.randint(2, 4)))
    return word.capitalize() if rng.random() < 0.4 else word


def _keys(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz1234567890!?.,;#") for _ in range(rng.randint(2, 12)))


def _salad(rng: random.Random) -> str:
    return " ".join(rng.sample(words.COMMON, rng.randint(3, 8)))


@cache
def _defined() -> tuple[str, ...]:
    """Words that the corpus does define: asked about in another way, they are as unknown as any."""
    return tuple(re.sub("^(a|an|the) ", "", entry) for entry, _ in facts.table(facts.DEFINITIONS))


@cache
def templates(held: bool) -> tuple[str, ...]:
    """Wordings of questions that the model must decline."""
    return questions.templates(_HELD_TEMPLATES if held else _TEMPLATES)


def _template(rng: random.Random, held: bool) -> str:
    template = rng.choice(templates(held))
    return template if held else phrasings.expand(phrasings.loosen(template), rng)


def question(rng: random.Random, held: bool) -> str:
    """One question nobody expects a tiny model to answer."""
    subjects, events = _part(_names(words.SUBJECTS), held), _part(_names(words.EVENTS), held)
    known = _names(words.KNOWN_PLACES)
    nouns = things(held) if rng.random() < 0.65 else _defined()
    return _template(rng, held).format(
        person=rng.choice(people(held)),
        event=rng.choice(events),
        known=rng.choice(known),
        place=rng.choice(places(held)),
        subject=rng.choice(subjects),
        thing=rng.choice(nouns),
        other=rng.choice(nouns),
        year=rng.randint(1000, 2030),
        big=rng.randint(21, 9999),
        gibberish=gibberish(rng),
        keys=_keys(rng),
        salad=_salad(rng),
    )
