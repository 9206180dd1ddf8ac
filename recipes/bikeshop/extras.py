"""What surrounds the main clause: tails inside it, further sentences, lead-ins, greetings."""

from __future__ import annotations

TAILS: dict[str, str] = {
    "order": """
 for {customer}
 by {date}
 at {price}
 under the name {customer}
 for no more than {price}
, needed by {date},
 in time for {date}
, posted to my [house|flat|office], => pickup=no
, for delivery {on_date}, => pickup=no
, collecting {on_date}, => pickup=yes
, to be collected from your shop, => pickup=yes
, ideally by {date},
 on behalf of {customer}
, price {price} as agreed,
 as soon as humanly possible => urgency=high
 whenever you get the chance => urgency=low
 without any special hurry => urgency=low
""",
    "ask_price": """
 for my friend {friend}
 delivered to my [house|door] => pickup=no
 if I collect in person => pickup=yes
, shipping included, => pickup=no
 these days
 all in
 with the discount
 if {customer} is the buyer
 if you bring it round => pickup=no
 when it's picked up from the shop => pickup=yes
""",
    "request_info": """
 for {customer}
 in the name of {customer}
, booked under {customer},
, please,
 if you know
, just out of interest,
, as far as you know,
""",
    "report_fault": """
 since {date}
 again
, and it's under guarantee, => under_warranty=yes
, out of warranty of course, => under_warranty=no
 after barely a month
, fix it fast, => urgency=high
, though there's no hurry, => urgency=low
, and it's my only way to work, => urgency=high
, not that I'm in a rush, => urgency=low
 ever since {date}
 already
""",
    "book_service": """
 {on_date}
 on {dates}
 for {customer}
 by {date}
 before {date}
 under the name {customer}
 for {price} at most
 for under {price}
, and deliver it back afterwards, => pickup=no
, with me fetching it afterwards, => pickup=yes
 as a rush job => urgency=high
 at normal speed => urgency=normal
 some time when you're not busy => urgency=low
 while the warranty lasts => under_warranty=yes
 even though the guarantee has expired => under_warranty=no
 {on_date}, not {x_on_date},
""",
    "cancel": """
 for {customer}
 placed by {customer}
 under the name {customer}
 straight away => urgency=high
 this very minute => urgency=high
 when you have a moment => urgency=low
 due {on_date}
, the one for {date},
 since I'm moving abroad
 as it's taking too long
 as my {xbrand} turned out to be repairable
""",
    "recommend": """
 for {price}
 at {price}
 for {level}
 with a budget of {price}
 if you can stretch to {price}
 if there's {price} to spend
 instead of the {xmodel}
, for example,
, say,
""",
    "ask_advice": """
 for {price}
 for under {price}
 on a budget of {price}
 for {customer}
 for {level}
, being {level},
 without spending more than {price}
 to replace my {xbrand}
 as {level}
 with {price} to spend
 if the {xmodel} is out of stock
""",
    "give_opinion": """
 for {price}
 so far
 after two years of riding
, says {customer},
, speaking as {level},
 compared with my old {xbrand}
, and I've owned a {xmodel},
 by any standard
 considering it cost {price}
, to be honest,
""",
}

BUYING = "order ask_price ask_advice recommend"
OWNING = "report_fault book_service"
WORK = "order report_fault book_service"

# (functions, text). A line that starts with "^" may also come before the main clause.
EXTRAS: tuple[tuple[str, str], ...] = (
    (WORK, """
[ASAP please|as fast as you can, please] => urgency=high
^this is urgent => urgency=high
it really can't wait => urgency=high
[do|please] treat it as a priority => urgency=high
I needed it done yesterday, frankly => urgency=high
drop everything if you can => urgency=high
can you rush it? => urgency=high
^we're really up against it here => urgency=high
I'm begging you to hurry => urgency=high
every hour counts => urgency=high
the quicker the better, I'm at my wits' end => urgency=high
please don't let it sit in the queue => urgency=high
^my job as a courier hangs on it => urgency=high
without it I can't get to work, and there's no bus => urgency=high
it has to jump the queue this time => urgency=high
it's anything but a job for later => urgency=high
[no rush|no hurry|no hurry at all] => urgency=low
whenever you get round to it => urgency=low
^it can wait => urgency=low
take all the time you need => urgency=low
I'm not bothered when it's done => urgency=low
do it when things are quiet => urgency=low
^I've got another bike to ride meanwhile, so no stress => urgency=low
months from now would do => urgency=low
the bottom of the pile is fine => urgency=low
^it isn't urgent => urgency=low
nothing urgent about it => urgency=low
I won't touch a bike all winter anyway, so don't hurry => urgency=low
if other customers are pressing, let them go first => urgency=low
the usual turnaround is fine => urgency=normal
treat it like any other job => urgency=normal
[standard waiting time|the normal wait] is OK => urgency=normal
no need to jump the queue, but don't leave it till last either => urgency=normal
it's neither an emergency nor something to forget about => urgency=normal
^it's not an emergency, just put it in the normal queue => urgency=normal
ordinary speed will do => urgency=normal
no fast track needed, the standard slot is fine => urgency=normal
middling priority, I'd say => urgency=normal
I expect the same wait as everyone else => urgency=normal
don't rush, but don't dawdle => urgency=normal
"""),
    ("report_fault", """
^I'm stranded at the station => urgency=high
^I'm standing in the rain with it right now => urgency=high
I'm off on a long tour in a few hours => urgency=high
I race in a few hours and have no spare => urgency=high
the school run depends on it => urgency=high
what am I supposed to ride to work now? I have nothing else => urgency=high
it's ridable for now, so no panic => urgency=low
I can live with it for a good while => urgency=low
can someone have a look?
I've tried tightening it myself
I hardly even ride it
it's dangerous, but it stays in the shed, so any month will do => urgency=low
"""),
    ("cancel", """
please do it now, before it's packed => urgency=high
quick, before it leaves the warehouse => urgency=high
it has to be stopped this minute => urgency=high
^this is urgent => urgency=high
no rush with the refund or the rest => urgency=low
it doesn't matter when you get round to it => urgency=low
just deal with it in the normal run of things => urgency=normal
it's {customer} [speaking|here]
^{customer} here
it was under the name {customer}
it was placed by {customer}
it was meant for {date}
it was due {on_date}
I've bought a {xbrand} instead
my friend {friend} gave me theirs
the {xmodel} suits me better
sorry for the trouble
the order number is {order_no}
^order {order_no}
that's {order_no}, not {xorder_no}
"""),
    ("order", """
I'll collect it in person => pickup=yes
I'll pop in to get it => pickup=yes
no delivery needed, I live round the corner => pickup=yes
don't post it, I'll come by => pickup=yes
happy to pick everything up from the shop => pickup=yes
I'll swing by the shop {on_date} => pickup=yes
I can come and fetch it {on_date} => pickup=yes
please don't ship anything, I'd sooner walk over => pickup=yes
^click and collect for me => pickup=yes
please ship it to my place => pickup=no
I can't get to the shop, so it'll have to come to me => pickup=no
home delivery, please => pickup=no
send it by courier => pickup=no
I don't drive, so please bring it round => pickup=no
I won't be collecting it; post it to the office => pickup=no
collecting is out of the question for me => pickup=no
neither a motor nor delivery is needed => electric=no; pickup=yes
no battery, no courier, I'll come to the shop => electric=no; pickup=yes
not urgent, and not for delivery either => urgency=low; pickup=yes
it isn't for collection and it isn't in a hurry => urgency=low; pickup=no
{on_date} would be ideal
I need it by {date}
{xdate} would suit me - no, make it {date}
can it be here by {date}?
it has to arrive before {date}, not {xdate}
my limit is {price}
I'll pay {price}, not {xprice}
the price tag says {price}
it's {price} now, I saw, not {xprice} as before
put it under {customer}
^it's for {customer}
the name is {customer}
^{customer} here
my friend {friend} bought one too
my old {xbrand} was stolen
my reference is {order_no}
it's going to be ridden by {level}
^I'm {level}
"""),
    ("book_service", """
I'll fetch it when it's done => pickup=yes
I'll come for it myself afterwards => pickup=yes
no need to bring it back, I'll walk over for it => pickup=yes
ring me and I'll come and get it => pickup=yes
please bring it back to my house afterwards => pickup=no
could you drop it off at mine when you're done? => pickup=no
I can't pick it up, so please have it delivered => pickup=no
I'd want it returned by van => pickup=no
{on_date} would be ideal
any time {on_date} works
{xdate} is no good, but {date} is
^I'm free {on_date}
how about {date}?
{xdate}, no sorry, {date}
not {x_on_date}, I'm away, but {on_date}
it's for {customer}
the name is {customer}
^{customer} here
please keep it under {price}
ring me if it comes to more than {price}
last time it cost {xprice}
the {xpart} has already been done
my friend {friend} told me about your workshop
"""),
    (OWNING, """
it's still under [warranty|guarantee] => under_warranty=yes
the guarantee runs for another year => under_warranty=yes
^I take it the warranty covers this, as it hasn't run out => under_warranty=yes
I bought it weeks ago, so the guarantee applies => under_warranty=yes
the warranty is good until next year => under_warranty=yes
luckily it's still covered => under_warranty=yes
the warranty isn't over yet => under_warranty=yes
it's out of warranty => under_warranty=no
the guarantee has run out => under_warranty=no
sadly it's no longer covered => under_warranty=no
there's no warranty left on it => under_warranty=no
it was second-hand and came with no guarantee => under_warranty=no
I know I'll have to pay, the warranty is long gone => under_warranty=no
it's neither electric nor under warranty => electric=no; under_warranty=no
no motor and no guarantee on it => electric=no; under_warranty=no
it isn't electric and it isn't covered any more either => electric=no; under_warranty=no
it's electric but no longer under guarantee => electric=yes; under_warranty=no
it's neither urgent nor covered by the warranty => under_warranty=no; urgency=low
it isn't electric, though it is still covered => electric=no; under_warranty=yes
it's the electric version => electric=yes
it isn't the electric one => electric=no
mine's the one without the motor => electric=no
it's got a motor, by the way => electric=yes
it's {a_type}, by the way
it's {a_type}, not {a_xtype}
the frame is {size_in}
it's made by {brand}, not {xbrand}
it's a {brand}, if that matters
"""),
    ("report_fault", """
it started {on_date}
I noticed it {on_date}
it's been like that since {date}
it was {xdate}, no, {date} when it started
{customer} here, by the way
^it's {customer} again
I bought it on order {order_no}
the order number was {order_no}
my last bike was a {xbrand} and never did this
that never happened with the {xmodel}
"""),
    ("order ask_price ask_advice", """
not the electric one => electric=no
the one without a motor => electric=no
the electric version, to be clear => electric=yes
I want the one with the motor => electric=yes
no battery for me, thanks => electric=no
legs only, no motor => electric=no
^I do mean the e-bike version => electric=yes
nothing that needs charging => electric=no
it must have a motor, my knees are gone => electric=yes
I'm not after a motor => electric=no
size-wise I need {size_in}
the frame should be {size_in}
in {xsize}, no, {size_in}
not in {xsize} but in {size_in}
^I ride {size_in}
the size would be {size_in}
I don't want anything from {xbrand}
"""),
    ("ask_price", """
I saw it at {xbrand}'s own shop for {xprice}
my friend {friend} paid {xprice}
I'd collect it myself => pickup=yes
I'd want it delivered => pickup=no
it would have to be posted to me => pickup=no
no shipping needed, I'd come by => pickup=yes
the warranty has expired, before you ask => under_warranty=no
^{customer} here
this is {customer} [asking|writing]
the quote is for {customer}
I've only seen the {xmodel} on your site
I can't find it on your site
I'm only comparing shops for now
please answer by e-mail
^I'm on a tight budget
in a different colour it was {xprice}
"""),
    ("request_info", """
the name is {customer}
^{customer} here
I ordered it as {customer}
the order number is {order_no}
it's order {order_no}, not {xorder_no}
I couldn't find that on your site
nobody could tell me on the phone
I forgot to ask in the shop
my memory is like a sieve
^I've looked everywhere
you told me once, but I've forgotten
the answer would help me a lot
I'd rather know before the weekend rush
there's a bet on with my friend {friend}
^sorry if you get this question a lot
the {xmodel} page tells me everything, this one nothing
my friend {friend} says you'd know
^I've been wondering for weeks
"""),
    ("recommend", """
it suits {level}
it was made for {level}
I'd only sell it to {level}
you'll pay about {price}
it costs {price}
it's yours for {price}, down from {xprice}
the {xmodel} can't compete
it beats anything from {xbrand}
get the one without a motor => electric=no
take the electric one => electric=yes
go for the version with a motor, not the other one => electric=yes
don't bother with a motor => electric=no
the right size would be {size_in}
take it in {size_in}, not {xsize}
get {size_in}
"""),
    ("ask_advice", """
my budget is {price}
I don't want to go over {price}
{price} would be possible, but not {xprice}
{price} is all I've got
^I haven't ridden since school => level=beginner
^I can barely stay upright => level=beginner
it would be my first bike ever => level=beginner
I've never ridden anything before => level=beginner
^I'm new to all this => level=beginner
I'm no beginner, but no racer either => level=intermediate
I ride most weekends, nothing serious => level=intermediate
^I've been riding for a while, at an average level => level=intermediate
I've got the basics down, but I'm not an expert => level=intermediate
^I race at national level => level=expert
I've raced for ten years => level=expert
I know bikes inside out and ride flat out => level=expert
I've won a few races, so don't give me anything tame => level=expert
it's for {customer}
^it's for {customer}, who is {level}
my friend {friend} rides a {xbrand}
I've ruled out the {xmodel}
"""),
    ("give_opinion", """
I paid {price} for it
it cost me {price}
I ride it in {size_in}
I've got the electric version => electric=yes
mine is without a motor => electric=no
it isn't even electric => electric=no
the {xmodel} I had before was different
my friend {friend} rides one too
I used to ride a {xbrand}
^I'm {level}
my name is {customer}, if you want to quote me
you can quote me on that
I've told everyone at the club
"""),
)  # fmt: skip

INTROS: dict[str, str] = {
    "order ask_price request_info ask_advice": """
I've been eyeing {the_bike}
I saw {the_named} on your site
I've found {a_bike} in your catalogue
there's {a_bike} in your window
I test-rode {the_named} at your shop
I've been looking at {the_kind}, not the {xmodel}
you have {a_kind} on offer
you've got {the_named} in stock, I see
my heart is set on {the_named}
the {xmodel} wasn't for me, but I like {the_named}
I read about {the_bike} in a magazine
""",
    "report_fault book_service": """
I ride {a_bike}
I've got {a_bike}
it's about {my_bike}
I bought {a_bike} from you
I'm the owner of {a_bike}
I have {a_named}, not a {xmodel}
we spoke about {my_bike}
{customer} owns {a_bike}
I use {a_kind} every day
there's {a_bike} in our club shed
my wife has {a_bike}
""",
    "give_opinion": """
I ride {a_bike}
I've got {a_bike}
I own {a_named}, not the {xmodel}
a word about {my_bike}
I bought {a_bike} from you for {price}
I've had {a_kind} for a year now
you wanted to know how I get on with {my_bike}
last spring I treated myself to {a_bike}
""",
    "cancel": """
I ordered {a_bike} from you
I have {a_bike} on order
you're keeping {a_bike} for me
{customer} ordered {a_bike}
I put down a deposit on {the_named}
there's an order for {a_bike} under {customer}
I reserved {the_bike} for {date}
""",
    "recommend": """
you asked about {the_bike}
I've ridden {the_named} myself
we have {a_bike} in stock
there's {a_bike} from last season
the {xmodel} is nice, but so is {the_named}
you mentioned {the_named}
""",
}

OPENERS = (
    "Hi,", "Hello,", "Hi there,", "Morning!", "Good afternoon,", "Hey,", "Dear team,", "Evening all,",
    "Quick one:", "Hello again,", "Excuse me,", "Right,", "So,", "Listen,", "OK,", "Hey folks,",
    "Good morning,", "Afternoon!",
)  # fmt: skip
CLOSERS = (
    "Thanks!", "Thank you.", "Cheers.", "Ta.", "Many thanks.", "Thanks in advance.", "Much appreciated.",
    "Sorry to bother you.", "Let me know.", "Hope you can help.",
)  # fmt: skip
