"""What surrounds the main clause: tails inside it, further sentences, lead-ins, greetings."""

from __future__ import annotations

TAILS: dict[str, str] = {
    "order": """
 whenever you get the chance => urgency=low
""",
    "ask_price": """
 delivered to my [house|door] => pickup=no
 if I collect in person => pickup=yes
 all in
 if {customer} is the buyer
""",
    "request_info": """
, booked under {customer},
""",
    "report_fault": """
 since {date}
, and it's under guarantee, => under_warranty=yes
 after barely a month
, and it's my only way to work, => urgency=high
""",
    "book_service": """
 {on_date}
, and deliver it back afterwards, => pickup=no
 at normal speed => urgency=normal
""",
    "cancel": """
 since I'm moving abroad
 as it's taking too long
""",
    "recommend": """
""",
    "ask_advice": """
, being {level},
""",
    "give_opinion": """
, to be honest,
""",
}

BUYING = "order ask_price ask_advice recommend"
OWNING = "report_fault book_service"
WORK = "order report_fault book_service"

# (functions, text). A line that starts with "^" may also come before the main clause.
EXTRAS: tuple[tuple[str, str], ...] = (
    (WORK, """
drop everything if you can => urgency=high
it's anything but a job for later => urgency=high
I'm not bothered when it's done => urgency=low
do it when things are quiet => urgency=low
^I've got another bike to ride meanwhile, so no stress => urgency=low
months from now would do => urgency=low
ordinary speed will do => urgency=normal
I expect the same wait as everyone else => urgency=normal
don't rush, but don't dawdle => urgency=normal
"""),
    ("report_fault", """
I'm off on a long tour in a few hours => urgency=high
I race in a few hours and have no spare => urgency=high
the school run depends on it => urgency=high
what am I supposed to ride to work now? I have nothing else => urgency=high
it's ridable for now, so no panic => urgency=low
I can live with it for a good while => urgency=low
I've tried tightening it myself
I hardly even ride it
"""),
    ("cancel", """
it's {customer} [speaking|here]
it was placed by {customer}
"""),
    ("order", """
please don't ship anything, I'd sooner walk over => pickup=yes
send it by courier => pickup=no
collecting is out of the question for me => pickup=no
neither a motor nor delivery is needed => electric=no; pickup=yes
no battery, no courier, I'll come to the shop => electric=no; pickup=yes
not urgent, and not for delivery either => urgency=low; pickup=yes
my limit is {price}
the price tag says {price}
put it under {customer}
^it's for {customer}
"""),
    ("book_service", """
ring me and I'll come and get it => pickup=yes
could you drop it off at mine when you're done? => pickup=no
I can't pick it up, so please have it delivered => pickup=no
ring me if it comes to more than {price}
"""),
    (OWNING, """
it's still under [warranty|guarantee] => under_warranty=yes
sadly it's no longer covered => under_warranty=no
it was second-hand and came with no guarantee => under_warranty=no
it isn't electric and it isn't covered any more either => electric=no; under_warranty=no
it's neither urgent nor covered by the warranty => under_warranty=no; urgency=low
it's a {brand}, if that matters
"""),
    ("report_fault", """
it's been like that since {date}
^it's {customer} again
"""),
    ("order ask_price ask_advice", """
not the electric one => electric=no
the electric version, to be clear => electric=yes
^I ride {size_in}
"""),
    ("ask_price", """
it would have to be posted to me => pickup=no
I can't find it on your site
^I'm on a tight budget
"""),
    ("request_info", """
I forgot to ask in the shop
^I've looked everywhere
the answer would help me a lot
"""),
    ("recommend", """
it costs {price}
take the electric one => electric=yes
don't bother with a motor => electric=no
"""),
    ("ask_advice", """
my budget is {price}
{price} is all I've got
^I'm new to all this => level=beginner
I ride most weekends, nothing serious => level=intermediate
I've got the basics down, but I'm not an expert => level=intermediate
^it's for {customer}, who is {level}
"""),
    ("give_opinion", """
I paid {price} for it
I've got the electric version => electric=yes
my name is {customer}, if you want to quote me
you can quote me on that
I've told everyone at the club
"""),
)  # fmt: skip

INTROS: dict[str, str] = {
    "order ask_price request_info ask_advice": """
I've been eyeing {the_bike}
there's {a_bike} in your window
""",
    "report_fault book_service": """
I ride {a_bike}
I bought {a_bike} from you
I'm the owner of {a_bike}
{customer} owns {a_bike}
there's {a_bike} in our club shed
my wife has {a_bike}
""",
    "give_opinion": """
I ride {a_bike}
you wanted to know how I get on with {my_bike}
""",
    "cancel": """
there's an order for {a_bike} under {customer}
""",
    "recommend": """
I've ridden {the_named} myself
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
