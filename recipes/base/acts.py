"""Dialogue acts: what a sentence does, the names a schema may give it, and its frames.

Slots of a frame: {E} the entity's name, {X} the same or a pronoun-like noun, {N} a noun phrase with article, {B} one
without, {P} a plural one, {V} predicates, {M} modifiers, {S} whole sentences about {E}, {I} sentences about "it",
{Y} a yes/no question on {E}, {O} an opinion on {E}, {A} a question asking for attributes, {R} the asked attributes as
nouns, {D} a scale adjective, {T} another entity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Act:
    """One act: `names` a schema may choose from, `about` for descriptions, `frames` to say it."""

    id: str
    names: list[str]
    about: str
    frames: list[str]
    slots: list[frozenset[str]]


_SLOT = re.compile(r"\{([A-Z])\}")


def _act(act_id: str, names: str, about: str, *frames: str) -> Act:
    flat = [f.strip() for block in frames for f in block.split("|")]
    return Act(act_id, names.split("|"), about, flat, [frozenset(_SLOT.findall(f)) for f in flat])


ACTS: dict[str, Act] = {
    a.id: a
    for a in [
        _act(
            "inform",
            "inform|describe|state|tell|statement|provide info|details|present|give information|fact|introduce|assert",
            "states facts about something",
            "{S}.|{S}.|{S}.|{S}.|{S}!|{S}.|Well, {S}.|As far as I know, {S}.|FYI: {S}.|I can tell you that {S}.",
            "{E}: {B}.|{E} - {B}|Here is one: {E}. {I}.|So, {E}? {I}.|Let me tell you about {E}. {I}.|{E}, {M}.",
            "I found {E}, {N}.|There's {N} named {E}.|{N} is {E}.|We have {N}: {E}.|{E} ({B})|{S}. {I}.",
        ),
        _act(
            "request",
            "request|ask|query|question|request info|ask for|inquire|get info|ask attribute|lookup",
            "asks for the value of an attribute",
            "{A}?|{A}?|{A}?|Can you tell me {R} of {E}?|What is {R} of {E}?|I'd like to know {R} of {E}.",
            "Do you know {R} of {E}, {N}?|Tell me {R} of {E}, please.|{A}? I mean {N}.|Please give me {R} for {E}.",
            "What about {R} of {E}?|I wonder about {R} of {E}.|{A}, do you know?|Hi, {A}?|Could you check {R} of {E} for me?",
            "What {R} do you have in mind?|What {R} would you like?|Do you have any preference on {R}?|Any wishes about {R}?",
            "And {R}?|Which {R} are you after?|I need {N}. What's {R}?|For {N}, what is {R}?",
        ),
        _act(
            "confirm",
            "confirm|check|yes no question|verify|confirmation|ask if|double check|is it true|validate",
            "asks whether something is true",
            "{Y}?|{Y}?|{Y}?|{E} {V}, right?|{E} {V}, doesn't it?|Is it true that {S}?|Am I right that {S}?",
            "I heard {S}. Is that so?|{S}, correct?|Can you confirm that {S}?|Just to make sure: {Y}?|So {S}?|Do you mean {E}, {N}?",
            "Did you say that {S}?|You're talking about {E}, {N}, right?|Is {E} {N}?|Would you say {S}, or did I get that wrong?",
        ),
        _act(
            "recommend",
            "recommend|suggest|propose|recommendation|advise|offer|pitch|promote",
            "recommends something to the listener",
            "I'd recommend {E}. {I}.|You should try {E}, {N}.|How about {E}? {I}.|If you want {N}, go for {E}.|Why not try {E}?",
            "I suggest {E}, {N}.|You can't go wrong with {E}, since it {V}.|{E} would be perfect for you: it {V}.|Try {E}, it {V}.",
            "If you're into {P}, {E} is for you.|My tip: {E}. {I}.|May I suggest {E}? {I}.|For {N}, I would pick {E}.",
            "Have a look at {E}, it {V}.|Since you like {P}, you should give {E} a chance.|Looking for {N}? Take {E}!",
        ),
        _act(
            "opinion",
            "give opinion|opinion|review|express opinion|feedback|evaluate|rate|comment|judge|share view",
            "says what the speaker thinks of something",
            "{O}.|{O}. {I}.|{O}, because it {V}.|{O}! It {V}.|Since {S}, I must say {O}.|Honestly, {O}.|For {N}, {O}.",
            "To be honest, {O}. {I}.|{O} - it {V}.|I usually like {P}, and {O}.|In my opinion {O}.|{O}. What I noticed is that it {V}.",
            "As {N}, {O}.|I tried {E} last week and {O}. {I}.|{O}, given that it {V}.|{S}, and {O}.|What can I say, {O}.",
        ),
        _act(
            "ask_opinion",
            "ask opinion|request opinion|get feedback|opinion question|ask feeling|ask review|what do you think",
            "asks what the listener thinks of something",
            "What do you think of {E}?|How do you like {E}?|What's your take on {E}, {N}?|Do you like {E}?|What did you make of {E}?",
            "Have you formed an opinion on {E}? {I}.|Do you think {E} is any good? {I}.|What's your view on {E}, which {V}?",
            "I'd love to hear your thoughts on {E}. {I}.|You know {E}, {N}. Did you like it?|Are you a fan of {E}?",
        ),
        _act(
            "ask_preference",
            "ask preference|request preference|preference|ask taste|like question|taste|ask interest",
            "asks which kind of thing the listener likes",
            "Do you like {P}?|Are you into {P}?|Do you prefer {P}?|Would you enjoy {N}?|How do you feel about {P}?|Do you care for {P}?",
            "Are you a fan of {P}?|What's your favourite {B}?|Do you ever go for {P}?|Is there {N} that you like?|Which {B} do you love?",
            "Do you find {P} appealing?|Have you ever wanted {N}?|Can you name {N} you're fond of?|Do you often choose {P}?",
        ),
        _act(
            "search",
            "search|find|look for|request search|filter|seek|want|needs|query search|discover|find entity",
            "looks for something that fits",
            "I'm looking for {N}.|I need {N}.|Can you find me {N}?|I want {N}.|Show me {P}.|Are there any {P}?|Find {N}, please.",
            "Do you have {N}?|I'd like {N}.|Search for {P}.|{B} please|Any {P}?|We are hoping to find {N}.|Is there {N}?|Get me {N}.",
            "Hello, I would love {N}.|Where can I get {N}?|looking for {N}|Help me find {N}.|My sister needs {N}.|List all {P}.",
        ),
        _act(
            "book",
            "book|reserve|order|make booking|purchase|buy|schedule|sign up|register|create",
            "books or orders something",
            "I'd like to book {E}.|Please book {E}, {N}, for me.|Book me {N}: {E}.|Can I reserve {E}? I want {N}.|I'll take {E}, {N}.",
            "Reserve {E} {M}, please.|We want to book {E} {M}.|Put me down for {E} {M}.|Could you order {N} for me?",
            "I want to reserve {N}.|Go ahead and book {E}.|Make a booking for {N}.|Let's order {E} {M}.|Sign me up for {E} {M}.",
        ),
        _act(
            "cancel",
            "cancel|delete|drop|call off|remove|unbook|abort|withdraw",
            "cancels something",
            "Please cancel {E}.|Cancel {E}, {N}.|I want to cancel {N}.|I no longer need {E}.|Call off {E} {M}.|Take {E} off my list.",
            "I can't make it to {E} {M}, please cancel.|Drop {E}, the {B}.|We won't need {N} after all.|Forget about {E} {M}.",
            "Could you delete {E} {M}?|Get rid of {E}, {N}.|Kindly withdraw my request for {N}.",
        ),
        _act(
            "update",
            "update|change|modify|edit|set|amend|correct|adjust",
            "changes something",
            "Change {E}: now it {V}.|Please update {E}, it {V} now.|From now on {E} {V}.|Set {E} to {N}.|Update: {S}.",
            "Correct the entry of {E}, it {V}.|Make {E} {N}.|Please note a change: {S}.|I need to change {E} to {N}.|Edit {E}: it {V}.",
        ),
        _act(
            "complain",
            "complain|complaint|report problem|grievance|report issue|criticise|object",
            "complains about something",
            "I'm not happy with {E}. {I}.|I want to complain about {E}, {N}.|It's a shame that {S}.|I'm disappointed: {S}.",
            "There's a problem with {E}, it {V}.|Unfortunately {S}.|It bothers me that {S}.|I expected more of {E}. {I}.",
            "This is unacceptable, {S}!|Nobody told me that {S}!|Why did I pay for {E} if it {V}?",
        ),
        _act(
            "deny",
            "deny|negate|reject|contradict|disagree|disconfirm|refuse|correction",
            "denies a claim or turns an offer down",
            "No, {E} isn't {N}.|That's wrong, {E} is not {N}.|I don't want {N}.|No, it's not true that {S}.|No thanks, not {N}.",
            "I disagree that {S}.|It isn't the case that {S}.|Nope, I never said {S}.|I don't think {S}.|No way, {E} is hardly {N}.",
        ),
        _act(
            "compare",
            "compare|comparison|contrast|versus|rank|prefer over",
            "compares two things",
            "{E} is {D} than {T}.|Compared with {T}, {E} {V}.|Unlike {T}, {E} {V}.|{E} or {T}, which one {V}?|{E} beats {T}.",
            "I prefer {E} to {T}, as it {V}.|Is {E} better than {T}?|Both {E} and {T} are {P}.|{T} can't match {E}, {N}.",
            "Between {E} and {T}, I'd say {E} is the one that {V}.|Just like {T}, {E} is {N}.",
        ),
        _act(
            "count",
            "count|inform count|number of results|report count|total|results",
            "says how many things were found",
            "There are {C} {P}.|I found {C} {P}.|We have {C} {P} for you.|{C} {P} match.|I see {C} {P} in the list.",
            "You can choose from {C} {P}.|Our list has {C} {P}.|Altogether there are {C} {P}.",
        ),
        _act(
            "not_found",
            "not found|no match|no result|no offer|unavailable|nothing found|inform no match",
            "says that nothing fits",
            "Sorry, there are no {P}.|I couldn't find any {P}.|Unfortunately I have no {P}.|We don't have {N}.|There isn't {N}.",
            "I'm afraid nothing matches {N}.|No {P} were found.|We are out of {P}.|My search for {N} found nothing.",
        ),
        _act(
            "ask_reason",
            "ask reason|request explanation|why|ask why|request reason|ask explanation|explain question",
            "asks why the listener thinks so",
            "Why do you think {E} is so {D}?|What makes {E} {D}?|What is it about {P} that you find {D}?|Why are {P} {D} to you?",
            "How come {E} is {D}? {I}.|What's so {D} about {E}, {N}?|You called {E} {D}. Why?|I wonder why {E} seems {D} to you.",
            "Could you explain why {E} is {D}?|What did you find so {D} about {E}?|For what reason is {E}, {N}, {D}?",
        ),
        _act(
            "remind",
            "remind|announce|notify|alert|announcement|reminder|notification",
            "reminds of or announces something",
            "Don't forget {E}, it {V}.|Remember that {S}.|Attention: {S}.|Reminder: {S}.|Good news! {S}.|Just announced: {S}.",
            "Please keep in mind that {S}.|Breaking: {S}.|Heads up, {S}.|Save the date for {E}: it {V}.",
        ),
        _act(
            "choose",
            "offer choice|select|choice|alternatives|either or|give options",
            "offers a choice of two",
            "Would you rather have {E} or {T}?|We have {E} and {T}, both {P}.|You can have {E} or {T}; {E} {V}.",
            "{E} or {T}?|Do you want {E}, {N}, or {T}?|Pick one: {E}, {N}, or {T}.|There is {E}, and there is {T}.",
        ),
        _act(
            "greet",
            "greet|hello|greeting|welcome|open dialogue",
            "greets",
            "Hello!|Hi there.|Good morning!|Hey, how are you?|Welcome!|Good evening.|Hi, how can I help you today?|Greetings!",
        ),
        _act(
            "thank",
            "thank|thanks|thank you|gratitude|appreciate",
            "thanks",
            "Thank you!|Thanks a lot.|Many thanks for your help.|I appreciate it.|Cheers, that was helpful.|Thanks so much!",
        ),
        _act(
            "bye",
            "goodbye|bye|farewell|close|end",
            "says goodbye",
            "Goodbye!|Bye.|See you soon.|Have a nice day!|That's all, bye.|Talk to you later.|Take care!",
        ),
    ]
}

EMPTY = ("greet", "thank", "bye")
TAIL = [
    "Thanks",
    "please",
    "thank you",
    "I hope that helps",
    "What do you say",
    "just so you know",
    "if you ask me",
]
