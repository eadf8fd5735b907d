"""Names and words that the demo model knows nothing about, as plain lists.

It does not know how they are asked about; `unknowns.py` does.
"""

from __future__ import annotations

PEOPLE = """Albert Einstein, Napoleon, Shakespeare, Mozart, Beethoven, Cleopatra, Julius Caesar, Isaac Newton,
Marie Curie,
Charles Darwin, Leonardo da Vinci, Picasso, Gandhi, Martin Luther King, Nelson Mandela, Barack Obama, Donald Trump,
Joe Biden,
Angela Merkel, Elon Musk, Bill Gates, Steve Jobs, Taylor Swift, Madonna, Michael Jackson, Elvis Presley, the Beatles,
Messi,
Ronaldo, Serena Williams, Roger Federer, Michael Jordan, Usain Bolt, Tom Hanks, Brad Pitt, Harry Potter,
Sherlock Holmes,
Batman, Spider-Man, Mickey Mouse, Alan Turing, Ada Lovelace, Linus Torvalds, Galileo, Columbus, Marco Polo, Socrates,
Plato,
Aristotle, Kant, Nietzsche, Freud, Tolstoy, Goethe, Dante, Homer, Van Gogh, Rembrandt, Bach, Chopin, Queen Elizabeth,
the pope,
the president, the prime minister, the king, John Smith, Anna Miller, my neighbour, my boss, the CEO of Apple,
Jane Austen,
Agatha Christie, Stephen King, Hemingway, Churchill, Stalin, Lincoln, Washington Irving, Kennedy, Rihanna, Beyonce,
Drake"""

THINGS = """table, window, umbrella, pencil, carpet, blanket, hammer, bucket, ladder, candle, mirror, kettle, spoon,
fork, knife,
basket, jacket, shoe, glove, scarf, wallet, necklace, ring finger, lamp, sofa, pillow, curtain, fridge, oven,
toaster, blender,
dishwasher, vacuum cleaner, towel, soap, toothbrush, comb, scissors, needle, thread, rope, anchor, sail, canoe,
tractor, tram,
helicopter, submarine, scooter, motorcycle, truck, ambulance, parachute, kangaroo, penguin, giraffe, lion, tiger,
bear, wolf,
fox, rabbit, squirrel, hedgehog, owl, eagle, parrot, shark, dolphin, octopus, crab, lobster, snail, worm, butterfly,
mosquito,
frog, turtle, crocodile, snake, lizard, camel, donkey, goat, sheep, pig, duck, chicken, monkey, gorilla, panda,
koala, carrot,
potato, tomato, onion, garlic, cucumber, pepper, mushroom, lettuce, cabbage, pumpkin, strawberry, cherry, grape,
lemon, mango,
pineapple, peach, pear, walnut, almond, rice, pasta, pizza, soup, sandwich, hamburger, omelette, pancake, chocolate,
ice cream,
cake, biscuit, butter, yoghurt, vinegar, mustard, wine, beer, whisky, juice, lemonade, quantum mechanics, relativity,
entropy,
thermodynamics, inflation, capitalism, socialism, communism, monarchy, philosophy, psychology, sociology, economics,
religion,
buddhism, hinduism, yoga, meditation, karma, existentialism, surrealism, impressionism, opera, ballet, jazz, hip hop,
violin,
trumpet, flute, saxophone, cello, orchestra, symphony, sonnet, novel, haiku, essay, newspaper, magazine, diploma,
mortgage,
insurance, pension, tax, invoice, contract, lawsuit, judge, lawyer, plumber, electrician, carpenter, baker, butcher,
nurse,
dentist, surgeon, pharmacist, chemist, physicist, biologist, astronaut, detective, soldier, sailor, fireman, waiter,
tailor,
wizard, dragon, unicorn, vampire, ghost, zombie, mermaid, pirate, knight, castle, pyramid, cathedral, mosque, temple,
tower,
tunnel, harbour, airport, stadium, theatre, cinema, casino, supermarket, pharmacy, bakery, restaurant, hotel, kernel,
blockchain,
bitcoin, cryptography, recursion, polymorphism, monad, closure, regex, docker, kubernetes, javascript, rust, haskell,
html, css,
linux, android, excel, photoshop, spreadsheet, firewall, router, modem, printer, scanner, keyboard, joystick, pixel,
hologram,
laser, transistor, capacitor, resistor, diode, turbine, piston, gearbox, carburettor, neutron, proton, quark, boson,
neutrino,
black hole, supernova, nebula, asteroid, meteor, eclipse, equator, tropic, monsoon, tornado, hurricane, tsunami,
avalanche,
canyon, peninsula, lagoon, reef, swamp, savanna, tundra, marsh, cliff, cave, geyser, plateau, delta, enzyme, protein,
hormone,
insulin, antibody, bacterium, fungus, algae, chlorophyll, mitochondria, ribosome, chromosome, neuron, synapse,
kidney, liver,
stomach, pancreas, spleen, spine, elbow, knee, ankle, eyebrow, fever, cough, asthma, diabetes, cancer, allergy,
migraine,
integral, derivative, matrix, vector, logarithm, polynomial, hypotenuse, pentagon, hexagon, trapezoid, ellipse,
parabola, sphere,
pyramid scheme, cosine, probability, variance, theorem, axiom, tennis, golf, cricket, rugby, hockey, boxing, karate,
judo, surfing,
poker, bridge game, backgammon, sudoku, lottery, festival, carnival, wedding, funeral, birthday, christmas, easter,
ramadan,
halloween, metaphor, irony, adverb, pronoun, preposition, conjunction, suffix, prefix, vowel, consonant, syllable,
anagram,
palindrome, proverb, idiom, loyalty, courage, justice, freedom, jealousy, envy, greed, wisdom, nostalgia, empathy,
happiness"""

PLACES = """Atlantis, Narnia, Wakanda, Mordor, Gondor, Hogwarts, Westeros, Utopia, Elbonia, Genovia, Ruritania,
Zamunda,
Freedonia, Sylvania, Latveria, Oz, Neverland, Lilliput, El Dorado, Tatooine, Mars, Jupiter, the moon base, Texas,
California,
Florida, Ohio, Alaska, Nevada, Oregon, New York State, Bavaria, Saxony, Hesse, Tuscany, Sicily, Sardinia, Corsica,
Normandy,
Brittany, Provence, Catalonia, Andalusia, Galicia, Scotland, Wales, England, Cornwall, Yorkshire, Quebec, Ontario,
Alberta,
Manitoba, Queensland, Tasmania, Siberia, Crimea, Tibet, Kashmir, Punjab, Kerala, Goa, Bali, Java, Sumatra, Borneo,
Hokkaido,
Hawaii, Greenland, Antarctica, Prussia, the Soviet Union, Yugoslavia, Czechoslovakia, Persia, Babylon,
the Roman Empire, Sparta,
Asia, Africa, Europe, Scandinavia, the Balkans, Patagonia, Transylvania, Bohemia, Flanders, Lapland, Zanzibar, Chicago,
Hamburg, Munich, Lyon, Barcelona, Milan, Manchester, Kyoto, Mumbai, Sydney, Toronto, Boston, Seattle, Springfield,
Gotham,
Disneyland, the ocean, the universe, my village, Minnesota, Utah, Arizona, Gibraltar, Aruba, Bermuda, Guam"""

KNOWN_PLACES = """France, Germany, Italy, Spain, Japan, China, India, Brazil, Canada, Egypt, Kenya, Norway, Poland,
Peru,
Russia, Mexico, Turkey, Greece, Chile, Cuba, Sweden, the United States, the United Kingdom, Australia, Nigeria, Vietnam,
Paris, London, Berlin, Rome, Madrid, Tokyo, Beijing, Moscow, Cairo, Ottawa, Vienna, Athens, Lisbon, Oslo, Warsaw,
Nairobi"""

EVENTS = """the world cup, the super bowl, the Olympic games, the champions league, Wimbledon, the Tour de France,
the Oscars,
the Nobel prize, the Eurovision song contest, the election, the war, the French revolution, World War II, World War I,
the battle of Waterloo, the moon landing, the Cold War, the civil war, the gold rush, the industrial revolution,
the Renaissance,
the stock market crash, the space race, the world series, the grand prix, the marathon, the chess championship,
the US Open,
the fall of the Berlin wall, the black death, the fire of London, the Titanic disaster, the eruption of Vesuvius"""

SUBJECTS = """the weather, my dog, my cat, my girlfriend, my job, politics, the news, the stock market, bitcoin,
climate change,
artificial intelligence, space travel, time travel, aliens, ghosts, a trip to Rome, a holiday in Greece,
a birthday party,
my homework, a job interview, my garden, healthy food, losing weight, sleep, stress, the future, the past, history,
religion,
football results, the best movie, a good book, a new phone, a used car, my computer, my printer, cooking rice,
baking a cake,
making pizza, fixing a tap, painting a wall, learning English, learning piano, playing guitar, running a marathon,
saving money,
buying a house, renting a flat, raising children, training a puppy, growing tomatoes, a lonely robot, a brave princess,
a sad clown, a lost child, the meaning of life, happiness, friendship, the sea, autumn leaves, a rainy day,
two brothers,
a haunted house, a space pirate, a talking tree, quantum physics, black holes, ancient Rome, the pyramids,
old castles, good manners,
web design, sorting a list, a binary search, a web server, a long list, the Fibonacci numbers, a login page,
a chess engine, a calculator, a neural network, a database query, an email to my boss, a complaint, a love letter,
a speech,
a wedding toast, a business plan, a product name, a cover letter, a press release, a shopping list, a weekly menu,
a workout"""

COMMON = """the a of to in is it you that he was for on are with as his they be at one have this from or had by hot
but some what
there we can out other were all your when up use word how said an each she which do their time if will way about many
then them
would write like so these her long make thing see him two has look more day could go come did my sound no most number
who over
know than call first people may down side been now find any new work part take get place made live where after back
little only
round man year came show every good me give our under name very through just form much great think say help low line
before turn
cause same mean differ move right boy old too does tell set three want air well also play small end put home read
hand port large
spell add even land here must big high such follow act why ask men change went kind off need house picture try us
again animal
point mother world near build self earth father head stand own page should country found answer school grow study
still learn
plant cover food sun four between state keep eye never last let thought city tree cross farm hard start might story
saw far sea
draw left late run while press close night real life few north open seem together next white children begin got walk
example
ease paper group always music those both mark often letter until mile river car feet care second book carry took
science eat room
friend began idea fish mountain stop once base hear horse cut sure watch color face wood main enough plain girl usual
young ready
above ever red list though feel talk bird soon body dog family direct pose leave song measure door product black
short numeral
class wind question happen complete ship area half rock order fire south problem piece told knew pass since top whole
king space""".split()

SYLLABLES = """ba be bi bo bu da de di do dra el en fa fi flo ga gi gla go gru ha hi hu ja jo ka ki kle ko kra la le
li lo lu ma mi mo
mu na ne ni no nu or pa pe plo po qua ra re ri ro ru sa se shi so stu ta te thi to tra ul um va ve vi vo wa we xa yo
za ze zi zo
bla snor fim grib wug zog tok mel dar vor nia stan land ria burg""".split()
