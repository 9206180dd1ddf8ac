"""Main clauses, by function.

``{t}`` takes a tail; a leading ``@`` needs a sentence before it that names the bike.
"""

from __future__ import annotations

CORES: dict[str, str] = {
    "order": """
I'd like to order {a_bike}{t}
can you put me down for {a_bike}{t}?
I'll take {the_named}{t}
put {a_named} aside for me{t}
we'd like {a_named}{t}, please
could you reserve {a_bike} for me{t}?
one {bare_named}{t}, please
I want to buy {a_kind}{t}
decided at last: I'm going for {the_named}{t}
{customer} wants {a_bike}{t}
{customer} would like {a_named} ordered in{t}
customer order: {bare_named}{t}
let's go with {the_named}, not the {xmodel}
I'm after {a_part}{t}; could you order it in?
[please send for|do order] {a_parts}{t}
I need {a_parts} for {my_bike}{t}
can I get {n_parts}{t}?
{a_part} for {my_bike}, please
could you get hold of {a_parts}{t}?
I was going to get the {xmodel} but I'll have {the_named} instead{t}
make that {a_named} rather than the {xmodel}{t}
I'd like the {model} in {xsize} - sorry, {size_in}{t}
the {xmodel} for me - no, hang on, the {model}{t}
put the {model} in {xsize} on my account; actually, make it {size_in}
please add {a_parts} to order {order_no}{t}
could order {order_no} also include {a_parts}?
my wife has her heart set on {the_named}, so please order one{t}
two of the {model}, in {sizes}{t}, please
the {model} for each of us, please: {sizes}
we'll have the {models} for the hire fleet{t}
I'm happy to pay {price} for {a_bike}, so go ahead and order it
if {the_named} is still going at {price}, I'll have it
not the {xmodel}: what I'm buying is the {model}{t}
what I'd like to buy is {a_kind}{t}
new {bare_kind} wanted{t}
[wanted|needed]: {n_parts}{t}
can {titled} have {a_bike} set aside{t}?
{titled} rang to order {a_named}{t}
go on then, order me {the_named}{t}
would you order {a_part} to fit {my_bike}{t}?
no {xbrand} for me this time, I'm buying {a_named}{t}
I tried a {xmodel} at a rival's, but it's {the_named} I want to buy{t}
get {a_kind} in for {customer}{t}
@ I'll take it{t}
@ please order it{t}
@ put one aside for me{t}
@ that's the one I'd like to buy{t}
@ go ahead and reserve it{t}
""",
    "ask_price": """
how much is {the_bike}? => price=
what does {the_named} cost? => price=
what would {a_part} set me back? => price=
how much for {a_parts}? => price=
[what's the price of|what are you asking for] {the_named}{t}? => price=
price for {a_kind}{t}? => price=
could you quote me for {a_bike}{t}? => price=
what do you charge for {n_parts}? => price=
roughly what would I pay for {a_kind}{t}? => price=
I wonder what {a_named} goes for{t} => price=
is {the_named} still {price}?
do you really want {price} for {the_named}?
is it true that {the_bike} is down to {price}?
someone told me {a_named} costs {price}, is that right?
would {price} be enough for {a_kind}{t}?
the site says {price} for {the_named}, does that still hold?
can I get {a_part} for under {price}?
how does the price of the {models_two} compare? => price=
what do the {models} cost? => price=
which costs less, the {models_or}? => price=
the {xmodel} was out of reach, so what's {the_named}{t}? => price=
any idea how much {a_part} for {my_bike} would be? => price=
[ballpark figure|rough price] for {a_bike}{t}, please => price=
is {the_named} any dearer than the {xmodel}, and what does it cost? => price=
is {the_named} still {price} or has it gone back up?
{customer} is asking what {a_bike} costs{t} => price=
{titled} would like a price on {a_named}{t} => price=
I need to know what {a_parts} come to{t} => price=
how many pounds do I need for {a_named}? => price=
please let me have your best price on {the_named}{t} => price=
cost of {a_part} fitted to {my_bike}? => price=
if I bring my own pedals, what is {the_named}{t}? => price=
I'm told the {xmodel} is {xprice}; what about {the_named}{t}? => price=
are you charging {price} or less for {a_named}?
what's the damage for {a_bike}{t}? => price=
not the {xmodel}, the {model}: how much? => price=
tell me the price of {the_kind} in the window => price=
surely {the_bike} isn't {price}?
a {xbrand} dealer quoted me {xprice}; what would you charge for {a_kind}{t}? => price=
@ how much is it{t}? => price=
@ what are you asking for it? => price=
@ is it really {price}?
@ what would it cost me{t}? => price=
@ does it still cost {price}?
@ could you send me the price{t}? => price=
""",
    "request_info": """
what [frame sizes|sizes] does {the_named} come in? => frame_size=
which sizes have you got {the_bike} in? => frame_size=
is {the_named} electric? => electric=
does {the_named} have a motor{t}? => electric=
{the_named} isn't electric, is it? => electric=
does {the_bike} run on a battery or on legs alone? => electric=
when will order {order_no} [arrive|get here|be ready]? => date=
when can I expect {the_bike} I ordered{t}? => date=
what's the delivery date for {the_named}{t}? => date=
any news on when {a_part} will come in{t}? => date=
is {my_bike} still under warranty? => under_warranty=
does the guarantee on {my_bike} still run? => under_warranty=
would {a_part} on {my_bike} be covered by the guarantee? => under_warranty=
can I collect order {order_no} myself, or do you post it? => pickup=
is {the_named} for collection only{t}? => pickup=
what kind of bike is the {model}{t}? => bike_type=
is the {model} meant for the road, for gravel or for the hills? => bike_type=
who makes the {model}? => brand=
which brand is the {model} from? => brand=
what was my order number for {the_bike}{t}? => order_no=
I've lost the order number for {a_named}{t}, what was it? => order_no=
whose name is order {order_no} under? => customer=
who ordered {the_bike}{t}? => customer=
what level of rider is {the_named} meant for? => level=
is {the_bike} aimed at beginners or at old hands? => level=
which parts are on order {order_no}{t}? => part=
what still has to be replaced on {my_bike}? => part=
which models does {brand} make? => model=
which {brand} models come in {size_in}? => model=
what {brand} bikes suit {level}? => model=
what have you got from {brand}, model-wise, that's electric? => model=; electric=yes
what sizes does {the_named} come in, and is it electric? => frame_size=; electric=
who makes the {model}, and in which sizes? => brand=; frame_size=
when is {my_bike} ready, and can you deliver it? => date=; pickup=
is {my_bike} covered, and if so when can you get {a_part}? => date=; under_warranty=
what date is the service of {my_bike} booked for{t}? => date=
I'd like to know what sizes there are of {the_bike} => frame_size=
tell me whether {the_named} has a motor => electric=
please check the due date of order {order_no}{t} => date=
{customer} wants to know if {the_bike} is electric => electric=
{customer} is asking when order {order_no} turns up => date=
{titled} can't remember which sizes {the_named} comes in => frame_size=
not the {xmodel}, the {model}: which brand is that? => brand=
unlike the {xmodel}, does {the_named} come without a motor? => electric=
is the {model} a {xbrand} or what? => brand=
do you need my order number for {the_bike}, and what is it? => order_no=
what bike did I order under {order_no}{t}? => model=
@ which sizes do you have it in? => frame_size=
@ is it electric? => electric=
@ who makes it? => brand=
@ is it built for novices or for racers? => level=
@ can it be picked up from you{t}? => pickup=
@ does it come with a warranty? => under_warranty=
@ what sizes is it made in, and has it got a motor? => frame_size=; electric=
""",
    "report_fault": """
the {part} on {my_bike} [is squealing|is rattling|has come loose|has cracked|won't stop creaking]{t}
{my_bike} has a problem with the {part}{t}
the {parts} on {my_bike} are [shot|falling apart|making a dreadful noise]{t}
something's wrong with the {part} of {my_bike}{t}
my {part} [snapped|has given up|has started slipping|keeps jamming]{t}
there's a nasty wobble in the {part} of {my_bike}{t}
{my_bike} arrived with a bent {part}
the {part} and nothing else is broken on {my_bike}{t}
not the {xpart}, the {part}: that's what is loose on {my_bike}
I thought it was the {xpart}, but it turns out the {part} on {my_bike} is cracked{t}
{my_bike} makes a grinding sound whenever I pedal{t}
{my_bike} keeps veering to one side{t}
{a_bike} I bought from you won't hold its gears{t}
{customer} says the {part} on the {model} has failed{t}
{customer} reports trouble with the {parts} on {a_bike}{t}
{titled} has brought in {a_bike} with a cracked {part}
it isn't the {xpart}, it must be the {part}: {my_bike} clunks on every hill
have you seen the {part} on {my_bike}? It's hanging off
why does the {part} on {my_bike} click at every turn?
the {part} went bang {on_date} and {my_bike} hasn't moved since
{on_date}, the {part} on {my_bike} broke
it was fine until {date}, when the {part} on {my_bike} went
order {order_no} turned up with a damaged {part}{t}
the {bare_named} from order {order_no} has a faulty {part}{t}
{my_bike}: {part} broken{t}
faulty {part}, {bare_named}{t}
workshop note: {bare_bike}, {part} seized{t}
I can't shift properly on {my_bike}, it's the rear mech{t} => part=rear mech
water has got into the {part} of {my_bike}{t}
what's up with the {part} on {my_bike}? It keeps slipping
both of you were right, the {part} on {my_bike} is cracked{t}
my friend {friend} broke the {part} on {my_bike}{t}
the {part} on {my_bike} is worse than the one on my old {xbrand} ever was: it's about to fall apart
I've fixed the {xpart} myself, but the {part} of {my_bike} is grinding{t}
{my_bike} won't brake properly, the rear brake cable is to blame{t} => part=rear brake cable
{my_bike} won't slow down, so the brake pads must be worn{t} => part=brake pads
I can hear a knocking from the {part} of {my_bike}{t}
help, the {part} fell off {my_bike}!
the {models_two} in the hire fleet both have worn tyres{t} => part=tyres
@ the {part} is rattling like mad{t}
@ the {parts} don't work any more{t}
@ it keeps throwing its chain{t} => part=chain
@ the {part} has been squeaking since {date}
@ its {part} has come loose{t}
@ its {part} snapped{t}
""",
    "book_service": """
I'd like to book {my_bike} in for a service{t}
can you service {my_bike}{t}?
could I bring {my_bike} in for a check-over{t}?
please book {my_bike} in{t}
{my_bike} needs a [full service|tune-up|once-over|yearly service]{t}
any chance of a service slot for {my_bike}{t}?
service for {my_bike}{t}, please
book in {a_bike}{t}
{customer} wants {a_bike} serviced{t}
booking for {customer}: service, {bare_bike}{t}
{titled} would like a tune-up for {a_bike}{t}
I want new {part_pl} fitted to {my_bike}{t}
can you fit {a_part} to {my_bike}{t}?
would you mind adjusting the {parts} on {my_bike}{t}?
please true the wheels of {my_bike}{t} => part=wheels
replace the {parts} on {my_bike}{t}, please
could you fit {a_parts} to {my_bike}{t}?
I need the {part} changed on {my_bike}{t}, the {xpart} is still fine
can you look after {my_bike} {on_date}?
is there a slot {on_date} for {my_bike} to be serviced?
are you free to service {my_bike} {on_date}?
would {date} suit you for servicing {my_bike}?
could you take {my_bike} in on {dates}?
any of {dates} would do for the service of {my_bike}
book {my_bike} in for {xdate} - no, make it {date}
can I bring {my_bike} {x_on_date}? Wait, sorry, I mean {on_date}, for a service
not {xdate}, {date} please for the service of {my_bike}
{my_bike} is due a service, but don't spend more than {price}{t}
I'd pay up to {price} to have {my_bike} overhauled{t}
get {my_bike} ready for the season{t}
time {my_bike} had some love in the workshop{t}
would your workshop take {a_kind} for its first service{t}?
do you also service bikes bought elsewhere? Mine is {a_bike} and I'd like it done{t}
my {xbrand} can wait, but {my_bike} needs a service{t}
we need the {models} serviced{t}
the {models_two} from the hire fleet are due a check{t}
please give {my_bike} a clean and a tune{t}
can someone swap the {part} on {my_bike} for a better one{t}?
{customer} will bring {a_bike} in for a tune-up{t}
move the service of {my_bike} from {xdate} to {date}
I'd rather bring {my_bike} in {on_date} than {x_on_date} for its service
@ could you service it{t}?
@ please book it in for a full service{t}
@ it needs a tune-up{t}
@ when you service it, please change the {part} too{t}
@ I'd like it checked over{t}
@ can I drop it off for a service {on_date}?
""",
    "cancel": """
please cancel order {order_no}{t}
I want to cancel my order for {the_bike}{t}
cancel {the_named} I ordered{t}
scrap order {order_no}{t}
I no longer need {the_bike}{t}, so please cancel
can I still [cancel|call off] order {order_no}{t}?
could you take me off the list for {the_named}{t}?
forget {the_bike} I reserved{t}
I've changed my mind about {the_bike}{t}, please don't send it
we won't be needing {a_parts} after all, cancel them
drop {a_part} from order {order_no}, please
take {a_parts} off my order{t}
call off the service for {my_bike}{t}
I can't make {date}, so cancel the service for {my_bike}
I booked {my_bike} in for {date}, but I'll have to call that off
{customer} rang to cancel {a_bike}{t}
{customer} doesn't want {the_bike} any more{t}
{titled} is cancelling order {order_no}{t}
cancellation: {bare_named}{t}
not order {xorder_no}, it's {order_no} I want cancelled
please cancel {xorder_no} - no, sorry, {order_no}{t}
keep {xorder_no} but cancel {order_no}{t}
cancel orders {orders}{t}
cancel the {models_two} we ordered{t}
leave the {xmodel} on my order, but take {the_named} off{t}
I'm having a {xmodel} instead, so cancel {the_bike}{t}
I found a {xbrand} second-hand, which means I won't need {the_bike} I ordered
please don't order {the_named} after all{t}
stop order {order_no} before it ships{t}
is it too late to cancel {the_bike}{t}?
I'd like my deposit back, I'm not going ahead with {the_named}{t}
the appointment {on_date} for {my_bike}: please strike it out
let someone else have my slot {on_date}, {my_bike} is staying at home
scratch {a_part}, I've found mine
I won't be buying {the_bike} after all{t}, sorry
no need for {a_part} any longer{t}, please cancel
we can do without the service on {date}, {my_bike} runs fine again
cancel whatever is under the name {customer}
cancel everything except the {xmodel}, which means {the_named} goes{t}
@ please cancel that{t}
@ sorry, but I don't want it any more{t}
@ can you take that off the books{t}?
@ I'd like to call it off{t}
""",
    "recommend": """
I'd [recommend|suggest] {the_named}{t}
for {level} I'd go for {the_bike}{t}
I'd [recommend|suggest] {the_named} to {level}{t}
I keep recommending {a_bike} to {customer}
you can't go wrong with {the_named}{t}
{the_named} would be right for {level}{t}
if you ask me, {the_bike} is what {customer} needs
my advice: buy {the_named}{t}
our tip for {level}: {bare_named}
tell {customer} to get {a_bike}{t}
for {customer} I'd pick {a_bike}{t}
{level} is best off with {a_kind}{t}
have a look at {the_bike}{t}
try {the_named} rather than the {xmodel}{t}
I'd steer you away from the {xmodel} and towards {the_named}{t}
forget {xbrand}, get {a_named}{t}
go for {the_named}, it's a better fit than anything from {xbrand}{t}
for {price} I'd suggest {a_bike}
with {price} to spend, {a_named} is the one to get{t}
either of the {models_two} would do nicely{t}
I'd shortlist the {models}{t}
take your pick of the {models}{t}, they'd all suit you
not {a_xtype}: for {level} I'd suggest {a_kind}
{a_kind} makes more sense for you than {a_xtype}{t}
you'd be better served by {a_kind}{t}
what you want is {a_bike}{t}
get yourself {a_part}, it makes all the difference to {a_kind}
I'd put {a_part} on {a_kind} if it were mine
why not try {the_named}{t}?
how about {a_bike}{t}?
have you thought about {a_bike}{t}?
{customer} should look at {the_bike}{t}
{titled} might like {the_named}{t}
I always send {level} to {brand}
customers ask me what to buy and I say {the_named}{t}
the {xmodel} is too much bike for {level}; take {the_named}
nothing beats {the_named} for {level}
between the {xmodel} and {the_named}, take the latter{t}
for your budget of {price}, look no further than {the_bike}
personally I'd choose {a_kind}{t}
I'd tell anyone to buy from {brand}{t}
a {type} from {brands_or} would be my suggestion{t}
if {a_xtype} feels wrong, I'd propose {a_kind}{t}
staff pick: {bare_named}{t}
we generally point {level} towards {the_bike}
@ I'd recommend it{t}
@ that's what I'd get for {level}
@ it's the one I'd tell {customer} to buy
""",
    "ask_advice": """
which [bike|model] would you recommend for {level}{t}? => model=
what should {level} ride{t}? => model=
what model would you go for with {price} to spend? => model=
which {type} would you pick{t}? => model=
which {brand} would you go for{t}? => model=
which {brand} {type} should I get{t}? => model=
what make is best for {a_type}{t}? => brand=
which brand should I look at for {a_type}{t}? => brand=
what sort of bike do I need{t}? => bike_type=
what kind of bike suits {level}{t}? => bike_type=
which type of bike would you suggest for {customer}{t}? => bike_type=
should {level} get {a_type}, and of what make? => brand=
what's a good {type} for under {price}? => model=
I'm looking for {a_type}{t}, any ideas? => model=
can you recommend {a_kind}{t}? => model=
got any tips for {level} looking for {a_kind}? => model=
{level} wants {a_kind}, which model fits? => model=
{customer} wants advice on which {type} to buy{t} => model=
{titled} is undecided about which make to buy{t} => brand=
which frame size should I take in {the_named}{t}? => frame_size=
what size of {model} do you think I need? => frame_size=
should I choose the {models_or}{t}?
the {models_or}: which one for {level}?
the {models_or}, what do you reckon for {price}?
I can't decide between the {models_two}{t}, help!
would you go for {brands_or} for {a_type}?
{brands_or}: whose {type} is the better buy{t}?
{types_or}, what would you say{t}?
I'm torn between a {types_and}{t}; what's your advice?
is {the_named} right for {level}?
would {a_bike} be a sensible buy for {level}?
is {a_kind} a good idea with a budget of {price}?
do you think {the_bike} would suit {customer}?
no {xbrand}, please, but what {type} would you suggest{t}? => model=
apart from the {xmodel}, which bike would be right for {level}? => model=
my mate loves his {xbrand}; what should I buy with {price}? => model=
I don't want {a_xtype}, so which {type} do you suggest{t}? => model=
I need help choosing {a_kind}{t} => model=
help me find {a_kind} for {level}{t} => model=
please advise {level} with {price} on which make to buy => brand=
any pointers on which model to get{t}? => model=
I haven't a clue what kind of bike to go for{t} => bike_type=
what would you buy in my place{t}? => model=
what would you put {level} on{t}? => model=
suggestions for {a_kind}{t}? => model=
what's the smartest {type} to get with {price}? => model=
I'm in the market for {a_kind}{t}, and open to suggestions => model=
@ would it be right for {level}?
@ what size should I take? => frame_size=
""",
    "give_opinion": """
{the_bike} is [fantastic|superb|a dream to ride|out of this world]{t} => opinion=great
I [absolutely love|adore|can't stop riding] {my_bike}{t} => opinion=great
{my_bike} is the best thing I've ever ridden{t} => opinion=great
I couldn't be happier with {my_bike}{t} => opinion=great
nothing I've ridden comes close to {the_named}{t} => opinion=great
{customer} is over the moon with {the_bike}{t} => opinion=great
ten out of ten for {the_named}{t} => opinion=great
I'd buy {the_named} again in a heartbeat{t} => opinion=great
{my_bike} makes my old {xbrand} feel like a tractor, what a machine => opinion=great
the {models_two} are both brilliant{t} => opinion=great
{the_named} is pretty decent{t} => opinion=good
I'm quite happy with {my_bike}{t} => opinion=good
{my_bike} does what it should{t} => opinion=good
no complaints about {the_bike}{t} => opinion=good
{the_bike} isn't bad at all{t} => opinion=good
{my_bike} is a solid buy{t} => opinion=good
{customer} is pleased enough with {the_named}{t} => opinion=good
for {price}, {the_bike} is a fair bike => opinion=good
the {part} on {my_bike} works well => opinion=good
I've got along fine with {my_bike}{t} => opinion=good
{my_bike} is comfortable but far too heavy{t} => opinion=mixed
{the_named} is quick enough, though the brakes let it down{t} => opinion=mixed
I'm in two minds about {my_bike}{t} => opinion=mixed
some days I like {my_bike}, some days I could throw it in the river => opinion=mixed
{the_bike} is a bit hit and miss{t} => opinion=mixed
{customer} isn't sure what to make of {the_named}{t} => opinion=mixed
{my_bike} climbs well and descends terribly{t} => opinion=mixed
lovely paint, awful saddle: that's {the_named} for you{t} => opinion=mixed
half of me likes {the_bike}, the other half wants a refund => opinion=mixed
I don't love {my_bike} and I don't hate it either{t} => opinion=mixed
I regret buying {my_bike}{t} => opinion=bad
{the_bike} is a heap of junk{t} => opinion=bad
I wouldn't wish {the_named} on anyone{t} => opinion=bad
{my_bike} has been one long disappointment{t} => opinion=bad
{customer} can't stand {the_bike}{t} => opinion=bad
{the_named} is nowhere near as good as my old {xmodel}, what a let-down => opinion=bad
stay away from {the_named}{t} => opinion=bad
{price} for {a_bike} this poor is daylight robbery => opinion=bad
I expected more of {brand}, this {type} is dreadful => opinion=bad
neither the {models_nor} is any good => opinion=bad
the {part} on {my_bike} is useless => opinion=bad
I can't say a single good word about {my_bike}{t} => opinion=bad
{titled} thinks {the_bike} is rubbish{t} => opinion=bad
compared with the {xmodel}, {the_named} is a marvel{t} => opinion=great
{titled} says {the_named} is perfectly all right{t} => opinion=good
one star for {the_named}{t} => opinion=bad
I have nothing but praise for {the_bike}{t} => opinion=great
@ I love every minute on it{t} => opinion=great
@ it's all right, it gets me about{t} => opinion=good
@ it's fast on the flat and hopeless everywhere else{t} => opinion=mixed
@ I wish I'd never bought it{t} => opinion=bad
@ I've had worse bikes, and I've had better ones{t} => opinion=mixed
@ it's anything but a good bike{t} => opinion=bad
@ there's little I'd change about it{t} => opinion=good
""",
}
