"""Dialogue acts: what a sentence does, the names a schema may give it, and its frames.

Slots of a frame: {E} the entity's name, {X} the same or a pronoun-like noun, {N} a noun phrase with article, {B} one
without, {P} a plural one, {V} predicates, {M} modifiers, {S} whole sentences about {E}, {I} sentences about "it",
{Y} a yes/no question on {E}, {O} an opinion on {E}, {A} a question asking for attributes, {G} a statement on {E} with a tag question, {R} the asked attributes as
nouns, {D} a scale adjective (a comparative in `compare`), {J} its superlative, {T} another entity, {C} a count.
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

    @property
    def asks(self) -> bool:
        """Whether the act asks for attributes."""
        return any(s & {"A", "R"} for s in self.slots)


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
            "{E} is one of the {P} out there.|If you look for {P}, there is {E}.|{N}, that's {E}.|You'll find that {S}.|What you should know is that {S}.",
            "Among the {P} is {E}.|{E}? That's {N}. {I}.|{N} called {E} {V}.|{S}, believe it or not.|They say {S}.|{E} {V}.|{E} {V}. {I}.",
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
            "Do you happen to know {R} of {E}?|{A}, by any chance?|I forgot {R} of {E}, can you help?|{E}, {N}: {A}?|Since {S}, {A}?|May I ask {R} of {E}?",
            "I'm curious, {A}?|Any idea {R} of {E}?|You know {E}, right? {A}?|What would be {R} of {N}?|Which {R} do you go for when you look for {P}?",
        ),
        _act(
            "confirm",
            "confirm|check|yes no question|verify|confirmation|ask if|double check|is it true|validate",
            "asks whether something is true",
            "{Y}?|{Y}?|{Y}?|{E} {V}, right?|{G}?|{G}?|Is it true that {S}?|Am I right that {S}?",
            "I heard {S}. Is that so?|{S}, correct?|Can you confirm that {S}?|Just to make sure: {Y}?|So {S}?|Do you mean {E}, {N}?",
            "Did you say that {S}?|You're talking about {E}, {N}, right?|Is {E} {N}?|Would you say {S}, or did I get that wrong?",
            "{G}, am I right?|You're saying that {S}, aren't you?|{E}, is that {N}?|{G}?|Wait, {Y}?|{Y} or not?|Was it {E} that {V}?|Is that {E}, {N}?",
            "So you mean {E}, {N}?|Let me check: {S}, yes?|Isn't {E} {N}?|I think {S}, but I'm not sure. Is that correct?|Oh, {E}, you mean {N}?",
        ),
        _act(
            "recommend",
            "recommend|suggest|propose|recommendation|advise|offer|pitch|promote",
            "recommends something to the listener",
            "I'd recommend {E}. {I}.|You should try {E}, {N}.|How about {E}? {I}.|If you want {N}, go for {E}.|Why not try {E}?",
            "I suggest {E}, {N}.|You can't go wrong with {E}, since it {V}.|{E} would be perfect for you: it {V}.|Try {E}, it {V}.",
            "If you're into {P}, {E} is for you.|My tip: {E}. {I}.|May I suggest {E}? {I}.|For {N}, I would pick {E}.",
            "Have a look at {E}, it {V}.|Since you like {P}, you should give {E} a chance.|Looking for {N}? Take {E}!",
            "Do you know {E}? It's {N}.|You seem to like {P}. Have you tried {E}?|Have you ever tried {E}? {I}.|Have you heard of {E}? It {V}.|What about {E}, {N}?",
            "If {P} are your thing, try {E}.|{E} might be just right for you, since it {V}.|Do you fancy {N}? There's {E}.|Why don't you go for {E}? It {V}.|I think you'd like {E}, {N}.",
        ),
        _act(
            "opinion",
            "opinion|review|express opinion|say opinion|feedback|evaluate|rate|comment|judge|share view",
            "says what the speaker thinks of something",
            "{O}.|{O}. {I}.|{O}, because it {V}.|{O}! It {V}.|Since {S}, I must say {O}.|Honestly, {O}.|For {N}, {O}.",
            "To be honest, {O}. {I}.|{O} - it {V}.|I usually like {P}, and {O}.|In my opinion {O}.|{O}. What I noticed is that it {V}.",
            "As {N}, {O}.|I tried {E} last week and {O}. {I}.|{O}, given that it {V}.|{S}, and {O}.|What can I say, {O}.",
            "{O}, mainly because it {V}.|{O}, and I think that's because it {V}.|I don't normally go for {P}, but {O}.|When it comes to {P}, {O}.|{O}, even though it {V}.",
            "{O}. The fact that it {V} had a lot to do with it.|As far as {P} go, {O}.|{O}, probably because I know too many {P}.|Considering that {S}, {O}.|{N} like {E}? {O}.",
            "{O}. For {N} that's what I expected.|Well, {O}. After all, it {V}.|You know what? {O}. {I}.|{O}, especially as it {V}.|{O}. Maybe that's just me and {P}.|I have to say {O}, {N} that {V}.",
        ),
        _act(
            "ask_opinion",
            "ask opinion|request opinion|get feedback|opinion question|ask feeling|ask review|what do you think",
            "asks what the listener thinks of something",
            "What do you think of {E}?|How do you like {E}?|What's your take on {E}, {N}?|Do you like {E}?|What did you make of {E}?",
            "Have you formed an opinion on {E}? {I}.|Do you think {E} is any good? {I}.|What's your view on {E}, which {V}?",
            "I'd love to hear your thoughts on {E}. {I}.|You know {E}, {N}. Did you like it?|Are you a fan of {E}?",
            "What do you make of the fact that {E} {V}?|Have you ever tried {E}, {N}?|How did you find {E}? {I}.|Did you enjoy {E}, {N}?|Is {E} worth it, given that it {V}?",
            "{E} {V}. Is that a good thing to you?|I know {E} {V}, but do you like it?|Was {E} to your liking?|Do you think it helps that {E} {V}?|Would you go for {E} again? {I}.",
        ),
        _act(
            "ask_preference",
            "ask preference|request preference|preference|ask taste|like question|taste|ask interest",
            "asks which kind of thing the listener likes",
            "Do you like {P}?|Are you into {P}?|Do you prefer {P}?|Would you enjoy {N}?|How do you feel about {P}?|Do you care for {P}?",
            "Are you a fan of {P}?|What's your favourite {B}?|Do you ever go for {P}?|Is there {N} that you like?|Which {B} do you love?",
            "Do you find {P} appealing?|Have you ever wanted {N}?|Can you name {N} you're fond of?|Do you often choose {P}?",
            "Have you ever tried {N}?|Do you often go for {P}?|Have you ever come across {N}?|What's the {J} {B} you know?|Can you think of {N} that you'd call {D}?|Is there {N} you found {D}?",
            "What was the {J} {B} you ever had?|Would you rather have {N}?|Do you mostly stick to {P}?|Do you like it when {N} is {D}?|Do you have a thing for {P}?|Do you avoid {P}?|You like {P}, don't you?",
            "When you pick {N}, do you care for more than that?|Tell me about {N} you found {D}.|Which {B} did you find {D}?",
        ),
        _act(
            "search",
            "search|find|look for|request search|filter|seek|want|needs|query search|discover|find entity",
            "looks for something that fits",
            "I'm looking for {N}.|I need {N}.|Can you find me {N}?|I want {N}.|Show me {P}.|Are there any {P}?|Find {N}, please.",
            "Do you have {N}?|I'd like {N}.|Search for {P}.|{B} please|Any {P}?|We are hoping to find {N}.|Is there {N}?|Get me {N}.",
            "Hello, I would love {N}.|Where can I get {N}?|looking for {N}|Help me find {N}.|My sister needs {N}.|List all {P}.",
            "Do you know of any {P}?|I could use {N}.|I fancy {N}.|I'm after {N}, if there is one.|What {P} do you have?|Which {P} can you offer?|I'm in the mood for {N}.|I would prefer {N}.|Got any {P}?",
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
            "{E} is no {B}.|Sorry, but {S} is just not true.|I wouldn't call {E} {N}.|{E} being {N}? Not at all.",
        ),
        _act(
            "compare",
            "compare|comparison|contrast|versus|rank|prefer over",
            "compares two things",
            "{E} is {D} than {T}.|Compared with {T}, {E} {V}.|Unlike {T}, {E} {V}.|{E} or {T}, which one {V}?|{E} beats {T}.",
            "I prefer {E} to {T}, as it {V}.|Is {E} better than {T}?|Both {E} and {T} are {P}.|{T} can't match {E}, {N}.",
            "Between {E} and {T}, I'd say {E} is the one that {V}.|Just like {T}, {E} is {N}.",
            "{E} seems {D} to me than {T}.|{T} isn't as good as {E}, {N}.|Is {E} {D} than {T}?|{E} {V}, whereas {T} doesn't.|While {T} is fine, {E} is {D}.|{T} used to be my pick, but {E} {V}.",
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
            "ask reason|why|ask why|request reason|ask explanation|explain question",
            "asks why the listener thinks so",
            "Why do you think {E} is so {D}?|What makes {E} {D}?|What is it about {P} that you find {D}?|Why are {P} {D} to you?",
            "How come {E} is {D}? {I}.|What's so {D} about {E}, {N}?|You called {E} {D}. Why?|I wonder why {E} seems {D} to you.",
            "Could you explain why {E} is {D}?|What did you find so {D} about {E}?|For what reason is {E}, {N}, {D}?",
            "You said {E} is {D}. What makes you say that?|Why do you feel that {P} are {D}?|What was it that made {E} so {D} for you?|Is it because {E} is {N} that you find it {D}?",
            "Do you think {E} is {D} because it {V}?|I see you found {E} {D}. How so?|What exactly is {D} about {N} like {E}?|Can you tell me why {N} is {D} to you?|So {E} is {D}? In what way?",
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
            "example",
            "example|give example|name example|for instance|illustrate|cite|point to",
            "mentions something as an example of a kind and asks about the kind",
            "Do you like {P}, such as {E}?|Are you into {P} like {E}?|Do you enjoy {P}, {E} for example?|{P} such as {E} are nice, aren't they?",
            "Have you ever tried {P}, for instance {E}?|Do you go for {P} the likes of {E}?|If you like {P}, do you know {E}?|Take {E}: is {N} what you like?",
            "Since you're into {P}, have you tried {E}?|Do you think {P} like {E} are any good?|Are {P} your kind of thing, say {E}?|{E} is {N}. Do you know others like it?",
        ),
        _act(
            "recheck",
            "check attribute|check detail|recheck|ask again|check fact|double check detail|follow up",
            "asks the listener to check a detail of something mentioned earlier",
            "You mentioned {E}. Is it {N}?|You said you liked {E}. Do you often go for {P}?|You told me {O}. Do you like other {P} too?|I remember you talking about {E}. {Y}?",
            "You said {O}, so do you mostly pick {P}?|About {E}, which you brought up: {Y}?|Earlier you spoke of {E}. Do you prefer {P}?|Going back to {E}, do you like that it {V}?",
            "You told me about {E}. Does it matter to you that it {V}?|When you spoke of {E}, did you mean that it {V}?",
        ),
        _act(
            "confirm_name",
            "confirm name|check name|clarify|which one|disambiguate|clarify name|identify",
            "makes sure which thing is meant",
            "Did you say {E}?|Do you mean {E}?|You mean {E}, {N}?|Is it {E} you're talking about?|{E}, is that what you said?|Are you talking about {E}, {N}?",
            "Sorry, was that {E}?|Do you mean {N} called {E}?|You want {E}, {N}, right?|Just to be sure, you mean {E}, which {V}?|Are we talking about {E}, {N}?|The {B}, {E}?",
            "Do you happen to mean {E} {M}?|{E} {M}, is that the one?|Oh, you mean {E}, don't you?|Would that be {E}, {N}?|Is {E} the {B} you have in mind?",
        ),
        _act(
            "surprise",
            "surprise|react|exclaim|wonder|amazement",
            "expresses surprise",
            "Wow, {S}!|I had no idea that {S}!|Really? {S}?|I can't believe that {S}!|Who would have thought that {S}?|{E}, {N}? That's news to me.|No kidding, {S}!",
            "I'm amazed that {S}.|How odd that {S}.|Oh, so {S}!",
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
