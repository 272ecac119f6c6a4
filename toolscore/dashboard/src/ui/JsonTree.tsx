import { useState } from "react";
import { Button } from "./basics";
import { visible } from "./text";

const SHOWN_MEMBERS = 100;
const SHOWN_CHARACTERS = 2000;
const OPEN_DEPTH = 2;

/** A JSON value as a tree that opens and closes; long lists and texts are shown piece by piece. */
export function JsonTree({ value, label }: { value: unknown; label: string }) {
  return (
    <div className="json" role="group" aria-label={label}>
      <Node value={value} depth={0} />
    </div>
  );
}

function Node({ name, value, depth }: { name?: string; value: unknown; depth: number }) {
  const key = name === undefined ? null : <span className="json-key">{visible(name)}: </span>;
  if (typeof value !== "object" || value === null)
    return (
      <div className="json-line">
        {key}
        <Leaf value={value} />
      </div>
    );
  const list = Array.isArray(value);
  const members: [string, unknown][] = list ? value.map((one, index) => [String(index), one]) : Object.entries(value);
  if (members.length === 0)
    return (
      <div className="json-line">
        {key}
        {list ? "[]" : "{}"}
      </div>
    );
  return <Branch label={key} members={members} list={list} depth={depth} />;
}

function Branch({
  label,
  members,
  list,
  depth,
}: {
  label: React.ReactNode;
  members: [string, unknown][];
  list: boolean;
  depth: number;
}) {
  const [open, setOpen] = useState(depth < OPEN_DEPTH);
  const [shown, setShown] = useState(SHOWN_MEMBERS);
  return (
    <div>
      <button type="button" className="json-toggle" aria-expanded={open} onClick={() => setOpen(!open)}>
        <span aria-hidden>{open ? "▾" : "▸"}</span> {label}
        <span className="dim">
          {list ? "[" : "{"}
          {!open && `${members.length} …`}
          {!open && (list ? "]" : "}")}
        </span>
      </button>
      {open && (
        <div className="json-members">
          {members.slice(0, shown).map(([name, value]) => (
            <Node key={name} {...(list ? {} : { name })} value={value} depth={depth + 1} />
          ))}
          {members.length > shown && (
            <Button look="quiet" onClick={() => setShown(shown + SHOWN_MEMBERS * 10)}>
              {members.length - shown} more
            </Button>
          )}
        </div>
      )}
      {open && <span className="dim">{list ? "]" : "}"}</span>}
    </div>
  );
}

function Leaf({ value }: { value: unknown }) {
  const [all, setAll] = useState(false);
  if (typeof value !== "string") return <span className="json-value">{String(value)}</span>;
  const long = value.length > SHOWN_CHARACTERS;
  return (
    <>
      <span className="json-text" dir="ltr">
        {JSON.stringify(visible(long && !all ? value.slice(0, SHOWN_CHARACTERS) : value)).replaceAll("\\n", "\n")}
      </span>
      {long && !all && (
        <Button look="quiet" onClick={() => setAll(true)}>
          … {value.length - SHOWN_CHARACTERS} characters more
        </Button>
      )}
    </>
  );
}
