import { useQuery } from "@tanstack/react-query";
import { getRouteApi, useNavigate } from "@tanstack/react-router";
import { Pause, Play } from "lucide-react";
import { useMemo, useState, type FormEvent } from "react";
import { useSeenEvents } from "../../app/Shell";
import { pastEvents } from "../../api/queries";
import { KEPT_EVENTS, type LiveEvent } from "../../live/socket";
import { Badge, Button, Card, Empty, Failure, Loading, Page } from "../../ui/basics";
import { DataTable, type ColumnDef } from "../../ui/DataTable";
import { JsonTree } from "../../ui/JsonTree";
import { clock, counted, number, oneLine } from "../../ui/text";

const route = getRouteApi("/ui/events");
const TONES: Record<string, "good" | "bad" | "warn" | "info" | "plain"> = {
  tool_installed: "good", server_up: "good", tool_released: "good", tool_removed: "plain", tool_updated: "info",
  tool_quarantined: "warn", server_down: "bad", install_failed: "bad", settings_rejected: "bad", circuit_changed: "warn",
  gap_detected: "info", approval_needed: "warn", lagged: "warn",
}; // prettier-ignore

const COLUMNS: ColumnDef<LiveEvent>[] = [
  { id: "seq", header: "Seq", cell: ({ row }) => <span className="dim">{row.original.seq ?? "–"}</span> },
  { id: "at", header: "When", cell: ({ row }) => <time dateTime={row.original.timestamp}>{clock(row.original.timestamp)}</time> },
  { id: "type", header: "Event", cell: ({ row }) => <Badge tone={TONES[row.original.type] ?? "plain"}>{row.original.type.replaceAll("_", " ")}</Badge> },
  {
    id: "what",
    header: "What",
    cell: ({ row }) => (
      <details>
        <summary>{oneLine(summary(row.original), 160)}</summary>
        <JsonTree value={row.original} label="event" />
      </details>
    ),
  },
];

function summary(event: LiveEvent): string {
  const { type: _type, timestamp: _timestamp, seq: _seq, capabilities: _capabilities, description: _description, tool_type: _kind, name: _name, ...rest } = event;
  return Object.entries(rest)
    .filter(([, value]) => value !== null && value !== "")
    .map(([name, value]) => (name === "tool_id" || name === "server_id" ? String(value) : `${name}: ${typeof value === "object" ? JSON.stringify(value) : String(value)}`))
    .join(" · ");
}

/** The log of events: what was, and what happens now. */
export function EventsPage() {
  const { type, since } = route.useSearch();
  const navigate = useNavigate({ from: "/ui/events" });
  const live = useSeenEvents();
  const [paused, setPaused] = useState<typeof live | null>(null);
  const [from, setFrom] = useState(since === undefined ? "" : String(since));

  const asked = useQuery({ ...pastEvents(since), refetchOnMount: "always" });
  const past = asked.data?.events;
  const rows = useMemo(() => {
    const shown = (paused ?? live).newest;
    const known = (past ?? []) as LiveEvent[];
    const newest = known.at(-1)?.seq ?? 0;
    const all = [...known, ...shown.filter((one) => one.seq === undefined || one.seq === null || one.seq > newest)];
    return all.filter((one) => type === undefined || one.type === type).reverse();
  }, [past, live, paused, type]);
  const missed = paused === null ? 0 : live.total - paused.total;

  return (
    <Page
      title="Events"
      lead="Everything that changes, in one order. Every subscriber hears the same."
      actions={
        <Button aria-pressed={paused !== null} onClick={() => setPaused(paused === null ? live : null)}>
          {paused === null ? <Pause size={15} aria-hidden /> : <Play size={15} aria-hidden />}
          {paused === null ? "Pause" : `Go on${missed > 0 ? ` (${number(missed)} new)` : ""}`}
        </Button>
      }
    >
      <Card>
        <form
          className="filters"
          onSubmit={(event: FormEvent) => {
            event.preventDefault();
            void navigate({ search: (now) => ({ ...now, since: /^\d{1,15}$/.test(from) ? Number(from) : undefined }), replace: true });
          }}
        >
          <label>
            Event{" "}
            <select value={type ?? ""} onChange={(event) => void navigate({ search: (now) => ({ ...now, type: event.target.value || undefined }), replace: true })}>
              <option value="">all</option>
              {KEPT_EVENTS.map((one) => (
                <option key={one} value={one}>
                  {one.replaceAll("_", " ")}
                </option>
              ))}
            </select>
          </label>
          <label>
            From seq <input inputMode="numeric" pattern="[0-9]*" value={from} placeholder="the last few" onChange={(event) => setFrom(event.target.value)} />
          </label>
          <Button type="submit">Show</Button>
          <span className="dim">{counted(rows.length, "event")}</span>
        </form>
        {asked.error !== null && <Failure error={asked.error} retry={() => void asked.refetch()} />}
        <DataTable<LiveEvent>
          label="Events"
          rows={rows}
          columns={COLUMNS}
          grid="5rem 7.5rem 10rem minmax(12rem, 1fr)"
          rowKey={(row) => `${row.seq ?? row.timestamp} ${row.type}`}
          sortable={false}
          empty={asked.isPending ? <Loading /> : <Empty title={type === undefined ? "Nothing has happened yet" : `No “${type.replaceAll("_", " ")}” among the events that are shown`} />}
        />
      </Card>
    </Page>
  );
}
