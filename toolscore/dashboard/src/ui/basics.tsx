import { Check, Copy as CopyIcon, Search, TriangleAlert } from "lucide-react";
import { useEffect, useId, useState, useSyncExternalStore, type ButtonHTMLAttributes, type ReactNode } from "react";
import { ApiError } from "../api/client";
import { ago, bytes, visible } from "./text";

type Tone = "good" | "bad" | "warn" | "info" | "plain";

export function Button({
  look = "plain",
  busy = false,
  ...rest
}: ButtonHTMLAttributes<HTMLButtonElement> & { look?: "primary" | "danger" | "plain" | "quiet"; busy?: boolean }) {
  return (
    <button
      type="button"
      {...rest}
      className={`button ${look} ${rest.className ?? ""}`}
      aria-busy={busy || undefined}
      disabled={busy || rest.disabled}
    />
  );
}

export function Badge({ tone = "plain", children, title }: { tone?: Tone; children: ReactNode; title?: string }) {
  return (
    <span className={`badge ${tone}`} title={title}>
      {children}
    </span>
  );
}

const TONES: Record<string, Tone> = {
  up: "good", idle: "good", healthy: "good", ok: "good", closed: "good", sufficient: "good", live: "good",
  starting: "info", half_open: "warn", unsure: "warn", degraded: "warn", tool_error: "warn", cancelled: "plain",
  stopped: "plain", disabled: "plain", down: "bad", failed: "bad", open: "bad", gap: "bad",
}; // prettier-ignore

/** A state or outcome in its colour; what it does not know is bad news. */
export function State({ of, fallback = "bad" }: { of: string; fallback?: Tone }) {
  return <Badge tone={TONES[of] ?? fallback}>{of.replaceAll("_", " ")}</Badge>;
}

/** A page's head: its title becomes the window's. */
export function Page({
  title,
  lead,
  actions,
  children,
}: {
  title: string;
  lead?: ReactNode;
  actions?: ReactNode;
  children: ReactNode;
}) {
  useEffect(() => {
    document.title = `${visible(title)} · ToolScore`;
  }, [title]);
  return (
    <>
      <header className="page-head">
        <div>
          <h1>{visible(title)}</h1>
          {lead !== undefined && <div className="lead">{lead}</div>}
        </div>
        {actions !== undefined && <div className="actions">{actions}</div>}
      </header>
      {children}
    </>
  );
}

export function Card({
  title,
  actions,
  children,
  className = "",
}: {
  title?: ReactNode;
  actions?: ReactNode;
  children: ReactNode;
  className?: string;
}) {
  const id = useId();
  return (
    <section className={`card ${className}`} aria-labelledby={title !== undefined ? id : undefined}>
      {title !== undefined && (
        <div className="card-head">
          <h2 id={id}>{title}</h2>
          {actions !== undefined && <div className="actions">{actions}</div>}
        </div>
      )}
      {children}
    </section>
  );
}

export function Facts({ of }: { of: [string, ReactNode][] }) {
  return (
    <dl className="facts">
      {of
        .filter(([, value]) => value !== null && value !== undefined && value !== "")
        .map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{typeof value === "string" ? visible(value) : value}</dd>
          </div>
        ))}
    </dl>
  );
}

export function Empty({ title, children }: { title: string; children?: ReactNode }) {
  return (
    <div className="empty">
      <p className="empty-title">{title}</p>
      {children}
    </div>
  );
}

export function Loading({ what = "Loading" }: { what?: string }) {
  return (
    <div className="loading" role="status">
      <span className="visually-hidden">{what} …</span>
      <span className="bone" />
      <span className="bone short" />
      <span className="bone" />
    </div>
  );
}

/** What went wrong, in the gateway's words, and what to do. */
export function Failure({ error, retry }: { error: unknown; retry?: () => void }) {
  const known = error instanceof ApiError ? error : null;
  const message = error instanceof Error ? error.message : String(error);
  return (
    <div className="failure" role="alert">
      <TriangleAlert size={18} aria-hidden />
      <div>
        <p>{visible(message)}</p>
        {known?.suggestion && <p className="dim">{visible(known.suggestion)}</p>}
        {known !== null && known.status === 403 && (
          <p className="dim">Use a key with the scope admin: “Key” at the top of the page.</p>
        )}
        {retry !== undefined && <Button onClick={retry}>Try again</Button>}
      </div>
    </div>
  );
}

/** One of the four things that a query can be. */
export function Asked<T>({
  query,
  children,
}: {
  query: { data: T | undefined; error: unknown; isPending: boolean; refetch: () => unknown };
  children: (data: T) => ReactNode;
}) {
  if (query.data !== undefined)
    return (
      <>
        {query.error !== null && query.error !== undefined && (
          <p className="stale" role="status">
            Shown as it was: {query.error instanceof Error ? query.error.message : "the gateway does not answer"}
          </p>
        )}
        {children(query.data)}
      </>
    );
  if (query.error !== null && query.error !== undefined)
    return <Failure error={query.error} retry={() => void query.refetch()} />;
  return <Loading />;
}

const clockListeners = new Set<() => void>();
let nowShown = Date.now();
let ticking: ReturnType<typeof setInterval> | undefined;

function onTick(told: () => void): () => void {
  clockListeners.add(told);
  ticking ??= setInterval(() => {
    nowShown = Date.now();
    for (const listener of clockListeners) listener();
  }, 1000);
  return () => {
    clockListeners.delete(told);
    if (clockListeners.size === 0) {
      clearInterval(ticking);
      ticking = undefined;
    }
  };
}

/** The time, once a second, the same for all who show it. */
export function useNow(): number {
  return useSyncExternalStore(onTick, () => nowShown);
}

export function Ago({ at }: { at: string | null | undefined }) {
  const now = useNow();
  if (!at) return <>–</>;
  return (
    <time dateTime={at} title={new Date(at).toLocaleString()}>
      {ago(at, Math.max(now, Date.parse(at)))}
    </time>
  );
}

export function CopyButton({ text, label = "Copy" }: { text: string; label?: string }) {
  const [done, setDone] = useState(false);
  return (
    <Button
      look="quiet"
      aria-label={label}
      title={label}
      onClick={() => {
        void navigator.clipboard?.writeText(text).then(() => {
          setDone(true);
          setTimeout(() => setDone(false), 1500);
        });
      }}
    >
      {done ? <Check size={15} aria-hidden /> : <CopyIcon size={15} aria-hidden />}
      <span className="visually-hidden" role="status">
        {done ? "copied" : ""}
      </span>
    </Button>
  );
}

/** Text to be copied: a command, a snippet. */
export function Snippet({ text, label }: { text: string; label: string }) {
  return (
    <div className="snippet">
      <pre tabIndex={0} aria-label={label}>
        {text}
      </pre>
      <CopyButton text={text} label={`Copy ${label}`} />
    </div>
  );
}

const SHOWN_CHARACTERS = 20_000;

/** A stranger's text, whole if it is not long, with a button for the rest. */
export function StrangersText({ text, className = "" }: { text: string; className?: string }) {
  const [all, setAll] = useState(false);
  const long = text.length > SHOWN_CHARACTERS;
  return (
    <>
      <pre className={`text ${className}`} tabIndex={0} dir="ltr">
        {visible(long && !all ? `${text.slice(0, SHOWN_CHARACTERS / 2)}\n\n… …\n\n${text.slice(-SHOWN_CHARACTERS / 2)}` : text)}
      </pre>
      {long && !all && (
        <Button onClick={() => setAll(true)}>Show all of it ({bytes(new Blob([text]).size)})</Button>
      )}
    </>
  );
}

export function Meter({ value, label }: { value: number; label: string }) {
  return (
    <span className="meter" role="img" aria-label={`${label} ${value.toFixed(2)}`} title={`${label} ${value.toFixed(3)}`}>
      <svg viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden>
        <rect width="100" height="6" className="meter-back" />
        <rect width={Math.max(0, Math.min(1, value)) * 100} height="6" className="meter-front" />
      </svg>
      <span>{value.toFixed(2)}</span>
    </span>
  );
}

export function Field({ label, hint, children }: { label: string; hint?: ReactNode; children: (id: string) => ReactNode }) {
  const id = useId();
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      {children(id)}
      {hint !== undefined && <p className="hint">{hint}</p>}
    </div>
  );
}

export function SearchField({ label, value, placeholder, onChange }: { label: string; value: string; placeholder: string; onChange: (text: string) => void }) {
  return (
    <label className="search">
      <Search size={16} aria-hidden />
      <span className="visually-hidden">{label}</span>
      <input type="search" value={value} placeholder={placeholder} onChange={(event) => onChange(event.target.value)} />
    </label>
  );
}

interface Toast {
  id: number;
  text: string;
  tone: Tone;
}

const TOAST_MS = 6000;
const MAX_TOASTS = 4;
let toasts: Toast[] = [];
let nextToast = 0;
const toastListeners = new Set<() => void>();

/** Says something at the edge of the page, for a moment. */
export function toast(text: string, tone: Tone = "info"): void {
  const id = nextToast++;
  toasts = [...toasts, { id, text, tone }].slice(-MAX_TOASTS);
  for (const told of toastListeners) told();
  setTimeout(() => {
    toasts = toasts.filter((one) => one.id !== id);
    for (const told of toastListeners) told();
  }, TOAST_MS);
}

export function Toasts() {
  const shown = useSyncExternalStore(
    (told) => {
      toastListeners.add(told);
      return () => toastListeners.delete(told);
    },
    () => toasts,
  );
  return (
    <div className="toasts" role="status" aria-live="polite">
      {shown.map((one) => (
        <p key={one.id} className={`toast ${one.tone}`}>
          {visible(one.text)}
        </p>
      ))}
    </div>
  );
}
