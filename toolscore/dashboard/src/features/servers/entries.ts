/** A server as the REST API takes it: the keys of an `mcpServers` entry, and its id. */
export type Entry = Record<string, unknown> & { server_id: string };

/** `uvx "mcp server" --x` in its parts, as a shell parts them. Throws where a quote does not end. */
export function words(line: string): string[] {
  const found: string[] = [];
  let word: string | null = null;
  let quote = "";
  for (let at = 0; at < line.length; at++) {
    const one = line[at] as string;
    if (quote !== "") {
      if (one === quote) quote = "";
      else if (one === "\\" && quote === '"' && /["\\$`]/.test(line[at + 1] ?? "")) word = (word ?? "") + (line[++at] ?? "");
      else word = (word ?? "") + one;
    } else if (one === '"' || one === "'") {
      quote = one;
      word ??= "";
    } else if (one === "\\") word = (word ?? "") + (line[++at] ?? "");
    else if (/\s/.test(one)) {
      if (word !== null) found.push(word);
      word = null;
    } else word = (word ?? "") + one;
  }
  if (quote !== "") throw new Error(`a ${quote} is not closed`);
  if (word !== null) found.push(word);
  return found;
}

/** `NAME=value` lines as an object. Throws where a line is something else. */
export function pairs(text: string, mark: "=" | ":"): Record<string, string> {
  const found: Record<string, string> = {};
  for (const line of text.split("\n")) {
    if (line.trim() === "") continue;
    const at = line.indexOf(mark);
    if (at < 1) throw new Error(`“${line.trim().slice(0, 60)}” is not NAME${mark}value`);
    found[line.slice(0, at).trim()] = line.slice(at + 1).trim();
  }
  return found;
}

/** The entries of a pasted file, of any client that has one. Throws, in words, where there are none. */
export function entriesOf(text: string): Entry[] {
  let read: unknown;
  try {
    read = JSON.parse(withoutComments(text));
  } catch (exc) {
    throw new Error(`This is not JSON: ${exc instanceof Error ? exc.message : String(exc)}`);
  }
  if (!isObject(read)) throw new Error("Expected an object such as {“mcpServers”: {…}}");
  const nested = isObject(read["mcp"]) ? (read["mcp"] as Record<string, unknown>)["servers"] : undefined;
  const named = [read["mcpServers"], read["servers"], read["context_servers"], nested].find(isObject);
  const list = named ?? (Object.values(read).every(isServer) ? read : undefined);
  if (list === undefined && isServer(read)) throw new Error("This is one server without a name: {“mcpServers”: {“name”: {…}}}");
  if (list === undefined) throw new Error("No “mcpServers” in it, and no “servers”");
  const found = Object.entries(list).filter(([, entry]) => isObject(entry));
  if (found.length === 0) throw new Error("It names no server");
  return found.map(([server_id, entry]) => ({ ...(entry as Record<string, unknown>), server_id }));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isServer(value: unknown): boolean {
  return isObject(value) && (typeof value["command"] === "string" || typeof value["url"] === "string" || typeof value["httpUrl"] === "string");
}

/** What JSON of editors has beside JSON: comments, and a comma too many. */
function withoutComments(text: string): string {
  return text
    .replace(/("(?:[^"\\]|\\.)*")|\/\/[^\n]*|\/\*[\s\S]*?\*\//g, (_all, string: string | undefined) => string ?? "")
    .replace(/("(?:[^"\\]|\\.)*")|,(\s*[}\]])/g, (_all, string: string | undefined, end: string | undefined) => string ?? end ?? "");
}

/** What an entry starts or reaches, in a line. Values of variables and headers may be secrets: they are left out. */
export function described(entry: Entry): string {
  if (typeof entry["command"] === "string") return [entry["command"], ...(Array.isArray(entry["args"]) ? entry["args"] : [])].join(" ");
  return String(entry["url"] ?? entry["httpUrl"] ?? "?");
}

/** The names of an entry's variables and headers whose values look like secrets written out. */
export function writtenOut(entry: Entry): string[] {
  const all = { ...(isObject(entry["env"]) ? entry["env"] : {}), ...(isObject(entry["headers"]) ? entry["headers"] : {}) };
  return Object.entries(all)
    .filter(([name, value]) => /key|token|secret|password|authorization/i.test(name) && typeof value === "string" && value !== "" && !value.includes("${"))
    .map(([name]) => name);
}
