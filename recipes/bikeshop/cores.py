"""Main clauses, by function.

``{t}`` takes a tail; a leading ``@`` needs a sentence before it that names the bike.
"""

from __future__ import annotations

CORES: dict[str, str] = {
    "order": """
put {a_named} aside for me{t}
we'd like {a_named}{t}, please
{customer} wants {a_bike}{t}
please add {a_parts} to order {order_no}{t}
if {the_named} is still going at {price}, I'll have it
new {bare_kind} wanted{t}
get {a_kind} in for {customer}{t}
@ I'll take it{t}
@ put one aside for me{t}
""",
    "ask_price": """
price for {a_kind}{t}? => price=
could you quote me for {a_bike}{t}? => price=
I wonder what {a_named} goes for{t} => price=
is it true that {the_bike} is down to {price}?
someone told me {a_named} costs {price}, is that right?
would {price} be enough for {a_kind}{t}?
can I get {a_part} for under {price}?
any idea how much {a_part} for {my_bike} would be? => price=
{customer} is asking what {a_bike} costs{t} => price=
if I bring my own pedals, what is {the_named}{t}? => price=
@ could you send me the price{t}? => price=
""",
    "request_info": """
when can I expect {the_bike} I ordered{t}? => date=
what kind of bike is the {model}{t}? => bike_type=
is the {model} meant for the road, for gravel or for the hills? => bike_type=
who makes the {model}? => brand=
who ordered {the_bike}{t}? => customer=
what have you got from {brand}, model-wise, that's electric? => model=; electric=yes
what sizes does {the_named} come in, and is it electric? => frame_size=; electric=
tell me whether {the_named} has a motor => electric=
what bike did I order under {order_no}{t}? => model=
@ which sizes do you have it in? => frame_size=
@ who makes it? => brand=
@ does it come with a warranty? => under_warranty=
@ what sizes is it made in, and has it got a motor? => frame_size=; electric=
""",
    "report_fault": """
the {part} on {my_bike} [is squealing|is rattling|has come loose|has cracked|won't stop creaking]{t}
there's a nasty wobble in the {part} of {my_bike}{t}
{my_bike} arrived with a bent {part}
{customer} says the {part} on the {model} has failed{t}
order {order_no} turned up with a damaged {part}{t}
{my_bike}: {part} broken{t}
water has got into the {part} of {my_bike}{t}
{my_bike} won't brake properly, the rear brake cable is to blame{t} => part=rear brake cable
{my_bike} won't slow down, so the brake pads must be worn{t} => part=brake pads
I can hear a knocking from the {part} of {my_bike}{t}
@ it keeps throwing its chain{t} => part=chain
@ its {part} has come loose{t}
""",
    "book_service": """
I'd like to book {my_bike} in for a service{t}
can you service {my_bike}{t}?
could I bring {my_bike} in for a check-over{t}?
book in {a_bike}{t}
{customer} wants {a_bike} serviced{t}
I want new {part_pl} fitted to {my_bike}{t}
can you fit {a_part} to {my_bike}{t}?
can you look after {my_bike} {on_date}?
is there a slot {on_date} for {my_bike} to be serviced?
would {date} suit you for servicing {my_bike}?
please give {my_bike} a clean and a tune{t}
@ it needs a tune-up{t}
@ I'd like it checked over{t}
""",
    "cancel": """
scrap order {order_no}{t}
take {a_parts} off my order{t}
I booked {my_bike} in for {date}, but I'll have to call that off
{customer} doesn't want {the_bike} any more{t}
cancel orders {orders}{t}
stop order {order_no} before it ships{t}
@ I'd like to call it off{t}
""",
    "recommend": """
I'd [recommend|suggest] {the_named} to {level}{t}
you can't go wrong with {the_named}{t}
for {customer} I'd pick {a_bike}{t}
with {price} to spend, {a_named} is the one to get{t}
I'd put {a_part} on {a_kind} if it were mine
have you thought about {a_bike}{t}?
I always send {level} to {brand}
I'd tell anyone to buy from {brand}{t}
staff pick: {bare_named}{t}
we generally point {level} towards {the_bike}
@ it's the one I'd tell {customer} to buy
""",
    "ask_advice": """
which [bike|model] would you recommend for {level}{t}? => model=
what make is best for {a_type}{t}? => brand=
what sort of bike do I need{t}? => bike_type=
should {level} get {a_type}, and of what make? => brand=
got any tips for {level} looking for {a_kind}? => model=
{level} wants {a_kind}, which model fits? => model=
what size of {model} do you think I need? => frame_size=
the {models_or}: which one for {level}?
the {models_or}, what do you reckon for {price}?
would {a_bike} be a sensible buy for {level}?
help me find {a_kind} for {level}{t} => model=
""",
    "give_opinion": """
{the_bike} is [fantastic|superb|a dream to ride|out of this world]{t} => opinion=great
nothing I've ridden comes close to {the_named}{t} => opinion=great
{customer} is over the moon with {the_bike}{t} => opinion=great
{the_bike} isn't bad at all{t} => opinion=good
{customer} isn't sure what to make of {the_named}{t} => opinion=mixed
{customer} can't stand {the_bike}{t} => opinion=bad
{price} for {a_bike} this poor is daylight robbery => opinion=bad
one star for {the_named}{t} => opinion=bad
@ I wish I'd never bought it{t} => opinion=bad
@ it's anything but a good bike{t} => opinion=bad
""",
}
