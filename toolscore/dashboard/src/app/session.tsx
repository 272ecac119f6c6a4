import { useQuery } from "@tanstack/react-query";
import { KeyRound } from "lucide-react";
import { createContext, useContext, useEffect, useState, type FormEvent, type ReactNode } from "react";
import { ApiError, api, currentKey, showKey, whenRefused, whole } from "../api/client";
import { queryClient, whoami } from "../api/queries";
import { Button, Failure, Field, Loading } from "../ui/basics";

export interface Me {
  principal: string;
  scopes: string[];
  version: string;
  admin: boolean;
}

const Who = createContext<Me | null>(null);

/** Who this page acts as. */
export function useMe(): Me {
  const me = useContext(Who);
  if (me === null) throw new Error("nobody is known outside the session");
  return me;
}

/** Lets in whoever the gateway knows, and asks for a key where it does not. */
export function Session({ children }: { children: ReactNode }) {
  const asked = useQuery(whoami());
  const [refused, setRefused] = useState(false);
  useEffect(() => whenRefused(() => setRefused(true)), []);
  const needsKey = refused || (asked.error instanceof ApiError && asked.error.status === 401);
  if (needsKey)
    return (
      <main className="gate" id="main">
        <KeyForm
          why={asked.error instanceof Error ? asked.error.message : "the key that was shown is good no more"}
          onDone={() => setRefused(false)}
        />
        {currentKey() !== null && (
          <Button
            look="quiet"
            onClick={() => {
              showKey(null, false);
              setRefused(false);
              window.dispatchEvent(new Event("toolscore:key"));
              void queryClient.resetQueries();
            }}
          >
            Go on without a key
          </Button>
        )}
      </main>
    );
  if (asked.data !== undefined) {
    const me = { ...asked.data, admin: asked.data.scopes.includes("admin") };
    return <Who value={me}>{children}</Who>;
  }
  if (asked.error !== null)
    return (
      <main className="gate" id="main">
        <Failure error={asked.error} retry={() => void asked.refetch()} />
      </main>
    );
  return <Loading what="Asking the gateway" />;
}

/** Asks for an API key. It stays in memory, or in this tab if that is wanted. */
export function KeyForm({ why, onDone }: { why?: string; onDone: () => void }) {
  const [key, setKey] = useState("");
  const [keep, setKeep] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  async function enter(event: FormEvent): Promise<void> {
    event.preventDefault();
    setBusy(true);
    setError(null);
    const before = currentKey();
    showKey(key.trim() || null, keep);
    try {
      const now = (await whole(api.GET("/api/v1/whoami"), { quiet: true })).data;
      queryClient.setQueryData(whoami().queryKey, now);
      await queryClient.resetQueries({ predicate: (query) => query.queryKey[0] !== "whoami" });
      onDone();
      window.dispatchEvent(new Event("toolscore:key"));
    } catch (exc) {
      showKey(before, false);
      setError(exc);
    } finally {
      setBusy(false);
    }
  }
  return (
    <form className="card key-form" onSubmit={(event) => void enter(event)}>
      <h1>
        <KeyRound size={20} aria-hidden /> Your key
      </h1>
      {why !== undefined && <p className="dim">{why}</p>}
      <Field
        label="API key"
        hint={
          <>
            <code>toolscore keys create NAME --scope admin</code> makes one, on the machine of the gateway.
          </>
        }
      >
        {(id) => (
          <input
            id={id}
            type="password"
            autoComplete="off"
            spellCheck={false}
            value={key}
            placeholder="ts_…"
            onChange={(event) => setKey(event.target.value)}
          />
        )}
      </Field>
      <label className="check">
        <input type="checkbox" checked={keep} onChange={(event) => setKeep(event.target.checked)} />
        Keep it while this tab is open
      </label>
      {error !== null && <Failure error={error} />}
      <Button type="submit" look="primary" busy={busy} disabled={key.trim() === ""}>
        Go on
      </Button>
    </form>
  );
}
