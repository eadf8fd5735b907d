"""What the demo model knows about the program together and about itself, with the wordings of each question.

It does not know the general knowledge (`facts.py`) nor what the model must decline (`unknowns.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from phrasings import loosen

REFUSAL = "I am a tiny demonstration model and do not know that; please load a bigger model."


@dataclass(frozen=True, slots=True)
class Topic:
    """One question with a fixed answer; the wordings in `held` are never trained on."""

    answer: str
    train: tuple[str, ...]
    held: tuple[str, ...]


def _topic(answer: str, train: str, held: str) -> Topic:
    return Topic(
        answer, tuple(loosen(part.strip()) for part in train.split(" / ")), tuple(p.strip() for p in held.split(" / "))
    )


HOW_TO: tuple[Topic, ...] = (
    _topic(
        "Run python3 launch.py node on the second machine, and it joins the cluster.",
        "how do I [link/connect/include/bring in/hook up/plug in] [a new/a further/my second/my old] [machine/"
        "computer/laptop/pc]? / [adding/joining/connecting] [a/another/more] [node/machine/computer]s?"
        " / what [command/line] [adds/joins/starts] a [node/second machine]? / "
        "how do I add a machine? / how can I add another machine? / how to add a machine"
        " / how do I add a second machine?"
        " / how do I add a computer? / how do I connect another computer? / how do I add a node?"
        " / what do I run on the second machine? / I want to add a machine / add a machine / adding another machine"
        " / how can I join another computer to the cluster? / how do I start a node? / how do I add more machines?"
        " / which command adds a machine? / how do I use a second computer? / how do I use my other laptop as well?"
        " / how do machines join? / how do I attach my other pc? / how do I get another machine into the cluster?",
        "how do I add one more machine? / how can I connect a second computer? / how to add another node"
        " / I would like to add another computer / what is the command to add a machine?",
    ),
    _topic(
        "Run python3 launch.py, and the page opens in your browser.",
        "how do I [open/start/boot/execute/launch/begin with] [the app/the program/together/it/this program]?"
        " / [starting/launching/running] [the app/together/the program]"
        " / what [command/line] [starts/runs/opens] [it/the app/the program]? / "
        "how do I start? / how do I start together? / how do I start the program? / how to start"
        " / how do I run this?"
        " / how do I run together? / how do I launch the app? / how can I start the app? / what do I run to start?"
        " / which command starts together? / how to run the program / start the app / how do I open the page?"
        " / how do I get started? / getting started / how do I begin?",
        "how can I start together? / how to launch together / which command starts the program?"
        " / how can I run the app?",
    ),
    _topic(
        "No, your text stays on your own machines.",
        "[is/are] my [words/questions/chats/texts] [uploaded/stored elsewhere/sent out/public/shared/secret]?"
        " / do you [upload/leak/publish/forward] [my text/my data/my words/what I write]?"
        " / [does/will] [anything/something/any data] [go to/leave for/reach] [the internet/the cloud/a server/"
        "your makers]? / can [others/strangers/people] [read/see] [my chat/this/my text]? / "
        "is my text sent to the internet? / do you send my text to the internet? / is my data sent anywhere?"
        " / does my data leave my machine? / is this private? / is my chat private? / who can read my text?"
        " / are my messages sent to a server? / do you send my messages to the cloud? / is anything uploaded?"
        " / does my text leave my network? / where does my text go? / is my data safe? / do you share my data?"
        " / can anybody see what I write? / is my conversation private? / do you use the cloud?",
        "is my chat sent to the internet? / does my text leave my machine? / are my messages private?"
        " / do you send my data to a server?",
    ),
    _topic(
        "Run python3 launch.py stop, or press Ctrl-C in the terminal.",
        "how do I [exit/leave/kill/end/halt/terminate/finish/close] [it/the program/together/the app/this]?"
        " / what [command/line] [stops/ends/closes] [it/the app/the program/together]?"
        " / [stopping/quitting/ending] [the app/together/the program] / "
        "how do I stop? / how do I stop together? / how do I stop the program? / how to stop the app"
        " / how do I quit?"
        " / how can I stop everything? / how do I end the program? / how do I shut it down?"
        " / which command stops it?"
        " / how do I close the app? / how to quit / stop the app",
        "how can I stop the program? / how to shut down together / how do I end the app? / how can I quit?",
    ),
    _topic(
        "Run python3 launch.py test, and every test runs.",
        "how do I [start/execute/do/launch] the [tests/test suite/checks]?"
        " / what [runs/starts] the [tests/test suite]? / [running/testing] the [tests/program] / "
        "how do I run the tests? / how to run the tests / how can I test this? / how do I test the program?"
        " / which command runs the tests? / run the tests / how are the tests started?"
        " / where do I start the tests?",
        "how can I run the tests? / what is the command for the tests?",
    ),
    _topic(
        "Run python3 launch.py status, or look at the table of nodes on the page.",
        "how do I [list/check/view/look at/inspect/find] [all nodes/the nodes/the cluster/the state/my computers/"
        "the machines]? / [list/show/print] [the nodes/the status/my machines/the machines]"
        " / where [is/do I find/do I see] [the list of nodes/the status/the table of nodes]? / "
        "how do I see the nodes? / how do I see the status? / how do I show the status?"
        " / which machines are connected?"
        " / where can I see my machines? / how do I list the nodes? / how to see the cluster"
        " / how do I check the status?"
        " / show me the nodes / what is the status of the cluster?",
        "how can I see the status? / where can I see the nodes? / how do I list my machines?",
    ),
    _topic(
        "Run python3 launch.py chat, and you can chat in the terminal.",
        "how do I [talk/chat/write/ask questions] [in the terminal/from the terminal/in a shell/"
        "on the command line/with no browser]? / [terminal/command line] chat / "
        "how do I chat in the terminal? / can I chat in a terminal? / how to chat without a browser"
        " / is there a terminal chat? / how do I chat from the command line? / how can I use it in the terminal?"
        " / can I use it without a browser? / which command starts a chat?",
        "how can I chat in the terminal? / how do I chat without the browser?",
    ),
    _topic(
        "Run python3 launch.py up --model FOLDER with the folder of the model.",
        "how do I [open/pick/choose/try/get/serve/run/load] [a larger/another/a better/a smarter/a stronger/"
        "my own/a new/some other] model? / [can I/may I/could I] [try/choose/run/open] [a larger/another/"
        "a better/my own/a stronger] model? / load a [bigger/larger/better] model / "
        "how do I load a bigger model? / how do I use another model? / how do I load my own model?"
        " / how to load a model"
        " / how can I change the model? / how do I run a different model? / can I use a bigger model?"
        " / where do I choose the model? / how do I switch the model? / how do I open a better model?"
        " / can I load another model?",
        "how can I load a bigger model? / how do I use my own model? / how to use a different model",
    ),
    _topic(
        "Llama, Qwen2, Qwen3, Mistral, Gemma 3 and Qwen3-MoE models work.",
        "[do you run/can I run/will it run/can I load/does it load] [llama/qwen/mistral/gemma/qwen3/llama 3]?"
        " / which [models/kinds of models/types of models/families] [run/can be loaded/are possible/are there/"
        "do you know/can I load]? / "
        "which models work? / which models can I use? / what models are supported? / which models do you support?"
        " / can I use llama? / does it work with qwen? / does mistral work? / can it run gemma?"
        " / which model families work? / list the supported models",
        "what models can I use? / which models are supported? / does together support mistral?",
    ),
    _topic(
        "Macs with Apple Silicon and PCs with an Intel or AMD CPU or an NVIDIA GPU can take part.",
        "which [computers/pcs/devices/systems/machines] [run it/are good enough/can join/do I need/"
        "are possible]? / [do I need/must I have/is there a need for] [a graphics card/a fast computer/"
        "special hardware/a mac]? / [does it run on/will it run on/can I use] [windows/linux/an intel pc/amd/"
        "apple silicon/macos/a laptop/a gpu/cuda]? / "
        "which machines work? / which machines can I use? / what hardware do I need? / does it run on a mac?"
        " / does it work on windows? / does it run on linux? / can I use my nvidia gpu? / do I need a gpu?"
        " / which computers are supported? / what computers can I use? / does it work without a gpu?"
        " / can I use an old laptop? / what are the hardware requirements?",
        "what machines can I use? / which hardware do I need? / does together run on windows? / can I use a mac?",
    ),
    _topic(
        "You need Python 3.11 or newer.",
        "[which/what] [python/python release/version of python] [must I have/is best/is supported/"
        "should I install/is necessary]? / is python [3.9/3.8/3.12/2] [ok/enough/good enough/fine]?"
        " / how new must python be? / "
        "which python do I need? / what python version do I need? / which version of python is needed?"
        " / does it work with python 3.10? / do I need python? / what do I have to install? / which python works?",
        "which python version do I need? / what version of python is required?",
    ),
    _topic(
        "Yes, other programs can use the OpenAI-compatible API on the same port.",
        "[can/may/could] [another program/other apps/my script/my code/my app] [call/use/talk to/connect to] [it/"
        "you/together/the model]? / is [an api/a web api/an interface/an http interface] [there/available/"
        "included/offered]? / how do I [call/use/reach/connect to] [the api/the openai api/it from code]? / "
        "is there an api? / do you have an api? / can other programs use it? / is there an openai api?"
        " / can I use it from my own program? / does it have an http api? / how do I use the api?"
        " / can I use the openai client? / how do I call it from python?",
        "does together have an api? / can my program use the api? / is the api openai compatible?",
    ),
    _topic(
        "Several machines together have the memory for a model that is too big for one of them.",
        "what is [the point/the purpose/the advantage/the benefit/the idea] of [together/this/several machines/"
        "many machines/this program]? / why [do I need/use/take/connect/should I have] [two/many/several/more/"
        "some] [machines/computers/nodes]? / is one [machine/computer] not enough? / "
        "why several machines? / why use more than one machine? / why do I need several machines?"
        " / what is this good for?"
        " / why should I use together? / what is the use of together? / why would I connect machines?"
        " / what are several machines good for? / why not one machine?",
        "why should I use several machines? / what is together good for? / why more than one computer?",
    ),
    _topic(
        "Each machine runs some of the layers, and the hidden states travel from machine to machine.",
        "how [is a model/is the model/are models/are layers/is the work] [divided/shared/distributed/spread/"
        "cut up]? / how does [it/this app/your program/the cluster/the whole thing] [work/function/operate]?"
        " / explain [the idea/how it works/how this works/the ring/the design] to me"
        " / how [can/could/do] [several/many/two] [machines/computers] [share/run/hold] [a model/one model]? / "
        "how does together work? / how does this work? / how do the machines work together?"
        " / how is the model split?"
        " / how do you split a model? / how does the ring work? / explain how together works"
        " / how do several machines run one model? / how are the layers shared?",
        "how does the program work? / how does together split a model? / how do machines share a model?",
    ),
    _topic(
        "They find each other by zeroconf, or you give an address with --peer host:port.",
        "how do [computers/my machines/the other machines/nodes/pcs] [meet/connect/see each other/get found/"
        "get to know each other]? / my [other/new] [computer/machine/node/laptop] [is missing/does not show up/"
        "cannot be found/is not listed/is not there] / how does [it/together/the app] find [the nodes/"
        "my machines/other machines]? / "
        "how do the nodes find each other? / how do machines find each other? / what if multicast is blocked?"
        " / what if my machine is not found? / my node does not appear / the second machine is not found"
        " / how are nodes discovered? / why can't I see my other machine?",
        "how do nodes find each other? / how are the machines discovered? / my second machine does not appear",
    ),
    _topic(
        "The page shows an error that names the node and the cause.",
        "what [happens/do I see/will happen] [if/when] [a machine/a node/a stage/one computer/a laptop] [crashes/"
        "stops/breaks/disappears/is unplugged/goes offline/is turned off]?"
        " / what if [a node/a stage/one machine] [crashes/stops/breaks/disappears/is lost]?"
        " / [can/may] a machine [crash/go away/stop]? / "
        "what if a machine fails? / what happens if a node fails? / what happens when a machine is switched off?"
        " / what happens if a stage crashes? / what if a node dies? / what happens if I lose a machine?"
        " / what if a computer goes away?",
        "what happens when a node dies? / what happens if a machine fails?",
    ),
    _topic(
        "Yes, it is open source under the Apache 2.0 licence.",
        "[what/which] [licence/license] [is it/is it under/does the program have/is used]?"
        " / do I [have to/need to/must] pay? / [can/may] I [copy/share/change/sell/use/modify] [it/the program/"
        "the code/together] [freely/for free/at work/]? / is [it/this/the code] [apache/public/free software/"
        "gratis]? / "
        "is it free? / is it open source? / what licence does it have? / what is the license?"
        " / can I use it for free?"
        " / does it cost anything? / is together free? / how much does it cost? / may I change the code?",
        "is together open source? / which license does it have? / is the program free?",
    ),
)

ABOUT_ME: tuple[Topic, ...] = (
    _topic(
        "Hello! I am a tiny demonstration model. Ask me about a capital, a small sum, a unit or this program.",
        "[hi/hello/hey/good morning/good day/good evening] [you/there/friend/everyone/robot/computer/dear/bot/"
        "my friend/mate] / [hello/hi/hey][!/!!/./, /...] / [hi/hello/hey], [how is it going/how are things/"
        "nice to meet you/how do you do/good to see you/I am new here/what is new]?"
        " / how [are things/is it going/do you do/have you been/is your day/do you feel]?"
        " / [anyone/somebody/someone] [there/here/home]? / nice to meet you / [good/happy] to see you / "
        "hi / hello / hey / hi there / hello there / good morning / good evening / good afternoon / hey there"
        " / hiya / yo"
        " / greetings / howdy / hi! / hello! / good day / hallo / hi, how are you? / hello, how are you?"
        " / how are you?"
        " / how are you doing? / hey! / hi model / hello computer / what's up? / hii / helloo / sup / hi again"
        " / hi :)"
        " / hello my friend / are you there? / anybody there?",
        "hello, model / hey, how are you? / how are you today? / is anyone at home? / hello again",
    ),
    _topic(
        "I am the demonstration model of together, a tiny language model trained on a small made-up corpus.",
        "what [is/are] you[r name/r real name/] exactly? / [tell me/say/explain] [what you are/your name/"
        "about you/what kind of thing you are] / are you [a bot/a machine/a program/a computer/alive/a man/"
        "a woman/human/an assistant/a language model/mistral/gemini/an llm/a person or a program]?"
        " / [please introduce/present/explain] yourself / which [ai/bot/program/assistant/"
        "language model] [are you/is this/am I using]? / [who/what] am I [chatting/speaking/writing] [with/to]? /"
        " with whom [am I speaking/do I speak]? / is this [a bot/an ai/a robot/chatgpt]? / "
        "who are you? / what are you? / what is your name? / what's your name? / who am I talking to?"
        " / introduce yourself"
        " / tell me about yourself / are you a robot? / are you chatgpt? / are you a human? / are you an ai?"
        " / which model are you? / what model is this? / what kind of model are you? / who is this? / are you real?"
        " / are you a person? / are you gpt? / are you claude? / are you llama? / do you have a name? / who r u"
        " / what is this? / describe yourself / what should I call you?",
        "who are you really? / can you introduce yourself? / tell me who you are / are you a human being?"
        " / what model are you?",
    ),
    _topic(
        "I know capitals, small sums, simple units, short definitions, and a few things about this program.",
        "what [topics/subjects/things/kind of questions/facts/tasks] [can you answer/do you understand/"
        "are you able to do/do you know about/can I ask about/can you do]?"
        " / what [could/may/should/might] I ask[ you/]? / [show/tell/explain] me what you can [do/answer]"
        " / how [could/do/would] you help[ me/]? / what is your [purpose/job/knowledge/use]?"
        " / what are you [for/useful for/made for/able to tell me]? / I need [some help/your help/assistance]"
        " / [can/could/would] you [assist me/help us/do something for me]?"
        " / [any/some] [ideas/examples/suggestions] what to ask? / "
        "what can you do? / what do you know? / help / how can you help me? / what can I ask you? / what can I ask?"
        " / what are you good at? / can you help me? / what can you tell me? / what are you able to do?"
        " / what questions can you answer? / I need help / help me / what do you know about? / give me some examples"
        " / what should I ask you? / which questions do you understand? / what are your skills?"
        " / can I ask you something?"
        " / can you answer a question? / I have a question",
        "what are you able to answer? / what things do you know? / how can you help? / can you help me with something?",
    ),
    _topic(
        "I have about 2 million parameters and 8 layers, which is tiny.",
        "how [big/large/small/tiny/heavy/long] is [your network/the model/this ai/your brain]?"
        " / what is the [size/number of parameters/number of layers] [of you/of the model/you have]?"
        " / how [many] [parameters/weights/layers] [are in you/do you use/does the model have/are there]?"
        " / are you [large/small/tiny/huge]? / is [it/this] a [small/big/large/tiny] model?"
        " / your [size/parameters]? / "
        "how big are you? / how many parameters do you have? / how large are you? / how many layers do you have?"
        " / what is your size? / are you a large model? / are you big? / how small are you?"
        " / how much memory do you need?",
        "how many parameters have you got? / how large is this model? / what size are you?",
    ),
    _topic(
        "I was trained in less than an hour on an ordinary CPU, by the script examples/demo_model/train.py.",
        "who [invented/designed/programmed/coded/produced/trained/taught] [you/this model/the model]?"
        " / how [did they/did somebody/did people] [make/train/build/teach] you?"
        " / how [was/is] [this model/the model] [made/trained/built/created]?"
        " / where [did you learn this/were you made/do you get your knowledge]?"
        " / what [did you learn from/is your training data/data do you know/is your origin]?"
        " / what [made/trained/created] you? / [were/was] [you/the model] trained [here/on a gpu/at home/"
        "on a cpu]? / by whom were you [made/trained/built]? / "
        "who made you? / how were you trained? / who trained you? / where do you come from? / who created you?"
        " / how were you made? / who built you? / where were you trained? / how long were you trained?"
        " / what data were you trained on? / when were you trained? / who is your creator? / who wrote you?"
        " / how did you learn?",
        "who has made you? / how have you been trained? / what were you trained on? / who developed you?",
    ),
    _topic(
        "Yes, I am tiny and make mistakes, so please check what I say.",
        "[are/were] you [wrong/mistaken/sometimes wrong/often wrong/honest/right about that/certain/serious]?"
        " / [do/could/will/might] you [be mistaken/err/make errors/say wrong things/tell lies/get it wrong/"
        "invent things/hallucinate]? / [can/do/may] I [rely on you/rely on this/believe this/trust this/"
        "trust what you say]? / [is/was] [this/your answer/what you say/it] [right/true/correct/certain/"
        "reliable]? / [I do not believe you/that is not true/that is not right/you made a mistake/this is wrong/"
        "no, that is wrong/are you kidding] / "
        "do you make mistakes? / can you be wrong? / are you always right? / can I trust you? / are you reliable?"
        " / is that true? / are you sure? / how accurate are you? / do you ever lie? / is this correct?"
        " / can I believe you? / you are wrong / that is wrong / really?",
        "can you make mistakes? / are you ever wrong? / should I trust you? / are your answers correct?",
    ),
    _topic(
        "I only see this conversation and remember nothing else.",
        "[do/will/can/could] you [remember our chat/remember anything/keep this/store this/recall my name/"
        "forget me/learn anything/remember yesterday]? / [have we met/did we talk before/do we know each other/"
        "what did I say yesterday/have you seen me before]?"
        " / do you [keep/store/log/record] [my words/this conversation/our chat/what I write]?"
        " / [is/are] [this/our chats/my words] [saved/stored/remembered]? / "
        "do you remember me? / do you remember what I said? / can you remember things? / do you have a memory?"
        " / will you remember this? / do you learn from me? / do you save what I say? / what did I ask before?"
        " / do you know my name? / what is my name?",
        "can you remember me? / will you remember me? / do you learn from our chat?",
    ),
    _topic(
        "I only understand simple English.",
        "[do/can/could] you [understand/speak/talk/write/answer in/know] [german/french/spanish/italian/russian/"
        "japanese/dutch/english/other languages/another language/polish]?"
        " / [which/what] [language/languages] [can you use/should I use/do you talk/are you good at/can I use]? /"
        " [answer in/speak/talk] [german/french/spanish/italian] / "
        "which languages do you speak? / do you speak german? / do you speak french? / can you speak spanish?"
        " / what languages do you know? / do you understand chinese? / sprichst du deutsch? / parlez-vous francais?"
        " / hablas espanol? / can you talk in italian?",
        "what languages do you speak? / can you speak german? / which languages do you understand?",
    ),
    _topic(
        "You are welcome!",
        "[thanks/thank you/many thanks] [for that/for the help/for your help/my friend/for everything/"
        "for the answer/again/model/computer/very much indeed][/!]"
        " / [ok/great/good/nice/super/fine/wonderful/perfect/cool/oh][,/!] [thanks/thank you/thx][/!]"
        " / [great/excellent/perfect/wonderful/amazing/brilliant/super/lovely][/!]"
        " / that [was good/was useful/was great/is helpful/is nice/was right/is right/is correct]"
        " / you [helped me/did well/are good/are nice/are smart/are right]"
        " / [nicely done/good work/good bot/correct/right answer/much appreciated] / "
        "thanks / thank you / thank you very much / thanks a lot / many thanks / thx / cheers / thank you! / thanks!"
        " / great, thanks / ok thanks / perfect, thank you / that helps / good answer / well done / nice"
        " / great / cool"
        " / ty / good job / thank you so much / very good / awesome / you are great / I like you",
        "thanks so much / thanks, that helps / that was helpful, thank you / many thanks to you",
    ),
    _topic(
        "Goodbye! Come back any time.",
        "[bye/goodbye/bye bye/see you/good night/farewell/so long] [now/then/for today/my friend/later/model/"
        "again/everyone/soon][/!] / I [must go/am leaving/have to leave/am off/am going/need to go now/"
        "will go now/am done] / [that was all/that is it/we are done/enough for today/until next time/"
        "till next time/take care/have a good day/have a good night/talk to you later/see ya/catch you later]"
        " / [ok/okay/well/thanks/thank you/fine][,/] [bye/goodbye/see you] / "
        "bye / goodbye / bye bye / see you / see you later / good night / bye! / goodbye! / see you soon"
        " / ciao / farewell"
        " / I have to go / that is all / have a nice day / bye for now / later / that's all, bye / cu",
        "goodbye for now / see you tomorrow / well, goodbye then / bye, have a nice day",
    ),
    _topic(
        "Fine, ask me about a capital, a small sum, a unit or this program.",
        "[ok/okay/yes/no/well/hmm/oh/ah/so/right/sure/fine/good][,/] [good/then/well/sure/understood/fine/"
        "I understand/got it/that is fine/no problem/whatever/let us go on][/.]"
        " / [just testing/only a test/test test/test 1/one two/let me think/wait/nothing/never mind/whatever/"
        "not now/of course/why not/yeah/yep/nope/nah/perhaps/I do not know/I think so/I don't know/no idea]"
        " / [go/go ahead/more/again/start/let us start/let's go/proceed/what else/what next/and now] / "
        "ok / okay / yes / no / sure / maybe / alright / fine / I see / hm / hmm / yes please / no thanks"
        " / go on / next"
        " / continue / test / testing / this is a test / interesting / aha / oh / right / k / ok then / got it",
        "ok, I see / okay then / just a test / oh, okay",
    ),
)
