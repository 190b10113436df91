"""Digits to words, as people say them: what the small voice is given, and how its judge compares what it heard.

    spell("At 7:15 on the 2nd, 85 of 1,200") is
    "At seven fifteen on the second, eighty five of one thousand two hundred".

Knows no model.
"""

import re

ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
LARGE = ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred"))
ORDINALS = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
LARGEST = 10**12 - 1
"""Longer numbers are said digit by digit."""
SIGNS = {"%": " percent", "&": " and ", "+": " plus ", "=": " equals ", "@": " at "}
MONEY = {"$": "dollar", "\u00a3": "pound", "\u20ac": "euro"}


def cardinal(number: int) -> str:
    """A number from 0 up."""
    if number > LARGEST:
        return " ".join(ONES[int(digit)] for digit in str(number))
    for size, name in LARGE:
        if number >= size:
            rest = number % size
            return f"{cardinal(number // size)} {name}" + (f" {cardinal(rest)}" if rest else "")
    if number < 20:
        return ONES[number]
    return TENS[number // 10] + (f" {ONES[number % 10]}" if number % 10 else "")


def ordinal(number: int) -> str:
    before, _, last = cardinal(number).rpartition(" ")
    last = ORDINALS.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th")
    return f"{before} {last}".strip()


def year(number: int) -> str:
    """1984 as nineteen eighty four, 1905 as nineteen oh five, 2024 as twenty twenty four, 2007 as a number."""
    first, second = divmod(number, 100)
    if second == 0:
        return f"{cardinal(first)} hundred" if first % 10 else cardinal(number)
    if first == 20 and second < 10:
        return cardinal(number)
    return f"{cardinal(first)} {'oh ' if second < 10 else ''}{cardinal(second)}"


def spell(text: str) -> str:
    """A text with its numbers, times, sums of money and a few signs in words."""

    def money(found: re.Match) -> str:
        whole, part, name = int(found[2].replace(",", "")), found[3], MONEY[found[1]]
        said = f"{cardinal(whole)} {name}{'s' * (whole != 1)}"
        return said + (f" {cardinal(int(part))}" if part and int(part) else "")

    def clock(found: re.Match) -> str:
        hour, minute = int(found[1]), int(found[2])
        if minute == 0:
            return f"{cardinal(hour)} o'clock"
        return f"{cardinal(hour)} {'oh ' if minute < 10 else ''}{cardinal(minute)}"

    def plain(found: re.Match) -> str:
        digits = found[0].replace(",", "")
        if len(digits) == 4 and "," not in found[0] and "1100" <= digits <= "2099":
            return year(int(digits))
        if len(digits) > 1 and digits[0] == "0":
            return " ".join(ONES[int(digit)] for digit in digits)
        return cardinal(int(digits))

    number = r"\d{1,3}(?:,\d{3})+|\d+"
    tags = re.split(r"(\[S[12]\])", text)
    for i, part in enumerate(tags):
        if re.fullmatch(r"\[S[12]\]", part):
            continue
        part = re.sub(rf"([{''.join(MONEY)}])({number})(?:\.(\d\d))?", money, part)
        part = re.sub(r"\b(\d{1,2}):(\d\d)\b", clock, part)
        part = re.sub(r"\b(\d+)(?:st|nd|rd|th)\b", lambda found: ordinal(int(found[1])), part)
        part = re.sub(
            r"\b(\d+)\.(\d+)\b", lambda f: f"{cardinal(int(f[1]))} point {' '.join(ONES[int(d)] for d in f[2])}", part
        )
        part = re.sub(number, plain, part)
        part = re.sub("[%&+=@]", lambda found: SIGNS[found[0]], part)
        tags[i] = re.sub(r"(?<=\S)  +", " ", part)
    return "".join(tags)
