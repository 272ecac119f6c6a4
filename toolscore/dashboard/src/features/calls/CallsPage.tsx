import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { getRouteApi, useNavigate } from "@tanstack/react-router";
import { Download, Pause, Play } from "lucide-react";
import { useEffect, useMemo, useRef, useState } from "react";
import { api, data } from "../../api/client";
import { calls as callsQuery, queryClient, servers, stats as statsQuery, type CallFilter } from "../../api/queries";
import { Asked, Button, Card, Page, toast } from "../../ui/basics";
import { useDraft } from "../../ui/draft";
import { oneLine } from "../../ui/text";
import { CallTable } from "./CallTable";

const route = getRouteApi("/ui/calls");
const SETTLE_MS = 150;
const PAGE = 50; // little, since it is asked for each second while calls come
const OUTCOMES = ["ok", "tool_error", "cancelled", "invalid_arguments", "forbidden", "tool_not_found", "rate_limited", "overloaded", "circuit_open", "upstream_unavailable", "upstream_timeout", "upstream_protocol_error", "outcome_unknown"]; // prettier-ignore

/** The journal, as it grows. */
export function CallsPage() {
  const filter = route.useSearch();
  const navigate = useNavigate({ from: "/ui/calls" });
  const [live, setLive] = useState(true);
  const asked = useInfiniteQuery(callsQuery(filter, PAGE));
  const all = useQuery(servers());
  useGrowth(filter, live && asked.data !== undefined && asked.data.pages.length === 1);
  const rows = useMemo(() => {
    const seen = new Set<string>();
    return (asked.data?.pages.flatMap((page) => page.calls) ?? []).filter((one) => !seen.has(one.call_id) && seen.add(one.call_id));
  }, [asked.data]);
  const set = (change: Partial<CallFilter>): void => void navigate({ search: (now) => ({ ...now, ...change }), replace: true });
  return (
    <Page
      title="Calls"
      lead="Everything that was called, by whom, and how it went."
      actions={
        <>
          <Button aria-pressed={live} onClick={() => setLive(!live)}>
            {live ? <Pause size={15} aria-hidden /> : <Play size={15} aria-hidden />} {live ? "Pause" : "Follow"}
          </Button>
          <Export filter={filter} />
        </>
      }
    >
      <Card>
        <div className="filters">
          <label>
            Server{" "}
            <select value={filter.server_id ?? ""} onChange={(event) => set({ server_id: event.target.value || undefined })}>
              <option value="">all</option>
              {(all.data?.servers ?? []).map((one) => (
                <option key={one.server_id} value={one.server_id}>
                  {oneLine(one.server_id, 40)}
                </option>
              ))}
            </select>
          </label>
          <TextFilter label="Tool" value={filter.tool_id} placeholder="time__get_current_time" onChange={(tool_id) => set({ tool_id })} />
          <label>
            Outcome{" "}
            <select value={filter.outcome ?? ""} onChange={(event) => set({ outcome: event.target.value || undefined })}>
              <option value="">all</option>
              {OUTCOMES.map((one) => (
                <option key={one} value={one}>
                  {one.replaceAll("_", " ")}
                </option>
              ))}
            </select>
          </label>
          <TextFilter label="Caller" value={filter.principal} placeholder="local" onChange={(principal) => set({ principal })} />
          <TextFilter label="Request id" value={filter.request_id} placeholder="" onChange={(request_id) => set({ request_id })} />
          {(filter.parent ?? filter.since ?? filter.until) !== undefined && (
            <Button look="quiet" onClick={() => set({ parent: undefined, since: undefined, until: undefined })}>
              {filter.parent ? "of one run of code" : "a stretch of time"} ✕
            </Button>
          )}
        </div>
        <Asked query={asked}>
          {() => <CallTable calls={rows} more={asked.hasNextPage && !asked.isFetchingNextPage} onEnd={() => void asked.fetchNextPage()} />}
        </Asked>
      </Card>
    </Page>
  );
}

function TextFilter({ label, value, placeholder, onChange }: { label: string; value: string | undefined; placeholder: string; onChange: (value: string | undefined) => void }) {
  const { typed, setTyped, settle } = useDraft(value, onChange);
  return (
    <label>
      {label}{" "}
      <input
        value={typed}
        placeholder={placeholder}
        spellCheck={false}
        onChange={(event) => setTyped(event.target.value)}
        onBlur={settle}
        onKeyDown={(event) => {
          if (event.key === "Enter") event.currentTarget.blur();
        }}
      />
    </label>
  );
}

/** The figures say each second how many calls there were: if there are more, the newest page is asked for. */
function useGrowth(filter: CallFilter, on: boolean): void {
  const stats = useQuery(statsQuery());
  const written = (stats.data?.journal as { written?: number } | undefined)?.written;
  const before = useRef(written);
  const key = JSON.stringify(filter);
  useEffect(() => {
    if (!on || written === undefined || written === before.current) return;
    before.current = written;
    const timer = setTimeout(() => void queryClient.invalidateQueries({ queryKey: ["calls", JSON.parse(key)] }), SETTLE_MS);
    return () => clearTimeout(timer);
  }, [written, on, key]);
}

/** A server's calls as a file that `python -m mcp_servers.recorded` serves. */
function Export({ filter }: { filter: CallFilter }) {
  const [busy, setBusy] = useState(false);
  const server = filter.server_id;
  return (
    <Button
      busy={busy}
      disabled={server === undefined}
      title={server === undefined ? "Choose a server first: its calls are exported" : "As python -m mcp_servers.recorded serves it"}
      onClick={() => {
        if (server === undefined) return;
        setBusy(true);
        data(api.GET("/api/v1/calls/export", { params: { query: { server_id: server, ...(filter.since ? { since: filter.since } : {}), ...(filter.until ? { until: filter.until } : {}) } } }))
          .then((found) => {
            const link = document.createElement("a");
            link.href = URL.createObjectURL(new Blob([JSON.stringify(found, null, 2)], { type: "application/json" }));
            link.download = `${server.replaceAll(/[^A-Za-z0-9._-]/g, "_")}.json`;
            link.click();
            setTimeout(() => URL.revokeObjectURL(link.href), 1000);
          })
          .catch((error: Error) => toast(error.message, "bad"))
          .finally(() => setBusy(false));
      }}
    >
      <Download size={15} aria-hidden /> Export
    </Button>
  );
}
