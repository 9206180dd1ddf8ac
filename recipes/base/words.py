"""Word bank: common English words, names and syllables, hand-written for the generator."""

from __future__ import annotations

NOUNS = """
anchor apple arch arrow ash attic autumn bank barn basin bay beach bear bell bench birch bird blade blossom
boat bone book border bottle branch breeze brick bridge brook bucket bullet butter cabin candle canvas canyon
captain card castle cedar chain chair chapel charm cherry circle city clay cliff clock cloud clover coal coast
coin comet compass copper coral cotton cove crane creek crest cricket crow crown crystal current curtain dawn
daughter day desert diamond dolphin door dove dragon dream dust eagle earth echo edge ember empire engine
evening eye falcon farm feather fence fern field fig fire fish flag flame flint flood floor flower fog forest
fork fortune fountain fox frost garden gate ghost giant glacier glass globe glory goat gold grain grape grass
grove guard guitar hammer harbour harvest hat hawk hazel heart hearth heather hedge hill hive hollow home honey
horizon horn horse hour house hunter ice ink iron island ivory ivy jacket jar jewel journey judge jungle kettle
key king kite kitchen knife knot ladder lady lake lamb lamp lantern lark laurel leaf legend lemon letter
library light lily lime lion lock lotus machine magic magnet mango maple marble market marsh mask master meadow
memory merchant metal midnight milk mill mint mirror mist moon moose morning moss moth mountain mouse museum
music myth needle nest night nutmeg oak oasis ocean office olive onion orange orchard orchid otter owl oyster
paint palace palm panda paper park path peach pear pearl pebble pepper petal piano pigeon pillar pilot pine
pirate planet plum poet pond poppy port potato prince promise pump pumpkin puzzle quarry queen quill quilt
rabbit rain rainbow raven reef ribbon ridge ring river road robin rocket root rope rose ruby sail saint salmon
salt sand saturn scarf school sea secret seed shadow shell shepherd shield ship shore signal silk silver sister
sky sleep smoke snake snow soldier song sound soul south spark sparrow spice spider spirit spoon spring square
stable star station steam steel stone storm story stranger straw stream street summer sun swan sword table
tailor temple thistle thorn thread thunder tide tiger timber tobacco tower town trail train traveller treasure
tree trumpet tulip tunnel turtle umbrella valley velvet village vine violet voice voyage wagon wall walnut
warrior water wave west whale wheat wheel whisper widow willow wind window wing winter wizard wolf wood wool
world wren year yard zebra zenith zephyr
""".split()

ADJECTIVES = """
amber ancient azure bitter black blue bold brave bright broken brown burning busy calm careful cheerful clear
clever cold cool crimson crooked curious daring dark deep distant double dry dusty eager early eastern electric
elegant empty endless eternal faded fair faithful famous fearless fierce final first forgotten fragile free
fresh frozen full gentle gilded glass golden good grand great green grey happy hidden high hollow holy honest
humble hungry hushed icy idle infinite inner jade jolly joyful keen kind last late lazy light little lively
lonely long lost loud lucky mad magic mellow merry mighty misty modern moonlit mute mystic narrow nervous new
nimble noble northern odd old open outer pale patient perfect pink plain polite proud pure purple quick quiet
rapid rare red restless rich rising roaring rough round royal rusty sacred sad scarlet second secret serene
sharp shining short silent silver simple sleepy slow small smooth soft solar solid southern sparkling spicy
steady stormy strange strong sunny sweet swift tall tame tender thin third tiny true twin upper vast velvet
violet vivid wandering warm western white wicked wide wild winding wise wooden young zesty
""".split()

VERBS = """
answer arrange ask bake become begin believe borrow break breathe bring build buy call carry catch change chase
choose climb close collect cook count cross dance decide deliver discover draw drive eat enter escape explore
fall feel fight find finish fly follow forget forgive gather give grow guess hear help hide hold hope hunt hurry
imagine invent join jump keep know laugh lead learn leave lift listen look lose love make meet mend miss move
open order paint pay plant play pray print pull push reach read remember rest return ride rise run sail save
search see sell send share shine sing sit sleep speak spend stand start stay steal study swim take teach tell
think throw touch travel trust try turn visit wait wake walk want wash watch wear win wish wonder work write
""".split()

FIRST_NAMES = """
Aaron Abigail Adam Adele Agnes Ahmed Aiko Alan Albert Alejandra Alexei Alice Amara Amina Amy Ana Andrea Andrew
Angela Anita Anna Anton Arjun Arthur Astrid Ayesha Barbara Beatrice Ben Bernard Bianca Björn Boris Brenda Brian
Bruno Callum Camila Carl Carlos Carmen Caroline Cecilia Charles Chen Chiara Chloé Chris Claire Clara Colin
Connor Dana Daniel David Deborah Deepak Diana Diego Dmitri Dora Dylan Edith Eduardo Edward Eileen Elena Eli
Elias Elif Elizabeth Ella Emeka Emily Emma Enrique Eric Erin Esther Ethan Eva Farah Fatima Felix Fiona Florence
Frances Francisco Frank Freya Gabriel Gareth George Gina Giulia Grace Graham Greta Guadalupe Hana Hannah Harry
Hassan Heather Helen Henrik Hiro Hugo Ian Ibrahim Ida Ingrid Irene Iris Isaac Isabel Ivan Jack Jacob James Jamila
Jan Jane Jasmine Javier Jean Jens Jin João Joel John Jonas José Joseph Joy Juan Julia Kai Karen Karim Kate Keiko
Kevin Khalid Kiran Kofi Kwame Lars Laura Layla Lea Leo Leila Liam Lily Linda Liu Lorenzo Louise Lucas Lucia Luis
Lukas Mads Magda Malik Marco Margaret Maria Marie Mark Marta Martin Mary Mateo Maya Mei Michael Miguel Mina
Mohammed Monica Nadia Naomi Natalia Neil Nia Nicholas Nikolai Nina Noah Nora Olga Oliver Olivia Omar Oscar Otto
Pablo Patricia Paul Pedro Peter Petra Philip Pierre Priya Rachel Rafael Rahul Raj Ravi Rebecca René Ricardo
Richard Rita Robert Rohan Rosa Ruth Ryan Saanvi Salma Sam Samuel Sana Sandra Sara Sean Sergei Simon Sofia Søren
Stefan Stella Stephen Sunil Susan Sven Tamara Tara Tariq Teresa Theo Thomas Tim Tomás Uma Valentina Vera Victor
Vikram Vincent Wei William Xavier Yara Yuki Yusuf Zara Zoë
""".split()

SURNAMES = """
Abbott Adeyemi Ahmed Allen Alvarez Andersson Archer Bailey Baker Banerjee Barnes Becker Bell Bennett Berg Bianchi
Bishop Blake Bond Boyle Bradley Brown Burke Burns Butler Campbell Carter Castillo Chandra Chang Chapman Chen Clark
Cohen Cole Collins Costa Cox Cruz Da Silva Dahl Davies Delgado Díaz Diallo Dixon Dubois Duncan Edwards Ellis Evans
Farrell Fernández Ferrari Fischer Fisher Fleming Ford Foster Fox Fraser Fuchs Fuller García Gibson Gomez Graham
Grant Gray Greene Griffin Gupta Hall Hansen Harper Harris Hayes Henderson Hernández Hoffmann Holmes Hughes Hussain
Ibrahim Ishikawa Ivanov Jackson Jansen Jenkins Jensen Johnson Jones Kapoor Kaur Keller Kelly Khan Kim King Klein
Kowalski Kumar Larsen Laurent Lee Lewis Li Lindqvist Lopez Lund MacDonald Mahmoud Marino Marsh Martin Martínez
Mason Mbeki McCarthy McKenzie Mehta Mendes Meyer Miller Mitchell Molina Moore Morales Moreau Morgan Morris Müller
Murphy Murray Nakamura Nelson Nguyen Nilsson Novak Nowak O'Brien O'Connor O'Neill Okafor Okoye Olsen Ortiz Osei
Owens Palmer Park Parker Patel Pearson Perez Petrov Phillips Popov Porter Price Quinn Ramirez Rao Reed Reid Reyes
Richards Rivera Roberts Robinson Rodríguez Romano Rossi Russo Ryan Saito Salazar Sánchez Santos Sato Schmidt Schneider
Scott Shah Sharma Shaw Silva Simmons Singh Smith Sokolov Stewart Stone Suzuki Tanaka Taylor Thomas Thompson Torres
Tran Tucker Turner Usman Vargas Vasquez Vogel Wagner Walker Wallace Wang Ward Watanabe Watson Weaver Weber White
Williams Wilson Wolf Wong Wood Wright Wu Yamamoto Yang Yilmaz Young Zhang Zimmermann
""".split()

CITIES = """
Aarhus Aberdeen Accra Adelaide Alicante Amsterdam Ankara Antwerp Athens Atlanta Auckland Austin Baltimore Bangkok
Barcelona Basel Bath Belfast Belgrade Bergen Berlin Bilbao Birmingham Bogotá Bologna Bordeaux Boston Bratislava
Brighton Brisbane Bristol Brussels Bucharest Budapest Cairo Calgary Cambridge Canberra Cardiff Chennai Chicago
Cologne Copenhagen Cork Dakar Dallas Delhi Denver Derby Detroit Dresden Dubai Dublin Dundee Durham Edinburgh
Exeter Florence Frankfurt Gdańsk Geneva Genoa Ghent Glasgow Gothenburg Granada Graz Hamburg Hanoi Havana Helsinki
Houston Innsbruck Istanbul Jakarta Johannesburg Karachi Kraków Kyoto Lagos Lausanne Leeds Leicester Leipzig Lille
Lima Lisbon Liverpool Ljubljana London Lucerne Lyon Madrid Malmö Manchester Manila Marseille Melbourne Memphis
Miami Milan Minneapolis Montréal Moscow Mumbai Munich Nairobi Nantes Naples Newcastle Nice Norwich Nottingham
Oakland Odesa Orlando Osaka Oslo Ottawa Oxford Palermo Paris Perth Philadelphia Phoenix Pisa Porto Portland Prague
Quito Reykjavík Riga Rome Rotterdam Salzburg Santiago Seattle Seoul Seville Sheffield Singapore Sofia Stockholm
Stuttgart Swansea Sydney Tallinn Tampa Tokyo Toronto Toulouse Trieste Tunis Turin Utrecht Valencia Vancouver Venice
Verona Vienna Vilnius Warsaw Wellington Winnipeg York Zagreb Zürich
""".split()

COUNTRIES = (
    "Argentina Australia Austria Belgium Brazil Bulgaria Canada Chile China Colombia Croatia Cuba Denmark Egypt"
    " Estonia Ethiopia Finland France Georgia Germany Ghana Greece Hungary Iceland India Indonesia Ireland Israel"
    " Italy Jamaica Japan Jordan Kenya Latvia Lebanon Malaysia Mexico Morocco Nepal Netherlands Nigeria Norway"
    " Pakistan Panama Peru Poland Portugal Romania Scotland Senegal Serbia Slovakia Slovenia Spain Sweden Thailand"
    " Tunisia Turkey Uganda Ukraine Uruguay Vietnam Wales"
).split()

# Syllables for made-up words: onset + nucleus + coda.
ONSETS = "b br c ch cl d dr f fl g gl gr h j k kr l m n p ph pl pr qu r s sh sk sl sp st t th tr v w x y z".split()
NUCLEI = "a e i o u a e i o u ai ea ee ia io oo ou y".split()
CODAS = ["", "", "", "", "n", "r", "l", "s", "t", "m", "nd", "rk", "x", "ck", "th", "st", "ng", "z", "d"]

COMPANY_TAILS = """
Inc.|Ltd|Ltd.|GmbH|LLC|Group|& Co.|& Sons|Studios|Labs|Partners|Media|Works|Systems|Solutions|Industries|
Holdings|Brothers|Press|Foods|Logistics|Energy|Software|Technologies|Productions|Pictures|Records|Motors|
Interactive|International|Bank|Health|Collective|Agency|Foundation|Trust|Airways|Networks|Design|Publishing|North|
Entertainment|House|Company|Corporation|Corp.|S.A.|AG|Team|Workshop|Digital|Europe|Online
""".replace("\n", "").split("|")

VENUE_TAILS = """
Inn|Hotel|House|Café|Bar|Kitchen|Hall|Centre|Lodge|Gardens|Arms|Tavern|Bistro|Grill|Lounge|Plaza|Court|Manor|
Theatre|Museum|Gallery|Clinic|Stadium|Arena|Market|Park|Point|Place|Palace|Villa|Rooms|Corner|Deli|Diner
""".replace("\n", "").split("|")

STREETS = "Street|Road|Avenue|Lane|Drive|Close|Square|Way|St|Rd|Ave|Boulevard|Terrace|Crescent|Hill|Row".split("|")

PLACE_TAILS = "ton ham ville burg field ford mouth bridge wick port dale stead worth ley bury haven minster".split()

PRODUCT_TAILS = "Pro Max Plus Mini Air Lite Ultra Go One Neo Sport GT S X Z II III SE Classic Prime Duo Edge".split()

MONTHS = "January February March April May June July August September October November December".split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    " seventeen eighteen nineteen twenty"
).split()
ROMAN = "II III IV V VI VII VIII IX X XI XII XIII XIV".split()
COLOURS = "red blue green black white silver grey yellow orange purple pink brown beige navy turquoise gold".split()
