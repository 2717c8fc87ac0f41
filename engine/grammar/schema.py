"""Rewrites a JSON Schema into one that xgrammar enforces in full, of the same meaning or narrower.

xgrammar silently drops keywords in combinations that it does not understand, so a schema is taken
apart here keyword by keyword; what cannot be enforced is refused with its keyword and place, never
dropped. The meaning is narrower where an object that declares properties has no others unless the
schema says so, strings with a length or a pattern hold no characters that JSON escapes, and a
keyword without `type` implies its type. A value that satisfies the result satisfies the schema,
with one exception that xgrammar cannot be told of: an open object may repeat a declared name,
spelled with \\u escapes.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from engine.grammar.disjoint import are_disjoint
from engine.grammar.keywords import (
    Schema,
    bounds,
    formatted,
    in_64_bits,
    listing,
    mapping,
    number,
    pattern_of,
)
from engine.grammar.places import Path, has_own_base, place_of, refusal, resolve
from engine.grammar.strings import length_pattern

_PLAIN_NAME = re.compile(r"[ !#-\[\]-~]*")
_MAX_DEPTH = 64
_MAX_BRANCHES = 256  # of a oneOf: each is compared with every other

# Keywords that allow no constraints beside them, except `type` beside const and enum.
_HEADS = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
_OF_TYPE: Mapping[str, Sequence[str]] = {
    "string": ("pattern", "format", "minLength", "maxLength"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": (
        *("items", "prefixItems", "minItems", "maxItems", "unevaluatedItems"),
        *("uniqueItems", "contains", "minContains", "maxContains"),
    ),
    "object": (
        *("properties", "required", "additionalProperties", "unevaluatedProperties"),
        *("patternProperties", "propertyNames", "minProperties", "maxProperties"),
        *("dependentRequired", "dependentSchemas", "dependencies"),
    ),
}
_NEVER = (
    *("not", "if", "then", "else", "$dynamicRef", "$recursiveRef"),
    *("contentEncoding", "contentMediaType", "contentSchema"),
)
_TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")


def lowered(schema: Any) -> Schema:
    """Return the schema that xgrammar is given in place of this one.

    Raises:
        StructureError: Something would not be enforced; the message names it and its place.
    """
    return _Lowering(schema).run()


class _Lowering:
    """Lowers one schema. `$ref` targets become definitions under names of our own."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._names: dict[str, str] = {}  # definitions' names, by reference
        self._by_type: dict[str, Callable[[Schema, Path], Schema]] = {
            "string": self._string,
            "number": self._number,
            "integer": self._integer,
            "array": self._array,
            "object": self._object,
            "boolean": lambda _, __: {"type": "boolean"},
            "null": lambda _, __: {"type": "null"},
        }

    def run(self) -> Schema:
        """Lower the whole schema."""
        top = self._any(self._root, ())
        definitions: Schema = {}
        while len(definitions) < len(self._names):  # lowering one may find others
            reference, name = list(self._names.items())[len(definitions)]
            definitions[name] = self._any(resolve(self._root, reference), place_of(reference))
        return {**top, "$defs": definitions} if definitions else top

    def _any(self, schema: Any, path: Path) -> Schema:
        if schema is True:
            return {}
        if schema is False:
            raise refusal(path, "a schema that allows nothing cannot be followed")
        if not isinstance(schema, dict):
            raise refusal(path, "a schema should be an object or a boolean")
        if len(path) > _MAX_DEPTH:
            raise refusal(path, f"schemas may be nested at most {_MAX_DEPTH} deep")
        for keyword in _NEVER:
            if keyword in schema:
                raise refusal((*path, keyword), f"{keyword} is not supported")
        heads = [keyword for keyword in _HEADS if keyword in schema]
        return self._headed(heads[0], schema, path) if heads else self._typed(schema, path)

    # ---- what stands alone ----

    def _headed(self, head: str, schema: Schema, path: Path) -> Schema:
        is_listing = head in ("const", "enum")  # of values, some of which `type` may exclude
        constraints = ("type", *_HEADS, *(k for group in _OF_TYPE.values() for k in group))
        for other in constraints:
            if other in schema and other != head and not (is_listing and other == "type"):
                raise refusal((*path, other), f"{other} beside {head} is not supported")
        value, place = schema[head], (*path, head)
        if head == "$ref":
            return self._reference(value, place)
        if is_listing:
            return listing([value] if head == "const" else value, schema.get("type"), place)
        if not isinstance(value, list) or not value:
            raise refusal(place, f"{head} should be a list of schemas")
        branches = [self._any(each, (*place, index)) for index, each in enumerate(value)]
        if head == "allOf":
            if len(branches) > 1:
                raise refusal(place, "allOf is supported with one schema only")
            return branches[0]
        if head == "oneOf":
            self._check_disjoint(value, place)
        return {"anyOf": branches}

    def _reference(self, reference: Any, path: Path) -> Schema:
        if not isinstance(reference, str) or not re.match(r"#(/|$)", reference):
            raise refusal(path, "$ref is supported within the schema only: #, or #/ and a path")
        if has_own_base(self._root, path):
            raise refusal(path, "$ref is not supported within a part that has an $id of its own")
        if resolve(self._root, reference) is None:
            raise refusal(path, "$ref leads nowhere")
        target = self._resolved(resolve(self._root, reference))
        if isinstance(target, dict) and "$ref" in target:
            raise refusal(path, "$ref leads back to itself")
        name = self._names.setdefault(reference, f"d{len(self._names)}")
        return {"$ref": f"#/$defs/{name}"}

    def _check_disjoint(self, branches: Sequence[Any], path: Path) -> None:
        if len(branches) > _MAX_BRANCHES:
            raise refusal(path, f"oneOf may have at most {_MAX_BRANCHES} branches")
        resolved = [self._resolved(branch) for branch in branches]
        for index, one in enumerate(resolved):
            for other in resolved[:index]:
                if not are_disjoint(one, other, self._resolved):
                    raise refusal(
                        path,
                        "oneOf is supported where its branches exclude each other by type or by a "
                        "required property with const or enum; anyOf may do",
                    )

    def _resolved(self, schema: Any) -> Any:
        """Return what a schema is once its references are followed."""
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
                break
            schema = resolve(self._root, schema["$ref"])
        return schema

    # ---- by type ----

    def _typed(self, schema: Schema, path: Path) -> Schema:
        types = schema.get("type")
        if types is None:
            types = [name for name, words in _OF_TYPE.items() if any(w in schema for w in words)]
            if not types:
                return {}
            if len(types) > 1:
                raise refusal(path, f"type is needed beside keywords of {' and '.join(types)}")
        types = [types] if isinstance(types, str) else types
        if not isinstance(types, list) or not types or not all(t in _TYPES for t in types):
            raise refusal((*path, "type"), f"type should be one or several of {', '.join(_TYPES)}")
        branches = [self._by_type[name](schema, path) for name in dict.fromkeys(types)]
        return branches[0] if len(branches) == 1 else {"anyOf": branches}

    def _string(self, schema: Schema, path: Path) -> Schema:
        given = [word for word in _OF_TYPE["string"] if schema.get(word) not in (None, 0)]
        shortest, longest = bounds(schema, path, "minLength", "maxLength")
        if longest == 0 and "maxLength" not in given:
            given.append("maxLength")
        if not given:
            return {"type": "string"}
        if given[0] == "format":
            return {"type": "string"} | formatted(schema, given, path)
        if given[0] == "pattern":
            if len(given) > 1:
                message = f"{given[1]} beside pattern is not supported"
                raise refusal((*path, given[1]), message)
            pattern = pattern_of(schema["pattern"], (*path, "pattern"))
            return {"type": "string", "pattern": pattern}
        return {"type": "string", "pattern": length_pattern(shortest, longest)}

    def _number(self, schema: Schema, path: Path) -> Schema:
        if "multipleOf" in schema:
            message = "multipleOf is supported for integers only"
            raise refusal((*path, "multipleOf"), message)
        words = [word for word in _OF_TYPE["number"] if word in schema]
        return {"type": "number"} | {word: number(schema[word], (*path, word)) for word in words}

    def _integer(self, schema: Schema, path: Path) -> Schema:
        integer: Schema = {"type": "integer"}
        for word in _OF_TYPE["number"]:
            if word not in schema:
                continue
            value = number(schema[word], (*path, word))
            if word == "multipleOf" and (value != int(value) or value <= 0):
                raise refusal((*path, word), "multipleOf should be a whole number above 0")
            if value != int(value):  # the next whole number inwards says the same
                is_lower = word in ("minimum", "exclusiveMinimum")
                word = "minimum" if is_lower else "maximum"
                value = math.ceil(value) if is_lower else math.floor(value)
                tightest = max if is_lower else min
                value = tightest(value, integer.get(word, value))
            integer[word] = in_64_bits(int(value), (*path, word))
        has_lower = "minimum" in integer or "exclusiveMinimum" in integer
        has_upper = "maximum" in integer or "exclusiveMaximum" in integer
        if "multipleOf" in integer and has_lower != has_upper:
            message = "multipleOf is supported with both bounds or none"
            raise refusal((*path, "multipleOf"), message)
        return integer

    def _array(self, schema: Schema, path: Path) -> Schema:
        for word in ("contains", "minContains", "maxContains"):
            if word in schema:
                raise refusal((*path, word), f"{word} is not supported")
        if schema.get("uniqueItems"):
            raise refusal((*path, "uniqueItems"), "uniqueItems is not supported")
        fewest, most = bounds(schema, path, "minItems", "maxItems")
        array: Schema = {"type": "array"}
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise refusal((*path, "prefixItems"), "prefixItems should be a list of schemas")
        if most is not None:
            array["maxItems"] = most
            first = first[:most]
        if fewest:
            array["minItems"] = fewest
        if first:
            array["prefixItems"] = [
                self._any(each, (*path, "prefixItems", index)) for index, each in enumerate(first)
            ]
        word = "items" if "items" in schema else "unevaluatedItems"
        default = not first or fewest > len(first)  # a tuple ends where its schemas do
        rest = schema.get(word, default)
        array["items"] = rest is not False and self._any(rest, (*path, word))
        if array["items"] is False and fewest > len(first):
            raise refusal((*path, "minItems"), "minItems asks for more items than are allowed")
        return array

    def _object(self, schema: Schema, path: Path) -> Schema:
        for word in ("dependentRequired", "dependentSchemas", "dependencies"):
            if schema.get(word):
                raise refusal((*path, word), f"{word} is not supported")
        properties = mapping(schema, path, "properties")
        required = schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise refusal((*path, "required"), "required should be a list of names")
        if "patternProperties" in schema or "propertyNames" in schema:
            return self._dictionary(schema, path)
        given, place = self._rest(schema, path)
        lower = {
            name: self._any(each, (*path, "properties", name)) for name, each in properties.items()
        }
        for name in required:
            if name in lower:
                continue
            if given is False:
                raise refusal((*path, "required"), "required names a property that is not allowed")
            lower[name] = self._any(given is None or given, place)
        rest = not lower if given is None else given
        if rest is not False:
            self._check_names(lower, path)
        whole: Schema = {"type": "object", "properties": lower}
        if required:
            whole["required"] = list(dict.fromkeys(required))
        whole["additionalProperties"] = rest is not False and self._any(rest, place)
        return whole | self._property_counts(schema, path, is_open=rest is not False)

    def _check_names(self, names: Iterable[str], path: Path) -> None:
        """Refuse names that xgrammar does not tell from those of undeclared properties."""
        for name in names:
            if not _PLAIN_NAME.fullmatch(name):
                raise refusal(
                    (*path, "properties", name),
                    "beside undeclared properties a name should be of printable ASCII without "
                    "quotes and backslashes; additionalProperties: false allows it",
                )

    def _rest(self, schema: Schema, path: Path) -> tuple[Any, Path]:
        """Return the schema of undeclared properties, None if there is none, and its place."""
        word = "additionalProperties"
        if word not in schema and "unevaluatedProperties" in schema:
            word = "unevaluatedProperties"
        return schema.get(word), (*path, word)

    def _dictionary(self, schema: Schema, path: Path) -> Schema:
        """Lower an object whose property names follow a rule."""
        word = "patternProperties" if "patternProperties" in schema else "propertyNames"
        for other in ("properties", "required", "minProperties", "maxProperties"):
            limits_to_none = other == "maxProperties" and schema.get(other) == 0
            if schema.get(other) or limits_to_none:
                raise refusal((*path, word), f"{word} beside {other} is not supported")
        if word == "propertyNames":
            if "patternProperties" in schema:
                raise refusal((*path, word), f"{word} beside patternProperties is not supported")
            return self._named(schema, path)
        patterns = mapping(schema, path, word)
        if len(patterns) != 1 or schema.get("additionalProperties") not in (None, False):
            message = "patternProperties is supported with one pattern and no other properties"
            raise refusal((*path, word), message)
        ((pattern, values),) = patterns.items()
        whole = pattern_of(pattern, (*path, word))
        lower = {whole: self._any(values, (*path, word, pattern))}
        return {"type": "object", "patternProperties": lower, "additionalProperties": False}

    def _named(self, schema: Schema, path: Path) -> Schema:
        """Lower `propertyNames`, which is a rule for all names or a list of them."""
        rule, place = self._resolved(schema["propertyNames"]), (*path, "propertyNames")
        given, rest_place = self._rest(schema, path)
        if given is False:
            return {"type": "object", "properties": {}, "additionalProperties": False}
        values = self._any(given is None or given, rest_place)
        if isinstance(rule, dict) and rule.get("type", "string") != "string":
            raise refusal((*place, "type"), "names of properties are strings")
        string = self._any({"type": "string", **rule} if isinstance(rule, dict) else rule, place)
        names = string.get("enum")
        if names is not None:
            properties = dict.fromkeys(names, values)
            return {"type": "object", "properties": properties, "additionalProperties": False}
        if set(string) - {"type", "pattern"}:
            raise refusal(place, "propertyNames is supported with pattern, length or enum only")
        if "pattern" not in string:
            return {"type": "object", "additionalProperties": values}
        pattern = {string["pattern"]: values}
        return {"type": "object", "patternProperties": pattern, "additionalProperties": False}

    def _property_counts(self, schema: Schema, path: Path, *, is_open: bool) -> Schema:
        fewest, most = bounds(schema, path, "minProperties", "maxProperties")
        if is_open and fewest > 1:  # a name said twice would be counted twice
            message = "minProperties above 1 needs additionalProperties: false"
            raise refusal((*path, "minProperties"), message)
        counts = {"minProperties": fewest} if fewest else {}
        return counts if most is None else {**counts, "maxProperties": most}
