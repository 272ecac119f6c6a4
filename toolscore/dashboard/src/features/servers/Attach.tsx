import { useState, type FormEvent } from "react";
import { ApiError, api, data } from "../../api/client";
import { queryClient } from "../../api/queries";
import { Badge, Button, Failure, Field, toast } from "../../ui/basics";
import { Code } from "../../ui/Code";
import { Dialog } from "../../ui/Dialog";
import { Tabs } from "../../ui/Tabs";
import { counted, oneLine } from "../../ui/text";
import { described, entriesOf, pairs, words, writtenOut, type Entry } from "./entries";

async function attach(entry: Entry): Promise<void> {
  await data(api.POST("/api/v1/servers", { body: entry }));
}

/** Adds servers: by a command, an address, or a client's file. */
export function Attach({ open, onClose, taken }: { open: boolean; onClose: () => void; taken: ReadonlySet<string> }) {
  const done = (ids: string[]): void => {
    toast(`${ids.map((id) => oneLine(id, 40)).join(", ")}: being started`, "good");
    void queryClient.invalidateQueries({ queryKey: ["servers"] });
    onClose();
  };
  return (
    <Dialog title="Add a server" lead="It is there again after a restart of the gateway." open={open} onClose={onClose} wide>
      <Tabs
        label="How it is reached"
        tabs={[
          { id: "command", title: "A command", content: () => <ByCommand taken={taken} onDone={done} /> },
          { id: "url", title: "An address", content: () => <ByUrl taken={taken} onDone={done} /> },
          { id: "paste", title: "Paste a file", content: () => <ByFile taken={taken} onDone={done} /> },
        ]}
      />
    </Dialog>
  );
}

const REFERENCES = (
  <>
    One a line. Secrets by reference: <code>{"${env:NAME}"}</code> or <code>{"${file:/path}"}</code>.
  </>
);

interface Way {
  taken: ReadonlySet<string>;
  onDone: (ids: string[]) => void;
}

function useSubmit(onDone: (ids: string[]) => void): [(event: FormEvent, make: () => Entry) => void, unknown, boolean] {
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const submit = (event: FormEvent, make: () => Entry): void => {
    event.preventDefault();
    setError(null);
    setBusy(true);
    Promise.resolve()
      .then(make)
      .then((entry) => attach(entry).then(() => onDone([entry.server_id])))
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return [submit, error, busy];
}

function IdField({ value, onChange, taken }: { value: string; onChange: (id: string) => void; taken: ReadonlySet<string> }) {
  return (
    <Field label="Its id here" hint={taken.has(value.trim()) ? "This id is taken." : "Its tools are named id__tool."}>
      {(id) => <input id={id} required maxLength={128} pattern="[^\/]+" value={value} placeholder="time" autoComplete="off" spellCheck={false} onChange={(event) => onChange(event.target.value)} />}
    </Field>
  );
}

function ByCommand({ taken, onDone }: Way) {
  const [id, setId] = useState("");
  const [line, setLine] = useState("");
  const [env, setEnv] = useState("");
  const [submit, error, busy] = useSubmit(onDone);
  const make = (): Entry => {
    const [command, ...args] = words(line);
    if (command === undefined) throw new Error("Which command starts it?");
    const given = pairs(env, "=");
    return { server_id: id.trim(), command, args, ...(Object.keys(given).length > 0 ? { env: given } : {}) };
  };
  return (
    <form onSubmit={(event) => submit(event, make)}>
      <IdField value={id} onChange={setId} taken={taken} />
      <Field label="Command" hint="As in a shell, but no shell reads it. uvx and npx fetch what is not there.">
        {(field) => <input id={field} required value={line} placeholder="uvx mcp-server-time" autoComplete="off" spellCheck={false} onChange={(event) => setLine(event.target.value)} />}
      </Field>
      <Field label="Variables" hint={REFERENCES}>
        {(field) => <textarea id={field} rows={3} value={env} placeholder={"API_TOKEN=${env:API_TOKEN}"} spellCheck={false} onChange={(event) => setEnv(event.target.value)} />}
      </Field>
      {error !== null && <Failure error={error} />}
      <Button look="primary" type="submit" busy={busy}>
        Add it
      </Button>
    </form>
  );
}

function ByUrl({ taken, onDone }: Way) {
  const [id, setId] = useState("");
  const [url, setUrl] = useState("");
  const [headers, setHeaders] = useState("");
  const [submit, error, busy] = useSubmit(onDone);
  const make = (): Entry => {
    const given = pairs(headers, ":");
    return { server_id: id.trim(), url: url.trim(), ...(Object.keys(given).length > 0 ? { headers: given } : {}) };
  };
  return (
    <form onSubmit={(event) => submit(event, make)}>
      <IdField value={id} onChange={setId} taken={taken} />
      <Field label="Address" hint="http, https, ws or wss.">
        {(field) => <input id={field} required value={url} placeholder="https://example.com/mcp" autoComplete="off" spellCheck={false} onChange={(event) => setUrl(event.target.value)} />}
      </Field>
      <Field label="Headers" hint={REFERENCES}>
        {(field) => <textarea id={field} rows={3} value={headers} placeholder={"Authorization: Bearer ${env:API_TOKEN}"} spellCheck={false} onChange={(event) => setHeaders(event.target.value)} />}
      </Field>
      {error !== null && <Failure error={error} />}
      <Button look="primary" type="submit" busy={busy}>
        Add it
      </Button>
    </form>
  );
}

type Fate = "waits" | "added" | { refused: string };

function ByFile({ taken, onDone }: Way) {
  const [text, setText] = useState("");
  const [entries, setEntries] = useState<Entry[] | null>(null);
  const [chosen, setChosen] = useState<ReadonlySet<string>>(new Set());
  const [fates, setFates] = useState<Record<string, Fate>>({});
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const toAdd = (entries ?? []).filter((one) => chosen.has(one.server_id) && !taken.has(one.server_id)); // which ids are taken may be known later

  function preview(): void {
    setError(null);
    try {
      const found = entriesOf(text);
      setEntries(found);
      setChosen(new Set(found.map((one) => one.server_id)));
    } catch (exc) {
      setError(exc);
    }
  }

  async function add(): Promise<void> {
    setBusy(true);
    const added: string[] = [];
    let refused = false;
    for (const entry of toAdd) {
      try {
        await attach(entry);
        added.push(entry.server_id);
        setFates((now) => ({ ...now, [entry.server_id]: "added" }));
        setChosen((now) => new Set([...now].filter((id) => id !== entry.server_id)));
      } catch (exc) {
        refused = true;
        setFates((now) => ({ ...now, [entry.server_id]: { refused: exc instanceof ApiError ? exc.message : String(exc) } }));
      }
    }
    setBusy(false);
    if (!refused) onDone(added);
    else void queryClient.invalidateQueries({ queryKey: ["servers"] });
  }

  if (entries === null)
    return (
      <>
        <p className="dim">
          The file of Claude Desktop, Cursor, VS Code or another client: what has <code>mcpServers</code> or <code>servers</code> in it. You see what would be
          added first.
        </p>
        <Code label="A client's file" language="json" value={text} onChange={setText} />
        {error !== null && <Failure error={error} />}
        <Button look="primary" disabled={text.trim() === ""} onClick={preview}>
          Look at it
        </Button>
      </>
    );
  return (
    <>
      <ul className="rows">
        {entries.map((entry) => {
          const fate = fates[entry.server_id];
          const open = writtenOut(entry);
          return (
            <li key={entry.server_id}>
              <label className="check grow">
                <input
                  type="checkbox"
                  checked={toAdd.includes(entry)}
                  disabled={taken.has(entry.server_id) || fate === "added"}
                  onChange={(event) => setChosen(new Set(event.target.checked ? [...chosen, entry.server_id] : [...chosen].filter((id) => id !== entry.server_id)))}
                />
                <span>
                  <strong>{oneLine(entry.server_id, 60)}</strong> <code>{oneLine(described(entry), 120)}</code>
                  {open.length > 0 && <span className="problem"> {open.join(", ")}: a secret stands in it. A reference such as {"${env:NAME}"} keeps it out of the gateway's database.</span>}
                  {typeof fate === "object" && <span className="problem"> {fate.refused}</span>}
                </span>
              </label>
              {taken.has(entry.server_id) && <Badge>id is taken</Badge>}
              {fate === "added" && <Badge tone="good">added</Badge>}
            </li>
          );
        })}
      </ul>
      <div className="actions">
        <Button onClick={() => setEntries(null)}>Back</Button>
        <Button look="primary" busy={busy} disabled={toAdd.length === 0} onClick={() => void add()}>
          Add {counted(toAdd.length, "server")}
        </Button>
      </div>
    </>
  );
}
