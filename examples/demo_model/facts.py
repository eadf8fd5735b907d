"""The general knowledge of the demo model: countries, units, definitions and lists, as plain tables.

It does not know how a question is worded; `phrasings.py` does.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Country:
    """A country, its capital and its continent; `name` carries "the" where English needs it."""

    name: str
    capital: str
    continent: str


@dataclass(frozen=True, slots=True)
class Unit:
    """One `big` is `factor` of `small`; each side lists (singular, plural, then other spellings)."""

    big: tuple[str, ...]
    small: tuple[str, ...]
    factor: float


_COUNTRIES = {
    "Europe": """Albania=Tirana; Andorra=Andorra la Vella; Austria=Vienna; Belarus=Minsk; Belgium=Brussels;
        Bosnia and Herzegovina=Sarajevo; Bulgaria=Sofia; Croatia=Zagreb; Cyprus=Nicosia; the Czech Republic=Prague;
        Denmark=Copenhagen; Estonia=Tallinn; Finland=Helsinki; France=Paris; Germany=Berlin; Greece=Athens;
        Hungary=Budapest; Iceland=Reykjavik; Ireland=Dublin; Italy=Rome; Latvia=Riga; Liechtenstein=Vaduz;
        Lithuania=Vilnius; Luxembourg=Luxembourg; Malta=Valletta; Moldova=Chisinau; Monaco=Monaco;
        Montenegro=Podgorica; the Netherlands=Amsterdam; North Macedonia=Skopje; Norway=Oslo; Poland=Warsaw;
        Portugal=Lisbon; Romania=Bucharest; Russia=Moscow; San Marino=San Marino; Serbia=Belgrade;
        Slovakia=Bratislava; Slovenia=Ljubljana; Spain=Madrid; Sweden=Stockholm; Switzerland=Bern; Ukraine=Kyiv;
        the United Kingdom=London""",
    "Asia": """Afghanistan=Kabul; Armenia=Yerevan; Azerbaijan=Baku; Bahrain=Manama; Bangladesh=Dhaka;
        Bhutan=Thimphu; Brunei=Bandar Seri Begawan; Cambodia=Phnom Penh; China=Beijing; Georgia=Tbilisi;
        India=New Delhi; Indonesia=Jakarta; Iran=Tehran; Iraq=Baghdad; Japan=Tokyo; Jordan=Amman; Kazakhstan=Astana;
        Kuwait=Kuwait City; Kyrgyzstan=Bishkek; Laos=Vientiane; Lebanon=Beirut; Malaysia=Kuala Lumpur;
        the Maldives=Male; Mongolia=Ulaanbaatar; Myanmar=Naypyidaw; Nepal=Kathmandu; North Korea=Pyongyang;
        Oman=Muscat; Pakistan=Islamabad; the Philippines=Manila; Qatar=Doha; Saudi Arabia=Riyadh;
        Singapore=Singapore; South Korea=Seoul; Sri Lanka=Sri Jayawardenepura Kotte; Syria=Damascus;
        Tajikistan=Dushanbe; Thailand=Bangkok; Turkey=Ankara; Turkmenistan=Ashgabat;
        the United Arab Emirates=Abu Dhabi; Uzbekistan=Tashkent; Vietnam=Hanoi; Yemen=Sanaa""",
    "Africa": """Algeria=Algiers; Angola=Luanda; Benin=Porto-Novo; Botswana=Gaborone; Burkina Faso=Ouagadougou;
        Burundi=Gitega; Cameroon=Yaounde; Cape Verde=Praia; the Central African Republic=Bangui; Chad=N'Djamena;
        the Comoros=Moroni; Djibouti=Djibouti; Egypt=Cairo; Eritrea=Asmara; Eswatini=Mbabane; Ethiopia=Addis Ababa;
        Gabon=Libreville; the Gambia=Banjul; Ghana=Accra; Guinea=Conakry; Ivory Coast=Yamoussoukro; Kenya=Nairobi;
        Lesotho=Maseru; Liberia=Monrovia; Libya=Tripoli; Madagascar=Antananarivo; Malawi=Lilongwe; Mali=Bamako;
        Mauritania=Nouakchott; Mauritius=Port Louis; Morocco=Rabat; Mozambique=Maputo; Namibia=Windhoek; Niger=Niamey;
        Nigeria=Abuja; Rwanda=Kigali; Senegal=Dakar; Sierra Leone=Freetown; Somalia=Mogadishu; South Africa=Pretoria;
        South Sudan=Juba; Sudan=Khartoum; Tanzania=Dodoma; Togo=Lome; Tunisia=Tunis; Uganda=Kampala; Zambia=Lusaka;
        Zimbabwe=Harare""",
    "North America": """the Bahamas=Nassau; Barbados=Bridgetown; Belize=Belmopan; Canada=Ottawa;
        Costa Rica=San Jose; Cuba=Havana; the Dominican Republic=Santo Domingo; El Salvador=San Salvador;
        Grenada=Saint George's; Guatemala=Guatemala City; Haiti=Port-au-Prince; Honduras=Tegucigalpa;
        Jamaica=Kingston; Mexico=Mexico City; Nicaragua=Managua; Panama=Panama City;
        Trinidad and Tobago=Port of Spain; the United States=Washington""",
    "South America": """Argentina=Buenos Aires; Bolivia=Sucre; Brazil=Brasilia; Chile=Santiago; Colombia=Bogota;
        Ecuador=Quito; Guyana=Georgetown; Paraguay=Asuncion; Peru=Lima; Suriname=Paramaribo; Uruguay=Montevideo;
        Venezuela=Caracas""",
    "Oceania": """Australia=Canberra; Fiji=Suva; Kiribati=Tarawa; New Zealand=Wellington;
        Papua New Guinea=Port Moresby; Samoa=Apia; Tonga=Nuku'alofa; Vanuatu=Port Vila""",
}

ALIASES: dict[str, tuple[str, ...]] = {
    "the United States": ("the USA", "the US", "USA", "America", "the United States of America", "usa"),
    "the United Kingdom": ("the UK", "UK", "Britain", "Great Britain", "uk"),
    "the Netherlands": ("Holland", "Netherlands"),
    "the Czech Republic": ("Czechia", "Czech Republic"),
    "the United Arab Emirates": ("the UAE", "UAE"),
    "Myanmar": ("Burma",),
    "Ivory Coast": ("Cote d'Ivoire", "the Ivory Coast"),
    "Washington": ("Washington DC", "Washington, D.C."),
    "Eswatini": ("Swaziland",),
    "Turkey": ("Türkiye",),
    "Brasilia": ("Brasília",),
    "Bogota": ("Bogotá",),
    "Kyiv": ("Kiev",),
}


def countries() -> tuple[Country, ...]:
    """All countries of the table; a few whose capital is disputed or moving are left out on purpose."""
    found: list[Country] = []
    for continent, table in _COUNTRIES.items():
        for pair in table.split(";"):
            name, capital = pair.strip().split("=")
            found.append(Country(name, capital, continent))
    return tuple(found)


UNITS: tuple[Unit, ...] = (
    Unit(("kilometre", "kilometres", "km", "kilometers", "kms"), ("metre", "metres", "m", "meters"), 1000),
    Unit(("metre", "metres", "m", "meters"), ("centimetre", "centimetres", "cm", "centimeters"), 100),
    Unit(("centimetre", "centimetres", "cm", "centimeters"), ("millimetre", "millimetres", "mm", "millimeters"), 10),
    Unit(("kilogram", "kilograms", "kg", "kilos", "kgs"), ("gram", "grams", "g"), 1000),
    Unit(("tonne", "tonnes", "metric tons"), ("kilogram", "kilograms", "kg", "kilos"), 1000),
    Unit(("litre", "litres", "l", "liters"), ("millilitre", "millilitres", "ml", "milliliters"), 1000),
    Unit(("hour", "hours", "h", "hrs"), ("minute", "minutes", "min", "mins"), 60),
    Unit(("minute", "minutes", "min", "mins"), ("second", "seconds", "s", "secs"), 60),
    Unit(("day", "days"), ("hour", "hours", "hrs"), 24),
    Unit(("week", "weeks"), ("day", "days"), 7),
    Unit(("year", "years"), ("month", "months"), 12),
    Unit(("foot", "feet", "ft"), ("inch", "inches"), 12),
    Unit(("yard", "yards", "yd"), ("foot", "feet", "ft"), 3),
    Unit(("inch", "inches"), ("centimetre", "centimetres", "cm", "centimeters"), 2.54),
    Unit(("gigabyte", "gigabytes", "GB"), ("megabyte", "megabytes", "MB"), 1000),
)

CELSIUS: tuple[int, ...] = (-40, -10, 0, 5, 10, 15, 20, 25, 30, 35, 40, 50, 100)

DEFINITIONS = """
a volcano|A volcano is a mountain from which hot melted rock can come out.
an island|An island is land with water on all sides.
a river|A river is a large natural stream of water that flows to a sea or lake.
a lake|A lake is a large area of water with land around it.
an ocean|An ocean is a very large body of salt water.
a desert|A desert is a dry place where little rain falls.
a forest|A forest is a large area covered with trees.
a mountain|A mountain is a very high hill.
a glacier|A glacier is a slowly moving mass of ice.
an earthquake|An earthquake is a sudden shaking of the ground.
a planet|A planet is a large round body that moves around a star.
a star|A star is a huge ball of hot gas that gives light.
the sun|The sun is the star at the centre of our solar system.
the moon|The moon is the natural body that moves around the earth.
a galaxy|A galaxy is a huge group of stars held together by gravity.
a comet|A comet is a ball of ice and dust that moves around the sun.
an atom|An atom is the smallest part of a chemical element.
a molecule|A molecule is a group of atoms joined together.
an electron|An electron is a tiny particle with a negative charge.
gravity|Gravity is the force that pulls things towards each other.
energy|Energy is the ability to do work.
light|Light is the radiation that our eyes can see.
sound|Sound is a vibration that travels through air and that we can hear.
electricity|Electricity is the flow of electric charge.
a magnet|A magnet is a piece of metal that attracts iron.
water|Water is a clear liquid made of hydrogen and oxygen.
ice|Ice is water that is frozen.
steam|Steam is water in the form of a hot gas.
air|Air is the mix of gases that we breathe.
oxygen|Oxygen is a gas in the air that animals need to breathe.
hydrogen|Hydrogen is the lightest chemical element.
iron|Iron is a strong grey metal used to make steel.
gold|Gold is a soft yellow metal of great value.
salt|Salt is a white mineral used to season food.
sugar|Sugar is a sweet substance made from plants.
a cell|A cell is the smallest living part of a plant or an animal.
DNA|DNA is the molecule that carries the plan of a living thing.
a gene|A gene is a part of DNA that controls one trait.
a virus|A virus is a tiny agent that makes copies of itself inside living cells.
a vaccine|A vaccine is a medicine that teaches the body to fight a disease.
a fossil|A fossil is the preserved remains of an ancient living thing.
a dinosaur|A dinosaur is a kind of reptile, and most of them died out long ago.
photosynthesis|Photosynthesis is how plants make food from light, water and air.
evolution|Evolution is the slow change of living things over many generations.
a mammal|A mammal is an animal that feeds its young with milk.
a bird|A bird is an animal with feathers and wings.
a fish|A fish is an animal that lives in water and breathes with gills.
an insect|An insect is a small animal with six legs.
a reptile|A reptile is an animal with dry skin and scales.
a cat|A cat is a small furry animal that people keep as a pet.
a dog|A dog is a loyal animal that people keep as a pet.
a horse|A horse is a large animal that people ride.
a cow|A cow is a farm animal that gives milk.
an elephant|An elephant is a very large animal with a trunk.
a whale|A whale is a very large mammal that lives in the sea.
a bee|A bee is an insect that makes honey.
a spider|A spider is a small animal with eight legs.
a tree|A tree is a tall plant with a wooden trunk.
a flower|A flower is the part of a plant that makes seeds.
a seed|A seed is the small part of a plant from which a new plant grows.
a fruit|A fruit is the part of a plant that holds its seeds.
an apple|An apple is a round fruit that grows on trees.
a banana|A banana is a long yellow fruit.
bread|Bread is a food made from flour and water and then baked.
cheese|Cheese is a food made from milk.
honey|Honey is a sweet food made by bees.
coffee|Coffee is a drink made from roasted beans.
tea|Tea is a drink made from dried leaves and hot water.
the heart|The heart is the organ that pumps blood through the body.
the brain|The brain is the organ that we think with.
a lung|A lung is an organ used for breathing.
blood|Blood is the red liquid that carries oxygen through the body.
a bone|A bone is a hard part of the skeleton.
a muscle|A muscle is a part of the body that makes it move.
a doctor|A doctor is a person who treats sick people.
a teacher|A teacher is a person who helps others learn.
a farmer|A farmer is a person who grows food or keeps animals.
a pilot|A pilot is a person who flies a plane.
a school|A school is a place where people learn.
a library|A library is a place where people can read and borrow books.
a museum|A museum is a place where old or valuable things are shown.
a hospital|A hospital is a place where sick people are treated.
a city|A city is a large and busy town.
a country|A country is an area of land with its own government.
a continent|A continent is one of the large land masses of the earth.
a capital|A capital is the city where the government of a country sits.
a map|A map is a drawing of a place seen from above.
a bridge|A bridge is a structure that carries a road over something.
a house|A house is a building in which people live.
a door|A door is a panel that opens and closes the way into a room.
a chair|A chair is a seat for one person.
a book|A book is a set of written pages bound together.
a letter|A letter is a sign of the alphabet, or a written message.
a dictionary|A dictionary is a book that explains words.
a poem|A poem is a text that plays with rhythm and sound.
music|Music is the art of making pleasant sounds.
a guitar|A guitar is a musical instrument with strings.
a piano|A piano is a large musical instrument with keys.
a drum|A drum is a musical instrument that is beaten.
a clock|A clock is a device that shows the time.
a calendar|A calendar is a table of the days and months of a year.
a camera|A camera is a device that takes pictures.
a telephone|A telephone is a device for talking with people far away.
a radio|A radio is a device that receives sound through the air.
a telescope|A telescope is a device for seeing things that are far away.
a microscope|A microscope is a device for seeing very small things.
a thermometer|A thermometer is a device that measures temperature.
a compass|A compass is a device that shows where north is.
a battery|A battery is a device that stores electricity.
a wheel|A wheel is a round object that turns and helps things move.
an engine|An engine is a machine that turns energy into motion.
a car|A car is a road vehicle with four wheels.
a bicycle|A bicycle is a vehicle with two wheels and pedals.
a train|A train is a vehicle that runs on rails.
a ship|A ship is a large vehicle that travels on the sea.
a plane|A plane is a vehicle with wings that flies.
a rocket|A rocket is a vehicle that can fly into space.
a robot|A robot is a machine that can do tasks by itself.
a computer|A computer is a machine that follows programs to process data.
software|Software is the set of programs that run on a computer.
hardware|Hardware is the set of physical parts of a computer.
an algorithm|An algorithm is a list of steps that solves a problem.
a file|A file is a named piece of data on a computer.
a byte|A byte is eight bits of data.
a bit|A bit is a zero or a one, the smallest piece of data.
a network|A network is a group of computers that are connected.
the internet|The internet is the worldwide network of computers.
a website|A website is a set of pages on the internet.
a password|A password is a secret word that proves who you are.
a database|A database is an organised store of data.
a compiler|A compiler is a program that turns source code into machine code.
Python|Python is a popular programming language.
a CPU|A CPU is the part of a computer that runs programs.
a GPU|A GPU is a processor that does many calculations at the same time.
memory|Memory is the part of a computer that holds data while it works.
a triangle|A triangle is a shape with three sides.
a square|A square is a shape with four equal sides and four right angles.
a circle|A circle is a round shape whose points are all equally far from its centre.
a rectangle|A rectangle is a shape with four sides and four right angles.
a cube|A cube is a solid with six square faces.
a number|A number is a word or sign that says how many.
a fraction|A fraction is a part of a whole.
a prime number|A prime number is a number above 1 that only 1 and itself divide.
addition|Addition is putting numbers together to get their sum.
subtraction|Subtraction is taking one number away from another.
multiplication|Multiplication is adding a number to itself several times.
an average|An average is the sum of some numbers divided by how many there are.
a noun|A noun is a word that names a person, a place or a thing.
a verb|A verb is a word for an action.
an adjective|An adjective is a word that describes a noun.
a sentence|A sentence is a group of words that says something complete.
a synonym|A synonym is a word with the same meaning as another word.
democracy|Democracy is a form of government in which the people choose their leaders.
a law|A law is a rule that everybody in a country must follow.
money|Money is what people use to pay for things.
a bank|A bank is a business that keeps and lends money.
a market|A market is a place where things are bought and sold.
weather|Weather is the state of the air, such as rain, wind or sunshine.
rain|Rain is water that falls from clouds in drops.
snow|Snow is frozen water that falls as white flakes.
wind|Wind is air that moves.
a cloud|A cloud is a mass of tiny water drops in the sky.
a rainbow|A rainbow is an arc of colours seen when the sun shines through rain.
winter|Winter is the coldest season of the year.
summer|Summer is the warmest season of the year.
football|Football is a game in which two teams try to kick a ball into a goal.
chess|Chess is a board game for two players.
a friend|A friend is a person you know and like.
love|Love is a strong feeling of caring for someone.
"""

STORIES = """
the sun|The sun is the star at the centre of our solar system. It is a huge ball of hot gas. It gives the earth light \
and warmth. Without the sun there would be no life on earth.
the moon|The moon moves around the earth in about one month. It has no air and no light of its own. It shines because \
it reflects the light of the sun. People first walked on it in 1969.
water|Water is a clear liquid made of hydrogen and oxygen. It freezes at 0 degrees Celsius and boils at 100 degrees. \
All living things need it. Most of the surface of the earth is covered by water.
the earth|The earth is the planet we live on. It moves around the sun once a year. It turns around itself once a day. \
Most of its surface is water.
computers|Computers are machines that follow programs. They store data as zeros and ones. A processor does the work \
and \
the memory holds the data. Many computers together form a network.
trees|Trees are tall plants with a wooden trunk. Their roots take water from the ground. Their leaves make food from \
light. Many animals live in trees.
bees|Bees are insects that live in large groups. They visit flowers to collect nectar. From it they make honey. Many \
plants need bees to make seeds.
dogs|Dogs are loyal animals that live with people. They have a very good sense of smell. They help people to hunt, to \
guard and to find things. Many families keep a dog as a pet.
cats|Cats are small furry animals that live with people. They see well in the dark. They hunt mice and birds. They \
sleep \
for a large part of the day.
language models|Language models are programs that predict the next piece of text. They learn from many examples. Large \
ones know a great deal and need a lot of memory. Small ones, like me, know very little.
"""

LISTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("the alphabet", "the letters of the alphabet", "the abc"),
        "A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T, U, V, W, X, Y, Z.",
    ),
    (
        ("the days of the week", "the weekdays", "all days of the week"),
        "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday.",
    ),
    (
        ("the months of the year", "the months", "all twelve months"),
        "January, February, March, April, May, June, July, August, September, October, November, December.",
    ),
    (("the seasons", "the four seasons", "the seasons of the year"), "Spring, summer, autumn, winter."),
    (
        ("the planets", "the planets of the solar system", "all the planets"),
        "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, Neptune.",
    ),
    (
        ("the continents", "all the continents", "the seven continents"),
        "Africa, Antarctica, Asia, Europe, North America, Oceania, South America.",
    ),
    (
        ("the colours of the rainbow", "the colors of the rainbow", "the rainbow colours"),
        "Red, orange, yellow, green, blue, indigo, violet.",
    ),
    (("the even numbers up to 20", "the even numbers to 20"), "2, 4, 6, 8, 10, 12, 14, 16, 18, 20."),
    (("the odd numbers up to 20", "the odd numbers to 20"), "1, 3, 5, 7, 9, 11, 13, 15, 17, 19."),
)


def table(text: str) -> tuple[tuple[str, str], ...]:
    """The (key, value) pairs of a `key|value` table."""
    pairs = (line.split("|") for line in text.strip().splitlines())
    return tuple((key, value) for key, value in pairs)
