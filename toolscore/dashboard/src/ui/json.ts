import type { StreamParser } from "@codemirror/language";

/** JSON in its colours. */
export const json: StreamParser<null> = {
  name: "json",
  token(stream) {
    if (stream.eatSpace()) return null;
    if (stream.match(/"(?:[^"\\]|\\.)*"?/)) return stream.match(/\s*:/, false) ? "propertyName" : "string";
    if (stream.match(/-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/)) return "number";
    if (stream.match(/true|false|null/)) return "keyword";
    stream.next();
    return null;
  },
};
