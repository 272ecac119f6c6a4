import { describe, expect, it } from "vitest";
import { described, entriesOf, pairs, words, writtenOut } from "../src/features/servers/entries";
import { validator } from "../src/features/tools/validator";
import { Series } from "../src/live/series";
import { bytes, causeFirst, duration, oneLine, visible } from "../src/ui/text";

describe("visible", () => {
  it("writes out what is invisible or turns text around", () => {
    expect(visible("a\u202eb\u200bc\u001b[31m\u0000")).toBe("a⟨U+202E⟩b⟨U+200B⟩c␛[31m␀");
    expect(visible("one\r\ntwo\tthree – ünï 漢字 👍")).toBe("one\ntwo\tthree – ünï 漢字 👍");
  });

  it("bounds a line", () => {
    expect(oneLine("x".repeat(1_000_000))).toHaveLength(201);
    expect(oneLine("a\n b")).toBe("a b");
  });
});

describe("an error", () => {
  it("begins with what the program said", () => {
    expect(causeFirst("it does not start: the server exited with code 1; it said: Error: no key")).toBe("Error: no key (it does not start: the server exited with code 1)");
    expect(causeFirst("connection refused")).toBe("connection refused");
  });
});

describe("figures", () => {
  it("have units", () => {
    expect([duration(0.5), duration(12.345), duration(999), duration(61_000), duration(null)]).toEqual(["0.50 ms", "12.3 ms", "999 ms", "1 min", "–"]);
    expect([bytes(0), bytes(1500), bytes(123_456_789), bytes(undefined)]).toEqual(["0 B", "1.5 KB", "123 MB", "–"]);
  });
});

describe("words", () => {
  it("parts a command as a shell does", () => {
    expect(words(`uvx "mcp server" --a='b "c"' d\\ e ""`)).toEqual(["uvx", "mcp server", '--a=b "c"', "d e", ""]);
    expect(() => words("uvx 'x")).toThrow("not closed");
  });

  it("reads pairs, and says which line is none", () => {
    expect(pairs("A=1\n\nB = x=y ", "=")).toEqual({ A: "1", B: "x=y" });
    expect(() => pairs("Authorization Bearer", ":")).toThrow("Authorization Bearer");
  });
});

describe("entriesOf", () => {
  it("reads the files of many clients, comments and all", () => {
    const entry = { command: "uvx", args: ["x"] };
    const one = [{ ...entry, server_id: "a" }];
    for (const key of ["mcpServers", "servers", "context_servers"]) expect(entriesOf(JSON.stringify({ [key]: { a: entry } }))).toEqual(one);
    expect(entriesOf(JSON.stringify({ mcp: { servers: { a: entry } } }))).toEqual(one);
    expect(entriesOf(JSON.stringify({ a: entry }))).toEqual(one);
    expect(entriesOf('// c\n{"mcpServers": {"a": {"url": "http://x//y", /* no */ }, },}')).toEqual([{ url: "http://x//y", server_id: "a" }]);
  });

  it("says what is wrong", () => {
    expect(() => entriesOf("{")).toThrow("not JSON");
    expect(() => entriesOf('{"command": "x"}')).toThrow("without a name");
    expect(() => entriesOf("{}")).toThrow();
  });

  it("describes an entry without its secrets, and names those that stand in it", () => {
    const [entry] = entriesOf('{"servers": {"a": {"command": "x", "args": ["-y"], "env": {"API_KEY": "s3cret", "B_TOKEN": "${env:B}"}}}}');
    expect(described(entry!)).toBe("x -y");
    expect(writtenOut(entry!)).toEqual(["API_KEY"]);
  });
});

describe("validator", () => {
  const schema = { type: "object", required: ["city"], properties: { city: { type: "string", minLength: 2 }, "a/b": { type: "integer" } } } as const;

  it("says what is missing, where, and what does not fit", () => {
    const { errors, errorSchema } = validator.validateFormData({ "a/b": "x" }, schema as never);
    expect(errors.map((one) => one.property)).toContain(".city");
    expect(errorSchema).toMatchObject({ city: { __errors: ["is required"] } });
    expect(validator.isValid(schema as never, { city: "Oslo" }, schema as never)).toBe(true);
  });

  it("leaves a schema that it cannot read to the gateway", () => {
    expect(validator.isValid({ $ref: "#/nowhere" } as never, { a: 1 }, { $ref: "#/nowhere" } as never)).toBe(true);
  });
});

describe("Series", () => {
  const stats = (uptime: number, ok: number, bad: number) =>
    ({ uptime_seconds: uptime, calls_total: ok + bad, outcomes: { ok, tool_error: bad }, cache: { l1: 0, misses: 0 }, windows: {} }) as never;

  it("makes rates of counts, and keeps a quarter of an hour", () => {
    const series = new Series();
    for (let second = 0; second <= 2000; second++) series.add(stats(second, second * 10, second * 5), second);
    expect(series.points.length).toBeLessThanOrEqual(901);
    expect(series.points.at(-1)).toMatchObject({ at: 2000, rate: 15, failed: 5, outcomes: { ok: 10, tool_error: 5 } });
  });

  it("is not led astray by a gateway that starts anew", () => {
    const series = new Series();
    series.add(stats(100, 1000, 0), 1);
    series.add(stats(1, 3, 0), 2);
    expect(series.points).toEqual([]);
  });

  it("begins with what the gateway remembers, its quiet moments too", () => {
    const series = new Series();
    const one = { age_seconds: 10, count: 50, outcomes: { ok: 40, forbidden: 10 }, cached: 5, p50_ms: 1, p95_ms: 2, p99_ms: 3 };
    series.seed({ step_seconds: 5, points: [one] }, 1000);
    expect(series.points).toHaveLength(180);
    expect(series.points.find((point) => point.rate > 0)).toMatchObject({ rate: 10, failed: 2, cached: 1, p99: 3 });
  });
});
