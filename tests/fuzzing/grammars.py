# SPDX-FileCopyrightText: Copyright (c) 2026 The dynamo-sglang-mm-resume authors
# SPDX-License-Identifier: Apache-2.0
"""Schemas, expressions and grammars: right ones, recursive, contradictory, huge and broken ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Body = dict[str, Any]
Schema = Any

_LINK = {"type": "object", "properties": {"next": {"$ref": "#/$defs/link"}}, "required": ["next"]}
_TREE = {"type": "object", "properties": {"c": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}


def nested(depth: int, keyword: str = "items") -> Schema:
    """A schema within a schema, and so on."""
    schema: Schema = {"type": "string"}
    for _ in range(depth):
        inner = {"a": schema} if keyword == "properties" else schema
        schema = {"type": "array" if keyword == "items" else "object", keyword: inner}
    return schema


def strings(count: int) -> list[str]:
    """That many, all different."""
    return [f"value-{i}" for i in range(count)]


def _doubling(levels: int) -> Schema:
    """References that would be a tree of `2**levels` leaves if they were written out."""
    twice = {f"d{i}": {"prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(levels)}
    return {"$defs": {**twice, f"d{levels}": {"type": "string"}}, "$ref": "#/$defs/d0"}


#: Nested beyond about 400 they are refused by parsers of JSON; below, they take their time.
SCHEMAS: list[Schema] = [
    {"type": "string", "enum": ["red", "green"]},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"$defs": {"link": _LINK}, "$ref": "#/$defs/link"},
    {"$defs": {"t": _TREE}, "$ref": "#/$defs/t"},
    {"$ref": "#"},
    {"allOf": [{"$ref": "#"}]},
    {"anyOf": [{"$ref": "#"}]},
    {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    {"oneOf": [{"$ref": "#/oneOf/1"}, {"$ref": "#/oneOf/0"}]},
    {"$ref": "#/$defs/missing"},
    {"$ref": "http://127.0.0.1:9/schema.json"},
    {"$ref": "file:///etc/passwd"},
    *(nested(depth, word) for word in ("items", "properties") for depth in (20, 60, 90, 110)),
    {"enum": strings(1_000)},
    {"enum": strings(10_000)},
    {"enum": strings(100_000)},
    {"enum": ["x" * 100_000]},
    {"enum": []},
    {"const": None},
    {"const": {"a": [1, {"b": 2}]}},
    {"type": "object", "properties": {name: {"type": "integer"} for name in strings(1_000)}},
    {"type": "object", "properties": {n: {} for n in strings(30)}, "minProperties": 15},
    {"type": "string", "minLength": 100_000, "maxLength": 100_000},
    {"type": "string", "minLength": 10**9},
    {"type": "string", "minLength": 5, "maxLength": 2},
    {"type": "string", "minLength": -1},
    {"type": "string", "pattern": "(a{1000}){1000}"},
    {"type": "string", "pattern": "(?<=a)b\\1"},
    {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "a\0b"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "no-such-format"},
    {"type": "array", "minItems": 10**6, "items": {"type": "string"}},
    {"type": "array", "minItems": 3, "maxItems": 1},
    {"type": "array", "items": False, "minItems": 1},
    {"type": "integer", "minimum": -(10**40), "maximum": 10**40},
    {"type": "integer", "minimum": 5, "maximum": 2},
    {"type": "number", "minimum": -1e300, "maximum": 1e300},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0},
    {"type": "no-such-type"},
    {"type": ["string", "null", "array"]},
    {"type": []},
    {"type": 5},
    {"not": {}},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"allOf": [{"anyOf": [{"type": "string"}, {"type": "integer"}]}] * 20},
    {"if": {"type": "string"}, "then": {"minLength": 2}, "else": {"minimum": 2}},
    {"properties": {"\0": {"type": "null"}, "\ud83d\ude42": {"type": "null"}}},
    {"properties": []},
    {"required": "a"},
    {"patternProperties": {"(": {}, "(a{1000}){1000}": {}}},
    {"additionalProperties": {"$ref": "#"}},
    _doubling(10),
    _doubling(22),
    {},
    True,
    False,
    [],
    5,
    "a schema as text",
    '{"type": "string"}',
    None,
]

REGEXES: list[Any] = [
    *("[a-c]{5}", "(red|green)", "a*", "()", "", " ", ".", ".*", "(a*)*", "(a|aa)+b", "[^a]{30}"),
    *("$^a", "a^b", "(?!a)b", "(?<=a)b", "(a)\\1", "\\p{L}+", "\\d\\w\\s\\S", "(?P<x>a)", "(?i)A"),
    *(
        "(",
        ")",
        "[",
        "[]",
        "[^]",
        "[z-a]",
        "a{",
        "a{2,1}",
        "a{-1}",
        "*",
        "a**",
        "\\",
        "\\x",
        "\\u0",
    ),
    *("a{1000}", "a{100000}", "a{1000000000}", "a{99999999999999999999}", "(a{1000}){1000}"),
    *("((a{1,100}){1,100}){1,100}", "(.{1,1000}){1,1000}", "(.*a){20}", "(a|a?)+" * 30),
    "(" * 1_000 + "a" + ")" * 1_000,
    "(" * 10_000 + "a" + ")" * 10_000,
    "(" * 100_000 + "a" + ")" * 100_000,
    "(" * 100_000,
    "[" * 100_000,
    "a?" * 3_000,
    "ab" * 10_000,
    "|".join(strings(1_000)),
    "|".join(strings(30_000)),
    "a\0b",
    "\ud83d\ude42{3}",
    "[\U00010000-\U0010ffff]{1,50}",
    "\ud800",
    5,
    None,
    ["a"],
]

GRAMMARS: list[Any] = [
    'root ::= "red" | "blue"',
    'root ::= "a" root | "b"',
    'root ::= root "a" | "b"',
    "root ::= root",
    "root ::= a\na ::= b\nb ::= a",
    'root ::= "a" root',
    'root ::= ""',
    'root ::= ("")* root | ""',
    'root ::= e\ne ::= e e | "a" | ""',
    'root ::= a a a a a a\na ::= "x"* | a a',
    'foo ::= "a"',
    "root ::= missing",
    "root ::= [",
    "root ::= [z-a]",
    "root ::= [^\\u0000-\\U0010FFFF]",
    "root ::=",
    "",
    " ",
    "start: /a+/",
    'root ::= "a\0b"',
    'root ::= "a"{1000000000}',
    'root ::= (("a"{1000}){1000})',
    "root ::= " + "(" * 1_000 + '"a"' + ")" * 1_000,
    "root ::= " + "(" * 10_000 + '"a"' + ")" * 10_000,
    "root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000,
    "root ::= " + "(" * 100_000,
    "root ::= " + " | ".join(f'"{value}"' for value in strings(10_000)),
    "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40 ::= "a"',
    "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(10_000)) + 'r10000 ::= "a"',
    5,
    None,
]

CHOICES: list[Any] = [
    ["a circle", "a square"],
    ["a"],
    [""],
    ["", "a"],
    [],
    ["(", "[", "\\", "a|b"],
    ["\0"],
    ["\ud83d\ude42", "\ud800"],
    ["x" * 100_000],
    strings(1_000),
    strings(30_000),
    ["<|im_end|>"],
    [1, 2],
    [None],
    [["a"]],
    "a",
    5,
]

STRUCTURAL_TAGS: list[Any] = [
    {"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a"]},
    {"structures": [{"begin": "", "schema": {"$ref": "#"}, "end": ""}], "triggers": [""]},
    {"type": "structural_tag", "format": {"type": "const_string", "value": ""}},
    {"type": "structural_tag", "format": {"type": "any_text"}},
    {"type": "structural_tag", "format": {"type": "sequence", "elements": []}},
    {"type": "structural_tag", "format": {"type": "or", "elements": []}},
    {"type": "structural_tag", "format": 5},
    {},
    [],
    "tag",
]


def _broken(chance: random.Random, text: Any) -> Any:
    """The same text, with a piece of it doubled, removed or changed."""
    if not isinstance(text, str) or not text or len(text) > 10_000 or chance.random() < 0.7:
        return text
    start = chance.randrange(len(text))
    end = min(len(text), start + chance.randrange(1, 6))
    piece = chance.choice(["", text[start:end] * 2, chance.choice('()[]{}|*+?\\"^$.0:=\n')])
    return text[:start] + piece + text[end:]


def schema(chance: random.Random) -> Schema:
    """One of the table, or one within another."""
    inner = chance.choice(SCHEMAS)
    if chance.random() < 0.8:
        return inner
    outer: list[Callable[[Schema], Schema]] = [
        lambda s: {"type": "object", "properties": {"a": s}, "required": ["a"]},
        lambda s: {"type": "array", "items": s, "minItems": 1},
        lambda s: {"anyOf": [s, chance.choice(SCHEMAS)]},
        lambda s: {"allOf": [s, chance.choice(SCHEMAS)]},
    ]
    return chance.choice(outer)(inner)


def _json_schema(chance: random.Random) -> Body:
    content: Body = {"name": "answer", "schema": schema(chance)}
    if chance.random() < 0.3:
        content["strict"] = chance.choice([True, False, "yes"])
    if chance.random() < 0.1:
        content["name"] = chance.choice(["", "x" * 1_000, 5, None])
    return {"response_format": {"type": "json_schema", "json_schema": content}}


def _response_format(chance: random.Random) -> Body:
    odd = [{"type": "json_object"}, {"type": "text"}, {"type": "xml"}, {"type": "json_schema"}, {}]
    tag = chance.choice(STRUCTURAL_TAGS)
    tags = [tag, {"type": "structural_tag", "structural_tag": tag}]
    return {"response_format": chance.choice([*odd, *tags])}


def _guided(chance: random.Random) -> Body:
    made = {
        "guided_json": schema(chance),
        "guided_regex": _broken(chance, chance.choice(REGEXES)),
        "guided_grammar": _broken(chance, chance.choice(GRAMMARS)),
        "guided_choice": chance.choice(CHOICES),
    }
    count = 2 if chance.random() < 0.05 else 1
    names = chance.sample(sorted(made), count)
    fields: Body = {name: made[name] for name in names}
    if chance.random() < 0.05:
        fields["guided_whitespace_pattern"] = chance.choice(["[ ]*", "(", "a{1000000}"])
    return {"nvext": fields} if chance.random() < 0.2 else fields


def guided(chance: random.Random) -> Body:
    """Something that binds the answer to a form; drawn at random as often as greedy."""
    maker = chance.choices([_json_schema, _response_format, _guided], [3, 1, 5])[0]
    return {**maker(chance), "temperature": chance.choice([0, 1])}
